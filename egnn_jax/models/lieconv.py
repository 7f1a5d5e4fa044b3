"""LieConv (Finzi et al. 2020), Table 3: convolutions over the group of translations or SE(3), with
a kernel of the difference of two group elements.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph._validation import require_count
from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import (
    GraphsTuple,
    PaddedGraphsTuple,
    edge_mask,
    edge_vectors,
    in_degree,
    node_mask,
    require_geometric,
)
from egnn_jax.nn.batch_norm import BatchNorm
from egnn_jax.nn.heads import MeanReadout
from egnn_jax.nn.mlp import Dense, Symmetry, embed, require_positive, silu
from egnn_jax.nn.products import sum_of_products


class LieConv(nn.Module):
    """LieConv: h_i' = h_i + Linear σ(BN t_i), t_i = Linear(Σ_{j∈N_i} w(x_i - x_j) ⊗ h̃_j) / n_i.

    N_i are the n_i neighbors of i and i itself (self-loops count in addition),
    h̃ = σ(BN Linear σ(BN h)) the features at a quarter of the width,
    w = σ BN Linear σ BN Linear σ BN Linear the kernel, BN batch normalization and σ the SiLU. The
    first h is linear in the input, the last is σ(BN h).

    The kernel takes x_i - x_j directly. So h' is invariant to translations, but must learn
    rotations: ``task.augment`` rotates each molecule at random in training, as the authors do.

    With ``lifts``, each node is lifted to that many elements u = (x_i, R) of SE(3), with random
    rotations R. All elements of N_i are neighbors, w takes log(u_j⁻¹ u_i) ∈ ℝ⁶, and h' is the mean
    over the elements of a node. Only the distribution of h' over R is invariant to rotations.
    By default, R is drawn once, for all nodes and calls; ``apply(…, rngs={"orientations": key})``
    draws it for each node, as the authors do.

    Batch normalization is a pure function of variables in a collection "batch_stats" next to
    "params", see :class:`egnn_jax.nn.batch_norm.BatchNorm`. By default it uses running statistics,
    so that graphs do not depend on others of their batch.

    Args:
      features: width of h.
      layers: number of convolutions.
      kernel_features: width of the two hidden layers of w.
      kernel_channels: output width of w.
      lifts: elements of SE(3) per node; 0 for the group of translations.

    Call: takes a graph with h (N, F) or (N,), x (N, n) and a (E, A) or None, another input of the
    kernel; returns it with h (N, features). x and v are unchanged.

    Raises:
      ValueError: a size is below 1, ``features`` is below 4, or ``lifts`` is set and n is not 3.
    """

    symmetry: ClassVar[Symmetry] = "T(n)"
    head: ClassVar[type[nn.Module]] = MeanReadout

    features: int = 1536
    layers: int = 6
    kernel_features: int = 32
    kernel_channels: int = 16
    lifts: int = 0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph)
        require_count("features", self.features, 4)
        require_count("lifts", self.lifts, 0)
        require_positive(
            layers=self.layers,
            kernel_features=self.kernel_features,
            kernel_channels=self.kernel_channels,
        )
        lifts = max(self.lifts, 1)
        pairs = self._pairs(graph)  # (E + N, L, L, …), pairs of a node with itself last
        mask, pair_mask = None, None
        if isinstance(graph, PaddedGraphsTuple):
            mask = node_mask(graph)
            pair_mask = jnp.repeat(jnp.concatenate([edge_mask(graph), mask]), lifts**2)
            mask = jnp.repeat(mask, lifts)
        h = jnp.repeat(embed(graph.nodes, self.features), lifts, axis=0)
        kernel_inputs = pairs.reshape(-1, pairs.shape[-1]).astype(h.dtype)
        n_neighbors = jnp.repeat(lifts * (in_degree(graph) + 1), lifts, axis=0).astype(h.dtype)
        for k in range(self.layers):
            name = f"layer_{k}_{{}}".format
            t = silu(BatchNorm(name=name("norm_in"))(h, mask))
            t = Dense(self.features // 4, name=name("down"))(t)
            t = silu(BatchNorm(name=name("norm_down"))(t, mask))
            w = kernel_inputs
            for depth, width in enumerate((*(self.kernel_features,) * 2, self.kernel_channels)):
                w = Dense(width, name=name(f"kernel_{depth}"))(w)
                w = silu(BatchNorm(name=name(f"kernel_norm_{depth}"))(w, pair_mask))
            w = w.reshape(*pairs.shape[:3], self.kernel_channels)
            sums = _convolve(graph, t.reshape(-1, lifts, t.shape[1]), w)
            t = Dense(self.features // 4, name=name("linear"))(sums) / n_neighbors
            t = silu(BatchNorm(name=name("norm_up"))(t, mask))
            h += Dense(self.features, name=name("up"))(t)
        h = silu(BatchNorm(name="norm_out")(h, mask))
        h = jnp.mean(h.reshape(-1, lifts, self.features), axis=1)
        return graph._replace(nodes=graph.nodes.replace(h=h))

    def _pairs(self, graph: GraphsTuple) -> jax.Array:
        """Inputs of w for each edge, then for each node with itself, (E + N, L, L, …): the axes are
        the elements of the receiver and of the sender.
        """
        x = graph.nodes.x
        r_ij = edge_vectors(graph, x)
        if self.lifts:
            if x.shape[-1] != 3:
                raise ValueError(f"x has {x.shape[-1]} coordinates; expected 3 with lifts to SE(3)")
            orientations = self._orientations(x)
            endpoints = (orientations[graph.receivers], orientations[graph.senders])
            edge_inputs = _logarithms(*endpoints, r_ij)
            node_inputs = _logarithms(orientations, orientations, jnp.zeros_like(x))
        else:
            edge_inputs, node_inputs = r_ij[:, None, None], jnp.zeros_like(x)[:, None, None]
        if graph.edges.a is not None:
            ones = jnp.ones((1, *edge_inputs.shape[1:3], 1), x.dtype)
            edge_inputs = jnp.concatenate(
                [edge_inputs, graph.edges.a[:, None, None] * ones], axis=-1
            )
            zeros = jnp.zeros((*node_inputs.shape[:3], graph.edges.a.shape[1]), x.dtype)
            node_inputs = jnp.concatenate([node_inputs, zeros], axis=-1)
        return jnp.concatenate([edge_inputs, node_inputs])

    def _orientations(self, x: jax.Array) -> jax.Array:
        """Random rotations as quaternions (N, L, 4)."""
        per_node = self.has_rng("orientations")
        key = self.make_rng("orientations") if per_node else jax.random.key(0)
        shape = (len(x) if per_node else 1, self.lifts, 4)
        # In float32, so that a network has the same rotations in any precision.
        quaternions = jax.random.normal(key, shape, jnp.float32).astype(x.dtype)
        quaternions = quaternions / jnp.linalg.norm(quaternions, axis=-1, keepdims=True)
        return jnp.broadcast_to(quaternions, (len(x), self.lifts, 4))


_SERIES = np.array([691 / 1277025750, 1 / 187110, 1 / 18900, 1 / 1890, 1 / 180, 1 / 12])
"""Series coefficients of (1 - k cot k) / (2 k)² in k², highest power first."""


def _convolve(graph: GraphsTuple, t: jax.Array, w: jax.Array) -> jax.Array:
    """Sum w_ij ⊗ t_j over j ∈ N_i, (N, L, C) and (E + N, L, L, K) to (N · L, K · C)."""
    n_node, lifts, _ = t.shape
    sums = sum(
        sum_of_products(graph, w[:, :, p].reshape(len(w), -1), t[:, p]) for p in range(lifts)
    )
    return jnp.reshape(sums, (n_node * lifts, -1))


def _logarithms(q_i: jax.Array, q_j: jax.Array, r_ij: jax.Array) -> jax.Array:
    """Logarithms log(u_j⁻¹ u_i) = (ω, V⁻¹ R_jᵀ r_ij) of all pairs of elements, (E, L, L, 6).

    q_i and q_j are the orientations as quaternions (E, L, 4), ω is the axis of R_jᵀ R_i times its
    angle θ, and V⁻¹ t = t - ω × t / 2 + (1 - (θ/2) cot(θ/2)) / θ² · ω × (ω × t).
    """
    q_i, q_j = q_i[:, :, None], q_j[:, None]
    s, u = q_j[..., :1], -q_j[..., 1:]  # the inverse of q_j
    r = jnp.broadcast_to(r_ij[:, None, None], (*jnp.broadcast_shapes(q_i.shape, q_j.shape)[:3], 3))
    twice_cross = 2 * jnp.cross(u, r)
    t = r + s * twice_cross + jnp.cross(u, twice_cross)
    cosine = s * q_i[..., :1] - jnp.sum(u * q_i[..., 1:], axis=-1, keepdims=True)
    sine = s * q_i[..., 1:] + q_i[..., :1] * u + jnp.cross(u, q_i[..., 1:])  # times the axis
    sine = jnp.where(cosine < 0, -sine, sine)
    length = safe_norm(sine, keepdims=True)
    half = jnp.arctan2(length, jnp.abs(cosine))
    omega = jnp.where(length > 0, 2 * half / jnp.where(length > 0, length, 1.0), 2.0) * sine
    is_large = half > 0.3
    safe_half = jnp.where(is_large, half, 1.0)
    factor = jnp.where(
        is_large,
        (1 - safe_half / jnp.tan(safe_half)) / (2 * safe_half) ** 2,
        jnp.polyval(_SERIES, half**2),
    )
    omega_cross_t = jnp.cross(omega, t)
    return jnp.concatenate(
        [omega, t - omega_cross_t / 2 + factor * jnp.cross(omega, omega_cross_t)], axis=-1
    )
