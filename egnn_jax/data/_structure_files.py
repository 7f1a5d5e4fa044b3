"""Reading files of molecules, by their kind."""

import dataclasses
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from egnn_jax.data import _smiles_files, _xyz
from egnn_jax.data._embedding import Smiles, of_rdkit, problem
from egnn_jax.data._structure import (
    MAX_READ_ATOMS,
    Refused,
    Structure,
    check_extent,
    check_size,
    checked,
    quoted,
)

MAX_BYTES = 500_000_000
"""The largest file that is read, after decompression."""

_TAG = re.compile(r"^>[^<\n]*<([^>\n]+)>.*\n((?:.+\n?)*)", re.MULTILINE)
"""A value in an SDF: its name, and its lines up to a blank line."""

_COORDINATE = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

Entry = Structure | Refused | Smiles
"""An entry of a file; a ``Smiles`` has no geometry yet."""


def entries(path: Path) -> list[Entry]:
    """Read the molecules of a file, in order; those that cannot be read are ``Refused``.

    Args:
      path: the file; its suffix, before any ``.gz``, must be in :data:`READERS`.

    Raises:
      ValueError: the file cannot be read, is too large, is not text, or is not of its kind.
    """
    suffix, stem = kind(path)
    try:
        text, damage = _text(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
    molecules: list[Entry] = list(READERS[suffix](text, stem, str(path)))
    if damage:
        molecules.append(Refused(stem, f"{path} is damaged ({damage}); what follows is lost"))
    return molecules


def kind(path: Path) -> tuple[str, str]:
    """The lower-case suffix of a file, ignoring ``.gz``, and its name without both."""
    name = re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE)
    return Path(name).suffix.lower(), Path(name).stem


def _text(path: Path) -> tuple[str, str]:
    """The text of a file with line ends ``\\n``, and how it is damaged (empty if it is not)."""
    damage = ""
    with path.open("rb") as file:
        if path.suffix.lower() == ".gz":
            content, damage = _decompressed(gzip.GzipFile(fileobj=file))
        else:
            content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} has over {MAX_BYTES:,} bytes; expected at most so many")
    text = _decoded(content)
    if "\0" in text:
        raise ValueError(f"{path} is not text; expected a file of molecules")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # The last line of a truncated file may be incomplete.
    return (text[: text.rfind("\n") + 1] if damage else text), damage


def _decompressed(file: gzip.GzipFile) -> tuple[bytes, str]:
    chunks, size = [], 0
    try:
        while size <= MAX_BYTES and (chunk := file.read1(1 << 20)):
            chunks.append(chunk)
            size += len(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if not chunks:
            raise ValueError(f"{file.name} cannot be decompressed ({error})") from error
        return b"".join(chunks), str(error)
    return b"".join(chunks), ""


def _decoded(content: bytes) -> str:
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    for encoding in ("utf-16-le", "utf-16-be"):  # without a byte order mark: every other byte is 0
        start = content[encoding == "utf-16-le" : 200 : 2]
        if len(content) > 3 and start and not any(start):
            return content.decode(encoding, errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _entry_or_refusal(
    read: Callable[..., Entry], source: Any, name: str, prefix: str = ""
) -> Entry:
    try:
        return read(source, name)
    except ValueError as error:
        return Refused(name, f"{prefix}{error}")


def _from_xyz(text: str, stem: str, path: str) -> Iterator[Entry]:
    frames = list(_xyz.frames(text))
    if len(frames) == 1 and isinstance(frames[0], str) and "a number of atoms" in frames[0]:
        raise ValueError(f"{path} cannot be read as .xyz ({frames[0]})")
    for k, frame in enumerate(frames, 1):
        name = stem if len(frames) == 1 else f"{stem} {k}"
        if isinstance(frame, str):
            yield Refused(name, f"{path}, {frame}")
        else:
            yield _entry_or_refusal(_xyz.read, frame, name)


def _from_sdf(text: str, stem: str, path: str) -> Iterator[Entry]:
    from rdkit import Chem

    blocks = re.split(r"^[ \t]*\$\$\$\$.*\n?", text, flags=re.MULTILINE)
    while blocks and not blocks[-1].strip():
        blocks.pop()
    yield from _from_blocks(blocks, stem, path, Chem.MolFromMolBlock, _cells_of_sdf)


def _from_mol2(text: str, stem: str, path: str) -> Iterator[Entry]:
    from rdkit import Chem

    def read(block: str, **options: Any) -> Any:
        # RDKit accepts a truncated record as complete.
        counts = (block.split("\n") + [""] * 3)[2].split()
        molecule = Chem.MolFromMol2Block(f"{block}\n", **options)
        if molecule is not None and counts[:2] != [
            str(molecule.GetNumAtoms()),
            str(molecule.GetNumBonds()),
        ]:
            return None
        return molecule

    head, *blocks = re.split(r"^(?=@<TRIPOS>MOLECULE)", text, flags=re.MULTILINE)
    if not blocks and head.strip():
        raise ValueError(f"{path} cannot be read as .mol2 (it has no @<TRIPOS>MOLECULE)")
    yield from _from_blocks(blocks, stem, path, read, _cells_of_mol2)


def _cells_of_sdf(block: str) -> list[list[str]]:
    """The three coordinates of each atom, as text."""
    if len(re.findall(r"^M {2}END", block, re.MULTILINE)) > 1:
        raise ValueError("it is several molecules; expected a line $$$$ after each")
    lines = block.split("\n")
    if "V3000" in lines[3]:
        joined = re.sub(r"-\nM +V30 ", "", block)
        atoms = joined.partition("BEGIN ATOM")[2].partition("END ATOM")[0]
        return [row.split()[4:7] for row in atoms.split("\n")[1:-1]]
    return [[x[:10], x[10:20], x[20:30]] for x in lines[4 : 4 + int(lines[3][:3])]]


def _cells_of_mol2(block: str) -> list[list[str]]:
    atoms = block.partition("@<TRIPOS>ATOM")[2].partition("\n@")[0]
    return [row.split()[2:5] for row in atoms.split("\n")[1:] if row.strip()]


def _from_blocks(
    blocks: list[str],
    stem: str,
    path: str,
    read: Callable[..., Any],
    read_cells: Callable[[str], list[list[str]]],
) -> Iterator[Entry]:
    from rdkit import rdBase

    for k, block in enumerate(blocks, 1):
        name = f"{stem} {k}"
        with rdBase.BlockLogs():
            molecule = read(block, removeHs=False)
            reason = ""
            if molecule is None:
                reason = problem(read(block, removeHs=False, sanitize=False))
        if molecule is None:
            message = f"{path}: molecule {k} cannot be read"
            yield Refused(name, f"{message} ({reason})" if reason else message)
        else:
            title = molecule.GetProp("_Name") if molecule.HasProp("_Name") else ""
            values = {key: lines.strip() for key, lines in _TAG.findall(block)}
            read_block = partial(_from_block, values=values, read_cells=partial(read_cells, block))
            yield _entry_or_refusal(read_block, molecule, title.strip() or name, f"{path}: ")


def _from_block(
    molecule: Any, name: str, values: Mapping[str, str], read_cells: Callable[[], list[list[str]]]
) -> Structure | Smiles:
    from rdkit import Chem

    for k, row in enumerate(read_cells(), 1):  # RDKit parses the numeric start of an invalid number
        if len(row) < 3 or not all(_COORDINATE.fullmatch(cell.strip()) for cell in row):
            raise ValueError(
                f"the coordinates of atom {k} are {quoted(' '.join(row))}; expected three numbers"
            )
    check_size(molecule.GetNumAtoms(), MAX_READ_ATOMS)
    if molecule.GetNumConformers():
        check_extent(molecule.GetConformer().GetPositions())
    if not (molecule.GetNumConformers() and molecule.GetConformer().Is3D()):
        return Smiles(Chem.MolToSmiles(molecule), name, values=values)
    if missing := sum(atom.GetNumImplicitHs() for atom in molecule.GetAtoms()):
        raise ValueError(f"it lacks {missing} hydrogens; expected every atom with its coordinates")
    return checked(dataclasses.replace(of_rdkit(molecule, name), values=values))


def _from_pdb(text: str, stem: str, path: str) -> Iterator[Entry]:
    """Read the models of a PDB file; bonds come from distances, as few files have bond orders."""
    cells = re.findall(r"^CRYST1(.{9})(.{9})(.{9})", text, flags=re.MULTILINE)
    if any(side.strip() not in ("0.000", "1.000") for cell in cells for side in cell):
        raise ValueError(f"{path} is of a crystal (CRYST1); expected molecules")
    models = []
    for block in re.split(r"^(?=MODEL)|^(?:ENDMDL|END)\b.*\n?", text, flags=re.MULTILINE):
        rows = [line for line in block.split("\n") if line.startswith(("ATOM", "HETATM"))]
        if rows:
            models.append(rows)
    num_starts = len(re.findall(r"^MODEL", text, re.MULTILINE))
    num_ends = len(re.findall(r"^ENDMDL", text, re.MULTILINE))
    for k, rows in enumerate(models, 1):
        name = stem if len(models) == 1 else f"{stem} {k}"
        if num_starts > num_ends and k == len(models):
            yield Refused(name, f"{path}: the file ends within it; expected ENDMDL after MODEL")
        else:
            yield _entry_or_refusal(_from_model, rows, name, f"{path}: ")


def _from_model(rows: list[str], name: str) -> Structure:
    from rdkit import Chem, rdBase

    check_size(len(rows), MAX_READ_ATOMS)
    for row in rows:
        # Columns 31 to 54 of the format; RDKit would accept a truncated line.
        cells = [row[k : k + 8] for k in (30, 38, 46)]
        if not all(len(x) == 8 and re.fullmatch(r" *-?\d+\.\d+", x) for x in cells):
            raise ValueError(f"the coordinates of {quoted(row)} are not in their columns")
    with rdBase.BlockLogs():
        molecule = Chem.MolFromPDBBlock(
            "\n".join([*rows, "END", ""]), sanitize=False, removeHs=False, proximityBonding=False
        )
    if molecule is None:
        raise ValueError("an atom cannot be read; expected an element in columns 77 and 78")
    if molecule.GetNumAtoms() != len(rows):
        raise ValueError(
            f"{molecule.GetNumAtoms()} of its {len(rows)} atoms can be read; expected no "
            "alternate locations"
        )
    structure = of_rdkit(molecule, name)
    notes = tuple(note for note in structure.notes if "isotopes" in note)
    return checked(
        Structure(name, structure.symbols, structure.positions, structure.charge, notes=notes)
    )


def _from_smi(text: str, stem: str, path: str) -> Iterator[Entry]:
    yield from _smiles_files.from_smi(text, path)


def _from_table(text: str, stem: str, path: str) -> Iterator[Entry]:
    yield from _smiles_files.from_table(text, path)


READERS: dict[str, Callable[[str, str, str], Iterator[Entry]]] = {
    ".xyz": _from_xyz,
    ".extxyz": _from_xyz,
    ".sdf": _from_sdf,
    ".mol": _from_sdf,
    ".mol2": _from_mol2,
    ".pdb": _from_pdb,
    ".smi": _from_smi,
    ".csv": _from_table,
    ".tsv": _from_table,
}
"""The reader of each kind of file, by suffix: a function of its text, name and path."""
