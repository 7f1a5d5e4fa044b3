"""Reading molecules with properties from a table with SMILES, an SDF or an extended XYZ."""

import dataclasses
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egnn_jax._files import expanded
from egnn_jax.data import structures
from egnn_jax.data.cache import cached_arrays, default_folder


@dataclasses.dataclass(frozen=True, eq=False)
class PropertyTable:
    """S molecules of ΣM atoms, with columns of their file.

    Args:
      n_atoms: number of atoms of each molecule (S,).
      atomic_numbers: (ΣM,).
      positions: (ΣM, 3) in Å; each molecule is centered at its mean.
      charges: charges of the molecules (S,).
      noted: whether the bonds of each are unusual (S,), see ``notes`` of
        :class:`egnn_jax.data.structures.Structure`.
      values: text (S,) by column name, "" for missing values.
      places: the file and line, or the file and name, of each molecule (S,).
    """

    n_atoms: np.ndarray
    atomic_numbers: np.ndarray
    positions: np.ndarray
    charges: np.ndarray
    noted: np.ndarray
    values: dict[str, np.ndarray]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.n_atoms)


def read(path: Path | str, columns: Sequence[str], folder: Path | None = None) -> PropertyTable:
    """Read the molecules of a file and some of its columns.

    For molecules given by SMILES, InChI or a 2-D drawing, hydrogens and a geometry (ETKDG, then
    MMFF94) are generated on all cores. They are cached, so that reading the same file again is
    fast. Molecules that cannot be used are left out with a warning.

    Args:
      path: a file of a kind that :func:`egnn_jax.data.structures.read` reads.
      columns: names of columns of a table, of values of an SDF, or of keys of an extended XYZ.
      folder: folder of the cache; default :func:`egnn_jax.data.cache.default_folder`.

    Raises:
      ValueError: the file cannot be read, no molecule has a requested column, or none can be used.
    """
    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected one of {', '.join(structures.READ)}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    kept = (
        (default_folder() if folder is None else folder) / "tables" / f"{path.stem}-{digest}-2.npz"
    )
    entries = structures.entries(str(path))
    names = {name for e in entries for name in getattr(e, "values", {})}
    if lacking := [column for column in columns if column not in names]:
        raise ValueError(
            f"{path} has no {lacking[0]!r}, or several; expected one of "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    made = cached_arrays(kept, lambda: _geometries(entries, path))
    usable = [entries[k] for k in made["row"]]
    return PropertyTable(
        **{name: array for name, array in made.items() if name != "row"},
        values={
            column: np.array([getattr(e, "values", {}).get(column, "") for e in usable])
            for column in columns
        },
        places=np.array([_place(entry, path) for entry in usable]),
    )


def _place(entry: Any, path: Path) -> str:
    return getattr(entry, "where", "").removesuffix(": ") or f"{path}, {entry.name}"


def _geometries(entries: Sequence[Any], path: Path) -> dict[str, np.ndarray]:
    """The rows of the usable molecules, and their atoms, charges and notes."""
    from ase.data import atomic_numbers
    from tqdm_loggable.auto import tqdm

    waiting = sum(isinstance(entry, structures.Smiles) for entry in entries)
    made = structures.made(entries, structures.useful_processes(waiting), conformers=1)
    rows, found, refused = [], [], []
    for k, one in enumerate(tqdm(made, total=len(entries), unit="molecule", desc=path.name)):
        if isinstance(one, structures.Refused):
            refused.append(f"{one.name}: {one.reason}")
        else:
            rows.append(k)
            found.append(one)
    if refused:
        text = "; ".join(refused)
        warnings.warn(
            f"{len(refused)} of {len(entries)} molecules of {path} cannot be used and are left "
            f"out: {text[:1_000]}",
            stacklevel=2,
        )
    if not found:
        raise ValueError(f"{path} has no molecule that can be used")
    return {
        "row": np.array(rows),
        "n_atoms": np.array([len(one.symbols) for one in found]),
        "atomic_numbers": np.array([atomic_numbers[s] for one in found for s in one.symbols]),
        "positions": np.concatenate(
            [one.positions - one.positions.mean(axis=0) for one in found]
        ).astype(np.float32),
        "charges": np.array([one.charge for one in found]),
        "noted": np.array([bool(one.notes) for one in found]),
    }
