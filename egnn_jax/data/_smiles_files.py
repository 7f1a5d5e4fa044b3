"""Reading SMILES and InChI from ``.smi`` files and tables."""

import contextlib
import csv
import re
from collections.abc import Iterator, Sequence

from egnn_jax._files import printable
from egnn_jax.data._embedding import Smiles, parsed
from egnn_jax.data._structure import Refused, shown

_DELIMITERS = ",\t;|"
_SMILES = ("smiles", "smi", "canonical_smiles", "isomeric_smiles", "inchi")
"""Names of columns of molecules, in order of preference."""
_NAMES = ("name", "id", "title", "molecule", "compound", "label", "identifier")
_MOST_LINES = 100
"""The largest number of lines of one row, whose quoted cells may hold line breaks."""
_LINE = re.compile(r"\s*(InChI=[^\s\"]+|[^\s,;\"]+)\"?[\s,;]*(.*)")


def from_smi(text: str, where: str) -> Iterator[Smiles | Refused]:
    """Read lines of a SMILES and a name, separated by white space, a comma or a semicolon.

    Quotes are dropped. Comment lines, which begin with # or //, and a first line of column names
    are skipped.

    Args:
      text: the content of the file.
      where: its path.
    """
    lines = enumerate(text.split("\n"), 1)
    molecules = ((k, line) for k, line in lines if line.strip() and not _is_comment(line))
    first, head = next(molecules, (0, ""))
    if not first:
        return
    given = re.split(r"[\s,;]+", head.strip())
    fields = [_plain(field) for field in given]
    if not set(fields) & set(_SMILES) or _is_smiles(given[0].strip("\"'")):
        yield _of_line(first, head, where)
    elif fields[0] not in _SMILES:
        yield from from_table(text, where)
        return
    for k, line in molecules:
        yield _of_line(k, line, where)


def from_table(text: str, where: str) -> Iterator[Smiles | Refused]:
    """Read the molecules of a table with a header line and a column of SMILES or InChI.

    The delimiter is a comma, tab, semicolon, bar or, if none of these fits, white space.

    Args:
      text: the content of the file.
      where: its path.

    Raises:
      ValueError: no column, or more than one, can hold the molecules.
    """
    lines = text.split("\n")
    while lines and not _names(lines[0])[1] and _is_before_header(lines[0]):
        lines.pop(0)
    skipped = text.count("\n") + 1 - len(lines)
    if not lines:
        return
    delimiter, heads = _names(lines[0])
    column = _molecules(heads, lines[0], where)
    names = [heads.index(name) for name in _NAMES if name in heads]
    if delimiter == " ":
        lines = ["\t".join(line.split(maxsplit=max(len(heads) - 1, 1))) for line in lines]
    delimiter = "\t" if delimiter == " " else delimiter
    (_, head), *rows = _rows(lines, delimiter)
    if isinstance(head, str):
        raise ValueError(f"{where}, line {skipped + 1}: {head}")
    own = [cell.strip() for cell in head]
    told = [k for k, name in enumerate(own) if own.count(name) == 1]
    for number, row in rows:
        line = skipped + number
        place = f"{where}, line {line}: "
        if isinstance(row, str):
            yield Refused(f"line {line}", f"{place}{row}")
            continue
        if not any(cell.strip() for cell in row):
            continue
        smiles = row[column].strip() if column < len(row) else ""
        named = (row[k].strip() for k in names if k < len(row))
        name = next((name for name in named if name), smiles or f"line {line}")
        if smiles:
            values = {own[k]: row[k].strip() for k in told if k < len(row)}
            yield Smiles(smiles, name, place, values=values)
        else:
            yield Refused(name, f"{place}the column {heads[column]!r} is empty")


def _rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """The number of the first line, and the cells of each row, or why it cannot be read.

    A row that cannot be read is only its first line, since its quote may have no end.
    """
    first, width = 0, 0
    while first < len(lines):
        block = (f"{line}\n" for line in lines[first : first + _MOST_LINES])
        reader = csv.reader(block, delimiter=delimiter, skipinitialspace=True, strict=True)
        number = 1
        try:
            row: list[str] | str = next(reader)
        except csv.Error as error:
            row = str(error)
        else:
            width = width or len(row)
            if reader.line_num > 1 and len(row) != width:
                row = "a quote is not closed"
            elif any(cell.strip() for cell in row[width:]):
                row = (
                    f"it has {len(row)} cells, and the first line {width}; expected quotes around "
                    f"a cell that contains {delimiter!r}"
                )
            else:
                number = reader.line_num
        yield first + 1, row
        first += number


def _is_before_header(line: str) -> bool:
    """Whether a line is blank, a comment, or Excel's statement of the delimiter."""
    return not line.strip() or _is_comment(line) or bool(re.fullmatch(r'"?sep=."?\s*', line))


def _of_line(number: int, line: str, where: str) -> Smiles | Refused:
    match = _LINE.match(line.replace('"', " ", 1) if line.lstrip()[:1] == '"' else line)
    place = f"{where}, line {number}: "
    if match is None:
        return Refused(f"line {number}", f"{place}{shown(line)} has no SMILES")
    smiles, rest = match.groups()
    name = re.sub(r"^\|[^|]*\|", "", rest).strip(" \t\"'#,;")  # CXSMILES has |…| before the name
    return Smiles(smiles, name or smiles, place)


def _is_smiles(text: str) -> bool:
    try:
        return parsed(text) is not None
    except ValueError:
        return False


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(("#", "//"))


def _names(line: str) -> tuple[str, list[str]]:
    """The delimiter of a header line, and its column names in lower case; no names if there is no
    column of molecules.
    """
    found = []
    for delimiter in _DELIMITERS:
        reader = csv.reader([line.strip()], delimiter=delimiter, skipinitialspace=True)
        with contextlib.suppress(csv.Error):  # without this delimiter, a long line is one cell
            found.append((delimiter, [_plain(field) for field in next(reader, [])]))
    found.append((" ", [_plain(field) for field in line.split()]))
    usable = [(d, fields) for d, fields in found if _candidates(fields)]
    return max(usable, key=lambda one: len(one[1]), default=(",", []))


def _candidates(fields: Sequence[str]) -> list[str]:
    exact = [name for name in _SMILES if name in fields]
    return exact[:1] or [field for field in fields if "smiles" in field and " " not in field]


def _molecules(heads: Sequence[str], line: str, where: str) -> int:
    found = _candidates(heads)
    if len(found) == 1 and heads.count(found[0]) == 1:
        return heads.index(found[0])
    shown_line = printable(line, 120)
    raise ValueError(
        f"{where} has {'several columns' if found else 'no column'} of SMILES in its first line, "
        f"{shown_line!r}; expected one named SMILES"
    )


def _plain(field: str) -> str:
    return field.strip().strip("#\"'").strip().lower().replace(" ", "_")
