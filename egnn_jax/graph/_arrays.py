"""Checks of a graph's arrays: shapes and dtypes only, since the values may be traced."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def require_arrays(graph: Any) -> None:
    """Raise ValueError if a graph's arrays have inconsistent shapes or invalid dtypes."""
    nodes, edges = graph.nodes, graph.edges
    x_shape: Any = _shape(nodes.x) or ()
    _require("nodes.x", nodes.x, len(x_shape) == 2, "(N, n)", jnp.floating)
    require_lists(graph)
    n_node, n_dim = x_shape
    (n_edge,) = graph.receivers.shape
    if nodes.h is not None:
        h_shape = _shape(nodes.h) or ()
        scalar_type = jnp.integer if len(h_shape) == 1 else jnp.floating
        expected = f"({n_node}, F), or node types ({n_node},)"
        _require("nodes.h", nodes.h, h_shape[:1] == (n_node,), expected, scalar_type)
    if nodes.v is not None:
        _require("nodes.v", nodes.v, _shape(nodes.v) == x_shape, f"{x_shape}, as x", jnp.floating)
    edge_fields = (
        ("a", "width", jnp.floating),
        ("shift", n_dim, jnp.floating),
        ("steps", n_dim, jnp.integer),
    )
    for name, width, scalar_type in edge_fields:
        array = getattr(edges, name)
        if array is not None:
            shape = _shape(array) or ()
            fits = len(shape) == 2 and shape[0] == n_edge and width in ("width", shape[1])
            _require(f"edges.{name}", array, fits, f"({n_edge}, {width})", scalar_type)
    labels = [("nodes.y", nodes.y, n_node)]
    for name in ("y", "cell", "stress"):
        labels.append((f"globals.{name}", getattr(graph.globals, name, None), len(graph.n_node)))
    for name, array, rows in labels:
        if array is not None:
            fits = (_shape(array) or ())[:1] == (rows,)
            is_mask = getattr(array, "dtype", None) == np.dtype(bool)
            _require(name, array, fits, f"({rows}, …)", np.bool_ if is_mask else jnp.number)


def require_lists(graph: Any) -> None:
    """Raise ValueError if the senders, receivers, n_node or n_edge are not valid integer lists."""
    fields = (
        ("receivers", graph.receivers, "edge"),
        ("senders", graph.receivers, "edge"),
        ("n_node", graph.n_node, "graph"),
        ("n_edge", graph.n_node, "graph"),
    )
    for name, reference, row in fields:
        array = getattr(graph, name)
        if name == "n_edge" and array is None:  # only batching needs it
            continue
        shape = _shape(array)
        fits = shape is not None and len(shape) == 1 and shape == _shape(reference)
        _require(name, array, fits, f"of integers, one for each {row}", jnp.integer)


def _shape(array: Any) -> Any:
    """The shape of an array; None for anything else."""
    return array.shape if hasattr(array, "dtype") else None


def _require(name: str, array: Any, fits: bool, expected: str, scalar_type: Any) -> None:
    """Raise ValueError unless the array fits, is not masked and has a dtype of the class."""
    dtype = getattr(array, "dtype", None)
    if not fits or not _is_valid_dtype(dtype, scalar_type) or isinstance(array, np.ma.MaskedArray):
        actual = type(array).__name__ if dtype is None else f"{dtype} of shape {_shape(array)}"
        raise ValueError(
            f"{name} is {actual}; expected an array {expected}, {scalar_type.__name__}"
        )


def _is_valid_dtype(dtype: Any, scalar_type: Any) -> bool:
    """Whether a dtype belongs to a class such as ``jnp.floating`` and JAX supports its width."""
    if dtype is None or not jnp.issubdtype(dtype, scalar_type):
        return False
    return np.dtype(dtype).itemsize <= (16 if np.dtype(dtype).kind == "c" else 8)


def require_rows(
    name: str, values: Any, rows: int, row: str, scalar_type: Any = jnp.number
) -> None:
    """Raise ValueError unless ``values`` is a numeric array (rows, …)."""
    dtype, shape = getattr(values, "dtype", None), _shape(values) or ()
    is_valid = _is_valid_dtype(dtype, scalar_type) and shape[:1] == (rows,)
    if not is_valid or isinstance(values, np.ma.MaskedArray):
        actual = type(values).__name__ if dtype is None else f"{dtype} of shape {shape}"
        raise ValueError(
            f"{name} is {actual}; expected an array of {scalar_type.__name__} type, ({rows}, …), "
            f"a row for each {row}"
        )


def require_features(h: Any) -> None:
    """Raise ValueError unless h is (N, F) with one feature or more, or (N,)."""
    if h is None or h.ndim not in (1, 2) or not all(h.shape[1:]):
        actual = "nodes have no h" if h is None else f"h has shape {h.shape}"
        raise ValueError(f"{actual}; expected one feature or more, or node types (N,)")


def require_embedded(h: Any) -> None:
    """Raise ValueError unless h is (N, F) with one feature or more."""
    require_features(h)
    if h.ndim != 2:
        raise ValueError(f"h has shape {h.shape}; expected (N, F): embed node types first")
