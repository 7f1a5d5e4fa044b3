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
        require_valid_graph(f"graph {k}", graph)
    leaves, treedefs = zip(*map(jax.tree.flatten, graphs), strict=True)
    # Transfers to the host take most of the time, so each graph is transferred only once.
    leaves = [[np.asarray(leaf) for leaf in arrays] for arrays in leaves]
    specs = [[(leaf.shape[1:], leaf.dtype) for leaf in arrays] for arrays in leaves]
    if any(treedef != treedefs[0] for treedef in treedefs) or any(s != specs[0] for s in specs):
        raise ValueError(
            "the graphs differ in what they carry (v, a, shift, y, cell, a width or a dtype); "
            "expected all alike"
        )
    host_graphs = [jax.tree.unflatten(treedefs[0], arrays) for arrays in leaves]
    counts = [(int(g.n_node.sum()), int(g.n_edge.sum()), len(g.n_node)) for g in host_graphs]
    joined = jax.tree.unflatten(treedefs[0], map(np.concatenate, zip(*leaves, strict=True)))
    node_offsets = np.cumsum([0, *(n_node for n_node, _, _ in counts[:-1])])
    offset_of_edge = np.repeat(node_offsets, [n_edge for _, n_edge, _ in counts]).astype(np.int32)
    joined = joined._replace(
        senders=joined.senders + offset_of_edge, receivers=joined.receivers + offset_of_edge
    )
    if budget is not None:
        _validation.fits_budget(counts, budget)
        budget = Budget(*budget)
        require_memory(f"a batch of {tuple(budget)}", _size(joined, budget))
        joined = padded(joined, Budget(*np.subtract(budget, np.sum(counts, axis=0)).tolist()))
    return jax.tree.map(jnp.asarray, joined)


def require_valid_graph(name: str, graph: GraphsTuple) -> None:
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
    for component, (size, count_field) in sizes.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(graph, component)):
            if np.shape(leaf)[:1] != (size,):
                field = jax.tree_util.keystr(path, simple=True, separator=".")
                raise ValueError(
                    f"{component}.{field} of {name} has shape {np.shape(leaf)}; "
                    f"expected {size} rows"
                )
        counts = size if count_field is None else getattr(graph, count_field)
        if counts is None:
            raise ValueError(f"{count_field} of {name} is None; expected the counts of each graph")
        counts = np.asarray(counts)
        if counts.min(initial=0) < 0 or counts.sum() != size:
            raise ValueError(
                f"{count_field} of {name} is {_validation.short_str(counts.tolist())}; expected "
                f"counts of {size} {component} in all"
            )
    endpoints = np.stack([np.asarray(graph.senders), np.asarray(graph.receivers)])
    n_node = graph.nodes.x.shape[0]
    if endpoints.size and not (endpoints.min() >= 0 and endpoints.max() < n_node):
        raise ValueError(
            f"edges of {name} end at nodes {endpoints.min()} to {endpoints.max()}; expected 0 to "
            f"{n_node - 1}"
        )
    if len(bad := np.flatnonzero(np.diff(endpoints[1]) < 0)):
        raise ValueError(
            f"receivers of edges {bad[0]} and after are not in order; expected edges sorted by "
            f"receiver in {name}, as egnn.graph_from_edges sorts them"
        )
    if isinstance(graph, PaddedGraphsTuple) and not n_node:
        raise ValueError(f"{name} is padded and has no nodes; expected at least one of padding")


def _size(graph: GraphsTuple, budget: Budget) -> int:
    """The size in bytes of a batch padded to ``budget`` with the fields of ``graph``."""
    size = 8 * (budget.n_edge + budget.n_graph)  # senders and receivers, n_node and n_edge
    for rows, component in zip(budget, (graph.nodes, graph.edges, graph.globals), strict=True):
        for leaf in jax.tree.leaves(component):
            size += rows * leaf.itemsize * int(np.prod(leaf.shape[1:]))
    return size


def padded(graph: GraphsTuple, extra: Budget) -> PaddedGraphsTuple:
    """Append ``extra`` padding nodes, edges and graphs to a batch on the host."""

    def append(rows: int, fill: int = 0) -> Callable[[np.ndarray], np.ndarray]:
        return lambda a: np.append(a, np.full((rows, *a.shape[1:]), fill, a.dtype), axis=0)

    def append_count(counts: np.ndarray, count: int) -> np.ndarray:
        return np.concatenate([counts, [count], np.zeros(extra.n_graph - 1)]).astype(np.int32)

    first_padding = graph.nodes.x.shape[0]
    return PaddedGraphsTuple(
        nodes=jax.tree.map(append(extra.n_node), graph.nodes),
        edges=jax.tree.map(append(extra.n_edge), graph.edges),
        receivers=append(extra.n_edge, first_padding)(graph.receivers),
        senders=append(extra.n_edge, first_padding)(graph.senders),
        globals=jax.tree.map(append(extra.n_graph), graph.globals),
        n_node=append_count(graph.n_node, extra.n_node),
        n_edge=append_count(graph.n_edge, extra.n_edge),
    )


def unbatch(graph: GraphsTuple) -> Sequence[GraphsTuple]:
    """Split a batch into its graphs, without padding.

    Raises:
      ValueError: the batch is not a graph of this library, or is traced.
    """
    require_usable_jax()
    require_valid_graph("the batch", graph)
    host_graph = jax.tree.map(np.asarray, graph)
    n_graph = len(host_graph.n_node)
    if isinstance(graph, PaddedGraphsTuple):
        n_graph = int(np.flatnonzero(host_graph.n_node)[-1])
    node_offsets = np.cumsum([0, *host_graph.n_node])
    edge_offsets = np.cumsum([0, *host_graph.n_edge])

    def single(k: int) -> GraphsTuple:
        def take(start: int, stop: int) -> Any:
            return lambda a: jnp.asarray(a[start:stop])

        take_nodes = take(*node_offsets[k : k + 2])
        take_edges = take(*edge_offsets[k : k + 2])
        take_graph = take(k, k + 1)
        return GraphsTuple(
            nodes=jax.tree.map(take_nodes, host_graph.nodes),
            edges=jax.tree.map(take_edges, host_graph.edges),
            senders=take_edges(host_graph.senders) - node_offsets[k].astype(np.int32),
            receivers=take_edges(host_graph.receivers) - node_offsets[k].astype(np.int32),
            n_node=take_graph(host_graph.n_node),
            n_edge=take_graph(host_graph.n_edge),
            globals=jax.tree.map(take_graph, host_graph.globals),
        )

    return [single(k) for k in range(n_graph)]
