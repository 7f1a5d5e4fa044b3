"""Tensor Field Network (Thomas et al. 2018) of Table 1: features of degree 0, 1, … that turn as
spherical harmonics do.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import GraphsTuple, edge_vectors, sum_at_receivers
from egnn_jax.nn.mlp import MLP, Symmetry, require_positive, with_attributes
from egnn_jax.nn.precision import compute_dtype

Parity = Literal["natural", "ignored"]
"""What a reflection does to a feature of degree l: times (-1)^l as to Y_l, or nothing is
promised.
"""


class Edges(NamedTuple):
    """What a convolution knows of an edge: ``harmonics`` (E,) Y_0(r̂_ij) to Y_l(r̂_ij),
    ``invariants`` (E, 1 + A) ‖r_ij‖ and a_ij.
    """

    harmonics: e3nn.IrrepsArray
    invariants: jax.Array


def irreps(channels: int, degree: int, parity: Parity) -> e3nn.Irreps:
    """So many channels of each degree from 0 to ``degree``."""
    odd = "e" if parity == "ignored" else "o"
    return e3nn.Irreps(
        "+".join(f"{channels}x{k}{odd if k % 2 else 'e'}" for k in range(degree + 1))
    )


def vector(parity: Parity) -> e3nn.Irreps:
    """One channel of degree 1."""
    return e3nn.Irreps("1e" if parity == "ignored" else "1o")


def embed(graph: GraphsTuple, channels: int, degree: int, parity: Parity) -> e3nn.IrrepsArray:
    """The first features of a steerable network, from h as degree 0 and the velocity as degree 1.

    Raises:
      ValueError: x has not 3 coordinates, or ``parity`` is unknown.
    """
    h, x, v = graph.nodes.h, graph.nodes.x, graph.nodes.v
    if x.shape[-1] != 3:
        raise ValueError(
            f"x has {x.shape[-1]} coordinates; expected 3, since spherical harmonics and their "
            f"products are those of rotations "
            "in three dimensions (EGNN works in any)"
        )
    if parity not in ("natural", "ignored"):
        raise ValueError(f"parity is {parity!r}; expected 'natural' or 'ignored'")
    given = e3nn.IrrepsArray(f"{h.shape[-1]}x0e", h)
    if v is not None:
        given = e3nn.concatenate([given, e3nn.IrrepsArray(vector(parity), v.astype(h.dtype))])
    return linear(irreps(channels, degree, parity), "embedding")(given)


def look_at_edges(graph: GraphsTuple, degree: int, parity: Parity) -> Edges:
    """The edges of a graph, with harmonics up to ``degree``."""
    r_ij = edge_vectors(graph, graph.nodes.x)
    distance = safe_norm(r_ij, keepdims=True)
    direction = r_ij / jnp.where(distance == 0, 1, distance)
    harmonics = e3nn.spherical_harmonics(irreps(1, degree, "natural"), direction, normalize=False)
    invariants = with_attributes(graph, distance)
    dtype = compute_dtype(graph)
    return Edges(
        e3nn.IrrepsArray(irreps(1, degree, parity), harmonics.array.astype(dtype)),
        invariants.astype(dtype),
    )


def product(
    graph: GraphsTuple, features: e3nn.IrrepsArray, edges: Edges, degree: int
) -> e3nn.IrrepsArray:
    """Y(r̂_ij) ⊗ V_j up to ``degree``, channel by channel, (E,)."""
    kept = [ir for _, ir in edges.harmonics.irreps if ir.l <= degree]
    return e3nn.tensor_product(features[graph.senders], edges.harmonics, filter_ir_out=kept)


def linear(out: e3nn.Irreps, name: str) -> Any:
    """Mixes the channels of each degree; with a bias for degree 0."""
    return e3nn.flax.Linear(
        out, biases=True, gradient_normalization="element", force_irreps_out=True, name=name
    )


def read_out(graph: GraphsTuple, features: e3nn.IrrepsArray, parity: Parity) -> GraphsTuple:
    """The graph with h the features of degree 0, and x moved by one vector of those of degree 1."""
    moved = graph.nodes.x + linear(vector(parity), "out")(features).array.astype(
        graph.nodes.x.dtype
    )
    return graph._replace(
        nodes=graph.nodes.replace(h=features.filter(e3nn.Irreps("0e")).array, x=moved)
    )


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


class TFNLayer(nn.Module):
    """V_i' = W V_i + W' Σ_j R(‖r_ij‖, a_ij) Y(r̂_ij) ⊗ V_j, then the norm nonlinearity.

    R = Linear·SiLU·Linear gives a weight for each channel of each product of degrees; W and W' mix
    channels of one degree.

    Args:
      features: channels of each degree.
      degree: the highest one.
      radial: width of R.
      parity: see :class:`TFN`.
    """

    features: int
    degree: int
    radial: int
    parity: Parity = "natural"

    @nn.compact
    def __call__(
        self, graph: GraphsTuple, features: e3nn.IrrepsArray, edges: Edges
    ) -> e3nn.IrrepsArray:
        products = product(graph, features, edges, self.degree)
        messages = products * MLP(self.radial, products.irreps.num_irreps, name="radial")(
            edges.invariants
        )
        return update(graph, features, messages, irreps(self.features, self.degree, self.parity))


class TFN(nn.Module):
    """Tensor Field Network: a stack of :class:`TFNLayer`; x' = x + one vector of the last features.

    Equivariant to rotations and translations. With parity "natural" a feature of degree l has
    parity (-1)^l, products that break it, such as the cross product of two vectors, are left out,
    and the network is equivariant to reflections too.

    Args:
      features: channels of each degree.
      layers: number of layers.
      degree: the highest degree of features; filters go up to twice that.
      radial: width of the radial MLPs.
      parity: "natural", or "ignored" for all products, as in the paper of 2018.

    Call: a graph with h (N, F), x (N, 3), v (N, 3) or None and edges (E, A) or None (invariants),
    to the same with h (N, features) and x moved.

    Raises:
      ValueError: x has not 3 coordinates, or an option is unknown.
    """

    symmetry: ClassVar[Symmetry] = "SE(3)"

    features: int = 16
    layers: int = 4
    degree: int = 1
    radial: int = 32
    parity: Parity = "natural"

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(
            features=self.features, layers=self.layers, degree=self.degree, radial=self.radial
        )
        features = embed(graph, self.features, self.degree, self.parity)
        edges = look_at_edges(graph, 2 * self.degree, self.parity)
        for layer in range(self.layers):
            features = TFNLayer(
                self.features, self.degree, self.radial, self.parity, name=f"layer_{layer}"
            )(graph, features, edges)
        return read_out(graph, features, self.parity)
