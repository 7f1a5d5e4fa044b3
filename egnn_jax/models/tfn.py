"""Tensor Field Network (Thomas et al. 2018), Table 1: features that transform like Y_l."""

from typing import ClassVar

import e3nn_jax as e3nn
import flax.linen as nn

from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.nn.mlp import MLP, Symmetry, require_positive
from egnn_jax.nn.tensor import (
    EdgeFeatures,
    Parity,
    edge_features,
    embed_steerable,
    irreps,
    product,
    read_out,
    update,
)


class TFNLayer(nn.Module):
    """Layer V_i' = W V_i + W' Σ_j R(‖r_ij‖, a_ij) Y(r̂_ij) ⊗ V_j, then the norm nonlinearity.

    R = Linear·SiLU·Linear gives a weight for each channel of each product of degrees; W and W' mix
    the channels of each degree.

    Args:
      features: channels of each degree.
      degree: highest degree of features.
      radial: width of R.
      parity: see :class:`TFN`.
    """

    features: int
    degree: int
    radial: int
    parity: Parity = "natural"

    @nn.compact
    def __call__(
        self, graph: GraphsTuple, features: e3nn.IrrepsArray, edges: EdgeFeatures
    ) -> e3nn.IrrepsArray:
        products = product(graph, features, edges, self.degree)
        messages = products * MLP(self.radial, products.irreps.num_irreps, name="radial")(
            edges.invariants
        )
        return update(graph, features, messages, irreps(self.features, self.degree, self.parity))


class TFN(nn.Module):
    """Tensor Field Network: a stack of :class:`TFNLayer`; x' = x + a learned combination of the
    vectors (features of degree 1) of the last layer.

    Equivariant to rotations and translations. With parity "natural", a feature of degree l has
    parity (-1)^l, products that break parity (such as the cross product of two vectors) are
    omitted, and the network is also equivariant to reflections.

    Args:
      features: channels of each degree.
      layers: number of layers.
      degree: highest degree of features; filters go up to twice that.
      radial: width of the radial MLPs.
      parity: "natural", or "ignored" for all products, as in the 2018 paper.

    Call: takes a graph with h (N, F) or (N,), x (N, 3), v (N, 3) or None and invariant a (E, A) or
    None; returns it with h (N, features) and updated x.

    Raises:
      ValueError: x does not have 3 coordinates, or an option is unknown.
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
        features = embed_steerable(graph, self.features, self.degree, self.parity)
        edges = edge_features(graph, 2 * self.degree, self.parity, features.dtype)
        for layer in range(self.layers):
            features = TFNLayer(
                self.features, self.degree, self.radial, self.parity, name=f"layer_{layer}"
            )(graph, features, edges)
        return read_out(graph, features, self.parity)
