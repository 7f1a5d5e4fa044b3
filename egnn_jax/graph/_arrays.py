"""Checks of a graph's arrays: shapes and dtypes only, since the values may be traced."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def require_arrays(graph: Any) -> None:
    """Raise ValueError if a graph's arrays have inconsistent shapes or invalid dtypes."""
    nodes, edges = graph.nodes, graph.edges
    shape: Any = _shape(nodes.x) or ()
    _require("nodes.x", nodes.x, len(shape) == 2, "(N, n)", jnp.floating)
    require_lists(graph)
    size = graph.receivers.shape
    if nodes.h is not None:
        given = _shape(nodes.h) or ()
        kind = jnp.integer if len(given) == 1 else jnp.floating
        words = f"({shape[0]}, F), or node types ({shape[0]},)"
        _require("nodes.h", nodes.h, given[:1] == shape[:1], words, kind)
    if nodes.v is not None:
        _require("nodes.v", nodes.v, _shape(nodes.v) == shape, f"{shape}, as x", jnp.floating)
    of_edges = (("a", "width", jnp.floating), ("shift", shape[1], jnp.floating))
    for name, width, kind in (*of_edges, ("steps", shape[1], jnp.integer)):
        if (array := getattr(edges, name)) is not None:
            given = _shape(array) or ()
            fits = len(given) == 2 and given[:1] == size and width in ("width", given[1])
            _require(f"edges.{name}", array, fits, f"({size[0]}, {width})", kind)
    labels = [("nodes.y", nodes.y, shape[0])]
    for name in ("y", "cell", "stress"):
        labels.append((f"globals.{name}", getattr(graph.globals, name, None), len(graph.n_node)))
    for name, array, rows in labels:
        if array is not None:
            fits = (_shape(array) or ())[:1] == (rows,)
            kind = np.bool_ if getattr(array, "dtype", None) == np.dtype(bool) else jnp.number
            _require(name, array, fits, f"({rows}, …)", kind)


def require_lists(graph: Any) -> None:
    """Raise ValueError if the senders, receivers, n_node or n_edge are not valid integer lists."""
    for name, other, of in (("receivers", "senders", "edge"), ("n_node", "n_edge", "graph")):
        for each in (name, other):
            array, like = getattr(graph, each), getattr(graph, name)
            if each == "n_edge" and array is None:  # only batching needs it
                continue
            fits = _shape(array) is not None and len(_shape(array)) == 1
            words = f"of integers, one for each {of}"
            _require(each, array, fits and _shape(array) == _shape(like), words, jnp.integer)


def _shape(array: Any) -> Any:
    """The shape of an array; None for anything else."""
    return array.shape if hasattr(array, "dtype") else None


def _require(name: str, array: Any, fits: bool, shape: str, kind: Any) -> None:
    dtype = getattr(array, "dtype", None)
    if not fits or not _of_kind(dtype, kind) or isinstance(array, np.ma.MaskedArray):
        found = type(array).__name__ if dtype is None else f"{dtype} of shape {_shape(array)}"
        raise ValueError(f"{name} is {found}; expected an array {shape}, {kind.__name__}")


def _of_kind(dtype: Any, kind: Any) -> bool:
    """Whether a dtype is of the given kind and no wider than JAX supports."""
    if dtype is None or not jnp.issubdtype(dtype, kind):
        return False
    return np.dtype(dtype).itemsize <= (16 if np.dtype(dtype).kind == "c" else 8)


def require_rows(name: str, values: Any, rows: int, of: str, kind: Any = jnp.number) -> None:
    """Raise ValueError unless ``values`` is a numeric array (rows, …)."""
    dtype, shape = getattr(values, "dtype", None), _shape(values) or ()
    if not _of_kind(dtype, kind) or shape[:1] != (rows,) or isinstance(values, np.ma.MaskedArray):
        found = type(values).__name__ if dtype is None else f"{dtype} of shape {shape}"
        raise ValueError(
            f"{name} is {found}; expected an array of {kind.__name__} type, ({rows}, …), a row for "
            f"each {of}"
        )


def require_features(h: Any) -> None:
    """Raise ValueError unless h is (N, F) with one feature or more, or (N,)."""
    if h is None or h.ndim not in (1, 2) or not all(h.shape[1:]):
        found = "nodes have no h" if h is None else f"h has shape {h.shape}"
        raise ValueError(f"{found}; expected one feature or more, or node types (N,)")


def require_embedded(h: Any) -> None:
    """Raise ValueError unless h is (N, F) with one feature or more."""
    require_features(h)
    if h.ndim != 2:
        raise ValueError(f"h has shape {h.shape}; expected (N, F): embed node types first")
