"""Bonds and atom traits of QM9, from its SMILES, checked against distances."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from egnn_jax._files import expanded
from egnn_jax._progress import progress_bar
from egnn_jax.data import chemistry
from egnn_jax.data._workers import workers
from egnn_jax.data.bonds import Bonds, concatenated
from egnn_jax.data.cache import cached_arrays, default_folder
from egnn_jax.data.qm9 import QM9
from egnn_jax.data.qm9_sources import smiles_of_package

_CHUNK = 500


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
    return concatenated([chemistry.of_smiles(*molecule) for molecule in molecules])
