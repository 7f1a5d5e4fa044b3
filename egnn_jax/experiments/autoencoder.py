"""Graph autoencoder (section 5.2): reconstruct the edges of random graphs from node embeddings."""

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
from egnn_jax.data._packing import trimmed
from egnn_jax.data.dataset import GraphDataset
from egnn_jax.experiments import paper, plots
from egnn_jax.experiments.task import Apply, Task
from egnn_jax.graph.graph import Edges, GraphsTuple, Nodes, edge_mask, graph_mask
from egnn_jax.nn.heads import Autoencoder
from egnn_jax.training.evaluation import Metrics
from egnn_jax.training.step import Loss


@dataclasses.dataclass(frozen=True)
class GraphAutoencoder(Task):
    """Encode complete graphs with a_ij = A_ij and decode each pair of nodes; cross-entropy loss.

    Args:
      dataset: the paper's data: "community", "erdos_renyi", or "overfit" for 100 graphs to train
        and test on.
      edge_probability: the edge probability p_e of "overfit".
      dimensions: the dimension n of the coordinates.
      embedding: z is the encoder's "x", decoded by eq. 9, or its "h", decoded by a linear layer.
      noise: distinguishes nodes, drawn anew in every pass: "x" for coordinates from N(0, I), "h"
        for one feature from N(0, 1); "none" leaves x = 0 and h = 1.
      draws: average the final metrics over this many draws of the noise.
    """

    dataset: Literal["community", "erdos_renyi", "overfit"] = "community"
    edge_probability: float = 0.25
    dimensions: int = 8
    embedding: Literal["x", "h"] = "x"
    noise: Literal["x", "h", "none"] = "x"
    draws: int = 10  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    metric = "bce"

    def __post_init__(self) -> None:
        """Raise ValueError if a number is out of range."""
        if self.dimensions < 1 or self.draws < 1:
            raise ValueError(
                f"task.dimensions is {self.dimensions} and task.draws {self.draws}; expected at "
                "least 1"
            )
        if not 0 < self.edge_probability < 1:
            raise ValueError(
                f"task.edge_probability is {self.edge_probability}; expected a number between 0 "
                "and 1"
            )
        if self.dataset != "overfit" and self.edge_probability != GraphAutoencoder.edge_probability:
            raise ValueError(
                f"task.edge_probability is {self.edge_probability} of the dataset {self.dataset!r},"
                f" which does not use it; expected {GraphAutoencoder.edge_probability}"
            )

    @property
    def units(self) -> dict[str, str]:
        """Wrong edges are given in percent of all pairs."""
        return {"error": "%"}

    @property
    def paper(self) -> dict[str, float]:
        """The paper's BCE on this data set."""
        rows = paper.FIGURE5.get(self.dataset, {})
        values = {name: row[0] for name, row in rows.items() if row[0] is not None}
        noisy = values.pop("noise_gnn", None)
        if noisy is not None and self.noise == "h":
            values["gnn"] = noisy
        return values if self.noise != "none" or self.embedding == "h" else {}

    @cached_property
    def _samples(self) -> dict[str, GraphDataset]:
        return {}

    def samples(self, split: str) -> GraphDataset:
        """The complete graphs of a split, with h = 1 and a_ij = A_ij."""
        if split not in self._samples:
            self._samples[split] = complete(self.graphs(split))
        return self._samples[split]

    def graphs(self, split: str) -> list[nx.Graph]:
        """The graphs of a split."""
        return random_graphs.load(self.dataset, split, self.edge_probability)

    def network(self, model: nn.Module) -> Autoencoder:
        """The autoencoder with ``model`` as its encoder."""
        return Autoencoder(model, self.embedding)

    def graph(self, batch: GraphsTuple, key: jax.Array) -> GraphsTuple:
        """The encoder's input, with noise drawn from ``key``."""
        h = batch.nodes.h
        x = jnp.zeros((h.shape[0], self.dimensions), h.dtype)
        if self.noise == "x":
            x = jax.random.normal(key, x.shape, x.dtype)
        if self.noise == "h":
            h = jax.random.normal(key, h.shape, h.dtype)
        return batch._replace(nodes=Nodes(h=h, x=x))

    def loss(self, apply: Apply) -> Loss:
        """Binary cross-entropy, summed over the ordered pairs of a graph, averaged over graphs."""

        def loss(params: Any, batch: GraphsTuple, key: jax.Array) -> jax.Array:
            logits = apply(params, self.graph(batch, key)).edges.a
            return jnp.sum(_cross_entropy(logits, batch)) / (batch.n_node.shape[0] - 1)

        def with_metrics(params: Any, batch: GraphsTuple, key: jax.Array) -> tuple[jax.Array, dict]:
            budgets = self.samples("train").budgets(batch.n_node.shape[0] - 1)
            return trimmed(loss, budgets)(params, batch, key), {}

        return with_metrics

    def metrics(self, apply: Apply) -> Metrics:
        """``bce`` per graph, ``error`` (percentage of wrong pairs) and ``f1``; threshold 1/2."""

        def metrics(params: Any, batch: GraphsTuple, key: jax.Array) -> dict[str, Any]:
            logits = apply(params, self.graph(batch, key)).edges.a
            is_edge, mask = batch.edges.a > 0.5, edge_mask(batch)[:, None]
            predicted = logits > 0
            true_positives = jnp.sum(mask & is_edge & predicted)
            wrong_pairs = jnp.sum(mask & (is_edge != predicted))
            return {
                "bce": (jnp.sum(_cross_entropy(logits, batch)), jnp.sum(graph_mask(batch))),
                "error": (100 * wrong_pairs, jnp.sum(mask)),
                "f1": (2 * true_positives, 2 * true_positives + wrong_pairs),
            }

        return metrics

    def trivial(self, apply: Apply) -> tuple[str, Apply]:
        """Predict every edge with the share of pairs that are edges in the training graphs."""
        graphs = self.graphs("train")
        num_pairs = sum(len(graph) * (len(graph) - 1) // 2 for graph in graphs)
        density = sum(graph.number_of_edges() for graph in graphs) / num_pairs

        def predict_density(params: Any, graph: GraphsTuple) -> GraphsTuple:
            logits = jnp.full((graph.receivers.shape[0], 1), np.log(density / (1 - density)))
            return graph._replace(edges=graph.edges.replace(a=logits))

        return f"an edge between any two nodes with probability {density:.3g}", predict_density

    def plot(self, apply: Apply, params: Any, path: Path) -> Path:
        """Draw four test graphs, their reconstructions and adjacency matrices."""
        graphs = self.graphs("test")
        panels = {}
        for index in np.linspace(0, len(graphs) - 1, 4).astype(int).tolist():
            batch = self.samples("test").pack(np.array([index]))
            out = apply(params, self.graph(batch, jax.random.PRNGKey(index)))
            n_node = len(graphs[index])
            probabilities = np.zeros((n_node, n_node))
            logits = out.edges.a[: n_node * (n_node - 1), 0]
            probabilities[~np.eye(n_node, dtype=bool)] = jax.nn.sigmoid(logits)
            panels[f"test {index}"] = (graphs[index], probabilities)
        return plots.reconstructions(panels, path)

    def compare(self, results: Mapping[str, Any], folder: Path) -> list[Path]:
        """Draw ``figure5-overfit.png`` of runs on "overfit": F1 over p_e, one curve per encoder."""
        curves: dict[str, list[tuple[float, float]]] = {}
        for result in results.values():
            task, model = result["config"]["task"], result["config"]["model"]["name"]
            if task["dataset"] == "overfit":
                point = (task["edge_probability"], result["metrics"]["test"]["f1"])
                name = f"noise_{model}" if task["noise"] == "h" else model
                curves.setdefault(name, []).append(point)
        if not curves:
            return []
        labels = ("p_e", "F1 on the training graphs", "Figure 5, right: overfitting 100 graphs")
        return [plots.curves(curves, *labels, folder / "figure5-overfit.png")]

    def embed(
        self, network: nn.Module, params: Any, graph: nx.Graph, key: jax.Array | None = None
    ) -> np.ndarray:
        """Embed any graph.

        Args:
          network, params: a trained autoencoder from :func:`egnn_jax.experiments.run.load`.
          graph: a simple, undirected graph with any labels; a graph larger than those in training
            gives a warning.
          key: the random key of the noise; key 0 if not given.

        Returns:
          z (M, n), one row per node in the order of ``graph.nodes``.

        Raises:
          ValueError: the graph has no nodes, is directed, weighted or a multigraph, or has
            self-loops.
        """
        _require_simple(graph)
        if len(graph) > (largest := random_graphs.MAX_NODES[self.dataset]):
            warnings.warn(
                f"the graph has {len(graph)} nodes; the autoencoder was trained on at most "
                f"{largest}",
                stacklevel=2,
            )
        batch = complete([graph]).pack(np.zeros(1, int))
        key = jax.random.PRNGKey(0) if key is None else key
        out: Any = network.apply(params, self.graph(batch, key))
        return np.asarray(getattr(out.nodes, self.embedding)[: len(graph)])

    def reconstruct(
        self, network: nn.Module, params: Any, z: np.ndarray, nodes: Any = None
    ) -> nx.Graph:
        """Decode the graph of all edges with ``probability``, an edge attribute, above 1/2.

        Args:
          network, params: the autoencoder that made the embedding.
          z: the embedding (M, n).
          nodes: labels of the rows of z, for example ``graph.nodes``; 0 to M-1 if not given.

        Raises:
          ValueError: z has the wrong shape or is not finite, or the number of labels is wrong, or
            a label is repeated.
        """
        z = np.asarray(z)
        size = self.dimensions
        if self.embedding == "h":
            size = params["params"]["decoder"]["linear"]["kernel"].shape[0]
        if z.ndim != 2 or z.shape[1] != size or not np.isfinite(z).all():
            raise ValueError(
                f"z has shape {z.shape}; expected finite numbers (M, {size}), a row per node"
            )
        labels = list(range(len(z)) if nodes is None else nodes)
        if len(labels) != len(z):
            raise ValueError(f"nodes has {len(labels)} labels; expected {len(z)}, one per row of z")
        if duplicates := [label for k, label in enumerate(labels) if label in labels[:k]]:
            raise ValueError(f"nodes has {duplicates[0]!r} twice; expected distinct labels")
        logits: Any = network.apply(params, z[:, None], z[None], method="decode")
        probability = np.asarray(jax.nn.sigmoid(logits[..., 0]))
        graph = nx.Graph()
        graph.add_nodes_from(labels)
        for i, j in np.argwhere(np.triu(probability > 0.5, 1)).tolist():
            graph.add_edge(labels[i], labels[j], probability=float(probability[i, j]))
        return graph


def complete(graphs: list[nx.Graph]) -> GraphDataset:
    """The complete graphs over the nodes of ``graphs``, with h = 1 and a_ij = A_ij."""
    matrices = [(nx.to_numpy_array(graph) != 0).astype(np.float32) for graph in graphs]
    n_node = np.array([len(matrix) for matrix in matrices])
    off_diagonals = [matrix[~np.eye(len(matrix), dtype=bool)] for matrix in matrices]
    nodes = Nodes(h=np.ones((n_node.sum(), 1), np.float32), x=None)
    return GraphDataset.from_arrays(n_node, nodes, Edges(a=np.concatenate(off_diagonals)[:, None]))


def _require_simple(graph: nx.Graph) -> None:
    if not isinstance(graph, nx.Graph) or not len(graph):
        raise ValueError(f"graph is {graph!r}; expected a networkx.Graph with at least one node")
    if graph.is_directed() or graph.is_multigraph():
        raise ValueError(
            f"graph is a {type(graph).__name__}; expected an undirected networkx.Graph without "
            "parallel edges"
        )
    if weights := [weight for *_, weight in graph.edges.data("weight", default=1) if weight != 1]:
        raise ValueError(
            f"graph has an edge of weight {weights[0]}; expected a graph without weights"
        )
    if loops := list(nx.selfloop_edges(graph)):
        raise ValueError(
            f"graph has an edge from node {loops[0][0]!r} to itself; expected no self-loops"
        )


def _cross_entropy(logits: jax.Array, batch: GraphsTuple) -> jax.Array:
    """The cross-entropy of each edge (E, 1), 0 for padding."""
    entropy = optax.losses.sigmoid_binary_cross_entropy(logits, batch.edges.a)
    return jnp.where(edge_mask(batch)[:, None], entropy, 0.0)
