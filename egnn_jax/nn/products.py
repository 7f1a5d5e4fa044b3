"""Sums of outer products over neighbors, as matrix products if graphs are small."""

import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import (
    GraphsTuple,
    PaddedGraphsTuple,
    graph_mask,
    sum_at_receivers,
)
from egnn_jax.nn.dense import rooms

LARGEST = 32
"""Maximum nodes per graph for which all pairs are stored as one matrix."""


def sum_of_products(graph: GraphsTuple, w: jax.Array, t: jax.Array) -> jax.Array:
    """Sum outer products over neighbors, Σ_j w_ij ⊗ t_j, (E, K) and (N, C) to (N, K, C).

    If no graph has more than :data:`LARGEST` nodes, the w of each graph are scattered into a
    matrix and multiplied with the t of its nodes. On CPUs, this is several times as fast as summing
    E outer products of K · C numbers. The result is the same either way.
    """
    n_node = jnp.asarray(graph.n_node)
    if isinstance(graph, PaddedGraphsTuple):
        n_node = jnp.where(graph_mask(graph), n_node, 0)
    small = jnp.all(n_node <= LARGEST)
    return jax.lax.cond(small, _by_matrices, _by_edges, graph, w, t)


def _by_edges(graph: GraphsTuple, w: jax.Array, t: jax.Array) -> jax.Array:
    return sum_at_receivers(graph, w[:, :, None] * t[graph.senders][:, None])


def _by_matrices(graph: GraphsTuple, w: jax.Array, t: jax.Array) -> jax.Array:
    places, _ = rooms(graph, LARGEST)
    matrices = places.pairs(graph.receivers, graph.senders, w)
    return places.leave(jnp.einsum("gijk,gjc->gikc", matrices, places.enter(t)))
