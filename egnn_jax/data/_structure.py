"""Molecules with a geometry, and molecules that cannot be used."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from egnn_jax._files import printable
from egnn_jax.data import _perception, qm9

MAX_READ_ATOMS = 1_000
"""The largest number of atoms of a molecule that is read with its geometry."""
MAX_NAME_LENGTH = 200
"""The largest number of characters of a molecule's name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """A molecule and its geometry.

    Args:
      name: the name in its file.
      symbols: the element symbols of its M atoms.
      positions: (M, 3) in Å.
      charge: the charge in elementary charges; 0 if the file does not state it.
      geometry: "as given", or the method that generated it.
      notes: how its bonds differ from those of QM9's molecules.
      conformers: all generated geometries (C, M, 3), lowest energy first; None if the geometry is
        as given.
      remark: another possible meaning of its text, for example a formula; usually empty.
      block: the molecule with its bonds as a mol block; empty if bonds are not known.
      values: other values in its file, by the names of columns, tags or keys.
    """

    name: str
    symbols: list[str]
    positions: np.ndarray
    charge: int = 0
    geometry: str = "as given"
    notes: tuple[str, ...] = ()
    conformers: np.ndarray | None = None
    remark: str = ""
    block: str = ""
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Shorten the name, and remove terminal control characters."""
        object.__setattr__(self, "name", printable(self.name, MAX_NAME_LENGTH))

    @property
    def formula(self) -> str:
        """The formula in Hill order: C, H, then the other elements alphabetically."""
        first = [symbol for symbol in ("C", "H") if "C" in self.symbols]
        order = first + sorted(set(self.symbols) - set(first))
        counts = [
            (symbol, self.symbols.count(symbol)) for symbol in order if symbol in self.symbols
        ]
        return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in counts)


@dataclasses.dataclass(frozen=True)
class Refused:
    """A molecule that cannot be used.

    Args:
      name: its name.
      reason: why it cannot be used.
      retryable: whether it may be usable on another try, since time or memory did not suffice.
    """

    name: str
    reason: str
    retryable: bool = False

    def __post_init__(self) -> None:
        """Shorten both fields, and remove terminal control characters."""
        object.__setattr__(self, "name", printable(self.name, MAX_NAME_LENGTH))
        object.__setattr__(self, "reason", printable(self.reason))


def quoted(text: str) -> str:
    """The start of a text from a file, quoted for a message."""
    return repr(printable(text, 60))


def check_size(num_atoms: int, max_atoms: int, suffix: str = "") -> None:
    """Raise ValueError, with a message that ends in ``suffix``, unless there are 1 to ``max_atoms``
    atoms.
    """
    if not num_atoms:
        raise ValueError("it has no atoms")
    if num_atoms > max_atoms:
        raise ValueError(f"it has {num_atoms:,} atoms; expected at most {max_atoms:,}{suffix}")


def check_extent(positions: np.ndarray) -> None:
    """Raise ValueError if several atoms are all at one point, as when coordinates are missing."""
    if len(positions) > 1 and np.ptp(positions, axis=0).max() < 1e-3:
        raise ValueError("all its atoms are at one place; expected coordinates, or its SMILES")


def checked(molecule: Structure) -> Structure:
    """Check a molecule with a given geometry, and add notes on the bonds that distances suggest.

    Raises:
      ValueError: coordinates are not finite, or all atoms are at one point.
    """
    positions = molecule.positions
    if not np.isfinite(positions).all():
        raise ValueError("it has a coordinate that is not finite")
    check_extent(positions)
    if len(molecule.symbols) == 1:
        return molecule
    only_qm9_elements = set(molecule.symbols) <= set(qm9.ELEMENTS)
    if only_qm9_elements and len(molecule.symbols) <= qm9.MAX_ATOMS:
        numbers = np.array([qm9.ELEMENTS[symbol] for symbol in molecule.symbols])
        notes = _perception.of_geometry(numbers, positions, molecule.charge)
    else:  # the networks included here do not take it, but those of users may
        notes = _perception.of_carbons(molecule.symbols, positions)
    return dataclasses.replace(molecule, notes=(*molecule.notes, *notes))
