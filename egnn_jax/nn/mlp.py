"""Multilayer perceptrons with PyTorch's default initialization, and edge layers."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph._arrays import require_features
from egnn_jax.graph._validation import NUM_NODE_TYPES, require_count, short_str
from egnn_jax.graph.exchange import exchange, vary
from egnn_jax.graph.graph import GraphsTuple, Nodes, dtype_of_sums

Initializer = Callable[..., jax.Array]

Activation = str | Callable[[jax.Array], jax.Array]
"""An elementwise function: its name in ``jax.nn``, for example "silu", or the function itself."""

Symmetry = Literal["E(n)", "E(3)", "SE(3)", "T(n)", "none"]
"""The group that a model is equivariant to (its attribute ``symmetry``); T(n) is translations."""

Parity = Literal["natural", "ignored"]
"""Behavior of a feature of degree l under reflection: multiplied by (-1)^l like Y_l ("natural"), or
unspecified ("ignored").
"""

torch_kernel: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform in ±1/sqrt(fan_in), PyTorch's default for the weight of a linear layer."""


def glorot_orthogonal(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """A semi-orthogonal matrix (in, out), scaled to a variance of 2 / (in + out) of its entries."""
    # There is no QR decomposition in half precision.
    qr_dtype = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
    matrix = jax.random.orthogonal(key, max(shape), dtype=qr_dtype)[: shape[0], : shape[1]]
    variance = jnp.var(matrix) if matrix.size > 1 else 1.0  # one entry is ±1
    return (matrix * jnp.sqrt(2 / (sum(shape) * variance))).astype(dtype)


standard_normal: Initializer = nn.initializers.normal(1.0)
small_kernel: Initializer = nn.initializers.variance_scaling(1e-6, "fan_avg", "uniform")
"""Xavier uniform with gain 0.001, so that φ_x hardly moves coordinates before training."""


def require_positive(optional: Mapping[str, Any] | None = None, **sizes: Any) -> None:
    """Raise ValueError unless every size is an integer of at least 1; optional ones may be None."""
    optional_sizes = {name: size for name, size in (optional or {}).items() if size is not None}
    for name, size in {**sizes, **optional_sizes}.items():
        require_count(name, size)


def require_option(name: str, value: Any, options: Any) -> None:
    """Raise ValueError unless ``value`` is one of the values of a ``Literal``."""
    if value not in get_args(options):
        raise ValueError(f"{name} is {value!r}; expected one of {get_args(options)}")


def require_module(name: str, value: Any) -> nn.Module:
    """Return ``value``, or raise ValueError if it is not a flax module."""
    if not isinstance(value, nn.Module):
        raise ValueError(f"{name} is {short_str(value)}; expected a flax module, such as EGNN()")
    return value


def torch_bias(fan_in: int) -> Initializer:
    """Uniform in ±1/sqrt(fan_in), PyTorch's default for the bias of a linear layer."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def glorot_bias(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """Uniform in ±√(3 / size), as TensorFlow 1's ``glorot_uniform`` for a bias (size,)."""
    bound = (3 / shape[0]) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def with_attributes(graph: GraphsTuple, s_ij: jax.Array) -> jax.Array:
    """Append edge attributes to s_ij, (E, S) to (E, S + A), if there are any."""
    a_ij = graph.edges.a
    return s_ij if a_ij is None else jnp.concatenate([s_ij, a_ij], axis=-1)


@jax.custom_jvp
def silu(x: jax.Array) -> jax.Array:
    """Elementwise SiLU, x sigmoid(x).

    Its derivative stores one array for the backward pass instead of the three of the product rule,
    which saves a third of the memory of a training step on QM9.
    """
    return nn.silu(x)


@silu.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    gate = nn.sigmoid(x)
    y = x * gate
    return y, dx * (gate + y * (1 - gate))


def activation_function(activation: Activation) -> Callable[[jax.Array], jax.Array]:
    """Look up an activation by its name in ``jax.nn``; functions are returned unchanged.

    Raises:
      ValueError: ``jax.nn`` has no such function of one array, or it is not a function.
    """
    if activation == "silu":
        return silu
    if isinstance(activation, str) and _keeps_shape(getattr(jax.nn, activation, None)):
        return getattr(jax.nn, activation)
    if isinstance(activation, str) or not callable(activation):
        raise ValueError(
            f"activation is {activation!r}; expected a function, or the name of one of jax.nn"
        )
    return activation


def _keeps_shape(fn: Any) -> bool:
    example = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    try:
        return jax.eval_shape(fn, example).shape == example.shape
    except TypeError:  # not a function, or not of one array
        return False


class Dense(nn.Module):
    """``nn.Dense`` initialized like PyTorch's ``Linear``: (…, in) to (…, features)."""

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


Projected = tuple[jax.Array, jax.Array, jax.Array]
"""W_i h_i + b and W_j h_j at nodes (N, features), and the rows of the kernel for s_ij."""


class EdgeLinear(nn.Module):
    """Linear layer W [h_i, h_j, s_ij] + b on edges, (N, F) and (E, S) to (E, features).

    h is projected at the N nodes before it is gathered at the E edges, so the concatenation
    (E, 2 F + S) is never formed. The kernel is stored as that of the concatenation.
    """

    features: int
    kernel_init: Initializer = torch_kernel
    bias_init: Initializer | None = None

    def __call__(self, graph: GraphsTuple, h: jax.Array, s_ij: jax.Array | None) -> jax.Array:
        projected = self.at_nodes(graph, h, 0 if s_ij is None else s_ij.shape[-1])
        return self.at_edges(graph, projected, s_ij)

    @nn.compact
    def at_nodes(self, graph: GraphsTuple, h: jax.Array, n_s: int) -> Projected:
        """Project h (N, F) of the nodes, for s_ij (E, n_s) of the edges."""
        n_h, n_in = h.shape[-1], 2 * h.shape[-1] + n_s
        kernel = self.param("kernel", self.kernel_init, (n_in, self.features), h.dtype)
        bias = self.param("bias", self.bias_init or torch_bias(n_in), (self.features,), h.dtype)
        kernel = vary(graph, kernel)  # the rows for s_ij are used in each block of edges
        h_j = exchange(graph, h @ kernel[n_h : 2 * n_h])
        return h @ kernel[:n_h] + bias, h_j, kernel[2 * n_h :]

    def at_edges(
        self, graph: GraphsTuple, projected: Projected, s_ij: jax.Array | None
    ) -> jax.Array:
        """Compute the output (E, features) from the result of :meth:`at_nodes`."""
        h_i, h_j, kernel = projected
        y = h_i[graph.receivers] + h_j[graph.senders]
        return y if s_ij is None else y + s_ij.astype(kernel.dtype) @ kernel


class EdgeMLP(EdgeLinear):
    """Edge network φ_e(h_i, h_j, s_ij) = Linear·act·Linear·act, (N, F), (E, S) to (E, features),
    whose first layer is :class:`EdgeLinear`.
    """

    activation: Activation = "silu"

    def setup(self) -> None:
        """Create the second layer; the first needs its input width, known only when called."""
        self.Dense_0 = Dense(self.features)

    def at_edges(
        self, graph: GraphsTuple, projected: Projected, s_ij: jax.Array | None
    ) -> jax.Array:
        """Compute φ_e (E, features) from the result of :meth:`at_nodes`."""
        act = activation_function(self.activation)
        return act(self.Dense_0(act(super().at_edges(graph, projected, s_ij))))


class Table(nn.Module):
    """Learned embedding table of node types: integers 0 to 118 (N,) to (N, features) in ``dtype``.

    Other integers give NaN. Graphs refuse them, but h that is traced or replaced is not checked.
    """

    features: int
    table_init: Initializer

    @nn.compact
    def __call__(self, node_types: jax.Array, dtype: jnp.dtype) -> jax.Array:
        shape = (NUM_NODE_TYPES, self.features)
        table = self.param("table", self.table_init, shape, dtype)
        indices = jnp.where(node_types < 0, NUM_NODE_TYPES, node_types)
        return jnp.asarray(table).at[indices].get(mode="fill", fill_value=jnp.nan)


def node_features(
    nodes: Nodes, features: int, name: str = "embedding", init: Initializer = standard_normal
) -> jax.Array:
    """Return h (N, F) as it is, and look node types (N,) up in a table of ``features`` columns.

    Call it in a compact method, whose module gets the table under ``name``, in the dtype of x.

    Raises:
      ValueError: nodes have no h, or h has no features or another number of axes.
    """
    require_features(nodes.h)
    if jnp.issubdtype(nodes.h.dtype, jnp.integer):
        return Table(features, init, name=name)(nodes.h, nodes.x.dtype)
    return nodes.h


def embed(nodes: Nodes, features: int, **options: Any) -> jax.Array:
    """Embed h to (N, features): ``Dense(features, **options)`` of features (N, F), or the rows of a
    :class:`Table` for node types (N,), initialized by the option ``kernel_init`` if it is given.
    """
    h = node_features(nodes, features, init=options.get("kernel_init", standard_normal))
    return h if nodes.h.ndim == 1 else Dense(features, name="embedding", **options)(h)


class MLP(nn.Module):
    """Two-layer perceptron Linear·activation·Linear, (…, in) to (…, out).

    Args:
      hidden: width of the hidden layer.
      out: width of the output.
      activation: see :data:`Activation`.
      use_bias: whether the last layer has a bias.
      kernel_init: initializer of the last layer's kernel.
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
    """LayerNorm (Ba et al. 2016), (x - mean) / √(variance + epsilon) · scale + bias, last axis."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x_cast = x.astype(dtype_of_sums(x))
        centered = x_cast - jnp.mean(x_cast, axis=-1, keepdims=True)
        variance = jnp.mean(centered**2, axis=-1, keepdims=True)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], x.dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], x.dtype)
        return (centered * jax.lax.rsqrt(variance + self.epsilon)).astype(x.dtype) * scale + bias
