"""Several graphs as one: node indices shifted, fields concatenated, padded to a static shape."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from egnn_jax.graph import _validation
from egnn_jax.graph.graph import GraphsTuple, PaddedGraphsTuple


class Budget(NamedTuple):
    """The static shape that a batch is padded to; one node and one graph are always padding."""

    n_node: int
    n_edge: int
    n_graph: int


def batch(graphs: Iterable[GraphsTuple], budget: Budget | None = None) -> GraphsTuple:
    """Several graphs, or batches without padding, as one; padded to ``budget`` if given.

    Raises:
      ValueError: there are no graphs, their fields differ, one of them is padded or traced, or
        one does not fit the budget (named with its size).
    """
    graphs = list(graphs)
    if not graphs:
        raise ValueError("batch received no graphs; expected at least one")
    if any(isinstance(graph, PaddedGraphsTuple) for graph in graphs):
        raise ValueError("batch received a padded batch; expected egnn.unbatch of it")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(graphs)):
        raise ValueError("batch received a traced graph; expected its values: batch outside of jit")
    if len({_signature(graph) for graph in graphs}) > 1:
        raise ValueError(
            "the graphs differ in what they carry (v, a, shift, y, cell or a width); expected all "
            "alike"
        )
    counts = [(int(np.sum(g.n_node)), int(np.sum(g.n_edge)), len(g.n_node)) for g in graphs]
    if budget is not None:
        _validation.fits_budget(counts, budget)
    n_node, n_edge, n_graph = np.sum(counts, axis=0)
    extra = (0, 0, 0) if budget is None else np.subtract(budget, (n_node, n_edge, n_graph))
    first_node = np.repeat(
        np.cumsum([0, *(n for n, _, _ in counts[:-1])]), [e for _, e, _ in counts]
    )

    def joined(*parts: Any, padding: int, fill: int = 0) -> jax.Array:
        arrays = [np.asarray(part) for part in parts]
        arrays.append(np.full((padding, *arrays[0].shape[1:]), fill, arrays[0].dtype))
        return jnp.asarray(np.concatenate(arrays))

    def field(name: str, padding: int) -> Any:
        return jax.tree.map(
            lambda *parts: joined(*parts, padding=padding), *(getattr(g, name) for g in graphs)
        )

    def ends(name: str) -> jax.Array:
        indices = np.concatenate([np.asarray(getattr(g, name)) for g in graphs]) + first_node
        return joined(indices.astype(np.int32), padding=extra[1], fill=n_node)

    def sizes(name: str, padding: int) -> jax.Array:
        padded = np.zeros(extra[2], np.int32)
        padded[:1] = padding
        return joined(*(getattr(g, name) for g in graphs), padded, padding=0)

    kind = GraphsTuple if budget is None else PaddedGraphsTuple
    return kind(
        nodes=field("nodes", extra[0]),
        edges=field("edges", extra[1]),
        senders=ends("senders"),
        receivers=ends("receivers"),
        n_node=sizes("n_node", extra[0]),
        n_edge=sizes("n_edge", extra[1]),
        globals=field("globals", extra[2]),
    )


def unbatch(graph: GraphsTuple) -> Sequence[GraphsTuple]:
    """The single graphs of a batch, padding left out."""
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


def _signature(graph: GraphsTuple) -> Any:
    carried = (graph.nodes, graph.edges, graph.globals)
    widths = tuple((np.shape(leaf)[1:], leaf.dtype) for leaf in jax.tree.leaves(carried))
    return jax.tree.structure(carried), widths
