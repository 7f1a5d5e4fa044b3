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
from egnn_jax.data import bonds as bonds_of
from egnn_jax.data import structures
from egnn_jax.data._splits import SPLITS, draw_splits, shares
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
      unusual_bonds: whether the bonds of each are unusual (S,), see ``notes`` of
        :class:`egnn_jax.data.structures.Structure`.
      values: text (S,) by column name, "" for missing values.
      locations: the file and line, or the file and name, of each molecule (S,).
      geometry: "as given", "MMFF94" or "ETKDG" (S,).
      key: text that equal molecules share (S,): the canonical SMILES, or the hash of the geometry
        where bonds are not known.
      bonds: the bonds of the molecules, if they were requested.
    """

    n_atoms: np.ndarray
    atomic_numbers: np.ndarray
    positions: np.ndarray
    charges: np.ndarray
    unusual_bonds: np.ndarray
    values: dict[str, np.ndarray]
    locations: np.ndarray
    geometry: np.ndarray
    key: np.ndarray
    bonds: bonds_of.Bonds | None = None

    def __len__(self) -> int:
        return len(self.n_atoms)

    def elements(self, rows: np.ndarray) -> list[np.ndarray]:
        """The atomic numbers of the molecules in these rows."""
        molecules = np.split(self.atomic_numbers, np.cumsum(self.n_atoms)[:-1])
        return [molecules[row] for row in rows.tolist()]


def read(
    path: Path | str,
    columns: Sequence[str],
    folder: Path | str | None = None,
    bonds: bool = False,
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
      bonds: whether to determine bonds too: those of the SMILES or of the file, or, where it has
        none, those that RDKit perceives from the positions and the charge.

    Raises:
      ValueError: the file cannot be read, no molecule has a requested column, none can be used, or
        the requested bonds of one cannot be determined.
    """
    path = expanded(path)
    folder = default_folder() if folder is None else expanded(folder)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected one of {', '.join(structures.SUFFIXES)}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    cache_path = folder / "tables" / f"{path.stem}-{digest}-4.npz"
    entries = structures.entries(str(path))
    names = {name for entry in entries for name in getattr(entry, "values", {})}
    if missing_columns := [column for column in columns if column not in names]:
        raise ValueError(
            f"{path} has no {missing_columns[0]!r}, or several; expected one of "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    arrays = cached_arrays(cache_path, lambda: _geometries(entries, path))
    num_retryable = arrays.pop("passing")
    if len(refused := arrays["refused"]):
        # Not tried again without being told to: the splits are drawn from the usable molecules, so
        # with one more, a run would be resumed and evaluated on other splits.
        retry_hint = ""
        if num_retryable:
            retry_hint = f" (to try {num_retryable} of them again, delete {cache_path})"
        warnings.warn(
            f"{len(refused)} of {len(entries)} molecules of {path} cannot be used and are left "
            f"out{retry_hint}: {'; '.join(refused)[:1_000]}",
            stacklevel=2,
        )
    usable_entries = [entries[k] for k in arrays["row"]]
    locations = [_location(entry, path) for entry in usable_entries]
    table_bonds = None
    if bonds:
        molecules = arrays["n_atoms"], arrays["atomic_numbers"], arrays["positions"]
        usable = hashlib.sha256(arrays["row"].astype(np.int64).tobytes()).hexdigest()[:8]
        table_bonds = cached_arrays(
            folder / "tables" / f"{path.stem}-{digest}-bonds-{usable}-1.npz",
            lambda: bonds_of.of_molecules(usable_entries, *molecules, locations)._asdict(),
        )
        table_bonds = bonds_of.Bonds(**table_bonds)
    return PropertyTable(
        **{
            name: array for name, array in arrays.items() if name not in ("row", "refused", "noted")
        },
        values={
            column: np.array(
                [getattr(entry, "values", {}).get(column, "") for entry in usable_entries]
            )
            for column in columns
        },
        unusual_bonds=arrays["noted"],
        locations=np.array(locations),
        bonds=table_bonds,
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
    train: str,
    valid: str,
    test: str,
    split: str,
    seed: int,
    columns: Sequence[str],
    bonds: bool = False,
) -> dict[str, tuple[PropertyTable, np.ndarray]]:
    """The file and the rows of "train", "valid" and "test".

    Molecules of validation or test that are also in training, or have other elements, cause a
    warning.

    Args:
      train: a file.
      valid, test: other files, or shares of the molecules of ``train`` to draw by ``seed``.
      split: instead of shares, a column of ``train`` with "train", "valid" or "test"; or "".
      seed: seed of the random choice.
      columns, bonds: names of columns, and whether bonds are needed, see :func:`read`.

    Raises:
      ValueError: as for :func:`read`, or a split is empty or cannot be drawn.
    """
    if split and None in shares(valid, test):
        raise ValueError(
            f"the column {split!r} of splits is given with valid {valid} and test {test}; expected "
            "either the column or other files"
        )
    table = read(find(train), [*columns, split] if split else columns, bonds=bonds)
    if split:
        split_rows = _rows_by_split(table, split, train)
    else:
        split_rows = draw_splits(len(table), valid, test, seed)
    split_tables = {name: (table, np.asarray(rows)) for name, rows in split_rows.items()}
    for name, source in (("valid", valid), ("test", test)):
        if name not in split_tables:
            split_table = read(find(source), columns, bonds=bonds)
            split_tables[name] = split_table, np.arange(len(split_table))
    _warn_about_splits(split_tables)
    return split_tables


def _rows_by_split(table: PropertyTable, column: str, source: str) -> dict[str, np.ndarray]:
    """The rows of "train", "valid" and "test" according to a column, which may be empty.

    Raises:
      ValueError: the column has another value, or a split has no row.
    """
    labels = np.char.lower(np.char.strip(table.values[column]))
    if len(invalid := np.flatnonzero(~np.isin(labels, (*SPLITS, "")))):
        location, label = table.locations[invalid[0]], str(labels[invalid[0]])
        raise ValueError(
            f"{location}: {column} is {label!r}; expected train, valid or test, or nothing to "
            "leave the molecule out"
        )
    rows = {name: np.flatnonzero(labels == name) for name in SPLITS}
    if empty := [name for name, split_rows in rows.items() if not len(split_rows)]:
        raise ValueError(
            f"the column {column!r} of {source} has no {empty[0]!r}; expected train, valid and "
            "test, each at least once"
        )
    return rows


def _warn_about_splits(tables: Mapping[str, tuple[PropertyTable, np.ndarray]]) -> None:
    """Warn if molecules of validation or test are also in training, or have elements that are not
    there.
    """
    table, rows = tables["train"]
    train_keys, train_elements = table.key[rows], np.concatenate(table.elements(rows))
    for split in SPLITS[1:]:
        table, rows = tables[split]
        shared = np.isin(table.key[rows], train_keys)
        unknown = np.array(
            [not np.isin(numbers, train_elements).all() for numbers in table.elements(rows)]
        )
        for mask, message in (
            (shared, "are also in training; errors are those of new molecules only if each "
                     "molecule is in one split"),
            (unknown, "have elements that are not in training, and count in the errors"),
        ):  # fmt: skip
            if mask.any():
                warnings.warn(
                    f"{mask.sum()} of {len(rows)} {split} molecules (the first: "
                    f"{table.locations[rows[mask][0]]}) {message}",
                    stacklevel=2,
                )


def _location(entry: Any, path: Path) -> str:
    return getattr(entry, "location", "").removesuffix(": ") or f"{path}, {entry.name}"


def _geometries(entries: Sequence[Any], path: Path) -> dict[str, np.ndarray]:
    """The rows of the usable molecules, their atoms, charges and notes, and why others are not."""
    from ase.data import atomic_numbers

    num_smiles = sum(isinstance(entry, structures.Smiles) for entry in entries)
    results = structures.generate_geometries(
        entries, structures.useful_processes(num_smiles), conformers=1
    )
    rows, molecules, refused, num_retryable = [], [], [], 0
    for k, molecule in enumerate(
        progress_bar(results, total=len(entries), unit="molecule", desc=path.name)
    ):
        if isinstance(molecule, structures.Refused):
            refused.append(f"{molecule.name}: {molecule.reason}")
            num_retryable += molecule.retryable
        else:
            rows.append(k)
            molecules.append(molecule)
    if not molecules:
        reasons = "; ".join(refused)[:1_000]
        raise ValueError(f"{path} has no molecule that can be used: {reasons}")
    return {
        "row": np.array(rows),
        "refused": np.array(refused, str),
        "passing": np.array(num_retryable),
        "geometry": np.array([molecule.geometry for molecule in molecules]),
        "key": np.array([_key(entries[k]) for k in rows]),
        "n_atoms": np.array([len(molecule.symbols) for molecule in molecules]),
        "atomic_numbers": np.array(
            [atomic_numbers[s] for molecule in molecules for s in molecule.symbols]
        ),
        "positions": np.concatenate(
            [molecule.positions - molecule.positions.mean(axis=0) for molecule in molecules]
        ).astype(np.float32),
        "charges": np.array([molecule.charge for molecule in molecules]),
        "noted": np.array([bool(molecule.notes) for molecule in molecules]),
    }
