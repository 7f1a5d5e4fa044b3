"""Reading SMILES and InChI from ``.smi`` files and tables."""

import contextlib
import csv
import re
from collections.abc import Iterator, Sequence

from egnn_jax._files import printable
from egnn_jax.data._embedding import Smiles, parsed
from egnn_jax.data._structure import Refused, quoted

_DELIMITERS = ",\t;|"
_SMILES_COLUMNS = ("smiles", "smi", "canonical_smiles", "isomeric_smiles", "inchi")
"""Names of columns of molecules, in order of preference."""
_NAME_COLUMNS = ("name", "id", "title", "molecule", "compound", "label", "identifier")
_MAX_ROW_LINES = 100
"""The largest number of lines of one row, whose quoted cells may hold line breaks."""
_LINE = re.compile(r"\s*(InChI=[^\s\"]+|[^\s,;\"]+)\"?[\s,;]*(.*)")


def from_smi(text: str, path: str) -> Iterator[Smiles | Refused]:
    """Read lines of a SMILES and a name, separated by white space, a comma or a semicolon.

    Quotes are dropped. Comment lines, which begin with # or //, and a first line of column names
    are skipped.

    Args:
      text: the content of the file.
      path: its path.
    """
    numbered_lines = enumerate(text.split("\n"), 1)
    rows = ((k, line) for k, line in numbered_lines if line.strip() and not _is_comment(line))
    line_number, first_line = next(rows, (0, ""))
    if not line_number:
        return
    cells = re.split(r"[\s,;]+", first_line.strip())
    column_names = [_normalized(cell) for cell in cells]
    if not set(column_names) & set(_SMILES_COLUMNS) or _is_smiles(cells[0].strip("\"'")):
        yield _parse_line(line_number, first_line, path)
    elif column_names[0] not in _SMILES_COLUMNS:
        yield from from_table(text, path)
        return
    for k, line in rows:
        yield _parse_line(k, line, path)


def from_table(text: str, path: str) -> Iterator[Smiles | Refused]:
    """Read the molecules of a table with a header line and a column of SMILES or InChI.

    The delimiter is a comma, tab, semicolon, bar or, if none of these fits, white space.

    Args:
      text: the content of the file.
      path: its path.

    Raises:
      ValueError: no column, or more than one, can hold the molecules.
    """
    lines = text.split("\n")
    while lines and not _parse_header(lines[0])[1] and _is_before_header(lines[0]):
        lines.pop(0)
    skipped = text.count("\n") + 1 - len(lines)
    if not lines:
        return
    delimiter, column_names = _parse_header(lines[0])
    smiles_column = _smiles_column(column_names, lines[0], path)
    name_columns = [column_names.index(name) for name in _NAME_COLUMNS if name in column_names]
    if delimiter == " ":
        lines = ["\t".join(line.split(maxsplit=max(len(column_names) - 1, 1))) for line in lines]
    delimiter = "\t" if delimiter == " " else delimiter
    (_, header), *rows = _rows(lines, delimiter)
    if isinstance(header, str):
        raise ValueError(f"{path}, line {skipped + 1}: {header}")
    original_names = [cell.strip() for cell in header]
    unique_columns = [k for k, name in enumerate(original_names) if original_names.count(name) == 1]
    for number, row in rows:
        line = skipped + number
        location = f"{path}, line {line}: "
        if isinstance(row, str):
            yield Refused(f"line {line}", f"{location}{row}")
            continue
        if not any(cell.strip() for cell in row):
            continue
        smiles = row[smiles_column].strip() if smiles_column < len(row) else ""
        candidates = (row[k].strip() for k in name_columns if k < len(row))
        name = next((name for name in candidates if name), smiles or f"line {line}")
        if smiles:
            values = {original_names[k]: row[k].strip() for k in unique_columns if k < len(row)}
            yield Smiles(smiles, name, location, values=values)
        else:
            yield Refused(name, f"{location}the column {column_names[smiles_column]!r} is empty")


def _rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """The number of the first line, and the cells of each row, or why it cannot be read.

    A row that cannot be read is only its first line, since its quote may have no end.
    """
    start, width = 0, 0
    while start < len(lines):
        row_lines = (f"{line}\n" for line in lines[start : start + _MAX_ROW_LINES])
        reader = csv.reader(row_lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        num_lines = 1
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
                num_lines = reader.line_num
        yield start + 1, row
        start += num_lines


def _is_before_header(line: str) -> bool:
    """Whether a line is blank, a comment, or Excel's statement of the delimiter."""
    return not line.strip() or _is_comment(line) or bool(re.fullmatch(r'"?sep=."?\s*', line))


def _parse_line(line_number: int, line: str, path: str) -> Smiles | Refused:
    match = _LINE.match(line.replace('"', " ", 1) if line.lstrip()[:1] == '"' else line)
    location = f"{path}, line {line_number}: "
    if match is None:
        return Refused(f"line {line_number}", f"{location}{quoted(line)} has no SMILES")
    smiles, remainder = match.groups()
    remainder = re.sub(r"^\|[^|]*\|", "", remainder)  # CXSMILES has |…| before the name
    name = remainder.strip(" \t\"'#,;")
    return Smiles(smiles, name or smiles, location)


def _is_smiles(text: str) -> bool:
    try:
        return parsed(text) is not None
    except ValueError:
        return False


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(("#", "//"))


def _parse_header(line: str) -> tuple[str, list[str]]:
    """The delimiter of a header line, and its column names in lower case; no names if there is no
    column of molecules.
    """
    headers = []
    for delimiter in _DELIMITERS:
        reader = csv.reader([line.strip()], delimiter=delimiter, skipinitialspace=True)
        with contextlib.suppress(csv.Error):  # without this delimiter, a long line is one cell
            headers.append((delimiter, [_normalized(field) for field in next(reader, [])]))
    headers.append((" ", [_normalized(field) for field in line.split()]))
    usable = [header for header in headers if _smiles_names(header[1])]
    return max(usable, key=lambda header: len(header[1]), default=(",", []))


def _smiles_names(column_names: Sequence[str]) -> list[str]:
    exact = [name for name in _SMILES_COLUMNS if name in column_names]
    return exact[:1] or [name for name in column_names if "smiles" in name and " " not in name]


def _smiles_column(column_names: Sequence[str], line: str, path: str) -> int:
    candidates = _smiles_names(column_names)
    if len(candidates) == 1 and column_names.count(candidates[0]) == 1:
        return column_names.index(candidates[0])
    shown_line = printable(line, 120)
    raise ValueError(
        f"{path} has {'several columns' if candidates else 'no column'} of SMILES in its first "
        f"line, {shown_line!r}; expected one named SMILES"
    )


def _normalized(field: str) -> str:
    return field.strip().strip("#\"'").strip().lower().replace(" ", "_")
