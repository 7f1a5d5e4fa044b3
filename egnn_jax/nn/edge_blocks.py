"""Message aggregation over blocks of edges, for graphs whose edges do not fit in memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.exchange import is_part, vary
from egnn_jax.graph.graph import GraphsTuple, add_at_receivers, dtype_of_sums


def sum_in_blocks(
    layer: nn.Module, messages: Callable[..., Any], graph: GraphsTuple, size: int, sums: Any
) -> Any:
    """Sum messages at receivers, Σ_j messages_ij, over blocks of ``size`` edges.

    No array over all edges is formed. This includes the backward pass, which recomputes the
    messages of each block.

    Args:
      layer: the module whose parameters ``messages`` uses.
      messages: function of the layer and a graph with E edges that returns arrays (E, …).
      graph: the graph with all edges.
      size: edges per block.
      sums: zeros with the shapes and dtypes of the sums (N, …).

    Returns:
      The sums. Intermediate sums use at least float32.
    """
    n_node, n_edge = graph.nodes.x.shape[0], graph.senders.shape[0]
    size = min(size, n_edge)  # a larger block would only add padding
    n_block = -(-n_edge // size) if size else 1

    def stack(a: jax.Array, padding: int = 0) -> jax.Array:
        padded = jnp.pad(
            a, [(0, n_block * size - n_edge)] + [(0, 0)] * (a.ndim - 1), constant_values=padding
        )
        return padded.reshape(n_block, size, *a.shape[1:])

    def add(layer: nn.Module, sums: Any, block: Any) -> tuple[Any, None]:
        senders, receivers, edges = block
        block_graph = graph._replace(senders=senders, receivers=receivers, edges=edges)
        return jax.tree.map(
            partial(add_at_receivers, block_graph), sums, nn.remat(messages)(layer, block_graph)
        ), None

    # Padding edges of the last block have the receiver N, which is out of range: they are dropped.
    edge_blocks = (
        stack(jnp.asarray(graph.senders)),
        stack(jnp.asarray(graph.receivers), n_node),
        jax.tree.map(stack, graph.edges),
    )
    scan: Any = nn.scan(add, variable_broadcast="params", split_rngs={"params": False})
    if is_part(graph):  # otherwise, devices would sum parameter gradients in each block
        scan = nn.map_variables(scan, "params", trans_in_fn=partial(vary, graph))
    accumulators = jax.tree.map(lambda a: a.astype(dtype_of_sums(a)), sums)
    return jax.tree.map(
        lambda a, b: a.astype(b.dtype), scan(layer, accumulators, edge_blocks)[0], sums
    )
