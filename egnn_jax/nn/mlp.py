"""The small pieces every model shares: PyTorch's default initialisation, MLPs, and the first edge
layer.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple, edge_attributes

Initializer = Callable[..., jax.Array]

Symmetry = Literal["E(n)", "SE(3)", "none"]
"""What moves of the input a model's coordinates follow; its ``symmetry``, which the tests take at
its word.
"""

torch_kernel: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform in ±1/sqrt(fan_in), PyTorch's default for a linear layer."""

small_kernel: Initializer = nn.initializers.variance_scaling(1e-6, "fan_avg", "uniform")
"""Xavier-uniform with gain 0.001: φ_x starts close to "do not move"."""


def require_positive(**sizes: int) -> None:
    """Raises ValueError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; expected at least 1")


def torch_bias(fan_in: int) -> Initializer:
    """Uniform in ±1/sqrt(fan_in), PyTorch's default for the bias of a linear layer."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def with_attributes(graph: GraphsTuple, s_ij: jax.Array) -> jax.Array:
    """(E, S) to (E, S + A): what else is known of each edge, and its attributes."""
    a_ij = edge_attributes(graph)
    return s_ij if a_ij is None else jnp.concatenate([s_ij, a_ij], axis=-1)


@jax.custom_jvp
def silu(x: jax.Array) -> jax.Array:
    """x sigmoid(x), elementwise.

    Its derivative keeps one array for the backward pass where the product rule keeps three, which
    is a third of a QM9 step's memory.
    """
    return nn.silu(x)


@silu.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    gate = nn.sigmoid(x)
    y = x * gate
    return y, dx * (gate + y * (1 - gate))


class Dense(nn.Module):
    """``nn.Dense`` that starts as PyTorch's ``Linear`` does: (…, in) to (…, features)."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = torch_kernel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), x.dtype)
        y = x @ kernel
        if self.use_bias:
            y += self.param("bias", torch_bias(x.shape[-1]), (self.features,), x.dtype)
        return y


class MLP(nn.Module):
    """Linear·SiLU·Linear, (…, in) to (…, out)."""

    hidden: int
    out: int
    use_bias: bool = True
    """Whether the last layer has a bias."""
    kernel_init: Initializer = torch_kernel
    """How the last layer starts."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = silu(Dense(self.hidden)(x))
        return Dense(self.out, self.use_bias, self.kernel_init)(x)


class EdgeMLP(nn.Module):
    """φ_e(h_i, h_j, s_ij) = Linear·SiLU·Linear·SiLU of the concatenation, (N, F_h) and (E, S) to
    (E, features).

    The first layer is linear, so h is projected at the N nodes and only then gathered at the E
    edges: the concatenation (E, 2 F_h + S) is never formed. The kernel is stored as that of the
    concatenated form.
    """

    features: int

    def setup(self) -> None:
        """The second layer; the first one's width is known when it is called."""
        self.Dense_0 = Dense(self.features)

    def __call__(self, graph: GraphsTuple, h: jax.Array, s_ij: jax.Array | None) -> jax.Array:
        return self.at_edges(graph, self.at_nodes(h, 0 if s_ij is None else s_ij.shape[-1]), s_ij)

    @nn.compact
    def at_nodes(self, h: jax.Array, n_s: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the first layer makes of h_i and of h_j (N, features), and its kernel for s_ij (S,
        features).
        """
        n_h = h.shape[-1]
        kernel = self.param("kernel", torch_kernel, (2 * n_h + n_s, self.features), h.dtype)
        bias = self.param("bias", torch_bias(2 * n_h + n_s), (self.features,), h.dtype)
        return h @ kernel[:n_h] + bias, h @ kernel[n_h : 2 * n_h], kernel[2 * n_h :]

    def at_edges(
        self,
        graph: GraphsTuple,
        projected: tuple[jax.Array, jax.Array, jax.Array],
        s_ij: jax.Array | None,
    ) -> jax.Array:
        """φ_e (E, features) from what :meth:`at_nodes` gave."""
        h_i, h_j, kernel = projected
        first = h_i[graph.receivers] + h_j[graph.senders]
        if s_ij is not None:
            first += s_ij.astype(kernel.dtype) @ kernel
        return silu(self.Dense_0(silu(first)))
