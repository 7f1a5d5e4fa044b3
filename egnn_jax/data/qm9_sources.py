"""Reading QM9 from the PyPI package ``qm9pack`` or the original archive, with integrity checks."""

import csv
import dataclasses
import hashlib
import importlib.util
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from egnn_jax._extras import missing
from egnn_jax.data.qm9_properties import ELEMENTS, IN_MEV, MOLECULES, TARGETS

ARCHIVE_ORDER = ("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
"""The order of properties in both sources, in atomic units except mu and Cv."""
_STATISTICS = {
    "molecules": str(MOLECULES),
    "atoms": "2359210",
    "index": "54e3c2872ae88920",
    "n_atoms": "7814ec6d534cb197",
    "atomic_numbers": "12864330fe28f318",
    "mean alpha": "75.28119",
    "mean gap": "6858.496",
    "mean homo": "-6536.456",
    "mean lumo": "322.0438",
    "mean mu": "2.672953",
    "mean Cv": "31.62036",
    "mean G": "-1.117988e+07",
    "mean H": "-1.117872e+07",
    "mean r2": "1189.411",
    "mean U": "-1.117874e+07",
    "mean U0": "-1.117897e+07",
    "mean zpve": "4056.939",
}
"""Counts, SHA-256 and means of the whole data set, whatever its source."""


@dataclasses.dataclass(frozen=True)
class Molecule:
    """One molecule of a source: number, element symbols, positions (M, 3) in Å, and properties in
    :data:`ARCHIVE_ORDER`.
    """

    index: int
    symbols: list[str]
    positions: np.ndarray
    properties: list[float]


def from_package() -> Iterator[Molecule]:
    """Read the molecules of the installed package ``qm9pack``.

    Raises:
      ValueError: the package is not installed, or a line is damaged.
    """
    alternative = (
        ", or, once, "
        "python -c \"from egnn_jax.data import qm9; qm9.load('dsgdb9nsd.xyz.tar.bz2')\" "
        "with the path of the original archive of QM9"
    )
    for table in _tables(alternative):
        yield from from_csv(table)


def smiles_of_package() -> dict[int, str]:
    """Read the SMILES of each molecule of ``qm9pack``, by number.

    Raises:
      ValueError: the package is not installed, or is another version.
    """
    smiles = {}
    for table in _tables():
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    smiles[int(row["Index"])] = row["SMILES"]
                except (KeyError, ValueError) as error:
                    raise ValueError(f"{table} lacks {error}; install qm9pack again") from error
    return smiles


def _tables(alternative: str = "") -> list[Path]:
    """The tables of the installed package ``qm9pack``; ``alternative`` is added to the error if it
    is not installed.
    """
    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{missing('qm9pack')} (104 MB){alternative}")
    data = Path(spec.submodule_search_locations[0]) / "data"
    return [data / f"qm9_part{part}.csv" for part in (1, 2, 3)]


def from_csv(path: Path) -> Iterator[Molecule]:
    """Read the molecules of one of ``qm9pack``'s tables.

    Raises:
      ValueError: the file is missing, or a line is damaged; the message names the molecule.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; install qm9pack again")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        columns = {name: k for k, name in enumerate(next(rows, []))}
        if missing := {"Index", "N_atoms", "Elements", "XYZ_Ang", "Dipole_debye"} - set(columns):
            raise ValueError(f"{path} has no column {sorted(missing)[0]}; install qm9pack again")
        start = columns["Dipole_debye"]
        for row in rows:
            try:
                index, count = int(row[columns["Index"]]), int(row[columns["N_atoms"]])
                symbols = row[columns["Elements"]].strip("[]").replace("'", "").split(",")
                coordinates = row[columns["XYZ_Ang"]].replace("[", "").replace("]", "").split(",")
                positions = np.array([float(value) for value in coordinates]).reshape(-1, 3)
                properties = [float(value) for value in row[start : start + len(ARCHIVE_ORDER)]]
            except (ValueError, IndexError) as error:
                raise ValueError(
                    f"{path}: the line of molecule {row[:2]} is damaged ({error})"
                ) from error
            yield _checked(index, symbols, positions, properties, count, path)


def from_archive(archive: Path, uncharacterized: Path) -> Iterator[Molecule]:
    """Read the characterized molecules of the original archive of ``dsgdb9nsd_*.xyz`` files.

    Raises:
      ValueError: a file is missing, or a file or molecule is damaged; the message names it.
    """
    for path in (archive, uncharacterized):
        if not path.is_file():
            raise ValueError(
                f"{path} is not a file; expected dsgdb9nsd.xyz.tar.bz2 and uncharacterized.txt, "
                f"the original QM9"
            )
    lines = uncharacterized.read_text(encoding="utf-8", errors="replace").splitlines()
    excluded = {
        int(line.split()[0]) for line in lines if line.split() and line.split()[0].isdigit()
    }
    if not excluded:
        raise ValueError(
            f"{uncharacterized} lists no molecules; expected lines that start with a "
            f"molecule's number"
        )
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name.endswith(".xyz") and (file := tar.extractfile(member)) is not None:
                    molecule = _from_xyz(file.read().decode("utf-8", errors="replace"), member.name)
                    if molecule.index not in excluded:
                        yield molecule
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{archive} is damaged ({error}); download it again") from error


def flat_arrays(molecules: Iterator[Molecule]) -> dict[str, np.ndarray]:
    """Sort molecules and convert them to the flat arrays of :class:`QM9`, with targets named
    ``targets/alpha`` and so on.

    Raises:
      ValueError: there are no molecules, or two have the same number.
    """
    ordered = sorted(molecules, key=lambda molecule: molecule.index)
    if not ordered:
        raise ValueError("the source of QM9 holds no molecules; expected dsgdb9nsd_*.xyz files")
    numbers = np.array([molecule.index for molecule in ordered], np.int32)
    if len(duplicates := numbers[1:][np.diff(numbers) == 0]):
        raise ValueError(f"molecule {duplicates[0]} comes twice; expected each number once")
    properties = np.array([molecule.properties for molecule in ordered])
    return {
        "index": numbers,
        "n_atoms": np.array([len(molecule.symbols) for molecule in ordered], np.int32),
        "atomic_numbers": np.array(
            [ELEMENTS[symbol] for molecule in ordered for symbol in molecule.symbols], np.int8
        ),
        "positions": np.concatenate([molecule.positions for molecule in ordered]).astype(
            np.float32
        ),
    } | {
        f"targets/{name}": IN_MEV[name] * properties[:, ARCHIVE_ORDER.index(name)]
        for name in TARGETS
    }


def check_complete(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Check that arrays are all of QM9, and return them.

    Raises:
      ValueError: a count, the list of numbers, the elements or the mean of a target differs; the
        message gives both values.
    """
    values = {"molecules": str(len(arrays["index"])), "atoms": str(len(arrays["atomic_numbers"]))}
    values |= {
        name: hashlib.sha256(arrays[name].tobytes()).hexdigest()[:16]
        for name in ("index", "n_atoms", "atomic_numbers")
    }
    values |= {f"mean {name}": f"{arrays[f'targets/{name}'].mean():.7g}" for name in TARGETS}
    for name, expected in _STATISTICS.items():
        if values[name] != expected:
            raise ValueError(
                f"this is not all of QM9: its {name} is {values[name]}; expected {expected}"
            )
    return arrays


def _from_xyz(text: str, name: str) -> Molecule:
    """Parse a file of the archive: count, properties, one line per atom, frequencies, SMILES and
    InChI; 1.5*^-6 means 1.5e-6.
    """
    try:
        lines = text.replace("*^", "e").splitlines()
        count, header = int(lines[0]), lines[1].split()
        index = int(header[1])
        if len(lines) != count + 5:
            raise ValueError(
                f"molecule {index} has {len(lines)} lines; expected {count + 5}, since its "
                f"count is {count}"
            )
        atoms = [line.split() for line in lines[2 : 2 + count]]
        properties = [float(value) for value in header[5 : 5 + len(ARCHIVE_ORDER)]]
        symbols = [atom[0] for atom in atoms]
        positions = np.array([[float(value) for value in atom[1:4]] for atom in atoms])
    except (ValueError, IndexError) as error:
        raise ValueError(f"{name}: {error}") from error
    return _checked(index, symbols, positions, properties, count, name)


def _checked(
    index: int,
    symbols: list[str],
    positions: np.ndarray,
    properties: list[float],
    count: int,
    source: object,
) -> Molecule:
    if unknown := set(symbols) - set(ELEMENTS):
        raise ValueError(
            f"{source}: molecule {index} has the element {sorted(unknown)[0]!r}; expected one "
            f"of {sorted(ELEMENTS)}"
        )
    if not count == len(symbols) == len(positions) or positions.shape[1:] != (3,):
        raise ValueError(
            f"{source}: molecule {index} has {len(symbols)} elements and positions "
            f"{positions.shape}; its count says {count}"
        )
    if (
        len(properties) != len(ARCHIVE_ORDER)
        or not np.isfinite(properties).all()
        or not np.isfinite(positions).all()
    ):
        raise ValueError(
            f"{source}: molecule {index} has a property or position that is missing or not finite"
        )
    return Molecule(index, symbols, positions, properties)
