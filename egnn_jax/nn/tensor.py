"""Steerable features, based on e3nn-jax, for Tensor Field Network and SE(3)-Transformer."""

from typing import Any, NamedTuple

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph._validation import require_count
from egnn_jax.graph.exchange import exchange
from egnn_jax.graph.geometry import length_and_direction, safe_norm
from egnn_jax.graph.graph import (
    GraphsTuple,
    edge_vectors,
    require_geometric,
    sum_at_receivers,
)
from egnn_jax.nn.mlp import Parity, node_features, require_option, with_attributes

MAX_DEGREE = 10
"""The highest degree of features; products of higher degrees take minutes to tabulate."""


class EdgeFeatures(NamedTuple):
    """Edge inputs of a convolution.

    Attributes:
      harmonics: Y_0(r̂_ij) to Y_l(r̂_ij), (E,).
      invariants: ‖r_ij‖ and a_ij, (E, 1 + A).
    """

    harmonics: e3nn.IrrepsArray
    invariants: jax.Array


def irreps(channels: int, degree: int, parity: Parity) -> e3nn.Irreps:
    """Irreps with ``channels`` channels of each degree from 0 to ``degree``."""
    odd_parity = "e" if parity == "ignored" else "o"
    terms = [f"{channels}x{k}{odd_parity if k % 2 else 'e'}" for k in range(degree + 1)]
    return e3nn.Irreps("+".join(terms))


def vector(parity: Parity) -> e3nn.Irreps:
    """Irreps with one channel of degree 1."""
    return e3nn.Irreps("1e" if parity == "ignored" else "1o")


def embed_steerable(
    graph: GraphsTuple, channels: int, degree: int, parity: Parity
) -> e3nn.IrrepsArray:
    """Compute the initial features (N,), linear in h (degree 0) and the velocity (degree 1).

    Raises:
      ValueError: x does not have 3 coordinates, ``parity`` is unknown, or ``degree`` is out of
        range.
    """
    require_steerable(graph, degree)
    require_option("parity", parity, Parity)
    h, v = node_features(graph.nodes, channels, "kinds"), graph.nodes.v
    inputs = e3nn.IrrepsArray(f"{h.shape[-1]}x0e", h)
    if v is not None:
        inputs = e3nn.concatenate([inputs, e3nn.IrrepsArray(vector(parity), v.astype(h.dtype))])
    return linear(irreps(channels, degree, parity), "embedding")(inputs)


def require_steerable(graph: GraphsTuple, degree: int) -> None:
    """Raise ValueError if x does not have 3 coordinates, or ``degree`` is out of range."""
    require_geometric(graph, dimensions=3)
    require_count("degree", degree, 0, MAX_DEGREE)


def edge_features(
    graph: GraphsTuple, degree: int, parity: Parity, dtype: jnp.dtype
) -> EdgeFeatures:
    """Compute the spherical harmonics up to ``degree`` and the invariants of each edge."""
    r_ij = edge_vectors(graph, exchange(graph, graph.nodes.x))
    distance, direction = length_and_direction(r_ij)
    natural = irreps(1, degree, "natural")
    harmonics = e3nn.spherical_harmonics(natural, direction, normalize=False).array.astype(dtype)
    invariants = with_attributes(graph, distance).astype(dtype)
    return EdgeFeatures(e3nn.IrrepsArray(irreps(1, degree, parity), harmonics), invariants)


def product(
    graph: GraphsTuple, features: e3nn.IrrepsArray, edges: EdgeFeatures, degree: int
) -> e3nn.IrrepsArray:
    """Channelwise tensor product Y(r̂_ij) ⊗ V_j up to ``degree``, (E,)."""
    out_irreps = [ir for _, ir in edges.harmonics.irreps if ir.l <= degree]
    v_j = exchange(graph, features)[graph.senders]
    return e3nn.tensor_product(v_j, edges.harmonics, filter_ir_out=out_irreps)


def linear(out: e3nn.Irreps, name: str) -> Any:
    """Linear layer that mixes the channels of each degree, with a bias for degree 0."""
    return e3nn.flax.Linear(
        out, biases=True, gradient_normalization="element", force_irreps_out=True, name=name
    )


def read_out(graph: GraphsTuple, features: e3nn.IrrepsArray, parity: Parity) -> GraphsTuple:
    """Set h to the features of degree 0, and move x by a linear combination of the vectors."""
    dx = linear(vector(parity), "out")(features).array.astype(graph.nodes.x.dtype)
    h = features.filter(e3nn.Irreps("0e")).array
    return graph._replace(nodes=graph.nodes.replace(h=h, x=graph.nodes.x + dx))


class NormNonlinearity(nn.Module):
    """SiLU for degree 0; V sigmoid(‖V‖ + b) for others, with a learned b per channel."""

    @nn.compact
    def __call__(self, features: e3nn.IrrepsArray) -> e3nn.IrrepsArray:
        inputs: Any = features.chunks
        chunks = []
        for (channels, ir), chunk in zip(features.irreps, inputs, strict=True):
            if ir.l == 0:
                chunks.append(nn.silu(chunk))
            else:
                bias = self.param(f"bias_{ir}", nn.initializers.zeros, (channels,), chunk.dtype)
                chunks.append(chunk * nn.sigmoid(safe_norm(chunk) + bias)[..., None])
        return e3nn.from_chunks(features.irreps, chunks, features.shape[:-1], features.dtype)


def update(
    graph: GraphsTuple, features: e3nn.IrrepsArray, messages: e3nn.IrrepsArray, out: e3nn.Irreps
) -> e3nn.IrrepsArray:
    """Update V_i (N,) to nonlinearity(W V_i + W' Σ_j messages_ij), from messages (E,)."""
    self_interaction = linear(out, "self_interaction")(features)
    message_sums = e3nn.IrrepsArray(messages.irreps, sum_at_receivers(graph, messages.array))
    return NormNonlinearity(name="nonlinearity")(
        self_interaction + linear(out, "mix")(message_sums)
    )
