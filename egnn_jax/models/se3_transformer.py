"""SE(3)-Transformer (Fuchs et al. 2020), Table 2: attention with invariant weights and equivariant
values.
"""

from typing import ClassVar

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple, softmax_at_receivers
from egnn_jax.nn.mlp import MLP, Symmetry, require_positive
from egnn_jax.nn.tensor import (
    EdgeFeatures,
    Parity,
    edge_features,
    embed_steerable,
    irreps,
    linear,
    product,
    read_out,
    update,
)


class AttentionLayer(nn.Module):
    """Attention layer V_i' = W V_i + W' Σ_j α_ij v_ij, α_ij = softmax_j(q_i · k_ij / √d) per head,
    followed by the norm nonlinearity.

    Queries are linear, q_i = W'' V_i. Keys and values are products of the neighbor's features with
    spherical harmonics: k_ij = R_k(‖r_ij‖, a_ij) Y(r̂_ij) ⊗ V_j, and v_ij likewise with R_v. The
    channels of every product are divided over the heads; d is the size of q · k of a head.

    Args:
      features: channels of each degree.
      degree: highest degree of features.
      radial: width of R_k and R_v = Linear·SiLU·Linear.
      heads: number of heads.
      parity: see :class:`SE3Transformer`.
    """

    features: int
    degree: int
    radial: int
    heads: int
    parity: Parity = "natural"

    @nn.compact
    def __call__(
        self, graph: GraphsTuple, features: e3nn.IrrepsArray, edges: EdgeFeatures
    ) -> e3nn.IrrepsArray:
        products = product(graph, features, edges, self.degree)
        weights = MLP(self.radial, 2 * products.irreps.num_irreps, name="radial")(edges.invariants)
        weights_k, weights_v = jnp.split(weights, 2, axis=-1)
        q_i = linear(products.irreps, "query")(features)[graph.receivers]
        dots = e3nn.dot(q_i, products, per_irrep=True).array * weights_k
        logits = (
            jnp.sum(self._split_heads(dots), axis=(-3, -1))
            * (self.heads / products.irreps.dim) ** 0.5
        )
        alpha = softmax_at_receivers(graph, logits)[:, None, :, None]
        v_ij = products * (self._split_heads(weights_v) * alpha).reshape(weights_v.shape)
        return update(graph, features, v_ij, irreps(self.features, self.degree, self.parity))

    def _split_heads(self, weights: jax.Array) -> jax.Array:
        """Split heads: (E, products·features) to (E, products, heads, features per head)."""
        return weights.reshape(
            weights.shape[0],
            weights.shape[1] // self.features,
            self.heads,
            self.features // self.heads,
        )


class SE3Transformer(nn.Module):
    """SE(3)-Transformer: a stack of :class:`AttentionLayer`; x' = x + a learned combination of the
    vectors (features of degree 1) of the last layer.

    Equivariant to rotations and translations, and with parity "natural" also to reflections, see
    :class:`egnn_jax.models.tfn.TFN`.

    Args:
      features: channels of each degree, a multiple of ``heads``.
      layers: number of layers.
      degree: highest degree of features; filters go up to twice that.
      radial: width of the radial MLPs.
      heads: number of attention heads.
      parity: "natural", or "ignored" for all products, as in the 2020 paper.

    Call: takes a graph with h (N, F) or (N,), x (N, 3), v (N, 3) or None and invariant a (E, A) or
    None; returns it with h (N, features) and updated x.

    Raises:
      ValueError: x does not have 3 coordinates, ``features`` is not a multiple of ``heads``, or an
        option is unknown.
    """

    symmetry: ClassVar[Symmetry] = "SE(3)"

    features: int = 16
    layers: int = 4
    degree: int = 2
    radial: int = 32
    heads: int = 2
    parity: Parity = "natural"

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(
            features=self.features,
            layers=self.layers,
            degree=self.degree,
            radial=self.radial,
            heads=self.heads,
        )
        if self.features % self.heads:
            raise ValueError(
                f"features is {self.features}; expected a multiple of heads, which is {self.heads}"
            )
        features = embed_steerable(graph, self.features, self.degree, self.parity)
        edges = edge_features(graph, 2 * self.degree, self.parity, features.dtype)
        for layer in range(self.layers):
            options = (self.features, self.degree, self.radial, self.heads, self.parity)
            features = AttentionLayer(*options, name=f"layer_{layer}")(graph, features, edges)
        return read_out(graph, features, self.parity)
