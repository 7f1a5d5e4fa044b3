"""Differentiable norms and Euclidean transformations."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from egnn_jax.graph import _validation
from egnn_jax.graph._forks import require_usable_jax
from egnn_jax.graph.graph import Globals, GraphsTuple, dtype_of_sums, require_geometric


def safe_norm(x: ArrayLike, axis: int = -1, keepdims: bool = False) -> jax.Array:
    """Compute the norm ‖x‖ along ``axis``, with derivatives of 0 instead of NaN at x = 0.

    Accurate for all lengths that the float type can represent, even if their squares overflow or
    underflow. Integers are converted to the default float type.

    Raises:
      ValueError: x is not real, or has no such axis.
    """
    require_usable_jax()
    array: Any = x if isinstance(x, jax.Array) else _validation.host("x", x)
    _validation.require_real("x", array.dtype)
    if isinstance(axis, bool) or not isinstance(axis, int) or not -array.ndim <= axis < array.ndim:
        raise ValueError(f"axis is {axis!r}; expected one of the {array.ndim} axes of x")
    dtype = _validation.float_dtype(array)
    wide = jnp.asarray(array, dtype).astype(dtype_of_sums(array.astype(dtype)))
    # Scaling by powers of two is exact and keeps the squares within the range of the float type.
    limit = 2.0 ** (jnp.finfo(wide.dtype).maxexp // 2 - 10)
    magnitudes = jnp.abs(jax.lax.stop_gradient(wide))
    largest = jnp.max(magnitudes, axis, keepdims=True, initial=0)
    scale = jnp.where(largest > limit, 2.0**-20 / limit, 1.0)
    # Its square must be finite: XLA multiplies squared scales with squared constants such as 0.
    upscale = 2.0 ** (jnp.finfo(wide.dtype).maxexp // 2 - 1)
    scale = jnp.where(largest < 1 / limit, upscale, scale).astype(wide.dtype)
    squared = jnp.sum((wide * scale) ** 2, axis=axis, keepdims=True)
    is_zero = squared == 0
    norm = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared))) / scale
    return (norm if keepdims else jnp.squeeze(norm, axis)).astype(dtype)


def length_and_direction(r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The lengths (…, 1) and unit vectors (…, n) of vectors r (…, n); 0 both where r = 0."""
    length = safe_norm(r, keepdims=True)
    return length, r / jnp.where(length > 0, length, 1)


def above_zero(length: jax.Array) -> jax.Array:
    """‖r‖ + 1e-8 to divide by; float16, which rounds 1e-8 to 0, adds its least normal number."""
    return length + max(1e-8, float(jnp.finfo(length.dtype).tiny))


def random_orthogonal(key: jax.Array, n: int, determinant: int | None = None) -> jax.Array:
    """Draw a Haar-uniform orthogonal matrix (n, n).

    ``determinant=1`` gives a rotation, -1 a reflection, and None either.

    Raises:
      ValueError: ``n`` is below 1 or above 10,000, or ``determinant`` is not 1, -1 or None.
    """
    require_usable_jax()
    _validation.require_count("n", n)
    if n > 10_000:
        raise ValueError(f"n is {n}; expected at most 10,000")
    if determinant is not None and (type(determinant) is not int or determinant not in (1, -1)):
        raise ValueError(f"determinant is {determinant}; expected 1, -1 or None")
    q = jax.random.orthogonal(key, n)
    if determinant is None:
        return q
    return q.at[0].multiply(determinant * jnp.sign(jnp.linalg.det(q)))


def transform(graph: GraphsTuple, matrix: ArrayLike, translation: ArrayLike = 0.0) -> GraphsTuple:
    """Transform x to ``matrix @ x + translation``; v, shifts, cells and stress by ``matrix`` only.

    Labels of nodes (``nodes.y``) stay as they are, also if they are forces: multiply these by
    ``matrix.T`` from the right.

    >>> graph = egnn.complete_graph(x=[[1.0, 0.0], [0.0, 2.0]])
    >>> egnn.transform(graph, [[0, -1], [1, 0]], 3.0).nodes.x.tolist()
    [[3.0, 4.0], [1.0, 3.0]]

    Args:
      graph: a graph or a batch.
      matrix: (n, n), for example a rotation.
      translation: (n,), or one number for all coordinates, in the unit of x.

    Raises:
      ValueError: the graph is not from this library, or an argument has the wrong shape or is not
        real and finite.
    """
    require_usable_jax()
    require_geometric(graph)
    nodes, edges, globals_ = graph.nodes, graph.edges, graph.globals
    if not isinstance(globals_, Globals):
        raise ValueError(
            f"the graph's globals are of type {type(globals_).__name__}; expected egnn.Globals"
        )
    n = nodes.x.shape[1]
    linear = _real("matrix", matrix, ((n, n),))
    offset = _real("translation", translation, ((), (1,), (n,)))
    matmul = partial(jnp.matmul, precision="highest")  # on GPUs, the default is TensorFloat-32

    def transformed(vectors: jax.Array | None) -> jax.Array | None:
        return None if vectors is None else matmul(vectors, linear.T).astype(vectors.dtype)

    x, stress = matmul(nodes.x, linear.T) + offset, globals_.stress
    return graph._replace(
        nodes=nodes.replace(x=x.astype(nodes.x.dtype), v=transformed(nodes.v)),
        edges=edges.replace(shift=transformed(edges.shift)),
        globals=globals_.replace(
            cell=transformed(globals_.cell),
            stress=None
            if stress is None
            else matmul(matmul(linear, stress), linear.T).astype(stress.dtype),
        ),
    )


def _real(name: str, value: ArrayLike, shapes: tuple[tuple[int, ...], ...]) -> jax.Array:
    """Convert to a finite real array of one of the given shapes; traced values are not checked."""
    array: Any = value if isinstance(value, Tracer) else _validation.host(name, value)
    _validation.require_real(name, array.dtype)
    if array.shape not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}")
    if isinstance(array, Tracer):
        return array
    return _validation.matrix(name, array.reshape(1, -1)).reshape(array.shape)
