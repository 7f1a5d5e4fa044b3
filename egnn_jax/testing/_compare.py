"""Compare two outputs, and describe where they differ."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np


def fields(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Iterate over the arrays of a pytree, with paths such as ``nodes.x``."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), np.asarray(leaf)


def largest_error(got: np.ndarray, expected: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """The largest error, relative to the largest entry, and its index; nonfinite entries count as
    infinite errors.
    """
    if expected.size == 0:
        return 0.0, ()
    with np.errstate(invalid="ignore"):
        difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    difference[~np.isfinite(difference)] = np.inf
    where = np.unravel_index(np.argmax(difference), difference.shape)
    return float(
        difference[where] / max(np.abs(expected[np.isfinite(expected)]).max(initial=0.0), 1e-30)
    ), tuple(map(int, where))


def assert_close(got: Any, expected: Any, rtol: float, when: str) -> float:
    """Return the largest relative error of all fields; raise AssertionError for the first field
    above ``rtol``, naming the place.
    """
    got, expected = dict(fields(got)), dict(fields(expected))
    if got.keys() != expected.keys() or any(
        got[field].shape != expected[field].shape for field in got
    ):
        shapes = [{field: value.shape for field, value in side.items()} for side in (got, expected)]
        raise AssertionError(f"the output has the fields {shapes[0]} {when}; expected {shapes[1]}")
    errors = {field: largest_error(got[field], expected[field]) for field in got}
    for field, (error, where) in errors.items():
        if error > rtol:
            a, b = float(got[field][where]), float(expected[field][where])
            raise AssertionError(
                f"{field or 'the output'}{place(field, where)} is {a:.6g} {when}; expected "
                f"{b:.6g}: {abs(a - b):.2g} apart, {error:.1e} of the field's size (tolerance "
                f"{rtol:.0e})"
            )
    return max((error for error, _ in errors.values()), default=0.0)


def place(field: str, where: Sequence[int]) -> str:
    """Describe an entry of a field in words, for example " of node 3, column 1"."""
    kind = {"nodes": "node", "edges": "edge", "globals": "graph"}.get(field.split(".")[0], "row")
    rest = "".join(f", column {k}" for k in where[1:])
    return f" of {kind} {where[0]}{rest}" if len(where) else ""
