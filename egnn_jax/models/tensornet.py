"""TensorNet (Simeon and De Fabritiis 2023): messages of 3 × 3 tensors within a cutoff."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph._validation import require_positive_number
from egnn_jax.graph.exchange import exchange
from egnn_jax.graph.geometry import length_and_direction
from egnn_jax.graph.graph import GraphsTuple, edge_vectors, require_geometric, sum_at_receivers
from egnn_jax.nn.mlp import (
    MLP,
    Dense,
    LayerNorm,
    Symmetry,
    embed,
    require_positive,
    with_attributes,
)
from egnn_jax.nn.radial import bessel_basis, polynomial_envelope

Tensor = tuple[jax.Array, ...]
"""N × F tensors of shape 3 × 3, as components of three parts in orthonormal bases: isotropic
(N, 1, F), antisymmetric (N, 3, F) and symmetric traceless (N, 5, F).
"""


def _orthonormal() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orthonormal bases of the parts, (1, 3, 3), (3, 3, 3) and (5, 3, 3)."""
    unit = np.eye(3)
    pairs = [np.outer(unit[a], unit[b]) for a, b in ((1, 2), (2, 0), (0, 1))]
    antisymmetric = [(p - p.T) / 2**0.5 for p in pairs]
    symmetric = [(p + p.T) / 2**0.5 for p in pairs]
    symmetric += [np.diag([1, -1, 0]) / 2**0.5, np.diag([-1, -1, 2]) / 6**0.5]
    return unit[None] / 3**0.5, np.stack(antisymmetric), np.stack(symmetric)


BASES = _orthonormal()


class TensorNet(nn.Module):
    """TensorNet: each node has F tensors X of shape 3 × 3, each the sum of an isotropic part I, an
    antisymmetric part A and a symmetric traceless part S.

    - First, X_i = Σ_{j≠i} Z_ij (w_I 1 + w_A [r̂_ji]× + w_S (r̂_ji r̂_jiᵀ - 1/3)), where Z_ij is
      linear in h_i and h_j. The channels of each part are mixed by a matrix, and weighted by the
      SiLU of an MLP of LayerNorm ‖X‖².
    - In a layer, Y mixes the channels of each part of X / (‖X‖² + 1). Messages
      M_i = Σ_j w_I I_j + w_A A_j + w_S S_j of its parts give P = Y M + M Y, and
      X ← X + Δ + Δ², where Δ mixes the channels of each part of P / (‖P‖² + 1). (In the authors'
      code, X is also divided by ‖X‖² + 1 before Δ + Δ² is added.)
    - Last, h' is an MLP of LayerNorm of the squared norms of I, A and S. Without neighbors within
      the cutoff, it does not depend on h. (The authors' sums have a term j = i.)

    The weights w of an edge are linear in a Bessel basis of ‖r_ij‖ and in a_ij, times an envelope
    that goes to 0 at the cutoff with two continuous derivatives. (In the paper they are an MLP of
    another basis.)

    Args:
      features: number of features and of tensors, F.
      layers: number of message-passing layers after the first tensors.
      num_rbf: number of radial basis functions.
      cutoff: cutoff distance of interactions, in the unit of x.

    Call: takes a graph with h (N, F) or (N,), x (N, 3) and a (E, A) or None; returns it with h
    (N, features). x and v are unchanged, and v is not used.

    Raises:
      ValueError: x is not (N, 3), a size is below 1, or the cutoff is not a finite distance above
        0.
    """

    symmetry: ClassVar[Symmetry] = "E(3)"

    features: int = 64
    layers: int = 2
    num_rbf: int = 8
    cutoff: float = 5.0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph, dimensions=3)
        require_positive(features=self.features, layers=self.layers, num_rbf=self.num_rbf)
        require_positive_number(cutoff=self.cutoff)
        x = graph.nodes.x
        distance, u_ij = length_and_direction(edge_vectors(graph, exchange(graph, x)))
        h = embed(graph.nodes, self.features)
        s_ij = with_attributes(graph, bessel_basis(distance[:, 0], self.num_rbf, self.cutoff))
        s_ij = s_ij.astype(h.dtype)
        envelope = polynomial_envelope(distance, self.cutoff).astype(h.dtype)

        z_i = Dense(self.features, name="z_i")(h)[graph.receivers]
        z_j = exchange(graph, Dense(self.features, False, name="z_j")(h))[graph.senders]
        z_ij = (z_i + z_j) * envelope
        weights = self._weights(s_ij, z_ij, "tensors_w")
        tensors = _sum(graph, _weighted(_direction_tensors(u_ij.astype(h.dtype)), weights))
        norms = LayerNorm(name="tensors_norm")(_squared_norms(tensors))
        gates = MLP(2 * self.features, 3 * self.features, name="tensors_gates")(norms)
        tensors = _weighted(self._mix(tensors, "tensors_mix"), _split_parts(nn.silu(gates)))
        for k in range(self.layers):
            y = self._mix(_normalized(tensors), f"layer_{k}_y")
            weights = self._weights(s_ij, envelope, f"layer_{k}_w")
            messages = _weighted(tuple(part[graph.senders] for part in exchange(graph, y)), weights)
            product = _anticommutator(_matrices(y), _matrices(_sum(graph, messages)))
            delta = self._mix(_normalized(_components(product)), f"layer_{k}_delta")
            matrices = _matrices(delta)
            squared = _components(jnp.einsum("nabf,nbcf->nacf", matrices, matrices))
            tensors = tuple(t + d + d2 for t, d, d2 in zip(tensors, delta, squared, strict=True))
        norms = jnp.concatenate([jnp.sum(part**2, axis=1) for part in tensors], axis=-1)
        h = MLP(self.features, self.features, name="out")(LayerNorm(name="out_norm")(norms))
        return graph._replace(nodes=graph.nodes.replace(h=h))

    def _weights(self, s_ij: jax.Array, factor: jax.Array, name: str) -> Tensor:
        """Edge weights (E, 1, F) of each part: linear in s_ij, times a factor (E, 1 or F)."""
        return _split_parts(Dense(3 * self.features, name=name)(s_ij), factor)

    def _mix(self, tensors: Tensor, name: str) -> Tensor:
        """Mix the channels of each part linearly."""
        return tuple(
            Dense(self.features, use_bias=False, name=f"{name}_{suffix}")(part)
            for suffix, part in zip("ias", tensors, strict=True)
        )


def _split_parts(weights: jax.Array, factor: jax.Array | float = 1.0) -> Tensor:
    """Split weights (E, 3 F) into (E, 1, F) for each part, times a factor (E, 1 or F)."""
    return tuple((w * factor)[:, None] for w in jnp.split(weights, 3, axis=-1))


def _weighted(tensors: Tensor, weights: Tensor) -> Tensor:
    return tuple(part * weight for part, weight in zip(tensors, weights, strict=True))


def _sum(graph: GraphsTuple, tensors: Tensor) -> Tensor:
    return tuple(sum_at_receivers(graph, part) for part in tensors)


def _direction_tensors(u_ij: jax.Array) -> Tensor:
    """Tensors 1, [-u]× and u uᵀ - 1/3 of directions u (E, 3), with F = 1."""
    symmetric = jnp.asarray(BASES[2], u_ij.dtype)
    s = jnp.einsum("kab,ea,eb->ek", symmetric, u_ij, u_ij)
    i = jnp.full_like(u_ij[:, :1], 3**0.5)
    return i[:, :, None], 2**0.5 * u_ij[:, :, None], s[:, :, None]


def _squared_norms(tensors: Tensor) -> jax.Array:
    """Squared Frobenius norms ‖X‖² (N, F)."""
    return jnp.sum(jnp.stack([jnp.sum(part**2, axis=1) for part in tensors]), axis=0)


def _normalized(tensors: Tensor) -> Tensor:
    """Normalize tensors to X / (‖X‖² + 1)."""
    factor = 1 / (_squared_norms(tensors)[:, None] + 1)
    return tuple(part * factor for part in tensors)


def _matrices(tensors: Tensor) -> jax.Array:
    """Convert components to matrices (N, 3, 3, F)."""
    i, a, s = (
        jnp.einsum("kab,nkf->nabf", jnp.asarray(basis, part.dtype), part)
        for basis, part in zip(BASES, tensors, strict=True)
    )
    return i + a + s


def _components(matrices: jax.Array) -> Tensor:
    """Convert matrices to components, the inverse of :func:`_matrices`."""
    bases = (jnp.asarray(basis, matrices.dtype) for basis in BASES)
    return tuple(jnp.einsum("kab,nabf->nkf", basis, matrices) for basis in bases)


def _anticommutator(y: jax.Array, m: jax.Array) -> jax.Array:
    """Anticommutator Y M + M Y of matrices (N, 3, 3, F)."""
    return jnp.einsum("nabf,nbcf->nacf", y, m) + jnp.einsum("nabf,nbcf->nacf", m, y)
