"""QM9 in the geometries that SMILES get: from RDKit, by the MMFF94 force field."""

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from egnn_jax.data import structures
from egnn_jax.data.cache import cached_arrays, default_folder
from egnn_jax.data.qm9 import QM9
from egnn_jax.data.qm9_properties import ELEMENTS
from egnn_jax.data.qm9_sources import smiles_of_package

_CHUNK = 500


def replace(molecules: QM9, folder: Path | None = None) -> QM9:
    """QM9 with MMFF94 geometries, its splits without the molecules that get none.

    Those (1,686 of 130,831) cannot be embedded, or their SMILES has another formula. The first
    call takes half an hour on two cores and the packages ``rdkit`` and ``qm9pack``; it goes on
    where it was stopped.

    Args:
      molecules: all of QM9, from :func:`egnn_jax.data.qm9.load`.
      folder: where the geometries are kept; default :func:`egnn_jax.data.cache.default_folder`.

    Raises:
      ValueError: a package is missing.
    """
    folder = (default_folder() if folder is None else Path(folder)) / "qm9"
    made = cached_arrays(folder / "qm9-mmff94.npz", lambda: _geometries(molecules, folder))
    usable = made["usable"]
    return dataclasses.replace(
        molecules,
        atomic_numbers=made["atomic_numbers"],
        positions=made["positions"],
        splits={split: rows[usable[rows]] for split, rows in molecules.splits.items()},
    )


def _geometries(molecules: QM9, folder: Path) -> dict[str, np.ndarray]:
    """``usable`` (S,), and atomic numbers and positions, those of QM9 where not usable."""
    smiles = smiles_of_package()
    ends = np.cumsum(molecules.n_atoms).tolist()
    n_atoms = molecules.n_atoms.tolist()
    parts: list[dict[str, np.ndarray]] = []
    # A new process for each worker: one that is forked could hold locks of JAX's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool, tqdm(total=len(ends)) as bar:
        for first in range(0, len(ends), 10 * _CHUNK):
            rows = range(first, min(first + 10 * _CHUNK, len(ends)))

            def build(rows: range = rows) -> dict[str, np.ndarray]:
                own = [slice(ends[k] - n_atoms[k], ends[k]) for k in rows]
                numbers = [molecules.atomic_numbers[atoms] for atoms in own]
                texts = [smiles[int(molecules.index[k])] for k in rows]
                made = list(pool.map(_embedded, texts, numbers, chunksize=_CHUNK // 10))
                found = [
                    (numbers[k], molecules.positions[own[k]]) if one is None else one
                    for k, one in enumerate(made)
                ]
                return {
                    "usable": np.array([one is not None for one in made]),
                    "atomic_numbers": np.concatenate([z for z, _ in found]),
                    "positions": np.concatenate([x for _, x in found]),
                }

            parts.append(cached_arrays(folder / "mmff94" / f"{first:06d}.npz", build))
            bar.update(len(rows))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _embedded(smiles: str, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Atomic numbers and positions of a SMILES; None where its atoms are not those."""
    try:
        molecule = structures.from_smiles(smiles, smiles)
    except ValueError:
        return None
    found = np.array([ELEMENTS.get(symbol, 0) for symbol in molecule.symbols], numbers.dtype)
    same = len(found) == len(numbers) and (np.sort(found) == np.sort(numbers)).all()
    return (found, molecule.positions.astype(np.float32)) if same else None
