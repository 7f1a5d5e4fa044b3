"""Reading molecules with properties from a table with SMILES, an SDF or an extended XYZ."""

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egnn_jax._files import expanded
from egnn_jax._progress import progress_bar
from egnn_jax.data import structures
from egnn_jax.data._splits import SPLITS, drawn, shares
from egnn_jax.data.cache import cached_arrays, default_folder
from egnn_jax.data.frames import find


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
      geometry: "as given", "MMFF94" or "ETKDG" (S,).
      key: text that equal molecules share (S,): the canonical SMILES, or the hash of the geometry
        where bonds are not known.
    """

    n_atoms: np.ndarray
    atomic_numbers: np.ndarray
    positions: np.ndarray
    charges: np.ndarray
    noted: np.ndarray
    values: dict[str, np.ndarray]
    places: np.ndarray
    geometry: np.ndarray
    key: np.ndarray

    def __len__(self) -> int:
        return len(self.n_atoms)

    def elements(self, rows: np.ndarray) -> list[np.ndarray]:
        """The atomic numbers of the molecules in these rows."""
        each = np.split(self.atomic_numbers, np.cumsum(self.n_atoms)[:-1])
        return [each[row] for row in rows.tolist()]


def read(
    path: Path | str, columns: Sequence[str], folder: Path | str | None = None
) -> PropertyTable:
    """Read the molecules of a file and some of its columns.

    For molecules given by SMILES, InChI or a 2-D drawing, hydrogens and a geometry (ETKDG, then
    MMFF94) are generated on all cores. They are cached, so that reading the same file again is
    fast. Molecules that cannot be used are left out with a warning, which says how to try those
    again for which time or memory did not suffice.

    Args:
      path: a file of a kind that :func:`egnn_jax.data.structures.read` reads.
      columns: names of columns of a table, of values of an SDF, or of keys of an extended XYZ.
      folder: folder of the cache; default :func:`egnn_jax.data.cache.default_folder`.

    Raises:
      ValueError: the file cannot be read, no molecule has a requested column, or none can be used.
    """
    path = expanded(path)
    folder = default_folder() if folder is None else expanded(folder)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected one of {', '.join(structures.READ)}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    kept = folder / "tables" / f"{path.stem}-{digest}-4.npz"
    entries = structures.entries(str(path))
    names = {name for e in entries for name in getattr(e, "values", {})}
    if lacking := [column for column in columns if column not in names]:
        raise ValueError(
            f"{path} has no {lacking[0]!r}, or several; expected one of "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    made = cached_arrays(kept, lambda: _geometries(entries, path))
    passing = made.pop("passing")
    if len(refused := made["refused"]):
        # Not tried again without being told to: the splits are drawn from the usable molecules, so
        # with one more, a run would be resumed and evaluated on other splits.
        again = f" (to try {passing} of them again, delete {kept})" if passing else ""
        warnings.warn(
            f"{len(refused)} of {len(entries)} molecules of {path} cannot be used and are left "
            f"out{again}: {'; '.join(refused)[:1_000]}",
            stacklevel=2,
        )
    usable = [entries[k] for k in made["row"]]
    return PropertyTable(
        **{name: array for name, array in made.items() if name not in ("row", "refused")},
        values={
            column: np.array([getattr(e, "values", {}).get(column, "") for e in usable])
            for column in columns
        },
        places=np.array([_place(entry, path) for entry in usable]),
    )


def _key(entry: Any) -> str:
    from rdkit import Chem, rdBase

    if isinstance(entry, structures.Smiles):
        return structures.canonical(entry.text)
    with rdBase.BlockLogs():
        molecule = Chem.MolFromMolBlock(entry.block) if entry.block else None
    if molecule is not None:
        return structures.canonical(molecule)
    centered = np.round(entry.positions - entry.positions.mean(axis=0), 2) + 0.0
    return hashlib.sha256(f"{entry.symbols} {centered.tolist()}".encode()).hexdigest()


def splits(
    train: str, valid: str, test: str, split: str, seed: int, columns: Sequence[str]
) -> dict[str, tuple[PropertyTable, np.ndarray]]:
    """The file and the rows of "train", "valid" and "test".

    Molecules of validation or test that are also in training, or have other elements, cause a
    warning.

    Args:
      train: a file.
      valid, test: other files, or shares of the molecules of ``train`` to draw by ``seed``.
      split: instead of shares, a column of ``train`` with "train", "valid" or "test"; or "".
      seed: seed of the random choice.
      columns: names of columns, see :func:`read`.

    Raises:
      ValueError: as for :func:`read`, or a split is empty or cannot be drawn.
    """
    if split and None in shares(valid, test):
        raise ValueError(
            f"the column {split!r} of splits is given with valid {valid} and test {test}; expected "
            "either the column or other files"
        )
    table = read(find(train), [*columns, split] if split else columns)
    rows = _rows_by_split(table, split, train) if split else drawn(len(table), valid, test, seed)
    found = {name: (table, np.asarray(own)) for name, own in rows.items()}
    for name, source in (("valid", valid), ("test", test)):
        if name not in found:
            other = read(find(source), columns)
            found[name] = other, np.arange(len(other))
    _warn_of_unlike(found)
    return found


def _rows_by_split(table: PropertyTable, column: str, source: str) -> dict[str, np.ndarray]:
    """The rows of "train", "valid" and "test" according to a column, which may be empty.

    Raises:
      ValueError: another word is in the column, or one of the three is nowhere.
    """
    words = np.char.lower(np.char.strip(table.values[column]))
    if len(other := np.flatnonzero(~np.isin(words, (*SPLITS, "")))):
        place, word = table.places[other[0]], str(words[other[0]])
        raise ValueError(
            f"{place}: {column} is {word!r}; expected train, valid or test, or nothing to leave "
            "the molecule out"
        )
    rows = {name: np.flatnonzero(words == name) for name in SPLITS}
    if empty := [name for name, found in rows.items() if not len(found)]:
        raise ValueError(
            f"the column {column!r} of {source} has no {empty[0]!r}; expected train, valid and "
            "test, each at least once"
        )
    return rows


def _warn_of_unlike(tables: Mapping[str, tuple[PropertyTable, np.ndarray]]) -> None:
    """Warn if molecules of validation or test are also in training, or have elements that are not
    there.
    """
    table, rows = tables["train"]
    trained, elements = table.key[rows], np.concatenate(table.elements(rows))
    for split in SPLITS[1:]:
        table, rows = tables[split]
        shared = np.isin(table.key[rows], trained)
        unknown = np.array([not np.isin(own, elements).all() for own in table.elements(rows)])
        for found, text in (
            (shared, "are also in training; errors are those of new molecules only if each "
                     "molecule is in one split"),
            (unknown, "have elements that are not in training, and count in the errors"),
        ):  # fmt: skip
            if found.any():
                warnings.warn(
                    f"{found.sum()} of {len(rows)} {split} molecules (the first: "
                    f"{table.places[rows[found][0]]}) {text}",
                    stacklevel=2,
                )


def _place(entry: Any, path: Path) -> str:
    return getattr(entry, "where", "").removesuffix(": ") or f"{path}, {entry.name}"


def _geometries(entries: Sequence[Any], path: Path) -> dict[str, np.ndarray]:
    """The rows of the usable molecules, and their atoms, charges and notes."""
    from ase.data import atomic_numbers

    waiting = sum(isinstance(entry, structures.Smiles) for entry in entries)
    made = structures.made(entries, structures.useful_processes(waiting), conformers=1)
    rows, found, refused, passing = [], [], [], 0
    for k, one in enumerate(
        progress_bar(made, total=len(entries), unit="molecule", desc=path.name)
    ):
        if isinstance(one, structures.Refused):
            refused.append(f"{one.name}: {one.reason}")
            passing += one.passing
        else:
            rows.append(k)
            found.append(one)
    if not found:
        reasons = "; ".join(refused)[:1_000]
        raise ValueError(f"{path} has no molecule that can be used: {reasons}")
    return {
        "row": np.array(rows),
        "refused": np.array(refused, str),
        "passing": np.array(passing),
        "geometry": np.array([one.geometry for one in found]),
        "key": np.array([_key(entries[k]) for k in rows]),
        "n_atoms": np.array([len(one.symbols) for one in found]),
        "atomic_numbers": np.array([atomic_numbers[s] for one in found for s in one.symbols]),
        "positions": np.concatenate(
            [one.positions - one.positions.mean(axis=0) for one in found]
        ).astype(np.float32),
        "charges": np.array([one.charge for one in found]),
        "noted": np.array([bool(one.notes) for one in found]),
    }
