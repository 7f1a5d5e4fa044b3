"""Writing predictions to CSV, JSON, or SDF with geometries."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from egnn_jax._files import finite, printable, write_atomically
from egnn_jax.data import qm9
from egnn_jax.data.structures import Refused, Structure

SUFFIXES = (".csv", ".json", ".sdf")
TEXT_COLUMNS = ("molecule", "formula", "geometry", "remark")
"""The columns that are text, not numbers; so is the one that begins with "outside"."""


def kind(out: Path) -> str:
    """The kind of an output file by its suffix; CSV for a device.

    Raises:
      ValueError: the path is a folder or inside a file, or its suffix is not in :data:`SUFFIXES`.
    """
    if out.is_dir() or any(parent.is_file() for parent in out.absolute().parents):
        raise ValueError(f"--out {out} is a folder, or in a file; expected the path of a file")
    if out.exists() and not out.is_file():
        return ".csv"
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"--out {out} is of no known kind; expected {', '.join(SUFFIXES)} at its end"
        )
    return suffix


def write(
    out: Path,
    molecules: Sequence[Structure | Refused],
    rows: Sequence[Mapping[str, str]],
    records: Sequence[Mapping[str, Any]],
    units: Mapping[str, str],
) -> None:
    """Write predictions to a file.

    Args:
      out: the file, of a kind that :func:`kind` accepts.
      molecules: the molecules, in order.
      rows: the table row of each molecule.
      records: plain values of each molecule, for JSON.
      units: the units of the properties.
    """
    suffix = kind(out)
    if suffix == ".json":
        content = finite({"units": units, "molecules": records})
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    elif suffix == ".sdf":
        pairs = zip(molecules, rows, strict=True)
        text = "".join(_sdf_record(m, row) for m, row in pairs if isinstance(m, Structure))
    else:
        text = _csv(rows)
    write_atomically(out, text.encode())


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    """CSV text in which no cell is a spreadsheet formula and missing numbers are empty."""
    columns = list(dict.fromkeys(key for row in sorted(rows, key=len)[::-1] for key in row))
    numeric = [key for key in columns if key not in TEXT_COLUMNS and not key.startswith("outside ")]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    for row in rows:
        escaped = {key: f"'{v}" if v[:1] in ("=", "+", "-", "@") else v for key, v in row.items()}
        writer.writerow(escaped | {key: row.get(key, "") for key in numeric})
    return buffer.getvalue()


def _sdf_record(molecule: Structure, row: Mapping[str, str]) -> str:
    """A record of an SDF file: the geometry of lowest energy, with the row as data items."""
    _, block = (molecule.block or _mol_block(molecule)).split("\n", 1)
    items = [(k, printable(v, 2_000)) for k, v in row.items() if k != "molecule" and v]
    lines = [f">  <{key}>\n{value}\n\n" for key, value in items]
    name = f"'{molecule.name}" if molecule.name.startswith("$$$$") else molecule.name
    return f"{name}\n{block}{''.join(lines)}$$$$\n"


def _mol_block(molecule: Structure) -> str:
    """A mol block with bonds perceived from distances, or without bonds if that fails."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDetermineBonds
    from rdkit.Geometry import Point3D

    unbonded = Chem.RWMol()
    conformer = Chem.Conformer(len(molecule.symbols))
    for k, (symbol, position) in enumerate(
        zip(molecule.symbols, molecule.positions.tolist(), strict=True)
    ):
        atom = Chem.Atom(symbol)
        atom.SetNoImplicit(True)
        unbonded.AddAtom(atom)
        conformer.SetAtomPosition(k, Point3D(*position))
    conformer.Set3D(True)
    unbonded.AddConformer(conformer)
    bonded = Chem.Mol(unbonded)
    with rdBase.BlockLogs():
        if len(molecule.symbols) <= qm9.MAX_ATOMS:
            try:
                rdDetermineBonds.DetermineBonds(bonded, charge=molecule.charge)
                return Chem.MolToMolBlock(bonded)
            except (ValueError, RuntimeError):  # a radical, or a wrong charge
                pass
        return Chem.MolToMolBlock(unbonded)
