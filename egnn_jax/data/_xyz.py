"""Reading frames of ``.xyz`` files one by one: plain, extended, and QM9's own."""

import bz2
import gzip
import io
import itertools
import lzma
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from egnn_jax.data import _perception
from egnn_jax.data._structure import MAX_READ_ATOMS, Structure, check_size, checked, quoted

OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""The functions that open compressed files, by suffix."""

_COUNT = re.compile(r"\s*\+?\d{1,15}\s*")
_NUMBER = re.compile(r"([+-]?(?:\d+[.,]?\d*|[.,]\d+))(?:(?:[eEdDqQ]|\*\^)([+-]?\d+))?")
_ATOM_LINE = re.compile(r"\s*([CHNOF])" + 3 * r"\s+(-?\d+\.\d+)" + r"\s*")
"""An atom line in the usual form, which a single match reads in a quarter of the time."""
_PLAIN_NUMBER = re.compile(r"[-+.\dEe]*")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_LABEL = re.compile(r"([A-Za-z]{1,2})(?:[\d_'*.:(][\w'*.:()]*)?")
_PROPERTIES = re.compile(r'Properties=(?:"([^"]*)"|(\S+))')
_GAUSSIAN = re.compile(r"\A\s*([+-]?\d)\s+([1-9])\s*\Z")
"""A comment with only charge and multiplicity."""


class Frame(NamedTuple):
    """The comment and the atom lines of a frame."""

    comment: str
    rows: list[str]


def frames(text: str) -> Iterator[Frame | str]:
    """Yield the frames of a file, or an error message for each that cannot be read.

    Every line that is not blank belongs to a frame, to the extra lines that QM9 has after it, or to
    an unreadable part.
    """
    lines = text.split("\n")
    index = 0
    while index < len(lines):
        if not lines[index].strip():
            index += 1
            continue
        if not _COUNT.fullmatch(lines[index]):
            yield f"line {index + 1} is {quoted(lines[index])}; expected a number of atoms"
            index = _next_count(lines, index + 1)
            continue
        count, start = int(lines[index]), index + 2
        limit = min(start + count, len(lines))
        end = next((k for k in range(start, limit) if _ends_frame(lines[k])), limit)
        rows = lines[start:end]
        problem = _count_problem(count, rows, lines[end : end + 2])
        if problem and end - start == count:  # skip the extra atoms
            end = next((k for k in range(end, len(lines)) if _ends_frame(lines[k])), len(lines))
        elif end - start == count and "".join(lines[end + 2 : end + 3]).startswith("InChI="):
            end += 3  # QM9: frequencies, SMILES, InChI
        comment = "".join(lines[index + 1 : start])
        yield f"line {index + 1}: {problem}" if problem else Frame(comment, rows)
        truncated = problem and _COUNT.fullmatch(comment)  # truncated before its comment line
        index = index + 1 if truncated else max(end, index + 1)


def read(frame: Frame, name: str) -> Structure:
    """Make a molecule from a frame.

    Raises:
      ValueError: a line is not an atom, there are too many, it is periodic, or a charge is invalid.
    """
    check_size(len(frame.rows), MAX_READ_ATOMS)
    comment = _GAUSSIAN.sub(r"charge=\1 multiplicity=\2", frame.comment)
    cells, has_isotopes = _cells(frame)
    if "=" not in frame.comment:  # no keys, so ASE, which takes ten times as long, is not needed
        symbols, x = [row[0] for row in cells], np.array([row[1:] for row in cells], float)
        return _structure(name, symbols, x, comment, has_isotopes, {}, {})
    atoms = _read_with_ase(frame, cells)
    if atoms.pbc.any():
        raise ValueError("it is periodic; expected a molecule")
    check_size(len(atoms), MAX_READ_ATOMS)
    results = {} if atoms.calc is None else atoms.calc.results
    columns = {k: v for k, v in {**atoms.arrays, **results}.items() if np.ndim(v)}
    values = {k: str(v) for k, v in {**results, **atoms.info}.items() if np.ndim(v) == 0}
    symbols, x = atoms.get_chemical_symbols(), atoms.get_positions()
    return _structure(name, symbols, x, _PROPERTIES.sub("", comment), has_isotopes, columns, values)


def stream(path: Path) -> Iterator[Any]:
    """Iterate over the frames of an extended ``.xyz`` of any size as ASE's ``Atoms``.

    ASE's own reader stops at the first blank line between frames.

    Args:
      path: the file; it is decompressed if it ends in ``.gz``, ``.bz2`` or ``.xz``.

    Raises:
      ValueError: a frame does not start with its number of atoms, or the file ends within a frame.
        Exceptions of ASE are passed on.
    """
    import ase.io

    opened = OPENERS.get(path.suffix.lower(), open)
    with opened(path, "rt", encoding="utf-8-sig", errors="replace") as file:
        line = file.readline()
        while line:
            if not line.strip():
                line = file.readline()
                continue
            if not _COUNT.fullmatch(line):
                raise ValueError(f"a line is {quoted(line)}; expected a number of atoms")
            count = int(line)
            rows = list(itertools.islice(file, count + 1))
            if len(rows) < count + 1:
                raise ValueError(f"its header says {count:,} atoms; the file ends before")
            line = file.readline()
            uncertain = not line and count > 1 and not rows[-1].endswith("\n")
            if uncertain and _is_truncated([row.split() for row in rows[1:]]):
                raise ValueError(f"the file ends within its last atom, {quoted(rows[-1])}")
            while line.startswith("VEC"):  # a cell after the atoms
                rows.append(line)
                line = file.readline()
            yield ase.io.read(io.StringIO(f"{count}\n{''.join(rows)}"), index=0, format="extxyz")


def _next_count(lines: list[str], start: int) -> int:
    matches = (k for k in range(start, len(lines)) if _COUNT.fullmatch(lines[k]))
    return next(matches, len(lines))


def _ends_frame(line: str) -> bool:
    """Whether a line ends a frame's atoms: it is blank, or the atom count of another frame."""
    return not line.strip() or _COUNT.fullmatch(line) is not None


def _count_problem(count: int, rows: list[str], following: list[str]) -> str:
    """The error in the number of atoms of a frame; empty if there is none."""
    if len(rows) < count:
        return f"its header says {count:,} atoms; {len(rows):,} follow"
    # Two lines, since a truncated last atom line may be joined with the header of the next frame.
    if following and not _COUNT.fullmatch(following[0]) and any(map(_is_atom, following)):
        return f"its header says {count:,} atoms; more follow"
    if not following and len(rows) > 2 and _is_truncated([row.split() for row in rows]):
        return f"the file ends within its last atom, {quoted(rows[-1])}"
    return ""


def _is_truncated(rows: list[list[str]]) -> bool:
    """Whether the last line, which has no line end, has fewer columns or decimals than others."""
    *columns, last_columns = map(len, rows)
    if last_columns < 4 or last_columns < min(columns):
        return True
    *decimals, last_decimals = (len(row[-1].partition(".")[2]) for row in rows)
    return len(set(decimals)) == 1 and decimals[0] > 3 and last_decimals < decimals[0]


def _is_atom(line: str) -> bool:
    label, *cells = line.split() or [""]
    has_label = label[:1].isalpha() or label.isdecimal()
    return has_label and len(cells) > 2 and all(map(_NUMBER.fullmatch, cells[:3]))


def _cells(frame: Frame) -> tuple[list[list[Any]], bool]:
    """The cells of the atom lines: a symbol and three numbers, or the columns of an extended file,
    including a symbol; and whether any atom is deuterium or tritium.
    """
    properties = _PROPERTIES.search(frame.comment)
    species_column = 0
    if properties:
        fields = "".join(properties.groups("")).split(":")
        names, widths = fields[::3], fields[2::3]
        species_column = -1
        if "species" in names:
            widths = widths[: names.index("species")]
            species_column = sum(int(width) if width.isdigit() else 1 for width in widths)
    rows, has_isotopes = [], False
    for k, row in enumerate(frame.rows, 1):
        if not properties and (match := _ATOM_LINE.fullmatch(row)):
            symbol, *numbers = match.groups()
            rows.append([symbol, *map(float, numbers)])
            continue
        cells: list[Any] = row.split()
        if len(cells) == 1:
            cells = row.split(";" if ";" in row else ",")
        cells = [cell.strip().rstrip(",;") for cell in cells]
        if len(cells) < 4 and not properties:
            raise ValueError(
                f"atom {k} is {quoted(row)}; expected an element and three coordinates"
            )
        if not properties:
            cells = cells[:4]
        for column, cell in enumerate(cells):
            if column == species_column:
                cells[column], is_isotope = _element(cell, k)
                has_isotopes |= is_isotope
            elif not properties or (_NUMBER.fullmatch(cell) and not _PLAIN_NUMBER.fullmatch(cell)):
                cells[column] = _number(cell, k)
        rows.append(cells)
    return rows, has_isotopes


def _element(label: str, atom: int) -> tuple[str, bool]:
    """The element symbol from a symbol, a label like C1, or an atomic number; and whether it is D
    or T.
    """
    from ase.data import atomic_numbers, chemical_symbols

    match = _LABEL.fullmatch(label)
    symbol = match[1].capitalize() if match else ""
    if symbol in ("D", "T"):
        return "H", True
    if atomic_numbers.get(symbol, 0):
        return symbol, False
    if label.isdecimal() and len(label) < 4 and 0 < int(label) < len(chemical_symbols):
        return chemical_symbols[int(label)], False
    raise ValueError(f"atom {atom} is {quoted(label)}; expected an element or an atomic number")


def _number(text: str, atom: int) -> float:
    """Parse a number, also in notations that Python does not know: 1.5D-01, 1.5*^-6 and 1,5."""
    if match := _NUMBER.fullmatch(text):
        return float(f"{match[1].replace(',', '.')}e{match[2] or 0}")
    if _NOT_FINITE.fullmatch(text):
        return float(text)
    raise ValueError(f"atom {atom} has the coordinate {quoted(text)}; expected a number")


def _read_with_ase(frame: Frame, cells: list[list[Any]]) -> Any:
    """Read a frame as ASE's ``Atoms``, with the values in its comment."""
    import ase.io

    rows = "\n".join([" ".join(map(str, row)) for row in cells] + [""])

    def read(comment: str) -> Any:
        text = io.StringIO(f"{len(cells)}\n{comment}\n{rows}")
        return ase.io.read(text, index=0, format="extxyz")

    try:
        try:
            return read(frame.comment)
        except Exception:  # ASE fails on comments like "= 5", which it parses as keys and values
            if re.search(r"Lattice|Properties|pbc", frame.comment, re.IGNORECASE):
                raise
            return read("")
    except Exception as error:  # ASE's readers raise exceptions of any type
        raise ValueError(f"ASE cannot read it ({type(error).__name__}: {error})") from error


def _structure(
    name: str,
    symbols: list[str],
    x: np.ndarray,
    comment: str,
    has_isotopes: bool,
    columns: Mapping[str, np.ndarray],
    values: Mapping[str, str],
) -> Structure:
    charge = _perception.charge(comment, columns)
    notes = []
    if (multiplicity := _perception.multiplicity(comment)) != 1:
        notes.append(f"its spin multiplicity is {multiplicity}, not 1")
    if has_isotopes:
        notes.append("it has deuterium or tritium, which the network takes for hydrogen")
    return checked(Structure(name, symbols, x, charge, notes=tuple(notes), values=values))
