"""Graphs of a batch side by side in arrays of one size each, for products of matrices by graph."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from egnn_jax.graph.graph import (
    GraphsTuple,
    PaddedGraphsTuple,
    graph_mask,
    graph_of_node,
)


class Rooms(NamedTuple):
    """G rooms of M places each, and where the nodes of a batch are in them.

    Attributes:
      shape: G and M.
      place: of each node (N,), from 0 to G M, which is outside of all rooms.
      node: the node in each place (G M,).
      taken: (G M,) whether there is one.
    """

    shape: tuple[int, int]
    place: jax.Array
    node: jax.Array
    taken: jax.Array

    def enter(self, values: jax.Array) -> jax.Array:
        """Values of nodes (N, …) as (G, M, …), 0 where a place is empty."""
        taken = self.taken.reshape(-1, *(1,) * (values.ndim - 1))
        return jnp.where(taken, values[self.node], 0).reshape(*self.shape, *values.shape[1:])

    def leave(self, values: jax.Array) -> jax.Array:
        """The inverse: (G, M, …) to (N, …), 0 for nodes without a place."""
        flat = values.reshape(-1, *values.shape[2:])
        return flat.at[self.place].get(mode="fill", fill_value=0)

    def pairs(self, rows: jax.Array, columns: jax.Array, values: jax.Array) -> jax.Array:
        """Σ of values (E, …) of pairs of nodes, by their indices, as (G, M, M, …)."""
        number, size = self.shape
        outside = self.place[columns] == number * size
        row = jnp.where(outside, number * size, self.place[rows])
        sums = jnp.zeros((number * size, size, *values.shape[1:]), values.dtype)
        sums = sums.at[row, self.place[columns] % size].add(values, mode="drop")
        return sums.reshape(number, size, *sums.shape[1:])


def rooms(graph: GraphsTuple, max_nodes: int) -> tuple[Rooms, jax.Array]:
    """Room for ``max_nodes`` of each graph, and (N,) which nodes of real graphs have no place.

    Raises:
      ValueError: a graph has more nodes. Under ``jit`` that is not known, so that nodes can be
        without a place.
    """
    total, n_node = graph.nodes.x.shape[0], jnp.asarray(graph.n_node)
    number, size = n_node.shape[0], max(min(max_nodes, total), 1)
    of = graph_of_node(graph).astype(n_node.dtype)
    first = jnp.cumsum(n_node) - n_node
    place = jnp.arange(total, dtype=n_node.dtype) - first[of]
    real = graph_mask(graph) if isinstance(graph, PaddedGraphsTuple) else n_node >= 0
    _require_room(graph, max_nodes)
    places = jnp.arange(size, dtype=n_node.dtype)
    rooms = Rooms(
        (number, size),
        jnp.where(place < size, of * size + place, number * size),
        jnp.minimum(first[:, None] + places, total - 1).reshape(-1),
        (places < n_node[:, None]).reshape(-1),
    )
    return rooms, (place >= size) & real[of]


def _require_room(graph: GraphsTuple, max_nodes: int) -> None:
    if isinstance(graph.n_node, Tracer):
        return
    counts = np.asarray(graph.n_node)
    if isinstance(graph, PaddedGraphsTuple):
        # The last graph that has nodes holds the padding; a batch of zeros has none.
        counts = counts[: max(np.flatnonzero(counts), default=0)]
    if (largest := counts.max(initial=0)) > max_nodes:
        raise ValueError(f"a graph has {largest} nodes; expected at most max_nodes, {max_nodes}")
