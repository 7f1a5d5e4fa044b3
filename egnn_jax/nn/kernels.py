"""Equivariant kernels with a radial weight for each pair of channels (Fuchs et al. 2020)."""

from collections.abc import Mapping

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.geometry import length_and_direction
from egnn_jax.graph.graph import GraphsTuple, edge_vectors
from egnn_jax.nn.mlp import Dense, LayerNorm, Parity

Features = Mapping[int, jax.Array]
"""Features of nodes (N, C, 2 l + 1), or of edges (E, C, 2 l + 1), by degree l."""

Channels = tuple[tuple[int, int], ...]
"""Pairs of a degree and its number of channels."""

_he = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Filters:
    """Edge quantities that all layers share: matrices Q_J(r̂_ij), a_ij and ‖r_ij‖.

    Q_J = (-1)^J Σ_m w_abm Y_Jm(r̂_ij), with w the 3j symbols of l, l' and J, maps a feature of
    degree l' to one of degree l, for J from |l - l'| to l + l'; with parity "natural" only for even
    l + l' + J.

    Args:
      graph: graph with E edges.
      degree: highest degree of features; J goes up to twice that.
      dtype: dtype of Q_J and of the invariants.
      parity: "natural" or "ignored".

    Attributes:
      invariants: a_ij and ‖r_ij‖ (E, A + 1).
    """

    def __init__(self, graph: GraphsTuple, degree: int, dtype: jnp.dtype, parity: Parity) -> None:
        d_ij, direction = length_and_direction(edge_vectors(graph, graph.nodes.x))
        a_ij = [] if graph.edges.a is None else [graph.edges.a]
        self.graph, self.dtype = graph, dtype
        self._bases: dict[tuple[int, int], jax.Array] = {}
        self._step = 2 if parity == "natural" else 1
        self.invariants = jnp.concatenate([*a_ij, d_ij], axis=-1).astype(dtype)
        irreps = e3nn.Irreps([(1, (j, (-1) ** j)) for j in range(2 * degree + 1)])
        self._y = e3nn.spherical_harmonics(irreps, direction, False, normalization="integral")

    def basis(self, l_in: int, l_out: int) -> jax.Array:
        """Q_J for each J, from l' = ``l_in`` to l = ``l_out``: (E, 2 l' + 1, J, 2 l + 1)."""
        if (l_in, l_out) not in self._bases:
            bases = []
            for j in range(abs(l_in - l_out), l_in + l_out + 1, self._step):
                w, y = e3nn.clebsch_gordan(l_out, l_in, j), self._y.array[:, j**2 : (j + 1) ** 2]
                bases.append(jnp.einsum("abm,em->eba", jnp.asarray((-1) ** j * w, y.dtype), y))
            self._bases[l_in, l_out] = jnp.stack(bases, axis=2).astype(self.dtype)
        return self._bases[l_in, l_out]

    def products(self, h: Features, l_out: int) -> dict[int, jax.Array]:
        """Q_J h_j (E, C' J, 2 l + 1) of degree l = ``l_out``, keyed by the degree l' of h."""
        products = {}
        for l_in, values in h.items():
            h_j = values[self.graph.senders]
            product = jnp.einsum("ecb,ebja->ecja", h_j, self.basis(l_in, l_out))
            n_edge, channels, degrees, size = product.shape
            products[l_in] = product.reshape(n_edge, channels * degrees, size)
        return products


class Kernel(nn.Module):
    """Kernel Σ_c'J R_cc'J(a_ij, ‖r_ij‖) Q_J h_j from one degree of h to one of the output.

    Maps Q_J h_j (E, C' J, 2 l + 1) to (E, channels, 2 l + 1), with
    R = Linear·LayerNorm·ReLU·Linear·LayerNorm·ReLU·Linear, applied from left to right.
    """

    channels: int
    radial: int

    @nn.compact
    def __call__(self, products: jax.Array, invariants: jax.Array) -> jax.Array:
        r = invariants
        for _ in range(2):
            r = nn.relu(LayerNorm(1e-5)(Dense(self.radial, kernel_init=_he)(r)))
        r = Dense(self.channels * products.shape[1], kernel_init=_he)(r)
        r = r.reshape(len(r), self.channels, products.shape[1])
        return jnp.einsum("eck,eka->eca", r, products)


class Convolution(nn.Module):
    """Convolution K h_j of each edge: the sum of :class:`Kernel` over the degrees of h."""

    channels: Channels
    radial: int

    @nn.compact
    def __call__(self, filters: Filters, h: Features) -> dict[int, jax.Array]:
        out = {}
        for l_out, channels in self.channels:
            terms = []
            for l_in, products in filters.products(h, l_out).items():
                # The weights of all edges dominate memory, so the backward pass recomputes them.
                kernel = nn.remat(Kernel)(channels, self.radial, name=f"({l_in},{l_out})")
                terms.append(kernel(products, filters.invariants))
            out[l_out] = sum(terms[1:], start=terms[0])
        return out


class LinearMap(nn.Module):
    """Linear map W h of the channels of each degree that h and the output share."""

    channels: Channels

    @nn.compact
    def __call__(self, h: Features) -> dict[int, jax.Array]:
        out = {}
        for degree, channels in self.channels:
            if degree in h:
                values = h[degree]
                shape = (values.shape[1], channels)
                w = self.param(f"{degree}", _normal, shape, values.dtype)
                out[degree] = jnp.einsum("cd,nca->nda", w, values)
        return out


class NormNonlinearity(nn.Module):
    """Norm nonlinearity ReLU(LayerNorm(‖h‖)) h / ‖h‖, with LayerNorm over a degree's channels."""

    @nn.compact
    def __call__(self, h: Features) -> dict[int, jax.Array]:
        out = {}
        for degree, values in h.items():
            norm, direction = length_and_direction(values)
            scale = nn.relu(LayerNorm(1e-5, name=f"{degree}")(norm[..., 0]))
            out[degree] = scale[..., None] * direction
        return out
