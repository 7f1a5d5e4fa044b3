"""Facts about the molecules that a network of a table was trained on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from egnn_jax.data.property_table import PropertyTable
from egnn_jax.data.structures import Structure
from egnn_jax.experiments._columns import COLUMNS, Classes, Numbers

USUAL = 0.1
"""The share of training molecules with unusual bonds from which these are no longer reported."""
_LIST_FIELDS = ("elements", "atoms", "charges", "geometries")


class Trained(NamedTuple):
    """Facts about the training molecules: elements, smallest and largest number of atoms, columns,
    charges, whether at least :data:`USUAL` of them have unusual bonds, and the kinds of geometries
    (empty if not known).
    """

    elements: tuple[str, ...]
    atoms: tuple[int, int]
    columns: tuple[Numbers | Classes, ...]
    charges: tuple[int, ...] = (0,)
    has_unusual_bonds: bool = False
    geometries: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, table: PropertyTable, rows: np.ndarray, targets: Sequence[str], kind: str
    ) -> "Trained":
        """The facts about the molecules of a table in these rows."""
        n_atoms, locations = table.n_atoms[rows], table.locations[rows]
        make_column = COLUMNS[kind].of
        return cls(
            symbols_of(np.concatenate(table.elements(rows))),
            (int(n_atoms.min()), int(n_atoms.max())),
            tuple(make_column(name, table.values[name][rows], locations) for name in targets),
            tuple(np.unique(table.charges[rows]).tolist()),
            bool(table.unusual_bonds[rows].mean() >= USUAL),
            tuple(np.unique(table.geometry[rows]).tolist()),
        )

    def outside(self, molecule: Structure) -> list[str]:
        """How a molecule differs from all training molecules."""
        reasons: list[str] = []
        min_atoms, max_atoms = self.atoms
        if unknown_elements := sorted(set(molecule.symbols) - set(self.elements)):
            reasons.append(
                f"it has {', '.join(unknown_elements)}; training had {', '.join(self.elements)}"
            )
        if not min_atoms <= (size := len(molecule.symbols)) <= max_atoms:
            reasons.append(f"it has {size} atoms; training had {min_atoms} to {max_atoms}")
        if molecule.charge not in self.charges:
            charges = ", ".join(f"{charge:+d}" for charge in self.charges)
            reasons.append(f"its charge is {molecule.charge:+d}; training had {charges}")
        if self.geometries and molecule.geometry not in self.geometries:
            geometries = " or ".join(self.geometries)
            reasons.append(f"its geometry is {molecule.geometry}; training had {geometries}")
        return reasons if self.has_unusual_bonds else [*reasons, *molecule.notes]

    def plain(self) -> dict[str, Any]:
        """Convert to plain values."""
        columns = [dataclasses.asdict(column) for column in self.columns]
        lists = {name: list(getattr(self, name)) for name in _LIST_FIELDS}
        return {**lists, "columns": columns, "noted": self.has_unusual_bonds}

    @staticmethod
    def from_plain(kind: str, names: Sequence[str], values: Mapping[str, Any]) -> "Trained":
        """The inverse of :meth:`plain`.

        Raises:
          ValueError: the values are not those of :meth:`plain`.
        """
        columns: list[Numbers | Classes] = []
        try:
            for name, column in zip(names, values["columns"], strict=True):
                if kind == "regression":
                    columns.append(Numbers(name, float(column["mean"]), float(column["scale"])))
                else:
                    columns.append(Classes(name, tuple(str(label) for label in column["classes"])))
            min_atoms, max_atoms = values["atoms"]
            elements = tuple(str(symbol) for symbol in values["elements"])
            # Runs of earlier versions did not record these.
            charges = tuple(int(charge) for charge in values.get("charges", (0,)))
            unusual = bool(values.get("noted", False))
            geometries = tuple(str(geometry) for geometry in values.get("geometries", ()))
            atoms = (int(min_atoms), int(max_atoms))
            return Trained(elements, atoms, tuple(columns), charges, unusual, geometries)
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"constants are {str(values)[:200]}; expected elements, atoms and columns"
            ) from error


def symbols_of(atomic_numbers: np.ndarray) -> tuple[str, ...]:
    """The symbols of the elements among atomic numbers, sorted by number."""
    from ase.data import chemical_symbols

    return tuple(chemical_symbols[z] for z in np.unique(atomic_numbers).tolist())
