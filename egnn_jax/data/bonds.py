"""Bonds and atom traits of molecules, from their SMILES, their files or their positions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from egnn_jax._progress import progress_bar
from egnn_jax.data import chemistry

PROGRESS_BAR_THRESHOLD = 1_000
"""The number of molecules from which a progress bar is shown."""
_MAX_MESSAGE = 1_000


class Bonds(NamedTuple):
    """Bonds and traits of S molecules of ΣM atoms.

    Attributes:
      n_bond: number of bonds of each molecule (S,).
      bond_atoms: atoms of each bond (ΣB, 2), counted from the first atom of the molecule.
      bond_types: kinds of bonds (ΣB,), see :data:`egnn_jax.data.chemistry.BOND_TYPES`.
      traits: traits of atoms (ΣM, 7), see :data:`egnn_jax.data.chemistry.TRAITS`.
      source: source of the bonds (S,), see :data:`egnn_jax.data.chemistry.SOURCES`.
    """

    n_bond: np.ndarray
    bond_atoms: np.ndarray
    bond_types: np.ndarray
    traits: np.ndarray
    source: np.ndarray

    def numbers(self, index: np.ndarray) -> dict[str, list[int]]:
        """The numbers, of ``index`` (S,), of molecules whose bonds are not from their SMILES or
        file in order, by the source that was used instead.
        """
        masks = {name: self.source == k for k, name in enumerate(chemistry.SOURCES) if k}
        return {name: index[mask].tolist() for name, mask in masks.items()}


def of_molecules(
    molecules: Sequence[Any],
    n_atoms: np.ndarray,
    atomic_numbers: np.ndarray,
    positions: np.ndarray,
    names: Sequence[str] = (),
) -> Bonds:
    """Determine the bonds of any molecules, see :func:`egnn_jax.data.chemistry.of_molecule`.

    Args:
      molecules: where the bonds may be from (S,); None for positions only.
      n_atoms: number of atoms of each molecule (S,).
      atomic_numbers: (ΣM,).
      positions: (ΣM, 3) in Å.
      names: the molecules' names (S,) in messages; by default, their places.

    Raises:
      ValueError: the bonds of a molecule cannot be determined; the message names all such.
    """
    results, failures = [], []
    ends = np.cumsum(n_atoms).tolist()
    if len(molecules) >= PROGRESS_BAR_THRESHOLD:
        molecules = progress_bar(molecules, unit="molecule", desc="bonds")
    for k, molecule in enumerate(molecules):
        atoms = slice(ends[k] - int(n_atoms[k]), ends[k])
        try:
            found = chemistry.of_molecule(molecule, atomic_numbers[atoms], positions[atoms])
        except ValueError as error:
            name = names[k] if len(names) else f"geometry {k + 1} of {len(ends)}"
            failures.append(f"{name}: {error}")
        else:
            results.append(found)
    if failures:
        count = f"{len(failures)} of {len(ends)} molecules have no bonds: "
        text = "; ".join(failures)[:_MAX_MESSAGE]
        raise ValueError(text if len(failures) == 1 else count + text)
    return Bonds(**concatenated(results))


def concatenated(results: Sequence[tuple[chemistry.Chemistry, int]]) -> dict[str, np.ndarray]:
    """The arrays of :class:`Bonds` of molecules with the index of their source."""
    return {
        "n_bond": np.array([len(found.bond_types) for found, _ in results], np.int16),
        "bond_atoms": np.concatenate([found.bond_atoms for found, _ in results]),
        "bond_types": np.concatenate([found.bond_types for found, _ in results]),
        "traits": np.concatenate([found.traits for found, _ in results]),
        "source": np.array([source for _, source in results], np.int8),
    }
