"""Tensor Field Network and SE(3)-Transformer of Table 3, as Fuchs et al. (2020) run them on bonds
of molecules: with a radial weight for each pair of channels and each filter degree.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import (
    GraphsTuple,
    mean_at_receivers,
    softmax_at_receivers,
    sum_at_receivers,
)
from egnn_jax.nn.heads import MaxReadout
from egnn_jax.nn.kernels import (
    Channels,
    Convolution,
    Features,
    Filters,
    LinearMap,
    NormNonlinearity,
)
from egnn_jax.nn.mlp import Parity, Symmetry, node_features, require_option, require_positive
from egnn_jax.nn.tensor import require_steerable


class TFNLayer(nn.Module):
    """Tensor field layer h_i' = W h_i + mean_j K h_j."""

    channels: Channels
    radial: int

    @nn.compact
    def __call__(self, filters: Filters, h: Features) -> dict[int, jax.Array]:
        messages = Convolution(self.channels, self.radial, name="kernel")(filters, h)
        self_interaction = LinearMap(self.channels, name="self")(h)  # W h_i
        out = {}
        for degree, message in messages.items():
            mean = mean_at_receivers(filters.graph, message)  # mean_j K h_j
            out[degree] = mean + self_interaction[degree] if degree in self_interaction else mean
        return out


class AttentionLayer(nn.Module):
    """Attention layer h_i' = W [Σ_j α_ij v_ij, h_i], α_ij = softmax_j(q_i · k_ij / √d) per head.

    v_ij = K_v h_j, k_ij = K_k h_j and q_i = W_q h_i have 1/``div`` of the channels, divided over
    the heads in every degree; keys and queries have only the degrees of h. d is the total size of
    the keys of all heads.
    """

    channels: Channels
    radial: int
    div: int
    heads: int

    @nn.compact
    def __call__(self, filters: Filters, h: Features) -> dict[int, jax.Array]:
        graph = filters.graph
        value_channels = tuple((degree, channels // self.div) for degree, channels in self.channels)
        key_channels = tuple(
            (degree, channels) for degree, channels in value_channels if degree in h
        )
        v = Convolution(value_channels, self.radial, name="v")(filters, h)  # v_ij
        k = Convolution(key_channels, self.radial, name="k")(filters, h)  # k_ij
        q = LinearMap(key_channels, name="q")(h)  # q_i
        dots = [
            self._split_heads(q[degree][graph.receivers] * k[degree]).sum((2, 3)) for degree in k
        ]
        key_size = sum(channels * (2 * degree + 1) for degree, channels in key_channels)
        alpha = softmax_at_receivers(graph, sum(dots[1:], start=dots[0]) / key_size**0.5)  # α_ij
        features = dict(h)
        for degree, values in v.items():
            weighted = (alpha[:, :, None, None] * self._split_heads(values)).reshape(values.shape)
            z = sum_at_receivers(graph, weighted)  # Σ_j α_ij v_ij
            features[degree] = jnp.concatenate([z, h[degree]], axis=1) if degree in h else z
        return LinearMap(self.channels, name="project")(features)

    def _split_heads(self, values: jax.Array) -> jax.Array:
        """(E, C, 2 l + 1) to (E, heads, C / heads, 2 l + 1)."""
        n_edge, channels, size = values.shape
        return values.reshape(n_edge, self.heads, channels // self.heads, size)


class FuchsTFN(nn.Module):
    """Tensor Field Network of Fuchs et al.: a stack of :class:`TFNLayer` with
    :class:`NormNonlinearity` between them; the last layer outputs degree 0 only.

    Intended for graphs of bonds, since every edge has C² D (D + 1) (2 D + 1) / 6 weights with
    C = ``features`` and D = ``degree`` + 1, and C² D (2 D² + 1) / 3 with parity "ignored".

    Args:
      features: channels of each degree.
      layers: number of layers.
      degree: highest degree of features; filters go up to twice that.
      radial: width of the radial networks.
      parity: "natural" multiplies features of degree l by (-1)^l under a reflection and leaves out
        the filters that break this, so that the network is equivariant to reflections; "ignored"
        uses all filters, as the authors do, and gives this up.

    Call: takes a graph with h (N, F) or (N,), x (N, 3) and a (E, A) or None; returns it with h
    (N, features · (degree + 1)).

    Raises:
      ValueError: x does not have 3 coordinates, or an option is out of range.
    """

    symmetry: ClassVar[Symmetry] = "SE(3)"
    head: ClassVar[type[nn.Module]] = MaxReadout

    features: int = 16
    layers: int = 4
    degree: int = 2
    radial: int = 32
    parity: Parity = "natural"

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        filters, h, hidden_channels, output_channels = _prepare(self, graph)
        for k in range(self.layers - 1):
            h = TFNLayer(hidden_channels, self.radial, name=f"layer_{k}")(filters, h)
            h = NormNonlinearity(name=f"norm_{k}")(h)
        h = TFNLayer(output_channels, self.radial, name=f"layer_{self.layers - 1}")(filters, h)
        return graph._replace(nodes=graph.nodes.replace(h=h[0][..., 0]))


class FuchsSE3Transformer(nn.Module):
    """SE(3)-Transformer of Fuchs et al.: a stack of :class:`AttentionLayer`, each followed by
    :class:`NormNonlinearity`, and a final :class:`TFNLayer` that outputs degree 0.

    Other arguments, call and errors are as in :class:`FuchsTFN`.

    Args:
      heads: number of attention heads, which must divide features / div.
      div: values and keys have 1/div of the channels, rounded down.
    """

    symmetry: ClassVar[Symmetry] = "SE(3)"
    head: ClassVar[type[nn.Module]] = MaxReadout

    features: int = 16
    layers: int = 4
    degree: int = 2
    radial: int = 32
    heads: int = 1
    div: int = 4
    parity: Parity = "natural"

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(heads=self.heads, div=self.div)
        if self.features // self.div == 0 or self.features // self.div % self.heads:
            raise ValueError(
                f"features / div is {self.features // self.div}; expected a multiple of heads, "
                f"which is {self.heads}"
            )
        filters, h, hidden_channels, output_channels = _prepare(self, graph)
        for k in range(self.layers):
            options = hidden_channels, self.radial, self.div, self.heads
            h = AttentionLayer(*options, name=f"layer_{k}")(filters, h)
            h = NormNonlinearity(name=f"norm_{k}")(h)
        h = TFNLayer(output_channels, self.radial, name=f"layer_{self.layers}")(filters, h)
        return graph._replace(nodes=graph.nodes.replace(h=h[0][..., 0]))


def _prepare(model: Any, graph: GraphsTuple) -> tuple[Filters, Features, Channels, Channels]:
    """Check a model's options; return filters, features of degree 0, and channels of the middle
    layers and of the last.
    """
    require_steerable(graph, model.degree)
    require_positive(features=model.features, layers=model.layers, radial=model.radial)
    require_option("parity", model.parity, Parity)
    h = {0: node_features(graph.nodes, model.features)[..., None]}
    hidden_channels = tuple((degree, model.features) for degree in range(model.degree + 1))
    output_channels = ((0, model.features * (model.degree + 1)),)
    filters = Filters(graph, model.degree, h[0].dtype, model.parity)
    return filters, h, hidden_channels, output_channels
