"""Checks of arguments: each returns the value as it is used, or raises a ValueError."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from egnn_jax.graph.neighbors import LARGEST, Lattice

NUM_KINDS = 119
"""Kinds of nodes that a model can embed: 0 and the atomic numbers."""


def require_count(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError for what is no whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} is {value!r}; expected a whole number")
    if value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}")


def require_cutoff(value: float) -> None:
    """Raise ValueError for what is no finite distance above 0."""
    if not 0 < value < np.inf:
        raise ValueError(f"cutoff is {value}; expected a finite distance above 0")


def matrix(
    name: str, value: ArrayLike, rows: int | None = None, columns: int | None = None
) -> jax.Array:
    """A floating-point matrix (rows, columns) of finite numbers; traced values are not checked."""
    if hasattr(value, "get_positions"):
        raise ValueError(f"{name} is ASE's {type(value).__name__}; expected an array: see from_ase")
    shape = np.shape(value)
    expected = f"({'M' if rows is None else rows}, {'any width' if columns is None else columns})"
    wrong_rows = rows is not None and shape[:1] != (rows,)
    wrong_columns = columns is not None and shape[1:] != (columns,)
    if len(shape) != 2 or wrong_rows or wrong_columns:
        raise ValueError(f"{name} has shape {shape}; expected {expected}")
    if not isinstance(value, Tracer):
        value = np.asarray(value)
        if not jnp.issubdtype(value.dtype, np.number) or np.iscomplexobj(value):
            raise ValueError(f"{name} has dtype {value.dtype}; expected real numbers")
    dtype = float_dtype(value)
    if not isinstance(value, Tracer):
        with np.errstate(over="ignore"):
            rounded = np.asarray(value, dtype)
        if len(bad := np.argwhere(~np.isfinite(rounded))):
            row, column = bad[0]
            raise ValueError(
                f"{name} is {value[row, column]} at row {row}, column {column}; expected finite "
                f"numbers of type {jnp.dtype(dtype)}"
            )
    return jnp.asarray(value, dtype)


def float_dtype(value: ArrayLike) -> jnp.dtype:
    """The type that numbers are stored in: their own float type, or the default one."""
    given = jnp.result_type(value) if hasattr(value, "dtype") else jnp.result_type(float)
    return given if jnp.issubdtype(given, jnp.floating) else jnp.result_type(float)


def features(name: str, value: ArrayLike, rows: int) -> jax.Array:
    """Features (rows, F), or kinds of nodes (rows,) as integers from 0 to 118."""
    if np.ndim(value) == 2:
        return matrix(name, value, rows=rows)
    dtype = value.dtype if isinstance(value, Tracer) else np.asarray(value).dtype
    if np.shape(value) != (rows,) or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"{name} has shape {np.shape(value)} and dtype {dtype}; expected "
            f"({rows}, any width), or ({rows},) integers, one kind per node"
        )
    if not isinstance(value, Tracer):
        kinds = np.asarray(value)
        if len(bad := kinds[(kinds < 0) | (kinds >= NUM_KINDS)]):
            raise ValueError(f"{name} holds {bad[0]}; expected kinds from 0 to {NUM_KINDS - 1}")
    return jnp.asarray(value, jnp.int32)


def adjacency(value: ArrayLike, n_node: int) -> np.ndarray:
    """A matrix (n_node, n_node) of real numbers that are not NaN."""
    value = np.asarray(value)
    if value.shape != (n_node, n_node):
        raise ValueError(
            f"adjacency has shape {value.shape}; expected ({n_node}, {n_node}), one row per node "
            "of x"
        )
    if value.dtype != bool and not np.issubdtype(value.dtype, np.number):
        raise ValueError(f"adjacency has dtype {value.dtype}; expected booleans or numbers")
    if np.isnan(value).any():
        raise ValueError("adjacency holds NaN; expected numbers")
    return value


def lattice_steps(value: ArrayLike, rows: int, columns: int) -> np.ndarray:
    """Whole numbers (rows, columns)."""
    value = np.asarray(value)
    if value.shape != (rows, columns) or not np.issubdtype(value.dtype, np.integer):
        raise ValueError(
            f"steps has shape {value.shape} and dtype {value.dtype}; expected integers "
            f"({rows}, {columns})"
        )
    return value.astype(np.int32)


def indices(name: str, value: ArrayLike, n_node: int) -> np.ndarray:
    """A list of node indices from 0 to n_node - 1."""
    value = np.asarray(value)
    if value.ndim != 1 or (value.size and not np.issubdtype(value.dtype, np.integer)):
        raise ValueError(
            f"{name} has shape {value.shape} and dtype {value.dtype}; expected a list of integers"
        )
    outside = value[(value < 0) | (value >= n_node)]
    if len(outside):
        raise ValueError(f"{name} holds {outside[0]}; expected node indices from 0 to {n_node - 1}")
    return value.astype(np.int32)


def fits_budget(counts: Sequence[tuple[int, int, int]], budget: tuple[int, int, int]) -> None:
    """Raise ValueError where (nodes, edges, graphs) do not fit beside a padding node and graph."""
    nodes = edges = graphs = 0
    for k, (n_node, n_edge, n_graph) in enumerate(counts):
        nodes, edges, graphs = nodes + n_node, edges + n_edge, graphs + n_graph
        if nodes > budget[0] - 1 or edges > budget[1] or graphs > budget[2] - 1:
            raise ValueError(
                f"graph {k} with {n_node} nodes and {n_edge} edges does not fit: the batch would "
                f"hold {nodes} nodes, {edges} edges and {graphs} graphs; the budget is "
                f"{tuple(budget)}, of which one node and one graph are padding"
            )


def points(name: str, value: ArrayLike) -> np.ndarray:
    """A matrix of finite numbers (M, n), n at least 1, that is not traced, in float64."""
    if hasattr(value, "get_positions"):
        raise ValueError(f"{name} is ASE's {type(value).__name__}; expected an array: see from_ase")
    if isinstance(value, Tracer):
        raise ValueError(
            f"{name} is traced; expected its values, since neighbors are found on the host: "
            f"build the graph outside of jit"
        )
    value = np.asarray(value)
    if not jnp.issubdtype(value.dtype, np.number) or np.iscomplexobj(value):
        raise ValueError(f"{name} has dtype {value.dtype}; expected real numbers")
    if value.ndim != 2 or value.shape[1] == 0:
        raise ValueError(f"{name} has shape {value.shape}; expected (M, n), n at least 1")
    value = value.astype(np.float64)
    bad = np.argwhere(~np.isfinite(value))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{name} is {value[row, column]} at row {row}, column {column}; expected finite numbers"
        )
    return value


def lattice(cell: ArrayLike, periodic: bool | Sequence[bool], n: int) -> Lattice:
    """Lattice vectors as rows (n, n), in float64, and for each whether space repeats along it.

    Vectors along which space does not repeat may be zero, as in ASE, or depend on the others. Unit
    vectors orthogonal to the rest take their place, so that the cell always has a volume.

    Raises:
      ValueError: a shape does not fit, or the vectors along which space repeats are zero or
        linearly dependent (up to 1e-10 of their lengths).
    """
    vectors, repeats = points("cell", cell), np.asarray(periodic)
    if repeats.shape not in ((), (n,)) or not np.isin(repeats, (False, True)).all():
        raise ValueError(
            f"periodic is {periodic}; expected one boolean, or {n}, one for each lattice vector"
        )
    repeats = np.broadcast_to(repeats.astype(bool), n)
    if vectors.shape != (n, n):
        raise ValueError(
            f"cell is {vectors.tolist()}; expected {n} independent lattice vectors of {n} "
            f"coordinates"
        )
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    units = vectors / np.where(largest > 1 / LARGEST, largest, np.inf)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1)  # zeros remain

    def independent(rows: Sequence[int]) -> bool:
        return not rows or bool(np.linalg.svd(units[rows], compute_uv=False)[-1] > 1e-10)

    kept = np.flatnonzero(repeats).tolist()
    if not independent(kept):
        raise ValueError(
            f"cell is {vectors.tolist()} and periodic along {kept}; expected {n} independent "
            f"lattice vectors (or zeros along directions that are not periodic)"
        )
    for row in np.flatnonzero(~repeats).tolist():
        kept = [*kept, row] if independent([*kept, row]) else kept
    missing = [row for row in range(n) if row not in kept]
    vectors[missing] = np.linalg.svd(units[kept])[2][len(kept) :]
    return Lattice(vectors, repeats)
