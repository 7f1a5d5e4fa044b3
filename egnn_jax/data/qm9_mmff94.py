"""QM9 in the geometries that RDKit generates from SMILES with the MMFF94 force field."""

import warnings
from functools import partial
from pathlib import Path

import numpy as np

from egnn_jax._files import expanded
from egnn_jax._progress import progress_bar
from egnn_jax.data import structures
from egnn_jax.data._packing import Gather, exclusive_cumsum
from egnn_jax.data._workers import workers
from egnn_jax.data.cache import cached_arrays, default_folder
from egnn_jax.data.qm9 import QM9
from egnn_jax.data.qm9_properties import ELEMENTS
from egnn_jax.data.qm9_sources import smiles_of_package

_CHUNK = 500


def replace(molecules: QM9, conformers: int = 1, folder: Path | None = None) -> QM9:
    """QM9 with MMFF94 geometries, and without molecules that have none in the splits.

    These (1,686 of 130,831) cannot be embedded, or their SMILES has another formula. The first call
    takes half an hour per conformer on two cores, requires the packages ``rdkit`` and ``qm9pack``,
    and resumes if it was stopped. Molecules for which the time did not suffice cause a warning.

    Args:
      molecules: all of QM9, from :func:`egnn_jax.data.qm9.load`.
      conformers: the largest number of geometries per molecule. They are consecutive, lowest energy
        first, and share one ``index``; splits contain the first of each.
      folder: folder of the geometries; default :func:`egnn_jax.data.cache.default_folder`.

    Raises:
      ValueError: a package is missing.
    """
    folder = (default_folder() if folder is None else expanded(folder)) / "qm9"
    path = folder / f"qm9-mmff94-{conformers}.npz"
    build = partial(_geometries, molecules, conformers, path.with_suffix(""))
    arrays = cached_arrays(path, build)
    if num_timeouts := (arrays["usable"] < 0).sum():
        warnings.warn(
            f"{num_timeouts} of QM9's molecules are left out, since no geometry was found in the "
            f"time; to try again, delete {path} and {path.with_suffix('')}",
            stacklevel=2,
        )
    count = arrays["count"]
    molecule = np.repeat(np.arange(len(count)), count)
    n_atoms = molecules.n_atoms[molecule]
    atoms = Gather(n_atoms[None], exclusive_cumsum(molecules.n_atoms)[molecule][None]).source
    first, usable = np.cumsum(count) - count, arrays["usable"] > 0
    splits = {split: first[rows[usable[rows]]] for split, rows in molecules.splits.items()}
    return QM9(
        index=molecules.index[molecule],
        n_atoms=n_atoms,
        atomic_numbers=arrays["atomic_numbers"][atoms],
        positions=arrays["positions"],
        targets={name: values[molecule] for name, values in molecules.targets.items()},
        splits=splits,
    )


def _geometries(molecules: QM9, conformers: int, folder: Path) -> dict[str, np.ndarray]:
    """``usable`` (S,), the ``count`` of conformers (S,), atomic numbers of each molecule, positions
    of each conformer; those of QM9 for molecules that are not usable.

    ``usable`` is 1, 0, or -1 where the time did not suffice.
    """
    smiles = smiles_of_package()
    atom_ends = np.cumsum(molecules.n_atoms).tolist()
    n_atoms = molecules.n_atoms.tolist()
    chunks: list[dict[str, np.ndarray]] = []
    with workers() as pool, progress_bar(total=len(atom_ends)) as bar:
        for start in range(0, len(atom_ends), 10 * _CHUNK):
            rows = range(start, min(start + 10 * _CHUNK, len(atom_ends)))

            def build(rows: range = rows) -> dict[str, np.ndarray]:
                atom_slices = [slice(atom_ends[k] - n_atoms[k], atom_ends[k]) for k in rows]
                numbers = [molecules.atomic_numbers[atoms] for atoms in atom_slices]
                texts = [smiles[int(molecules.index[k])] for k in rows]
                embed = partial(_embed, conformers=conformers)
                results = list(pool.map(embed, texts, numbers, chunksize=_CHUNK // 10))
                geometries = []
                for k, (_, geometry) in enumerate(results):
                    if geometry is None:
                        geometry = numbers[k], molecules.positions[atom_slices[k]][None]
                    geometries.append(geometry)
                return {
                    "usable": np.array([usable for usable, _ in results], np.int8),
                    "count": np.array([len(x) for _, x in geometries]),
                    "atomic_numbers": np.concatenate([z for z, _ in geometries]),
                    "positions": np.concatenate([x.reshape(-1, 3) for _, x in geometries]),
                }

            chunks.append(cached_arrays(folder / f"{start:06d}.npz", build))
            bar.update(len(rows))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _embed(
    smiles: str, numbers: np.ndarray, conformers: int
) -> tuple[int, tuple[np.ndarray, np.ndarray] | None]:
    """Whether a SMILES is usable (see :func:`_geometries`), and its atomic numbers (M,) and
    positions (C, M, 3); None if it has no geometry or other elements than ``numbers``.
    """
    try:
        molecule = structures.from_smiles(smiles, smiles, conformers)
    except structures.OutOfTimeError:
        return -1, None
    except ValueError:
        return 0, None
    assert molecule.conformers is not None
    elements = [ELEMENTS.get(symbol, 0) for symbol in molecule.symbols]
    atomic_numbers = np.array(elements, numbers.dtype)
    if len(atomic_numbers) != len(numbers) or (np.sort(atomic_numbers) != np.sort(numbers)).any():
        return 0, None
    return 1, (atomic_numbers, molecule.conformers.astype(np.float32))
