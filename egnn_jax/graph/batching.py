"""Batching: concatenate graphs with shifted node indices, and pad them to a static shape."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from egnn_jax.graph import _validation
from egnn_jax.graph._forks import require_usable_jax
from egnn_jax.graph._memory import require_memory
from egnn_jax.graph.graph import GraphsTuple, PaddedGraphsTuple, require_geometric


class Budget(NamedTuple):
    """Static size of a padded batch; at least one node and one graph are always padding."""

    n_node: int
    n_edge: int
    n_graph: int


def batch(graphs: Iterable[GraphsTuple], budget: Budget | None = None) -> GraphsTuple:
    """Combine graphs, or batches without padding, into one batch, padded to ``budget`` if given.

    >>> graphs = [egnn.complete_graph(x=np.ones((n, 3))) for n in (2, 3)]
    >>> egnn.batch(graphs).n_node.tolist()
    [2, 3]
    >>> padded = egnn.batch(graphs, egnn.Budget(n_node=8, n_edge=10, n_graph=3))
    >>> padded.n_node.tolist(), egnn.graph_mask(padded).tolist()
    ([2, 3, 3], [True, True, False])

    Raises:
      ValueError: there are no graphs; their fields differ; one of them is not a graph of this
        library, is padded or is traced; or one does not fit the budget (the message names it).
    """
    require_usable_jax()
    if not np.iterable(graphs):
        raise ValueError(f"batch received a {type(graphs).__name__}; expected graphs")
    graphs = list(graphs)
    if not graphs:
        raise ValueError("batch received no graphs; expected at least one")
    if any(isinstance(graph, PaddedGraphsTuple) for graph in graphs):
        raise ValueError("batch received a padded batch; expected egnn.unbatch of it")
    for k, graph in enumerate(graphs):
        require_whole(f"graph {k}", graph)
    leaves, structures = zip(*map(jax.tree.flatten, graphs), strict=True)
    # Transfers to the host take most of the time, so each graph is transferred only once.
    leaves = [[np.asarray(leaf) for leaf in arrays] for arrays in leaves]
    kinds = [[(leaf.shape[1:], leaf.dtype) for leaf in arrays] for arrays in leaves]
    if any(s != structures[0] or k != kinds[0] for s, k in zip(structures, kinds, strict=True)):
        raise ValueError(
            "the graphs differ in what they carry (v, a, shift, y, cell, a width or a dtype); "
            "expected all alike"
        )
    host = [jax.tree.unflatten(structures[0], arrays) for arrays in leaves]
    counts = [(int(g.n_node.sum()), int(g.n_edge.sum()), len(g.n_node)) for g in host]
    joined = jax.tree.unflatten(structures[0], map(np.concatenate, zip(*leaves, strict=True)))
    first_node = np.cumsum([0, *(n_node for n_node, _, _ in counts[:-1])])
    first_node = np.repeat(first_node, [n_edge for _, n_edge, _ in counts]).astype(np.int32)
    joined = joined._replace(
        senders=joined.senders + first_node, receivers=joined.receivers + first_node
    )
    if budget is not None:
        _validation.fits_budget(counts, budget)
        budget = Budget(*budget)
        require_memory(f"a batch of {tuple(budget)}", _size(joined, budget))
        joined = padded(joined, Budget(*np.subtract(budget, np.sum(counts, axis=0)).tolist()))
    return jax.tree.map(jnp.asarray, joined)


def require_whole(name: str, graph: GraphsTuple) -> None:
    """Raise ValueError if a graph is traced, or its counts do not match its arrays."""
    require_geometric(graph)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(graph)):
        raise ValueError(
            f"{name} is traced; expected its values: graphs are put together on the host"
        )
    sizes = {
        "nodes": (graph.nodes.x.shape[0], "n_node"),
        "edges": (graph.receivers.shape[0], "n_edge"),
        "globals": (graph.n_node.shape[0], None),
    }
    for part, (size, counted) in sizes.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(graph, part)):
            if np.shape(leaf)[:1] != (size,):
                field = jax.tree_util.keystr(path, simple=True, separator=".")
                raise ValueError(
                    f"{part}.{field} of {name} has shape {np.shape(leaf)}; expected {size} rows"
                )
        counts = size if counted is None else getattr(graph, counted)
        if counts is None:
            raise ValueError(f"{counted} of {name} is None; expected the counts of each graph")
        counts = np.asarray(counts)
        if counts.min(initial=0) < 0 or counts.sum() != size:
            raise ValueError(
                f"{counted} of {name} is {_validation.shown(counts.tolist())}; expected counts of "
                f"{size} {part} in all"
            )
    ends = np.stack([np.asarray(graph.senders), np.asarray(graph.receivers)])
    if ends.size and not (ends.min() >= 0 and ends.max() < graph.nodes.x.shape[0]):
        raise ValueError(
            f"edges of {name} end at nodes {ends.min()} to {ends.max()}; expected 0 to "
            f"{graph.nodes.x.shape[0] - 1}"
        )
    if len(bad := np.flatnonzero(np.diff(ends[1]) < 0)):
        raise ValueError(
            f"receivers of edges {bad[0]} and after are not in order; expected edges sorted by "
            f"receiver in {name}, as egnn.graph_from_edges sorts them"
        )
    if isinstance(graph, PaddedGraphsTuple) and not graph.nodes.x.shape[0]:
        raise ValueError(f"{name} is padded and has no nodes; expected at least one of padding")


def _size(graph: GraphsTuple, budget: Budget) -> int:
    """The size in bytes of a batch padded to ``budget`` with the fields of ``graph``."""
    size = 8 * (budget.n_edge + budget.n_graph)  # senders and receivers, n_node and n_edge
    for number, part in zip(budget, (graph.nodes, graph.edges, graph.globals), strict=True):
        for leaf in jax.tree.leaves(part):
            size += number * leaf.itemsize * int(np.prod(leaf.shape[1:]))
    return size


def padded(graph: GraphsTuple, extra: Budget) -> PaddedGraphsTuple:
    """Append ``extra`` padding nodes, edges and graphs to a batch on the host."""

    def append(number: int, fill: int = 0) -> Callable[[np.ndarray], np.ndarray]:
        return lambda a: np.append(a, np.full((number, *a.shape[1:]), fill, a.dtype), axis=0)

    def count(sizes: np.ndarray, number: int) -> np.ndarray:
        return np.concatenate([sizes, [number], np.zeros(extra.n_graph - 1)]).astype(np.int32)

    first_padding = graph.nodes.x.shape[0]
    return PaddedGraphsTuple(
        nodes=jax.tree.map(append(extra.n_node), graph.nodes),
        edges=jax.tree.map(append(extra.n_edge), graph.edges),
        receivers=append(extra.n_edge, first_padding)(graph.receivers),
        senders=append(extra.n_edge, first_padding)(graph.senders),
        globals=jax.tree.map(append(extra.n_graph), graph.globals),
        n_node=count(graph.n_node, extra.n_node),
        n_edge=count(graph.n_edge, extra.n_edge),
    )


def unbatch(graph: GraphsTuple) -> Sequence[GraphsTuple]:
    """Split a batch into its graphs, without padding.

    Raises:
      ValueError: the batch is not a graph of this library, or is traced.
    """
    require_usable_jax()
    require_whole("the batch", graph)
    host = jax.tree.map(np.asarray, graph)
    number = len(host.n_node)
    if isinstance(graph, PaddedGraphsTuple):
        number = int(np.flatnonzero(host.n_node)[-1])
    node, edge = (np.cumsum([0, *sizes]) for sizes in (host.n_node, host.n_edge))

    def single(k: int) -> GraphsTuple:
        def take(first: int, last: int) -> Any:
            return lambda a: jnp.asarray(a[first:last])

        nodes, edges, row = take(*node[k : k + 2]), take(*edge[k : k + 2]), take(k, k + 1)
        return GraphsTuple(
            nodes=jax.tree.map(nodes, host.nodes),
            edges=jax.tree.map(edges, host.edges),
            senders=edges(host.senders) - node[k].astype(np.int32),
            receivers=edges(host.receivers) - node[k].astype(np.int32),
            n_node=row(host.n_node),
            n_edge=row(host.n_edge),
            globals=jax.tree.map(row, host.globals),
        )

    return [single(k) for k in range(number)]
