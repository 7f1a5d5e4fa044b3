"""How graphs of different sizes come to lie side by side in arrays of one shape."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph._validation import host
from egnn_jax.graph.batching import Budget, require_whole
from egnn_jax.graph.build import complete_edges
from egnn_jax.graph.graph import GraphsTuple, PaddedGraphsTuple


def complete_edge_lists(n_node: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges of a complete graph of each size that occurs.

    Returns:
      Senders and receivers, one graph after the other, and where those of M nodes start, by M.
    """
    sizes = np.unique(n_node)
    senders, receivers = (
        np.concatenate(ends) for ends in zip(*map(complete_edges, sizes), strict=True)
    )
    starts = np.zeros(sizes.max() + 1, np.int64)
    starts[sizes] = starts_of(sizes * np.maximum(sizes - 1, 0))
    return senders, receivers, starts


def budgets(n_node: np.ndarray, n_edge: np.ndarray, graphs: int, shards: int) -> list[Budget]:
    """Shapes of shards of so many graphs, for graphs of these sizes (S,), the smallest first."""
    if graphs == 1:
        order = np.argsort(n_edge, kind="stable")
        places = np.ceil(len(order) * np.array([0.25, 0.5, 0.75, 1])).astype(int)
        largest = [order[:place] for place in places]
        shapes = {(int(n_node[part].max()), int(n_edge[part].max())) for part in largest}
        return [Budget(nodes + 1, edges, 2) for nodes, edges in sorted(shapes)]
    # The largest of each class of ``arrange``, which sorts by edges: those of one class differ in
    # nodes where edges end at a cutoff. The graphs left out of an epoch and the empty places of an
    # evaluation, fewer than a batch each, shift the classes a little.
    size = graphs * shards
    order = np.argsort(n_edge, kind="stable")
    bounds = np.ceil(np.arange(size + 1) * len(order) / size).astype(int)
    windows = [order[max(start - 2 * size, 0) : end + 2 * size] for start, end in pairwise(bounds)]
    nodes, edges = (
        int(snake(largest.reshape(graphs, shards)).sum(axis=0).max())
        for largest in (np.array([count[w].max() for w in windows]) for count in (n_node, n_edge))
    )
    return [Budget(nodes + 1, edges, graphs + 1)]


class Gather:
    """Where the nodes (or edges) of batches are in the flat arrays, and where they go.

    Args:
      counts: of the graphs of each batch (K, B).
      first: the place of the first of each graph in the flat arrays (K, B).
    """

    def __init__(self, counts: np.ndarray, first: np.ndarray) -> None:
        flat = counts.reshape(-1)
        self.graph = np.repeat(np.arange(len(flat)), flat)
        within = np.arange(len(self.graph)) - starts_of(flat)[self.graph]
        self.batch = self.graph // counts.shape[1]
        self.place = starts_of(counts).reshape(-1)[self.graph] + within
        self.source = first.reshape(-1)[self.graph] + within

    def fill(self, values: np.ndarray, batches: int, budget: int) -> np.ndarray:
        """The flat ``values`` as (batches, budget, …), padded with zeros."""
        padded = np.zeros((batches, budget, *values.shape[1:]), values.dtype)
        padded[self.batch, self.place] = values[self.source]
        return padded


def snake(classes: np.ndarray) -> np.ndarray:
    """(…, rounds, shards) with every second round reversed, which evens out the shards' sizes."""
    reordered = classes.copy()
    reordered[..., 1::2, :] = reordered[..., 1::2, ::-1]
    return reordered


def starts_of(counts: np.ndarray) -> np.ndarray:
    """Where each of several runs of so many entries starts, along the last axis."""
    return np.cumsum(counts, axis=-1) - counts


def edges_within(
    n_node: np.ndarray, x: np.ndarray, cutoff: float, block: int = 10_000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges of many small graphs whose nodes are at most ``cutoff`` apart.

    Args:
      n_node: (S,).
      x: coordinates (ΣM, n).
      cutoff: a distance in the unit of x.
      block: how many graphs are looked at together, to bound the memory.

    Returns:
      The ``edge_lists`` of :meth:`egnn_jax.GraphDataset.from_arrays`.
    """
    *lists, starts = complete_edge_lists(n_node)
    blocks = []
    for first in range(0, len(n_node), block):
        sizes = n_node[first : first + block]
        count = sizes * np.maximum(sizes - 1, 0)
        graph = np.repeat(np.arange(len(sizes)), count)
        within = np.arange(len(graph)) - starts_of(count)[graph]
        senders, receivers = (ends[starts[sizes][graph] + within] for ends in lists)
        origin = n_node[:first].sum() + starts_of(sizes)[graph]
        near = ((x[origin + receivers] - x[origin + senders]) ** 2).sum(axis=1) <= cutoff**2
        n_edge = np.bincount(graph[near], minlength=len(sizes))
        blocks.append((n_edge, senders[near], receivers[near]))
    n_edge, senders, receivers = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    return n_edge.astype(np.int32), senders, receivers


def trimmed(
    loss: Callable[[Any, GraphsTuple, jax.Array], jax.Array], budgets: Sequence[Budget]
) -> Callable[..., jax.Array]:
    """``loss(params, batch, key)`` at the smallest of several budgets that holds a padded batch.

    Value and gradient with respect to ``params`` are those of ``loss``; there are no other
    derivatives. A batch that fits none but the last is taken as it is.
    """
    *smaller, _ = budgets
    if not smaller:
        return loss

    def at_smallest(
        function: Callable[..., Any], params: Any, batch: GraphsTuple, key: jax.Array
    ) -> Any:
        choices = [partial(_trim, budget=budget) for budget in smaller] + [lambda batch: batch]
        real_nodes, real_edges = jnp.sum(batch.n_node[:-1]), jnp.sum(batch.n_edge[:-1])
        fits = [(real_nodes < budget.n_node) & (real_edges <= budget.n_edge) for budget in smaller]
        index = jnp.argmax(jnp.stack([*fits, jnp.ones((), bool)]))
        return jax.lax.switch(
            index, [lambda trim=trim: function(params, trim(batch), key) for trim in choices]
        )

    @jax.custom_vjp
    def value(params: Any, batch: GraphsTuple, key: jax.Array) -> jax.Array:
        return at_smallest(loss, params, batch, key)

    # Differentiated outside, each branch would keep room for what every other one has to remember.
    def forward(params: Any, batch: GraphsTuple, key: jax.Array) -> tuple[jax.Array, Any]:
        return at_smallest(jax.value_and_grad(loss), params, batch, key)

    def backward(gradient: Any, cotangent: jax.Array) -> tuple[Any, None, None]:
        return jax.tree.map(lambda g: cotangent * g, gradient), None, None

    value.defvjp(forward, backward)
    return value


def _trim(batch: GraphsTuple, budget: Budget) -> GraphsTuple:
    """A padded batch of one graph with less padding."""

    def pad(counts: jax.Array, total: int) -> jax.Array:
        return counts.at[-1].set((total - jnp.sum(counts[:-1])).astype(counts.dtype))

    return batch._replace(
        nodes=jax.tree.map(lambda a: a[: budget.n_node], batch.nodes),
        edges=jax.tree.map(lambda a: a[: budget.n_edge], batch.edges),
        senders=batch.senders[: budget.n_edge],
        receivers=batch.receivers[: budget.n_edge],
        n_node=pad(batch.n_node, budget.n_node),
        n_edge=pad(batch.n_edge, budget.n_edge),
    )


def concatenated(trees: list[Any]) -> Any:
    """The leaves of several trees, concatenated."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)


def require_alike(graphs: Sequence[GraphsTuple]) -> None:
    """Raise ValueError where there are no graphs, or one carries other fields than the first, is
    padded or no graph.
    """
    if not graphs:
        raise ValueError("GraphDataset received no graphs; expected at least one")
    expected: dict[str, tuple[int, ...]] = {}
    for k, graph in enumerate(graphs):
        if not isinstance(graph, GraphsTuple):
            raise ValueError(
                f"graph {k} is a {type(graph).__name__}; expected a GraphsTuple, as "
                "egnn_jax.from_ase or radius_graph makes it"
            )
        if isinstance(graph, PaddedGraphsTuple):
            raise ValueError(f"graph {k} is a padded batch; expected egnn.unbatch of it")
        require_whole(f"graph {k}", graph)
        carried = {"nodes": graph.nodes, "edges": graph.edges, "globals": graph.globals}
        shapes = {
            jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf)[1:]
            for path, leaf in jax.tree_util.tree_leaves_with_path(carried)
        }
        expected = expected if k else shapes
        if shapes != expected:
            raise ValueError(f"graph {k} carries {shapes}; expected {expected}, as graph 0")


def require_flat(
    n_node: np.ndarray,
    nodes: Any,
    edges: Any,
    globals_: Any,
    edge_lists: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> None:
    """Raise ValueError where flat arrays do not fit the sizes of graphs and their edges."""
    counts = {"n_node": host("n_node", n_node)}
    if edge_lists is not None:
        counts["n_edge"] = host("n_edge", edge_lists[0])
    if nodes.x is not None and len(getattr(nodes.x, "shape", ())) != 2:
        raise ValueError(f"nodes x is a {type(nodes.x).__name__}; expected an array (ΣM, n)")
    for name, count in counts.items():
        if count.ndim != 1 or count.dtype.kind not in "iu" or (len(count) and count.min() < 0):
            raise ValueError(f"{name} is {count!r}; expected whole numbers (S,), none below 0")
    total = int(counts["n_node"].sum(dtype=np.int64))
    expected = [("nodes", nodes, total), ("globals_", globals_, len(counts["n_node"]))]
    if edge_lists is None:
        sizes = counts["n_node"].astype(np.int64)
        expected.append(("edges", edges, int((sizes * np.maximum(sizes - 1, 0)).sum())))
    else:
        n_edge = int(counts["n_edge"].sum(dtype=np.int64))
        expected += [("edges", edges, n_edge), ("edge_lists", edge_lists[1:], n_edge)]
        expected.append(("edge_lists", counts["n_edge"], len(counts["n_node"])))
    for name, tree, length in expected:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            part = f"{name} {jax.tree_util.keystr(path, simple=True, separator='.')}"
            if not hasattr(leaf, "dtype") or leaf.dtype.kind in "OSUMm" or not leaf.ndim:
                raise ValueError(f"{part} is a {type(leaf).__name__}; expected an array of numbers")
            if len(leaf) != length:
                raise ValueError(f"{part} has {len(leaf)} rows; expected {length}")
    if edge_lists is not None:
        _require_ends(counts["n_node"], counts["n_edge"], *edge_lists[1:])


def _require_ends(
    n_node: np.ndarray, n_edge: np.ndarray, senders: np.ndarray, receivers: np.ndarray
) -> None:
    starts = starts_of(n_edge.astype(np.int64))
    for first in range(0, len(n_edge), 10_000):  # in blocks, to bound the memory
        rows = slice(first, first + 10_000)
        graph = np.repeat(np.arange(len(n_edge[rows])), n_edge[rows])
        edges = slice(starts[first], starts[first] + len(graph))
        sizes = n_node[rows][graph]
        for name, ends in (("senders", senders[edges]), ("receivers", receivers[edges])):
            if len(bad := np.flatnonzero((ends < 0) | (ends >= sizes))):
                raise ValueError(
                    f"{name} of edge {edges.start + bad[0]} is {ends[bad[0]]}, in a graph of "
                    f"{sizes[bad[0]]} nodes; expected the number of one of these, from 0"
                )
        ends = receivers[edges]
        if len(bad := np.flatnonzero((ends[1:] < ends[:-1]) & (graph[1:] == graph[:-1]))):
            raise ValueError(
                f"receivers of edges {edges.start + bad[0]} and after are not in order; expected "
                "edges sorted by receiver"
            )


def parts_of(rows: np.ndarray, fractions: Sequence[float]) -> list[np.ndarray]:
    """``rows`` (S,) in parts: one for each share of them, and what is left.

    Raises:
      ValueError: a share or their sum is not between 0 and 1, or a part would be empty.
    """
    numbers = all(isinstance(fraction, float | int) for fraction in fractions)
    if not (numbers and fractions and min(fractions) > 0 and sum(fractions) < 1):
        raise ValueError(f"fractions are {fractions}; expected numbers above 0, together below 1")
    parts = np.split(rows, np.round(np.cumsum(fractions) * len(rows)).astype(int))
    if min(map(len, parts)) == 0:
        raise ValueError(f"fractions are {fractions} of {len(rows)} graphs; a part would be empty")
    return parts
