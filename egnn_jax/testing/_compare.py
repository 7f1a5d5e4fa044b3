"""Compare two outputs, and describe where they differ."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np


def fields(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Iterate over the arrays of a pytree, with paths such as ``nodes.x``."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), np.asarray(leaf)


def largest_error(actual: np.ndarray, expected: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """The largest error, relative to the largest entry, and its index; nonfinite entries count as
    infinite errors.
    """
    if expected.size == 0:
        return 0.0, ()
    with np.errstate(invalid="ignore"):
        difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    difference[~np.isfinite(difference)] = np.inf
    index = np.unravel_index(np.argmax(difference), difference.shape)
    return float(
        difference[index] / max(np.abs(expected[np.isfinite(expected)]).max(initial=0.0), 1e-30)
    ), tuple(map(int, index))


def assert_close(actual: Any, expected: Any, rtol: float, when: str) -> float:
    """Return the largest relative error of all fields; raise AssertionError for the first field
    above ``rtol``, naming the place.
    """
    actual, expected = dict(fields(actual)), dict(fields(expected))
    actual_shapes = {field: value.shape for field, value in actual.items()}
    expected_shapes = {field: value.shape for field, value in expected.items()}
    if actual_shapes != expected_shapes:
        raise AssertionError(
            f"the output has the fields {actual_shapes} {when}; expected {expected_shapes}"
        )
    errors = {field: largest_error(actual[field], expected[field]) for field in actual}
    for field, (error, index) in errors.items():
        if error > rtol:
            a, b = float(actual[field][index]), float(expected[field][index])
            raise AssertionError(
                f"{field or 'the output'}{place(field, index)} is {a:.6g} {when}; expected "
                f"{b:.6g}: {abs(a - b):.2g} apart, {error:.1e} of the field's size (tolerance "
                f"{rtol:.0e})"
            )
    return max((error for error, _ in errors.values()), default=0.0)


def place(field: str, index: Sequence[int]) -> str:
    """Describe an entry of a field in words, for example " of node 3, column 1"."""
    row = {"nodes": "node", "edges": "edge", "globals": "graph"}.get(field.split(".")[0], "row")
    columns = "".join(f", column {k}" for k in index[1:])
    return f" of {row} {index[0]}{columns}" if len(index) else ""
