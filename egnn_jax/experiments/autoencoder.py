"""Which nodes of a random graph were joined, told from an embedding of each node alone? Section 5.2
and Figure 5.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax

from egnn_jax.data import random_graphs
from egnn_jax.data.dataset import GraphSet, trimmed
from egnn_jax.experiments.task import Apply, OfGraphSets, Sums, save
from egnn_jax.graph.graph import GraphsTuple, Nodes, edge_mask
from egnn_jax.nn.heads import Autoencoder

FIGURE5 = {
    "community": {
        "baseline": (None, 31.79, 0.0),
        "gnn": (6.75, 1.29, 0.980),
        "noise_gnn": (3.32, 0.44, 0.993),
        "radial_field": (9.22, 1.19, 0.981),
        "egnn": (2.14, 0.06, 0.999),
    },
    "erdos_renyi": {
        "baseline": (None, 25.13, 0.0),
        "gnn": (14.15, 4.62, 0.907),
        "noise_gnn": (4.56, 1.25, 0.975),
        "radial_field": (6.78, 1.63, 0.968),
        "egnn": (1.65, 0.11, 0.998),
    },
}
"""The paper's table: BCE, % error and F1 of a single draw of the noise, by data set and encoder."""


@dataclasses.dataclass(frozen=True)
class GraphAutoencoder(OfGraphSets):
    """Encode the complete graph with a_ij = A_ij, decode each pair of nodes, minimise the binary
    cross-entropy.

    Args:
      dataset: the paper's data: "community", "erdos_renyi", or "overfit" for 100 graphs to train
        and test on.
      edge_probability: p_e of "overfit".
      dimensions: n of the coordinates.
      embedding: z is the encoder's "x", decoded by eq. 9, or its "h", decoded by a linear layer.
      noise: what tells nodes apart, drawn anew at every pass: "x" coordinates from N(0, I), "h" one
        feature from N(0, 1); "none" leaves x = 0 and h = 1.
      draws: average the final metrics over so many draws of the noise.
    """

    dataset: Literal["community", "erdos_renyi", "overfit"] = "community"
    edge_probability: float = 0.25
    dimensions: int = 8
    embedding: Literal["x", "h"] = "x"
    noise: Literal["x", "h", "none"] = "x"
    draws: int = 10

    def __post_init__(self) -> None:
        """Raises ValueError where a number makes no sense."""
        if self.dimensions < 1 or self.draws < 1:
            raise ValueError(
                f"task.dimensions is {self.dimensions} and task.draws {self.draws}; expected "
                f"at least 1"
            )
        if not 0 < self.edge_probability < 1:
            raise ValueError(
                f"task.edge_probability is {self.edge_probability}; expected a number between "
                f"0 and 1"
            )

    @property
    def metric(self) -> str:
        """The binary cross-entropy."""
        return "bce"

    @property
    def units(self) -> dict[str, str]:
        """Of the share of wrong edges."""
        return {"error": "%"}

    @property
    def paper(self) -> dict[str, float]:
        """The paper's BCE on this data set, by the registry's name of the encoder."""
        rows = {
            name: row[0]
            for name, row in FIGURE5.get(self.dataset, {}).items()
            if row[0] is not None
        }
        noisy = rows.pop("noise_gnn", None)
        if noisy is not None and self.noise == "h":
            rows["gnn"] = noisy
        return rows if self.noise != "none" or self.embedding == "h" else {}

    @cached_property
    def splits(self) -> dict[str, GraphSet]:
        """The three splits as complete graphs with h = 1 and a_ij = A_ij."""
        return {split: complete(self.graphs(split)) for split in random_graphs.SPLITS}

    def graphs(self, split: str) -> list[nx.Graph]:
        """The graphs of a split."""
        return random_graphs.load(self.dataset, split, self.edge_probability)

    def network(self, model: nn.Module) -> Autoencoder:
        """The autoencoder with ``model`` as its encoder."""
        return Autoencoder(model, self.embedding)

    def graph(self, batch: GraphsTuple, key: jax.Array) -> GraphsTuple:
        """The input of the encoder, noise drawn from ``key``."""
        h = batch.nodes.h
        x = jnp.zeros((h.shape[0], self.dimensions), h.dtype)
        if self.noise == "x":
            x = jax.random.normal(key, x.shape, x.dtype)
        if self.noise == "h":
            h = jax.random.normal(key, h.shape, h.dtype)
        return batch._replace(nodes=Nodes(h=h, x=x))

    def loss(self, apply: Apply, params: Any, batch: GraphsTuple, key: jax.Array) -> jax.Array:
        """The binary cross-entropy, summed over all ordered pairs of a graph, averaged over the
        graphs of the batch.
        """
        graphs = batch.n_node.shape[0] - 1

        def loss(params: Any, batch: GraphsTuple, key: jax.Array) -> jax.Array:
            return (
                jnp.sum(_cross_entropy(apply(params, self.graph(batch, key)).edges, batch)) / graphs
            )

        return trimmed(loss, self.splits["train"].budgets(graphs))(params, batch, key)

    def metrics(
        self, apply: Apply, params: Any, batch: GraphsTuple, key: jax.Array
    ) -> dict[str, Sums]:
        """``bce`` a graph, ``error`` wrong pairs in percent of all, and ``f1`` of the edges;
        threshold 1/2.
        """
        logits = apply(params, self.graph(batch, key)).edges
        true, real = batch.edges > 0.5, edge_mask(batch)[:, None]
        told = logits > 0
        hits, wrong = jnp.sum(real & true & told), jnp.sum(real & (true != told))
        return {
            "bce": (jnp.sum(_cross_entropy(logits, batch)), jnp.sum(batch.n_node[:-1] > 0)),
            "error": (100 * wrong, jnp.sum(real)),
            "f1": (2 * hits, 2 * hits + wrong),
        }

    def details(self, apply: Apply, params: Any) -> dict[str, Any]:
        """Nothing beyond the metrics."""
        return {}

    def draw(self, apply: Apply, params: Any, path: Path) -> Path:
        """A picture of four test graphs, their reconstructions (missed edges dashed, false ones
        red) and adjacency matrices.
        """
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(4, 4, figsize=(12, 12))
        graphs = self.graphs("test")
        for row, number in zip(panels, np.linspace(0, len(graphs) - 1, 4).astype(int), strict=True):
            truth, size = graphs[number], len(graphs[number])
            out = apply(
                params,
                self.graph(self.pack("test", np.array([number])), jax.random.PRNGKey(number)),
            )
            pairs = ~np.eye(size, dtype=bool)
            told = np.zeros((size, size))
            told[pairs] = jax.nn.sigmoid(out.edges[: size * (size - 1), 0])
            again = nx.from_numpy_array(told > 0.5)
            places = nx.spring_layout(truth, seed=0)
            missed, false = nx.difference(truth, again).edges, nx.difference(again, truth).edges
            for axes, graph in zip(row, (truth, again), strict=False):
                nx.draw_networkx(
                    graph, places, ax=axes, node_size=40, with_labels=False, edge_color="grey"
                )
                axes.axis("off")
            nx.draw_networkx_edges(
                truth, places, missed, ax=row[1], edge_color="red", style="dashed"
            )
            nx.draw_networkx_edges(again, places, false, ax=row[1], edge_color="red")
            for axes, matrix in zip(row[2:], (nx.to_numpy_array(truth), told), strict=True):
                axes.imshow(matrix, vmin=0, vmax=1, cmap="Greys")
                axes.tick_params(labelsize=6)
            row[0].set_title(
                f"test {number}: {size} nodes, {truth.number_of_edges()} edges", fontsize=9
            )
            row[1].set_title(f"decoded: {len(missed)} missed, {len(false)} false", fontsize=9)
            row[2].set_title("adjacency", fontsize=9)
            row[3].set_title("decoded probabilities", fontsize=9)
        figure.tight_layout()
        return save(figure, path, dpi=110, tight=False)

    def compare(self, results: Mapping[str, Any], folder: Path) -> list[Path]:
        """``figure5-overfit.png`` for runs on "overfit": F1 over p_e, one curve an encoder."""
        import matplotlib.pyplot as plt

        curves: dict[str, list[tuple[float, float]]] = {}
        for result in results.values():
            task, model = result["config"]["task"], result["config"]["model"]["name"]
            if task["dataset"] == "overfit":
                point = (task["edge_probability"], result["metrics"]["test"]["f1"])
                curves.setdefault(f"noise_{model}" if task["noise"] == "h" else model, []).append(
                    point
                )
        if not curves:
            return []
        figure, axes = plt.subplots(figsize=(6, 4))
        for name, points in curves.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axes.set(
            xlabel="p_e",
            ylabel="F1 on the training graphs",
            title="Figure 5, right: overfitting 100 graphs",
        )
        axes.grid(alpha=0.3)
        axes.legend()
        return [save(figure, folder / "figure5-overfit.png")]

    def embed(
        self, model: nn.Module, params: Any, graph: nx.Graph, key: jax.Array | None = None
    ) -> np.ndarray:
        """The embedding of one's own graph.

        Args:
          model, params: a trained autoencoder, as :func:`egnn_jax.training.fit.load` gives it.
          graph: simple and undirected; a graph larger than those trained on gives a warning.
          key: draws the noise; key 0 if not given.

        Returns:
          z (M, n), a row for each of ``graph.nodes`` in their order.

        Raises:
          ValueError: the graph has no nodes, or is directed, weighted, a multigraph or has
            self-loops.
        """
        _require_simple(graph)
        if len(graph) > (largest := random_graphs.LARGEST[self.dataset]):
            warnings.warn(
                f"the graph has {len(graph)} nodes; the autoencoder was trained on at most "
                f"{largest}",
                stacklevel=2,
            )
        batch = complete([graph]).pack(np.zeros(1, int))
        out: Any = model.apply(
            params, self.graph(batch, jax.random.PRNGKey(0) if key is None else key)
        )
        return np.asarray(getattr(out.nodes, self.embedding)[: len(graph)])

    def reconstruct(self, model: nn.Module, params: Any, z: np.ndarray) -> nx.Graph:
        """The graph over nodes 0 to M-1 whose edges have a probability above 1/2, which they carry
        as ``probability``.

        Args:
          model, params: the autoencoder that made the embedding.
          z: the embedding (M, n).

        Raises:
          ValueError: z has another shape or is not finite.
        """
        z = np.asarray(z)
        wanted = (
            self.dimensions
            if self.embedding == "x"
            else params["params"]["decoder"]["linear"]["kernel"].shape[0]
        )
        if z.ndim != 2 or z.shape[1] != wanted or not np.isfinite(z).all():
            raise ValueError(
                f"z has shape {z.shape}; expected finite numbers (M, {wanted}), a row per node"
            )
        logits: Any = model.apply(params, z[:, None], z[None], method="decode")
        told = np.asarray(jax.nn.sigmoid(logits[..., 0]))
        graph = nx.empty_graph(len(z))
        graph.add_edges_from(
            (i, j, {"probability": float(told[i, j])})
            for i, j in np.argwhere(np.triu(told > 0.5, 1)).tolist()
        )
        return graph


def complete(graphs: list[nx.Graph]) -> GraphSet:
    """The complete graphs over the nodes of ``graphs``, with h = 1 and a_ij = A_ij."""
    matrices = [(nx.to_numpy_array(graph) != 0).astype(np.float32) for graph in graphs]
    n_node = np.array([len(matrix) for matrix in matrices])
    pairs = [matrix[~np.eye(len(matrix), dtype=bool)] for matrix in matrices]
    return GraphSet(
        n_node,
        nodes=Nodes(h=np.ones((n_node.sum(), 1), np.float32), x=None),
        edges=np.concatenate(pairs)[:, None],
    )


def _require_simple(graph: nx.Graph) -> None:
    if not isinstance(graph, nx.Graph) or not len(graph):
        raise ValueError(f"graph is {graph!r}; expected a networkx.Graph with at least one node")
    if graph.is_directed() or graph.is_multigraph():
        raise ValueError(
            f"graph is a {type(graph).__name__}; expected an undirected networkx.Graph without "
            f"parallel edges"
        )
    if weights := {weight for *_, weight in graph.edges.data("weight", default=1)} - {1}:
        raise ValueError(
            f"graph has an edge of weight {next(iter(weights))}; expected a graph without weights"
        )
    if loops := list(nx.selfloop_edges(graph)):
        raise ValueError(
            f"graph has an edge from node {loops[0][0]!r} to itself; expected no self-loops"
        )


def _cross_entropy(logits: jax.Array, batch: GraphsTuple) -> jax.Array:
    """(E, 1), 0 at padding."""
    return jnp.where(
        edge_mask(batch)[:, None],
        optax.losses.sigmoid_binary_cross_entropy(logits, batch.edges),
        0.0,
    )
