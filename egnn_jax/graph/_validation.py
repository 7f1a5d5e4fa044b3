"""What users pass, checked: each function returns it as it is used, if at all, or raises a
ValueError that says what was expected.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from egnn_jax.graph.neighbors import Lattice


def matrix(
    name: str, value: ArrayLike, rows: int | None = None, columns: int | None = None
) -> jax.Array:
    """A floating-point matrix of finite numbers (rows, columns); values that are traced are not
    looked at.
    """
    shape = np.shape(value)
    expected = f"({'M' if rows is None else rows}, {'any width' if columns is None else columns})"
    if (
        len(shape) != 2
        or (rows is not None and shape[0] != rows)
        or (columns is not None and shape[1] != columns)
    ):
        raise ValueError(f"{name} has shape {shape}; expected {expected}")
    if not isinstance(value, Tracer):
        value = np.asarray(value)
        if not jnp.issubdtype(value.dtype, np.number) or np.iscomplexobj(value):
            raise ValueError(f"{name} has dtype {value.dtype}; expected real numbers")
        bad = np.argwhere(~np.isfinite(value))
        if len(bad):
            raise ValueError(
                f"{name} is {value[tuple(bad[0])]} at row {bad[0][0]}, column {bad[0][1]}; "
                f"expected finite numbers"
            )
    value = jnp.asarray(value)
    return (
        value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.result_type(float))
    )


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


def fit(sizes: Sequence[tuple[int, int]], budget: tuple[int, int, int]) -> None:
    """Raises where graphs of so many (nodes, edges) do not fit a budget (nodes, edges, graphs)
    beside a padding node and graph.
    """
    most_nodes, most_edges, most_graphs = budget
    nodes = edges = 0
    for k, (n_node, n_edge) in enumerate(sizes):
        nodes, edges = nodes + n_node, edges + n_edge
        if nodes > most_nodes - 1 or edges > most_edges or k + 1 > most_graphs - 1:
            raise ValueError(
                f"graph {k} with {n_node} nodes and {n_edge} edges does not fit: the batch "
                f"would hold {nodes} nodes, {edges} edges and "
                f"{k + 1} graphs; the budget is {budget} of which one node and one graph are "
                f"padding"
            )


def points(name: str, value: ArrayLike) -> np.ndarray:
    """A matrix of finite numbers whose values can be seen, in float64."""
    if isinstance(value, Tracer):
        raise ValueError(
            f"{name} is traced; expected its values, since neighbours are found on the host: "
            f"build the graph outside of jit"
        )
    return np.asarray(matrix(name, value), np.float64)


def lattice(cell: ArrayLike, periodic: bool | Sequence[bool], n: int) -> Lattice:
    """n independent lattice vectors as rows (n, n), in float64, and one boolean or one for each of
    them.
    """
    vectors, repeats = np.asarray(cell, np.float64), np.asarray(periodic, bool)
    if (
        vectors.shape != (n, n)
        or not np.isfinite(vectors).all()
        or np.linalg.matrix_rank(vectors) < n
    ):
        raise ValueError(
            f"cell is {vectors.tolist()}; expected {n} independent lattice vectors of {n} "
            f"coordinates"
        )
    if repeats.shape not in ((), (n,)):
        raise ValueError(
            f"periodic is {periodic}; expected one boolean, or {n}, one for each lattice vector"
        )
    return Lattice(vectors, np.broadcast_to(repeats, n))
