"""Steerable features on e3nn-jax, which Tensor Field Network and SE(3)-Transformer share."""

from typing import Any, NamedTuple

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.exchange import exchange
from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import (
    GraphsTuple,
    edge_vectors,
    require_geometric,
    sum_at_receivers,
)
from egnn_jax.nn.mlp import Parity, Table, require_option, with_attributes

MAX_DEGREE = 10
"""The highest degree of features: products of higher ones take minutes to tabulate."""


class EdgeFeatures(NamedTuple):
    """What a convolution reads of an edge.

    Attributes:
      harmonics: Y_0(r̂_ij) to Y_l(r̂_ij), (E,).
      invariants: ‖r_ij‖ and a_ij, (E, 1 + A).
    """

    harmonics: e3nn.IrrepsArray
    invariants: jax.Array


def irreps(channels: int, degree: int, parity: Parity) -> e3nn.Irreps:
    """``channels`` of each degree from 0 to ``degree``."""
    odd = "e" if parity == "ignored" else "o"
    terms = [f"{channels}x{k}{odd if k % 2 else 'e'}" for k in range(degree + 1)]
    return e3nn.Irreps("+".join(terms))


def vector(parity: Parity) -> e3nn.Irreps:
    """One channel of degree 1."""
    return e3nn.Irreps("1e" if parity == "ignored" else "1o")


def embed_steerable(
    graph: GraphsTuple, channels: int, degree: int, parity: Parity
) -> e3nn.IrrepsArray:
    """The first features (N,): linear in h as degree 0 and the velocity as degree 1.

    Raises:
      ValueError: x has not 3 coordinates, ``parity`` is unknown, or ``degree`` is out of range.
    """
    require_steerable(graph, degree)
    require_option("parity", parity, Parity)
    h, v = graph.nodes.h, graph.nodes.v
    if jnp.issubdtype(h.dtype, jnp.integer):
        h = Table(channels, name="kinds")(h)
    given = e3nn.IrrepsArray(f"{h.shape[-1]}x0e", h)
    if v is not None:
        given = e3nn.concatenate([given, e3nn.IrrepsArray(vector(parity), v.astype(h.dtype))])
    return linear(irreps(channels, degree, parity), "embedding")(given)


def require_steerable(graph: GraphsTuple, degree: int) -> None:
    """Raise ValueError where x has not 3 coordinates, or a degree is out of range."""
    require_geometric(graph)
    if (n := graph.nodes.x.shape[-1]) != 3:
        raise ValueError(
            f"x has {n} coordinates; expected 3, since spherical harmonics and their products are "
            "those of rotations in three dimensions (EGNN works in any)"
        )
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"degree is {degree}; expected 0 to {MAX_DEGREE}")


def edge_features(
    graph: GraphsTuple, degree: int, parity: Parity, dtype: jnp.dtype
) -> EdgeFeatures:
    """Harmonics up to ``degree`` and the invariants of each edge."""
    r_ij = edge_vectors(graph, exchange(graph, graph.nodes.x))
    distance = safe_norm(r_ij, keepdims=True)
    direction = r_ij / jnp.where(distance == 0, 1, distance)
    natural = irreps(1, degree, "natural")
    harmonics = e3nn.spherical_harmonics(natural, direction, normalize=False).array.astype(dtype)
    invariants = with_attributes(graph, distance).astype(dtype)
    return EdgeFeatures(e3nn.IrrepsArray(irreps(1, degree, parity), harmonics), invariants)


def product(
    graph: GraphsTuple, features: e3nn.IrrepsArray, edges: EdgeFeatures, degree: int
) -> e3nn.IrrepsArray:
    """Y(r̂_ij) ⊗ V_j up to ``degree``, channel by channel, (E,)."""
    kept = [ir for _, ir in edges.harmonics.irreps if ir.l <= degree]
    sent = exchange(graph, features)[graph.senders]
    return e3nn.tensor_product(sent, edges.harmonics, filter_ir_out=kept)


def linear(out: e3nn.Irreps, name: str) -> Any:
    """A linear map that mixes the channels of each degree; with a bias for degree 0."""
    return e3nn.flax.Linear(
        out, biases=True, gradient_normalization="element", force_irreps_out=True, name=name
    )


def read_out(graph: GraphsTuple, features: e3nn.IrrepsArray, parity: Parity) -> GraphsTuple:
    """The graph with h the features of degree 0, and x moved by one vector of degree 1."""
    moves = linear(vector(parity), "out")(features).array.astype(graph.nodes.x.dtype)
    h = features.filter(e3nn.Irreps("0e")).array
    return graph._replace(nodes=graph.nodes.replace(h=h, x=graph.nodes.x + moves))


class NormNonlinearity(nn.Module):
    """SiLU of degree 0; V times sigmoid(‖V‖ + b) of the others, with a learned b for each
    channel.
    """

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
    """W V_i + W' Σ_j messages_ij as ``out``, then the norm nonlinearity: (N,) and (E,) to (N,)."""
    kept = linear(out, "self_interaction")(features)
    summed = e3nn.IrrepsArray(messages.irreps, sum_at_receivers(graph, messages.array))
    return NormNonlinearity(name="nonlinearity")(kept + linear(out, "mix")(summed))
