"""Sums of outer products over neighbors, as matrix products if graphs are small."""

from functools import partial

import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple, PaddedGraphsTuple, graph_mask
from egnn_jax.nn.dense import DenseLayout, dense_layout
from egnn_jax.nn.edge_rows import EdgeRows, edge_rows, sum_over_rows

MAX_DENSE_NODES = 32
"""Maximum nodes per graph for which all pairs are stored as one matrix."""


def sum_of_products(graph: GraphsTuple, w: jax.Array, t: jax.Array) -> jax.Array:
    """Sum outer products over neighbors and the node itself, Σ_j w_ij ⊗ t_j + w_ii ⊗ t_i.

    Takes w (E + N, K), of each edge and then of each node with itself, and t (N, C); returns
    (N, K, C).

    If no graph has more than :data:`MAX_DENSE_NODES` nodes, w is scattered into a matrix per graph,
    (M, M K), and multiplied with t as (M, C). Otherwise, w and t are multiplied in the rows of
    :func:`edge_rows`. Neither forms the E outer products. The result is the same up to rounding.
    """
    n_node = jnp.asarray(graph.n_node)
    if isinstance(graph, PaddedGraphsTuple):
        n_node = jnp.where(graph_mask(graph), n_node, 0)
    all_small = jnp.all(n_node <= MAX_DENSE_NODES)
    by_matrices = partial(_by_matrices, graph, dense_layout(graph, MAX_DENSE_NODES))
    # With checkpoints, the backward pass keeps only w and t, which both branches share.
    branches = jax.checkpoint(by_matrices), jax.checkpoint(partial(_by_edges, graph))
    return jax.lax.cond(all_small, *branches, w, t)


def _by_edges(graph: GraphsTuple, w: jax.Array, t: jax.Array) -> jax.Array:
    n_edge = len(graph.senders)
    self_terms = w[n_edge:, :, None] * t[:, None]
    if not n_edge:
        return self_terms
    graph = jax.tree.map(jnp.asarray, graph)

    def sums(rows: EdgeRows) -> jax.Array:
        w_ij = jnp.where(rows.mask[:, :, None], w[rows.edges], 0)
        return jnp.einsum("rtk,rtc->rkc", w_ij, t[graph.senders[rows.edges]])

    rows = edge_rows(graph, jnp.ones(n_edge, bool))
    return self_terms + sum_over_rows(rows, sums, len(t))


def _by_matrices(graph: GraphsTuple, layout: DenseLayout, w: jax.Array, t: jax.Array) -> jax.Array:
    endpoints = jnp.asarray(graph.senders), jnp.asarray(graph.receivers)
    nodes = jnp.arange(len(t), dtype=endpoints[0].dtype)
    senders, receivers = (jnp.concatenate([a, nodes]) for a in endpoints)
    n_graph, size = layout.shape
    # With three axes, XLA transposes no operand of this product or of its gradient.
    matrices = layout.pair_matrices(senders, receivers, w).reshape(n_graph, size, -1)
    sums = jnp.einsum("gjm,gjc->gmc", matrices, layout.to_dense(t))
    return layout.to_nodes(sums.reshape(n_graph, size, w.shape[1], t.shape[1]))
