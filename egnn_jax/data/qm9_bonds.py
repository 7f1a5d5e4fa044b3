"""Bonds and atom traits of QM9, from its SMILES, checked against distances."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egnn_jax._files import expanded
from egnn_jax._progress import progress_bar
from egnn_jax.data import chemistry
from egnn_jax.data._workers import workers
from egnn_jax.data.cache import cached_arrays, default_folder
from egnn_jax.data.qm9 import QM9
from egnn_jax.data.qm9_sources import smiles_of_package

_CHUNK = 500


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

    def numbers(self, molecules: QM9) -> dict[str, list[int]]:
        """The QM9 numbers of molecules whose bonds are not from their SMILES in order, by the
        source that was used instead.
        """
        masks = {name: self.source == k for k, name in enumerate(chemistry.SOURCES) if k}
        return {name: molecules.index[mask].tolist() for name, mask in masks.items()}


def load(molecules: QM9, folder: Path | None = None) -> Bonds:
    """Load the bonds of all of QM9; the first call computes and stores them in ``folder``.

    This takes minutes on two cores, and requires the packages ``rdkit`` and ``qm9pack``.

    Args:
      molecules: all of QM9, from :func:`egnn_jax.data.qm9.load`.
      folder: default :func:`egnn_jax.data.cache.default_folder`.

    Raises:
      ValueError: a package is missing.
    """
    folder = default_folder() if folder is None else expanded(folder)
    path = folder / "qm9" / "qm9-rdkit-bonds.npz"
    return Bonds(**cached_arrays(path, lambda: _all_bonds(molecules)))


def of_molecules(n_atoms: np.ndarray, atomic_numbers: np.ndarray, positions: np.ndarray) -> Bonds:
    """Determine the bonds of any molecules by RDKit's perception from positions, see
    :func:`egnn_jax.data.chemistry.perceived`.

    Args:
      n_atoms: number of atoms of each molecule (S,).
      atomic_numbers: (ΣM,).
      positions: (ΣM, 3) in Å.

    Raises:
      ValueError: the bonds of a molecule cannot be determined; the message gives its place.
    """
    results = []
    source = chemistry.SOURCES.index("by positions")
    for k, (end, count) in enumerate(zip(np.cumsum(n_atoms), n_atoms, strict=True), 1):
        atoms = slice(end - count, end)
        try:
            bonds = chemistry.perceived(atomic_numbers[atoms], positions[atoms])
        except ValueError as error:
            raise ValueError(f"geometry {k} of {len(n_atoms)}: {error}") from error
        results.append((bonds, source))
    return Bonds(**_concatenated(results))


def _all_bonds(molecules: QM9) -> dict[str, np.ndarray]:
    """Compute the arrays of :class:`Bonds` for all molecules."""
    smiles = smiles_of_package()
    bounds = np.cumsum(molecules.n_atoms)[:-1]
    texts = [smiles[int(index)] for index in molecules.index]
    numbers = np.split(molecules.atomic_numbers, bounds)
    positions = np.split(molecules.positions, bounds)
    starts = range(0, len(texts), _CHUNK)
    chunks = [[values[k : k + _CHUNK] for values in (texts, numbers, positions)] for k in starts]
    with workers() as pool:
        results = pool.map(_chunk_bonds, *zip(*chunks, strict=True))
        bar = progress_bar(results, total=len(chunks), unit_scale=_CHUNK, unit=" molecules")
        bonds = list(bar)
    arrays = {name: np.concatenate([chunk[name] for chunk in bonds]) for name in Bonds._fields}
    return arrays | {"bond_atoms": arrays["bond_atoms"].astype(np.int8)}  # up to 29 atoms


def _chunk_bonds(
    smiles: Sequence[str], numbers: Sequence[np.ndarray], positions: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    molecules = zip(smiles, numbers, positions, strict=True)
    return _concatenated([chemistry.of_smiles(*molecule) for molecule in molecules])


def _concatenated(results: Sequence[tuple[chemistry.Chemistry, int]]) -> dict[str, np.ndarray]:
    return {
        "n_bond": np.array([len(bonds.bond_types) for bonds, _ in results], np.int16),
        "bond_atoms": np.concatenate([bonds.bond_atoms for bonds, _ in results]),
        "bond_types": np.concatenate([bonds.bond_types for bonds, _ in results]),
        "traits": np.concatenate([bonds.traits for bonds, _ in results]),
        "source": np.array([source for _, source in results], np.int8),
    }
