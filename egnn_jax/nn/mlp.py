"""Multilayer perceptrons with PyTorch's default initialisation, and the first edge layer."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph._validation import NUM_KINDS, require_count
from egnn_jax.graph.exchange import exchange, vary
from egnn_jax.graph.graph import GraphsTuple, dtype_of_sums

Initializer = Callable[..., jax.Array]

Activation = str | Callable[[jax.Array], jax.Array]
"""An elementwise function: a name of ``jax.nn`` such as "silu", or the function itself."""

Symmetry = Literal["E(n)", "E(3)", "SE(3)", "T(n)", "none"]
"""The transformations that a model is equivariant to, its attribute ``symmetry``; T(n) are the
translations alone.
"""

Parity = Literal["natural", "ignored"]
"""Under a reflection a feature of degree l is multiplied by (-1)^l as Y_l is, or nothing is
promised.
"""

torch_kernel: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform in ±1/sqrt(fan_in), PyTorch's default for a linear layer."""


def glorot_orthogonal(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """A semi-orthogonal matrix (in, out), scaled to the variance 2 / (in + out) of its entries."""
    matrix = jax.random.orthogonal(key, max(shape), dtype=dtype)[: shape[0], : shape[1]]
    return matrix * jnp.sqrt(2 / (sum(shape) * jnp.var(matrix)))


small_kernel: Initializer = nn.initializers.variance_scaling(1e-6, "fan_avg", "uniform")
"""Xavier-uniform with gain 0.001, so that φ_x hardly moves coordinates before training."""


def require_positive(**sizes: int | None) -> None:
    """Raise ValueError for a size that is no whole number of at least 1; None is no size."""
    for name, size in sizes.items():
        if size is not None:
            require_count(name, size)


def require_option(name: str, value: Any, options: Any) -> None:
    """Raise ValueError where a value is not one of those of a ``Literal``."""
    if value not in get_args(options):
        raise ValueError(f"{name} is {value!r}; expected one of {get_args(options)}")


def torch_bias(fan_in: int) -> Initializer:
    """Uniform in ±1/sqrt(fan_in), PyTorch's default for the bias of a linear layer."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def glorot_bias(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """Uniform in ±√(3 / size): what ``glorot_uniform`` is in TensorFlow 1 for a bias (size,)."""
    bound = (3 / shape[0]) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def with_attributes(graph: GraphsTuple, s_ij: jax.Array) -> jax.Array:
    """[s_ij, a_ij], (E, S) to (E, S + A); s_ij where edges have no attributes."""
    a_ij = graph.edges.a
    return s_ij if a_ij is None else jnp.concatenate([s_ij, a_ij], axis=-1)


@jax.custom_jvp
def silu(x: jax.Array) -> jax.Array:
    """x sigmoid(x), elementwise.

    Its derivative keeps one array for the backward pass where the product rule keeps three, which
    is a third of the memory of a training step on QM9.
    """
    return nn.silu(x)


@silu.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    gate = nn.sigmoid(x)
    y = x * gate
    return y, dx * (gate + y * (1 - gate))


def activation_function(activation: Activation) -> Callable[[jax.Array], jax.Array]:
    """The function of a name of ``jax.nn``.

    Raises:
      ValueError: ``jax.nn`` has no such function.
    """
    if not isinstance(activation, str):
        return activation
    if activation == "silu":
        return silu
    if not callable(getattr(jax.nn, activation, None)):
        raise ValueError(f"activation is {activation!r}; expected a function of jax.nn")
    return getattr(jax.nn, activation)


class Dense(nn.Module):
    """``nn.Dense`` initialised as PyTorch's ``Linear``: (…, in) to (…, features)."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = torch_kernel
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), x.dtype)
        y = x @ kernel
        if self.use_bias:
            init = self.bias_init or torch_bias(x.shape[-1])
            y += self.param("bias", init, (self.features,), x.dtype)
        return y


class EdgeLinear(nn.Module):
    """W [h_i, h_j, s_ij] + b, (N, F) and (E, S) to (E, features).

    h is projected at the N nodes and gathered at the E edges after that, so that the concatenation
    (E, 2 F + S) is never formed. The kernel is stored as that of the concatenation.
    """

    features: int
    kernel_init: Initializer = torch_kernel
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, graph: GraphsTuple, h: jax.Array, s_ij: jax.Array) -> jax.Array:
        n_h, n_in = h.shape[-1], 2 * h.shape[-1] + s_ij.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (n_in, self.features), h.dtype)
        bias = self.param("bias", self.bias_init or torch_bias(n_in), (self.features,), h.dtype)
        h_i, h_j = h @ kernel[:n_h] + bias, exchange(graph, h @ kernel[n_h : 2 * n_h])
        return h_i[graph.receivers] + h_j[graph.senders] + s_ij @ kernel[2 * n_h :]


class Table(nn.Module):
    """A row of a learned table for each kind of node: (N,) integers to (N, features)."""

    features: int

    @nn.compact
    def __call__(self, kinds: jax.Array) -> jax.Array:
        table = self.param("table", nn.initializers.normal(1.0), (NUM_KINDS, self.features))
        return jnp.asarray(table)[kinds]


def embed(h: jax.Array, features: int) -> jax.Array:
    """h in ``features`` dimensions: linear in (N, F), or from a table for kinds (N,).

    To be called in a compact method, whose module gets the parameters as "embedding".
    """
    if h.shape[-1:] == (0,) and h.ndim == 2:
        raise ValueError(f"h has shape {h.shape}; expected one feature or more")
    module = Table if jnp.issubdtype(h.dtype, jnp.integer) else Dense
    return module(features, name="embedding")(h)


class MLP(nn.Module):
    """Linear·activation·Linear, (…, in) to (…, out).

    Args:
      hidden: width of the hidden layer.
      out: width of the output.
      activation: see :data:`Activation`.
      use_bias: whether the last layer has a bias.
      kernel_init: how the kernel of the last layer is initialised.
    """

    hidden: int
    out: int
    activation: Activation = "silu"
    use_bias: bool = True
    kernel_init: Initializer = torch_kernel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = activation_function(self.activation)(Dense(self.hidden)(x))
        return Dense(self.out, self.use_bias, self.kernel_init)(x)


class LayerNorm(nn.Module):
    """(x - mean) / √(variance + epsilon) · scale + bias over the last axis (Ba et al. 2016)."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(dtype_of_sums(x))
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], x.dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], x.dtype)
        return (centred * jax.lax.rsqrt(variance + self.epsilon)).astype(x.dtype) * scale + bias


class EdgeMLP(nn.Module):
    """φ_e(h_i, h_j, s_ij) = Linear·act·Linear·act, (N, F) and (E, S) to (E, features).

    The first layer is linear in [h_i, h_j, s_ij], so h is projected at the N nodes and gathered at
    the E edges after that: the concatenation (E, 2 F + S) is never formed. The kernel is stored as
    that of the concatenation.
    """

    features: int
    activation: Activation = "silu"

    def setup(self) -> None:
        """The second layer; the width of the first one's input is known when it is called."""
        self.Dense_0 = Dense(self.features)

    def __call__(self, graph: GraphsTuple, h: jax.Array, s_ij: jax.Array | None) -> jax.Array:
        projected = self.at_nodes(graph, h, 0 if s_ij is None else s_ij.shape[-1])
        return self.at_edges(graph, projected, s_ij)

    @nn.compact
    def at_nodes(
        self, graph: GraphsTuple, h: jax.Array, n_s: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """W_i h_i + b and W_j h_j (N, features) of the first layer, and its kernel for s_ij."""
        n_h = h.shape[-1]
        kernel = self.param("kernel", torch_kernel, (2 * n_h + n_s, self.features), h.dtype)
        bias = self.param("bias", torch_bias(2 * n_h + n_s), (self.features,), h.dtype)
        kernel = vary(graph, kernel)  # the part for s_ij is used in each block of edges
        h_j = exchange(graph, h @ kernel[n_h : 2 * n_h])
        return h @ kernel[:n_h] + bias, h_j, kernel[2 * n_h :]

    def at_edges(
        self,
        graph: GraphsTuple,
        projected: tuple[jax.Array, jax.Array, jax.Array],
        s_ij: jax.Array | None,
    ) -> jax.Array:
        """φ_e (E, features) from what :meth:`at_nodes` returned."""
        act = activation_function(self.activation)
        h_i, h_j, kernel = projected
        first = h_i[graph.receivers] + h_j[graph.senders]
        if s_ij is not None:
            first += s_ij.astype(kernel.dtype) @ kernel
        return act(self.Dense_0(act(first)))
