"""TensorNet (Simeon and De Fabritiis 2023): messages of 3 × 3 tensors within a cutoff."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import GraphsTuple, edge_vectors, require_geometric, sum_at_receivers
from egnn_jax.nn.mlp import MLP, Dense, Symmetry, embed, require_positive, with_attributes
from egnn_jax.nn.radial import bessel_basis, polynomial_envelope

Tensor = tuple[jax.Array, jax.Array, jax.Array]
"""Parts (N, 1, F), (N, 3, F) and (N, 5, F) of N × F tensors 3 × 3: multiples of the identity,
antisymmetric, and symmetric without trace, as components in an orthonormal basis."""


def _orthonormal() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(1, 3, 3), (3, 3, 3) and (5, 3, 3): bases of the three parts, <B_k, B_l> = δ_kl."""
    unit = np.eye(3)
    pairs = [np.outer(unit[a], unit[b]) for a, b in ((1, 2), (2, 0), (0, 1))]
    antisymmetric = [(p - p.T) / 2**0.5 for p in pairs]
    symmetric = [(p + p.T) / 2**0.5 for p in pairs]
    symmetric += [np.diag([1, -1, 0]) / 2**0.5, np.diag([-1, -1, 2]) / 6**0.5]
    return unit[None] / 3**0.5, np.stack(antisymmetric), np.stack(symmetric)


BASES = _orthonormal()


class TensorNet(nn.Module):
    """Each node has F tensors X (3 × 3) in three parts: identity I, antisymmetric A, symmetric S.

    They start as Σ_j Z_ij (w_I 1 + w_A [r̂_ij]× + w_S (r̂_ij r̂_ijᵀ - 1/3)), with Z_ij linear in
    [h_i, h_j] and w linear in a Bessel basis of ‖r_ij‖ times an envelope, and are then weighted by
    an MLP of their norms. In a layer Y mixes the channels of X / (‖X‖² + 1), each part by a matrix
    of its own, and messages M_i = Σ_j w_I I_j + w_A A_j + w_S S_j of Y change X ← X + Δ + Δ², where
    Δ mixes (Y M + M Y) / (‖Y M + M Y‖² + 1). h' is an MLP of the norms of the parts of X.

    Args:
      features: number of features and of tensors, F.
      layers: number of messages after the first tensors.
      basis: how many functions describe a distance.
      cutoff: where interactions end, in the unit of x, with two continuous derivatives.

    Call: a graph with h (N, F) or (N,), x (N, 3) and a (E, A) or None, to the same with h
    (N, features); x and v stay as they are, and v is not used.

    Raises:
      ValueError: x is not (N, 3), a size is below 1, or the cutoff is not a finite distance above
        0.
    """

    symmetry: ClassVar[Symmetry] = "E(3)"

    features: int = 64
    layers: int = 2
    basis: int = 8
    cutoff: float = 5.0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph)
        require_positive(features=self.features, layers=self.layers, basis=self.basis)
        if not 0 < self.cutoff < float("inf"):
            raise ValueError(f"cutoff is {self.cutoff}; expected a finite distance above 0")
        x = graph.nodes.x
        if x.shape[-1] != 3:
            raise ValueError(f"x has shape {x.shape}; expected (N, 3)")
        r_ij = edge_vectors(graph, x)
        distance = safe_norm(r_ij, keepdims=True)
        h = embed(graph.nodes.h, self.features)
        s_ij = with_attributes(graph, bessel_basis(distance[:, 0], self.basis, self.cutoff))
        s_ij = s_ij.astype(h.dtype)
        within = polynomial_envelope(distance, self.cutoff).astype(h.dtype)
        u_ij = (r_ij / jnp.where(distance > 0, distance, 1)).astype(h.dtype)

        z_i = Dense(self.features, name="z_i")(h)[graph.receivers]
        z_ij = (z_i + Dense(self.features, False, name="z_j")(h)[graph.senders]) * within
        weights = self._weights(s_ij, z_ij, "tensors_w")
        tensors = _sum(graph, _weigh(_of_directions(u_ij), weights))
        norms = nn.LayerNorm(name="tensors_norm")(_squares(tensors))
        gates = MLP(2 * self.features, 3 * self.features, name="tensors_gates")(norms)
        tensors = _weigh(self._mix(tensors, "tensors_mix"), _split(nn.silu(gates)))
        for k in range(self.layers):
            y = self._mix(_normalised(tensors), f"layer_{k}_y")
            weights = self._weights(s_ij, within, f"layer_{k}_w")
            sent = _weigh(tuple(part[graph.senders] for part in y), weights)
            product = _anticommutator(_matrices(y), _matrices(_sum(graph, sent)))
            delta = self._mix(_normalised(_parts(product)), f"layer_{k}_delta")
            matrices = _matrices(delta)
            squared = _parts(_anticommutator(matrices, matrices) / 2)
            tensors = jax.tree.map(lambda *terms: sum(terms), tensors, delta, squared)
        norms = jnp.concatenate([jnp.sum(part**2, axis=1) for part in tensors], axis=-1)
        h = MLP(self.features, self.features, name="out")(nn.LayerNorm(name="out_norm")(norms))
        return graph._replace(nodes=graph.nodes.replace(h=h))

    def _weights(self, s_ij: jax.Array, factor: jax.Array, name: str) -> Tensor:
        """(E, 1, F) for each of the three parts: linear in s_ij, times a factor (E, 1 or F)."""
        weights = Dense(3 * self.features, name=name)(s_ij)
        return tuple(w * factor[:, None] for w in _split(weights))  # pyright: ignore

    def _mix(self, tensors: Tensor, name: str) -> Tensor:
        """Combinations of the channels of each part."""
        return tuple(
            Dense(self.features, use_bias=False, name=f"{name}_{kind}")(part)
            for kind, part in zip("ias", tensors, strict=True)
        )  # pyright: ignore


def _split(weights: jax.Array) -> Tensor:
    """(E, 3 F) to three (E, 1, F)."""
    return tuple(jnp.split(weights[:, None], 3, axis=-1))  # pyright: ignore


def _weigh(tensors: Tensor, weights: Tensor) -> Tensor:
    return jax.tree.map(jnp.multiply, tensors, weights)


def _sum(graph: GraphsTuple, tensors: Tensor) -> Tensor:
    return jax.tree.map(lambda part: sum_at_receivers(graph, part), tensors)


def _of_directions(u_ij: jax.Array) -> Tensor:
    """1, [u]× and u uᵀ - 1/3 of directions (E, 3), with F = 1."""
    symmetric = jnp.asarray(BASES[2], u_ij.dtype)
    s = jnp.einsum("kab,ea,eb->ek", symmetric, u_ij, u_ij)
    i = jnp.full_like(u_ij[:, :1], 3**0.5)
    return i[:, :, None], 2**0.5 * u_ij[:, :, None], s[:, :, None]


def _squares(tensors: Tensor) -> jax.Array:
    """‖X‖² (N, F)."""
    return sum(jnp.sum(part**2, axis=1) for part in tensors)  # pyright: ignore


def _normalised(tensors: Tensor) -> Tensor:
    """X / (‖X‖² + 1)."""
    factor = 1 / (_squares(tensors)[:, None] + 1)
    return jax.tree.map(lambda part: part * factor, tensors)


def _matrices(tensors: Tensor) -> jax.Array:
    """(N, 3, 3, F)."""
    terms = zip(BASES, tensors, strict=True)
    return sum(jnp.einsum("kab,nkf->nabf", jnp.asarray(b, t.dtype), t) for b, t in terms)


def _parts(matrices: jax.Array) -> Tensor:
    """The inverse of :func:`_matrices`."""
    bases = (jnp.asarray(basis, matrices.dtype) for basis in BASES)
    return tuple(jnp.einsum("kab,nabf->nkf", basis, matrices) for basis in bases)  # pyright: ignore


def _anticommutator(y: jax.Array, m: jax.Array) -> jax.Array:
    """Y M + M Y of (N, 3, 3, F)."""
    return jnp.einsum("nabf,nbcf->nacf", y, m) + jnp.einsum("nabf,nbcf->nacf", m, y)
