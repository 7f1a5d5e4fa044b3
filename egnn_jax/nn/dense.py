"""Dense batches: the nodes of each graph in a fixed number of slots, for batched matmuls."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from egnn_jax.graph.graph import (
    GraphsTuple,
    PaddedGraphsTuple,
    graph_of_node,
    node_mask,
)


class Rooms(NamedTuple):
    """Dense layout of a batch: one room of M places for each of G graphs.

    Attributes:
      shape: G and M.
      place: place of each node (N,); G M for nodes without a place.
      node: node in each place (G M,).
      taken: whether a place holds a node (G M,).
    """

    shape: tuple[int, int]
    place: jax.Array
    node: jax.Array
    taken: jax.Array

    def enter(self, values: jax.Array) -> jax.Array:
        """Convert node values (N, …) to (G, M, …), with 0 in empty places."""
        if not values.shape[0]:
            return jnp.zeros((*self.shape, *values.shape[1:]), values.dtype)
        taken = self.taken.reshape(-1, *(1,) * (values.ndim - 1))
        return jnp.where(taken, values[self.node], 0).reshape(*self.shape, *values.shape[1:])

    def leave(self, values: jax.Array) -> jax.Array:
        """Convert (G, M, …) back to node values (N, …), with 0 for nodes without a place."""
        flat = values.reshape(-1, *values.shape[2:])
        return flat.at[self.place].get(mode="fill", fill_value=0)

    def pairs(self, rows: jax.Array, columns: jax.Array, values: jax.Array) -> jax.Array:
        """Scatter-add values (E, …) of the node pairs (rows, columns) to (G, M, M, …)."""
        number, size = self.shape
        outside = self.place[columns] == number * size
        row = jnp.where(outside, number * size, self.place[rows])
        sums = jnp.zeros((number * size, size, *values.shape[1:]), values.dtype)
        sums = sums.at[row, self.place[columns] % size].add(values, mode="drop")
        return sums.reshape(number, size, *sums.shape[1:])


def rooms(graph: GraphsTuple, max_nodes: int) -> tuple[Rooms, jax.Array]:
    """Lay out ``max_nodes`` places per graph; also return which real nodes (N,) are in a graph that
    has more nodes.

    Raises:
      ValueError: a graph has more nodes. Under ``jit`` this is unknown.
    """
    _require_room(graph, max_nodes)
    own = layout(graph, max_nodes)
    large = (jnp.asarray(graph.n_node) > own.shape[1])[graph_of_node(graph)]
    return own, large & node_mask(graph) if isinstance(graph, PaddedGraphsTuple) else large


def layout(graph: GraphsTuple, max_nodes: int) -> Rooms:
    """Lay out ``max_nodes`` places per graph; further nodes of a graph remain without a place."""
    total, n_node = graph.nodes.x.shape[0], jnp.asarray(graph.n_node, jnp.int32)
    number, size = n_node.shape[0], max(min(max_nodes, total), 1)
    of = graph_of_node(graph).astype(n_node.dtype)
    first = jnp.cumsum(n_node) - n_node
    place = jnp.arange(total, dtype=n_node.dtype) - first[of]
    places = jnp.arange(size, dtype=n_node.dtype)
    return Rooms(
        (number, size),
        jnp.where(place < size, of * size + place, number * size),
        jnp.minimum(first[:, None] + places, total - 1).reshape(-1),
        (places < n_node[:, None]).reshape(-1),
    )


def _require_room(graph: GraphsTuple, max_nodes: int) -> None:
    if isinstance(graph.n_node, Tracer):
        return
    counts = np.asarray(graph.n_node)
    if isinstance(graph, PaddedGraphsTuple):
        # The last graph with nodes holds the padding; an all-zero batch has none.
        counts = counts[: max(np.flatnonzero(counts), default=0)]
    if (largest := counts.max(initial=0)) > max_nodes:
        raise ValueError(f"a graph has {largest} nodes; expected at most max_nodes, {max_nodes}")
