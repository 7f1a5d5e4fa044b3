"""The edges of each node in rows, so that sums over them are products of small dense matrices."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple


def pairs_of(graph: GraphsTuple, self_pairs: bool = False) -> tuple[GraphsTuple, jax.Array]:
    """Return the graph with at least one edge, and a mask (E,) of its edges between two nodes, or
    between a node and its periodic image: False for padding edges and self-loops.

    With ``self_pairs``, a self-loop is inserted at each node, where the mask is True.

    Raises:
      ValueError: the graph has no nodes.
    """
    graph = jax.tree.map(jnp.asarray, graph)  # NumPy arrays cannot be gathered by traced indices
    n_node = graph.nodes.x.shape[0]
    if not n_node:
        raise ValueError("the graph has no nodes; expected at least one")
    if not len(graph.receivers):  # gathers need at least one edge: add one that is masked
        edges = jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), graph.edges)
        node = jnp.zeros(1, jnp.int32)
        graph = graph._replace(senders=node, receivers=node, edges=edges)
    pair_mask = graph.senders != graph.receivers
    if graph.edges.shift is not None:
        pair_mask |= jnp.any(graph.edges.shift != 0, axis=-1)
    if not self_pairs:
        return graph, pair_mask
    nodes = jnp.arange(n_node, dtype=jnp.int32)
    order = jnp.argsort(jnp.concatenate([nodes, graph.receivers]), stable=True)
    insert = lambda a: jnp.concatenate([jnp.zeros((len(nodes), *a.shape[1:]), a.dtype), a])[order]
    senders, receivers = (
        jnp.concatenate([nodes, endpoints])[order] for endpoints in (graph.senders, graph.receivers)
    )
    edges = jax.tree.map(insert, graph.edges)
    mask = jnp.concatenate([jnp.ones(len(nodes), bool), pair_mask])[order]
    return graph._replace(senders=senders, receivers=receivers, edges=edges), mask


class EdgeRows(NamedTuple):
    """Edges in R rows of T slots each, where all edges of a row have the same node as receiver, or
    all have the same node as sender.

    The first N rows hold the first T edges of each node, the others the remaining edges of nodes
    with more. T is about 1.5 times the mean degree, so most graphs have no remaining edges.

    Attributes:
      edges: edge in each slot (R, T); in an empty slot, another edge of the same node, or an
        arbitrary one if it has none.
      mask: whether a slot holds an edge (R, T).
      nodes: node of each row (R,); N for an empty row beyond the first N.
    """

    edges: jax.Array
    mask: jax.Array
    nodes: jax.Array


def edge_rows(graph: GraphsTuple, edge_mask: jax.Array, outgoing: bool = False) -> EdgeRows:
    """Arrange the edges of a graph where ``edge_mask`` (E,) is True in rows, by receiver or, if
    ``outgoing``, by sender.
    """
    if outgoing:
        order = jnp.argsort(graph.senders, stable=True)
        reversed_graph = graph._replace(receivers=graph.senders[order])
        rows = edge_rows(reversed_graph, edge_mask[order])
        return rows._replace(edges=order[rows.edges])
    n_node, n_edge = graph.nodes.x.shape[0], graph.receivers.shape[0]
    width = max(4 * -(-3 * n_edge // (8 * max(n_node, 1))), 4)
    arange = partial(jnp.arange, dtype=jnp.int32)
    indicator = edge_mask.astype(jnp.int32)
    in_degree = jax.ops.segment_sum(indicator, graph.receivers, n_node, indices_are_sorted=True)
    offsets = jnp.cumsum(in_degree) - in_degree
    rank = jnp.where(edge_mask, jnp.cumsum(indicator) - 1, n_edge)  # among these edges
    edges = jnp.zeros(n_edge, jnp.int32).at[rank].set(arange(n_edge), mode="drop")
    extra_counts = -(-jnp.maximum(in_degree - width, 0) // width)
    extra_ends, extra_rows = jnp.cumsum(extra_counts), arange(n_edge // width)
    nodes = jnp.searchsorted(extra_ends, extra_rows, side="right")
    row_in_node = extra_rows - (extra_ends - extra_counts)[nodes] + 1
    row_in_node = jnp.concatenate([jnp.zeros(n_node, jnp.int32), row_in_node])
    nodes = jnp.concatenate([arange(n_node), nodes])
    slot = width * row_in_node[:, None] + arange(width)  # counted over all rows of a node
    mask = (slot < in_degree[nodes][:, None]) & (nodes < n_node)[:, None]
    # Empty slots get an edge of the same node, since a product of 0 and NaN is NaN.
    index = offsets[nodes][:, None] + jnp.where(mask, slot, 0)
    return EdgeRows(edges[jnp.minimum(index, n_edge - 1)], mask, nodes)


def sum_over_rows(
    rows: EdgeRows, sums: Callable[[EdgeRows], jax.Array], n_node: int, axis: int = 0
) -> jax.Array:
    """Sum over the edges of each node, (…, N, …) with the nodes on ``axis``.

    Args:
      rows: rows of :func:`edge_rows`.
      sums: function of some of the rows that returns the sum over the slots of each, with the rows
        on ``axis``.
      n_node: N.
      axis: axis of the rows in the sums.
    """
    first_rows, extra_rows = _split(rows, n_node)
    total = sums(first_rows)
    other_axes = [k for k in range(total.ndim) if k != axis]
    has_edges = jnp.expand_dims(jnp.any(first_rows.mask, axis=1), other_axes)
    total = jnp.where(has_edges, total, 0)  # empty rows may hold NaN of other graphs
    if not len(extra_rows.nodes):
        return total

    def add(total: jax.Array) -> jax.Array:
        extra_sums = jnp.moveaxis(jax.checkpoint(sums)(extra_rows), axis, 0)
        node_sums = jnp.moveaxis(total, axis, 0)
        return jnp.moveaxis(node_sums.at[extra_rows.nodes].add(extra_sums, mode="drop"), 0, axis)

    return jax.lax.cond(jnp.any(extra_rows.mask), add, lambda total: total, total)


def add_at_edges(
    total: jax.Array, rows: EdgeRows, values: Callable[[EdgeRows], jax.Array], n_node: int
) -> jax.Array:
    """Add the values of slots to those of their edges (E, C).

    Args:
      total: values of the edges (E, C).
      rows: rows of :func:`edge_rows`.
      values: function of some of the rows that returns the values of their slots (R, T, C).
      n_node: N.
    """

    def add(rows: EdgeRows, total: jax.Array) -> jax.Array:
        edges = jnp.where(rows.mask, rows.edges, len(total))
        return total.at[edges].add(values(rows), mode="drop")

    first_rows, extra_rows = _split(rows, n_node)
    total = add(first_rows, total)
    if not len(extra_rows.nodes):
        return total
    add_extra = jax.checkpoint(partial(add, extra_rows))
    return jax.lax.cond(jnp.any(extra_rows.mask), add_extra, lambda total: total, total)


def _split(rows: EdgeRows, n_node: int) -> tuple[EdgeRows, EdgeRows]:
    """The first row of each node, and the rows of the remaining edges."""
    return EdgeRows(*(a[:n_node] for a in rows)), EdgeRows(*(a[n_node:] for a in rows))
