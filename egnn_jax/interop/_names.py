"""How an entry of another library's state dict and one of Flax's variables belong together.

A module of this package knows the names of one architecture. It has two functions:

- ``entries(path, backbone)``: the entries that the variable at a path such as ("layer_0", "kernel")
  is there, without the collection and the name of the backbone in its head. KeyError if the
  authors have no such variable.
- ``graph(given, backbone)``: an input as wide as a state dict says.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from egnn_jax.graph.build import complete_graph
from egnn_jax.graph.graph import GraphsTuple


class Entry(NamedTuple):
    """An entry of a state dict.

    Attributes:
      name: in the state dict.
      rows: which rows of the Flax array it is; all of them if None.
      transposed: whether its axes are in the reverse order there, as those of a matrix (out, in).
      leading: how many axes of length one come before the others there.
    """

    name: str
    rows: slice | None = None
    transposed: bool = True
    leading: int = 0

    def of(self, array: np.ndarray) -> np.ndarray:
        """This entry, from the Flax array."""
        kept = array if self.rows is None else array[self.rows]
        return (kept.T if self.transposed else kept)[(None,) * self.leading].copy()

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of this entry, from that of the Flax array."""
        return self.of(np.broadcast_to(np.float32(0), shape)).shape

    def put(self, array: np.ndarray, value: np.ndarray) -> None:
        """Write this entry into the Flax array."""
        value = value[(0,) * self.leading]
        array[... if self.rows is None else self.rows] = value.T if self.transposed else value


def width(given: Mapping[str, np.ndarray], name: str, axis: int, default: int) -> int:
    """The size of an axis of an entry that may be missing or misshapen."""
    shape = given[name].shape if name in given else ()
    return shape[axis] if len(shape) > 1 and shape[axis] else default


def pair(features: int, attributes: int = 0, n: int = 3, velocity: bool = False) -> GraphsTuple:
    """Two nodes with an edge each way, of these widths; h is at least one wide."""
    x = np.zeros((2, n), np.float32)
    return complete_graph(
        x=x,
        h=np.zeros((2, max(features, 1)), np.float32),
        v=x if velocity else None,
        a=np.zeros((2, attributes), np.float32) if attributes > 0 else None,
    )
