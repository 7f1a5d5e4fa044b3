"""How an entry of a PyTorch state dict and one of Flax's variables belong together."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """An entry of a state dict.

    Attributes:
      name: in the state dict.
      rows: which rows of the Flax array it is; all of them if None.
      transposed: whether a matrix is (out, in) there.
    """

    name: str
    rows: slice | None = None
    transposed: bool = True

    def of(self, array: np.ndarray) -> np.ndarray:
        """This entry, from the Flax array."""
        kept = array if self.rows is None else array[self.rows]
        return (kept.T if self.transposed else kept).copy()

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of this entry, from that of the Flax array."""
        return self.of(np.broadcast_to(np.float32(0), shape)).shape

    def put(self, array: np.ndarray, value: np.ndarray) -> None:
        """Write this entry into the Flax array."""
        array[... if self.rows is None else self.rows] = value.T if self.transposed else value


def width(given: Mapping[str, np.ndarray], name: str, axis: int, default: int) -> int:
    """The size of an axis of an entry that may be missing or misshapen."""
    shape = given[name].shape if name in given else ()
    return shape[axis] if len(shape) == 2 and shape[axis] else default
