"""The correspondence of entries of a state dict with Flax variables.

Each other module of this package knows the names of one architecture. It has two functions:

- ``entries(path, backbone)``: the state dict entries that hold the variable at a path, for example
  ("layer_0", "kernel"), without the collection and the name of the backbone in its head. Raises
  KeyError if the authors' code has no such variable.
- ``graph(state_dict, backbone)``: an input graph with the widths of a state dict.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from egnn_jax.graph.build import complete_graph
from egnn_jax.graph.graph import GraphsTuple


class Entry(NamedTuple):
    """An entry of a state dict.

    Attributes:
      name: the name in the state dict.
      rows: the rows of the Flax array that the entry holds, in its order; all of them if None.
      transposed: whether the entry's axes are in reverse order, as in a matrix (out, in).
      leading: the number of leading axes of length one that the entry has in addition.
    """

    name: str
    rows: slice | np.ndarray | None = None
    transposed: bool = True
    leading: int = 0

    def of(self, array: np.ndarray) -> np.ndarray:
        """The value of this entry, from the Flax array."""
        rows = array if self.rows is None else array[self.rows]
        return (rows.T if self.transposed else rows)[(None,) * self.leading].copy()

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of this entry, from the shape of the Flax array."""
        return self.of(np.broadcast_to(np.float32(0), shape)).shape

    def put(self, array: np.ndarray, value: np.ndarray) -> None:
        """Write the value of this entry into the Flax array."""
        value = value[(0,) * self.leading]
        array[... if self.rows is None else self.rows] = value.T if self.transposed else value


def host_array(value: Any) -> np.ndarray:
    """An array or a PyTorch tensor, on any device, as an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value  # NumPy has none
    return np.asarray(value)


def width(state_dict: Mapping[str, np.ndarray], name: str, axis: int, default: int) -> int:
    """The size of an axis of an entry that may be missing or misshapen."""
    shape = state_dict[name].shape if name in state_dict else ()
    return shape[axis] if len(shape) > 1 and shape[axis] else default


def pair(features: int, attributes: int = 0, n: int = 3, velocity: bool = False) -> GraphsTuple:
    """A graph of two nodes and two edges with these feature widths; that of h is at least one."""
    x = np.zeros((2, n), np.float32)
    return complete_graph(
        x=x,
        h=np.zeros((2, max(features, 1)), np.float32),
        v=x if velocity else None,
        a=np.zeros((2, attributes), np.float32) if attributes > 0 else None,
    )
