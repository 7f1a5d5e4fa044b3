"""Argument validation: each function returns the converted value or raises ValueError."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from egnn_jax.graph.neighbors import MAX_COORDINATE, Lattice

NUM_NODE_TYPES = 119
"""Number of node types that a model can embed: 0 and the atomic numbers."""


def require_count(name: str, value: Any, minimum: int = 1, maximum: float = np.inf) -> None:
    """Raise ValueError unless ``value`` is an integer from ``minimum`` to ``maximum``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} is {value!r}; expected a whole number")
    if value < minimum:
        raise ValueError(f"{name} is {value}; expected at least {minimum}")
    if value > maximum:
        raise ValueError(f"{name} is {value}; expected {minimum} to {maximum}")


def require_function(name: str, value: Any, expected: str) -> None:
    """Raise ValueError unless ``value`` can be called; a flax module that is not bound to its
    parameters cannot.
    """
    cls: Any = type(value)
    unbound = isinstance(value, nn.Module) and value.scope is None
    needs_scope = unbound and (hasattr(cls.__call__, "compact") or cls.setup is not nn.Module.setup)
    if needs_scope or not callable(value):
        raise ValueError(f"{name} is of type {cls.__name__}; expected a function {expected}")


def require_positive_number(**values: Any) -> None:
    """Raise ValueError unless every value is a finite number above 0."""
    for name, value in values.items():
        if not _is_finite(value) or value <= 0:
            raise ValueError(f"{name} is {short_str(value)}; expected a finite number above 0")


def require_not_negative(**values: Any) -> None:
    """Raise ValueError unless every value is a finite number of at least 0."""
    for name, value in values.items():
        if not _is_finite(value) or value < 0:
            raise ValueError(
                f"{name} is {short_str(value)}; expected a finite number of at least 0"
            )


def require_number(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a single real number, which may be infinite or NaN."""
    if not _is_number(value):
        raise ValueError(f"{name} is {short_str(repr(value))}; expected a number")


def _is_finite(value: Any) -> bool:
    """Whether a value is a single real number that is finite as a float."""
    try:
        return _is_number(value) and abs(float(value)) < np.inf
    except OverflowError:  # an integer too large for a float
        return False


def _is_number(value: Any) -> bool:
    """Whether a value is a single real number, either a Python scalar or a 0-d array."""
    if isinstance(value, Tracer | bool) or np.iterable(value):
        return False
    dtype = getattr(
        value, "dtype", np.dtype(type(value) if isinstance(value, int | float) else "O")
    )
    return _is_real(dtype)


def _is_real(dtype: Any) -> bool:
    return getattr(dtype, "kind", "") in "fiu" or jnp.issubdtype(dtype, jnp.floating)


def short_str(value: Any) -> str:
    """A value as text, truncated to a bounded length."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"


def host(name: str, value: Any) -> np.ndarray:
    """Convert a value that is not traced to a NumPy array.

    Raises:
      ValueError: the value is traced, ragged, has masked entries, or is not an array.
    """
    if hasattr(value, "get_positions"):
        raise ValueError(f"{name} is ASE's {type(value).__name__}; expected an array: see from_ase")
    if isinstance(value, Tracer):
        raise ValueError(
            f"{name} is traced; expected its values, which decide on the shape of the graph: build "
            "it outside of jit"
        )
    if np.ma.is_masked(value):
        masked = np.ma.count_masked(value)
        raise ValueError(f"{name} has {masked} masked entries; expected a value for each")
    try:
        return np.asarray(value)
    except Exception as error:  # whatever a value's own __array__ raises
        raise ValueError(
            f"{name} is a {type(value).__name__} that is not an array ({error}); expected an array"
        ) from error


def require_real(name: str, dtype: Any) -> None:
    """Raise ValueError unless the dtype is real."""
    if not _is_real(dtype):
        raise ValueError(f"{name} has dtype {dtype}; expected real numbers")


def matrix(
    name: str, value: ArrayLike, rows: int | None = None, columns: int | None = None
) -> jax.Array:
    """Convert to a finite floating-point matrix (rows, columns); traced values are not checked."""
    array: Any = value if isinstance(value, Tracer) else host(name, value)
    expected = f"({'M' if rows is None else rows}, {'any width' if columns is None else columns})"
    wrong_rows = rows is not None and array.shape[:1] != (rows,)
    wrong_columns = columns is not None and array.shape[1:] != (columns,)
    if array.ndim != 2 or wrong_rows or wrong_columns:
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}")
    require_real(name, array.dtype)
    dtype = float_dtype(array)
    if not isinstance(array, Tracer):
        with np.errstate(over="ignore"):
            rounded = array.astype(dtype)
        if len(bad := np.argwhere(~np.isfinite(rounded))):
            row, column = bad[0]
            raise ValueError(
                f"{name} is {array[row, column]} at row {row}, column {column}; expected finite "
                f"numbers of type {jnp.dtype(dtype)}"
            )
        array = rounded
    return jnp.asarray(array, dtype)


def float_dtype(value: Any) -> jnp.dtype:
    """The dtype to store numbers in: their own if it is a JAX float type, else the default."""
    if value.dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        return jnp.dtype(value.dtype)
    return jnp.result_type(float)


def features(name: str, value: ArrayLike, rows: int) -> jax.Array:
    """Convert features (rows, F), or node types (rows,) as integers from 0 to 118."""
    array: Any = value if isinstance(value, Tracer) else host(name, value)
    if array.ndim == 2:
        return matrix(name, array, rows=rows)
    if array.shape != (rows,) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; expected "
            f"({rows}, any width), or ({rows},) integers, one node type each"
        )
    if not isinstance(array, Tracer) and len(bad := array[(array < 0) | (array >= NUM_NODE_TYPES)]):
        raise ValueError(
            f"{name} holds {bad[0]}; expected node types from 0 to {NUM_NODE_TYPES - 1}"
        )
    array = array if isinstance(array, Tracer) else array.astype(np.int32)
    return jnp.asarray(array, jnp.int32)


def targets(name: str, value: ArrayLike) -> jax.Array:
    """Convert finite numbers (T,), or a single number, to a row (1, T)."""
    array: Any = value if isinstance(value, Tracer) else host(name, value)
    if array.ndim > 1:
        raise ValueError(f"{name} has shape {array.shape}; expected (T,), targets of the graph")
    return matrix(name, array.reshape(1, -1))


def adjacency(value: ArrayLike, n_node: int) -> np.ndarray:
    """Convert to a matrix (n_node, n_node) of real numbers other than NaN."""
    array = host("adjacency", value)
    if array.shape != (n_node, n_node):
        raise ValueError(
            f"adjacency has shape {array.shape}; expected ({n_node}, {n_node}), one row per node "
            "of x"
        )
    if array.dtype != bool and not _is_real(array.dtype):
        raise ValueError(f"adjacency has dtype {array.dtype}; expected booleans or numbers")
    if np.isnan(array).any():
        raise ValueError("adjacency holds NaN; expected numbers")
    return array


def lattice_steps(value: ArrayLike, rows: int, columns: int) -> np.ndarray:
    """Convert to an int32 matrix (rows, columns) of lattice steps."""
    steps = host("steps", value)
    if steps.shape != (rows, columns) or steps.dtype.kind not in "iu":
        raise ValueError(
            f"steps has shape {steps.shape} and dtype {steps.dtype}; expected integers "
            f"({rows}, {columns})"
        )
    if len(outside := steps[(steps >= 2**31) | (steps <= -(2**31))]):
        raise ValueError(f"steps holds {outside[0]}; expected fewer than 2^31 steps")
    return steps.astype(np.int32)


def indices(name: str, value: ArrayLike, n_node: int) -> np.ndarray:
    """Convert to an int32 list of node indices from 0 to n_node - 1."""
    array = host(name, value)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; expected a list of integers"
        )
    outside = array[(array < 0) | (array >= n_node)] if array.size else array
    if len(outside):
        raise ValueError(f"{name} holds {outside[0]}; expected node indices from 0 to {n_node - 1}")
    return array.astype(np.int32)


def fits_budget(counts: Sequence[tuple[int, int, int]], budget: Any) -> None:
    """Raise ValueError if (nodes, edges, graphs) leave no room for a padding node and graph."""
    if not isinstance(budget, tuple) or len(budget) != 3:
        raise ValueError(
            f"budget is {short_str(budget)}; expected a Budget(n_node, n_edge, n_graph)"
        )
    for name, size in zip(("n_node", "n_edge", "n_graph"), budget, strict=True):
        require_count(f"budget.{name}", size, 0)
    nodes = edges = graphs = 0
    for k, (n_node, n_edge, n_graph) in enumerate(counts):
        nodes, edges, graphs = nodes + n_node, edges + n_edge, graphs + n_graph
        if nodes > budget[0] - 1 or edges > budget[1] or graphs > budget[2] - 1:
            raise ValueError(
                f"graph {k} with {n_node} nodes and {n_edge} edges does not fit: the batch would "
                f"hold {nodes} nodes, {edges} edges and {graphs} graphs; expected at most the "
                f"budget {tuple(budget)}, of which one node and one graph are padding"
            )


def points(name: str, value: ArrayLike) -> np.ndarray:
    """Convert values that are not traced to a finite float64 matrix (M, n), n at least 1."""
    array = host(name, value)
    require_real(name, array.dtype)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} has shape {array.shape}; expected (M, n), n at least 1")
    array = array.astype(np.float64)
    if len(bad := np.argwhere(~np.isfinite(array))):
        row, column = bad[0]
        raise ValueError(
            f"{name} is {array[row, column]} at row {row}, column {column}; expected finite numbers"
        )
    return array


def lattice(cell: ArrayLike, periodic: bool | Sequence[bool], n: int) -> Lattice:
    """Convert lattice vectors, as rows (n, n), and periodicity flags to a :class:`Lattice`.

    Non-periodic vectors may be zero, as in ASE, or linearly dependent on the others. They are then
    replaced by unit vectors orthogonal to the rest, so that the cell always has a volume.

    Raises:
      ValueError: a shape does not match, or the periodic vectors are zero or linearly dependent
        (up to 1e-10 of their lengths).
    """
    vectors, is_periodic = points("cell", cell), host("periodic", periodic)
    are_flags = is_periodic.dtype.kind in "biuf" and np.isin(is_periodic, (False, True)).all()
    if is_periodic.shape not in ((), (n,)) or not are_flags:
        raise ValueError(
            f"periodic is {short_str(periodic)}; expected one boolean, or {n}, one for each "
            "lattice vector"
        )
    is_periodic = np.broadcast_to(is_periodic.astype(bool), n)
    if vectors.shape != (n, n):
        raise ValueError(
            f"cell is {short_str(vectors.tolist())}; expected {n} independent lattice vectors "
            f"of {n} coordinates"
        )
    scales = np.abs(vectors).max(axis=1, keepdims=True)
    units = vectors / np.where(scales > 1 / MAX_COORDINATE, scales, np.inf)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1)  # zeros remain

    def are_independent(rows: Sequence[int]) -> bool:
        return not rows or bool(np.linalg.svd(units[rows], compute_uv=False)[-1] > 1e-10)

    basis_rows = np.flatnonzero(is_periodic).tolist()
    if not are_independent(basis_rows):
        raise ValueError(
            f"cell is {vectors.tolist()} and periodic along {basis_rows}; expected {n} independent "
            f"lattice vectors (or zeros along directions that are not periodic)"
        )
    for row in np.flatnonzero(~is_periodic).tolist():
        if are_independent([*basis_rows, row]):
            basis_rows.append(row)
    dependent_rows = [row for row in range(n) if row not in basis_rows]
    vectors[dependent_rows] = np.linalg.svd(units[basis_rows])[2][len(basis_rows) :]
    return Lattice(vectors, is_periodic)
