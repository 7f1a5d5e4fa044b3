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


class DenseLayout(NamedTuple):
    """Dense layout of a batch: M slots for the nodes of each of G graphs.

    Attributes:
      shape: G and M.
      slot: slot of each node (N,); G M for nodes without a slot.
      node: node in each slot (G M,).
      mask: whether a slot holds a node (G M,).
    """

    shape: tuple[int, int]
    slot: jax.Array
    node: jax.Array
    mask: jax.Array

    def to_dense(self, values: jax.Array) -> jax.Array:
        """Convert node values (N, …) to (G, M, …), with 0 in empty slots."""
        if not values.shape[0]:
            return jnp.zeros((*self.shape, *values.shape[1:]), values.dtype)
        mask = self.mask.reshape(-1, *(1,) * (values.ndim - 1))
        return jnp.where(mask, values[self.node], 0).reshape(*self.shape, *values.shape[1:])

    def to_nodes(self, values: jax.Array) -> jax.Array:
        """Convert (G, M, …) back to node values (N, …), with 0 for nodes without a slot."""
        flat = values.reshape(-1, *values.shape[2:])
        return flat.at[self.slot].get(mode="fill", fill_value=0)

    def pair_matrices(self, rows: jax.Array, columns: jax.Array, values: jax.Array) -> jax.Array:
        """Scatter-add values (E, …) of the node pairs (rows, columns) to (G, M, M, …)."""
        n_graph, size = self.shape
        no_slot = self.slot[columns] == n_graph * size
        row = jnp.where(no_slot, n_graph * size, self.slot[rows])
        sums = jnp.zeros((n_graph * size, size, *values.shape[1:]), values.dtype)
        sums = sums.at[row, self.slot[columns] % size].add(values, mode="drop")
        return sums.reshape(n_graph, size, *sums.shape[1:])


def checked_layout(graph: GraphsTuple, max_nodes: int) -> tuple[DenseLayout, jax.Array]:
    """Lay out a batch with ``max_nodes`` slots per graph; also return a mask (N,) of the nodes of
    graphs that have more, False for padding nodes.

    Raises:
      ValueError: a graph has more nodes. Under ``jit`` this is unknown.
    """
    _require_slots(graph, max_nodes)
    layout = dense_layout(graph, max_nodes)
    too_large = (jnp.asarray(graph.n_node) > layout.shape[1])[graph_of_node(graph)]
    return layout, too_large & node_mask(graph) if isinstance(
        graph, PaddedGraphsTuple
    ) else too_large


def dense_layout(graph: GraphsTuple, max_nodes: int) -> DenseLayout:
    """Lay out a batch with ``max_nodes`` slots per graph; further nodes have no slot."""
    total_nodes, n_node = graph.nodes.x.shape[0], jnp.asarray(graph.n_node, jnp.int32)
    n_graph, size = n_node.shape[0], max(min(max_nodes, total_nodes), 1)
    graph_index = graph_of_node(graph).astype(n_node.dtype)
    offsets = jnp.cumsum(n_node) - n_node
    slot = jnp.arange(total_nodes, dtype=n_node.dtype) - offsets[graph_index]
    slots = jnp.arange(size, dtype=n_node.dtype)
    return DenseLayout(
        (n_graph, size),
        jnp.where(slot < size, graph_index * size + slot, n_graph * size),
        jnp.minimum(offsets[:, None] + slots, total_nodes - 1).reshape(-1),
        (slots < n_node[:, None]).reshape(-1),
    )


def _require_slots(graph: GraphsTuple, max_nodes: int) -> None:
    if isinstance(graph.n_node, Tracer):
        return
    counts = np.asarray(graph.n_node)
    if isinstance(graph, PaddedGraphsTuple):
        # The last graph with nodes holds the padding; an all-zero batch has none.
        counts = counts[: max(np.flatnonzero(counts), default=0)]
    if (largest := counts.max(initial=0)) > max_nodes:
        raise ValueError(f"a graph has {largest} nodes; expected at most max_nodes, {max_nodes}")
