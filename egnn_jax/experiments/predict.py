"""Properties of molecules of anyone's by a network trained on QM9, as a table."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from egnn_jax._files import write_atomically
from egnn_jax.data import qm9, structures
from egnn_jax.data.structures import Refused, Structure
from egnn_jax.experiments.export import load_pretrained
from egnn_jax.experiments.qm9 import QM9
from egnn_jax.experiments.run import first_seed, load
from egnn_jax.experiments.tables import markdown
from egnn_jax.training.checkpoint import RunFolder

OUTSIDE = "outside QM9"


def predict(run: Path, sources: Sequence[str], out: Path | None = None) -> None:
    """Print a table of the properties of molecules, and write it as CSV if asked to.

    Args:
      run: the folder of a run on QM9, or an exported file.
      sources: files of molecules, or SMILES.
      out: a CSV file.

    Raises:
      ValueError: the run is not on QM9, a source cannot be read as a whole, ``out`` cannot be
        written to, or (after the table was made) some molecules could not be used.
    """
    if out is not None and (out.is_dir() or any(p.is_file() for p in out.absolute().parents)):
        raise ValueError(f"--out {out} is a folder, or in a file; expected the path of a CSV file")
    molecules, failures = _read(sources)
    if not molecules:
        raise ValueError("; ".join(failures))
    config, network, params = load(run)
    task = config.task
    if not isinstance(task, QM9):
        raise ValueError(f"{run} is a run of {type(task).__name__}; expected one on QM9")
    known = [m for m in molecules if isinstance(m, Structure) and _has_number(m)]
    values = np.zeros((0, len(task.targets)))
    if known:
        values = task.properties(
            network.apply,
            first_seed(config, params),
            np.array([len(m.symbols) for m in known]),
            np.array([qm9.ELEMENTS[s] for m in known for s in m.symbols], np.int8),
            np.concatenate([m.positions for m in known]),
        )
    predicted = dict(zip(map(id, known), values, strict=True))
    rows = [_row(m, task.targets, predicted.get(id(m))) for m in molecules]
    print(markdown([{key: _cell(value) for key, value in row.items()} for row in rows]), end="")
    errors = _test_errors(run)
    if errors:
        shown = [f"{name} {errors[name]:.4g} {qm9.UNITS[name]}" for name in task.targets]
        print(f"\nmean absolute error on QM9's test molecules: {', '.join(shown)}")
    if out is not None:
        write_atomically(out, _csv(rows).encode())
    refused = [m for m in molecules if isinstance(m, Refused)]
    if failures or refused:
        problems = [*failures, *(f"{m.name}: {m.reason}" for m in refused)]
        kind = "molecules or files" if failures else "molecules"
        raise ValueError(
            f"{len(problems)} of {len(molecules) + len(failures)} {kind} cannot be used: "
            f"{'; '.join(problems)[:2_000]}"
        )


def _read(sources: Sequence[str]) -> tuple[list[Structure | Refused], list[str]]:
    """The molecules of all sources that can be read, and what is wrong with the others."""
    molecules: list[Structure | Refused] = []
    failures = []
    for source in sources:
        try:
            molecules += structures.read(source)
        except ValueError as error:
            failures.append(str(error))
    return molecules, failures


def _test_errors(run: Path) -> Mapping[str, float]:
    """The errors on the test molecules, if they are known."""
    if run.is_file():
        return load_pretrained(run).card["metrics"].get("test", {})
    folder = RunFolder(run)
    return folder.result()["metrics"]["test"] if folder.result_file.exists() else {}


def _has_number(molecule: Structure) -> bool:
    return set(molecule.symbols) <= set(qm9.ELEMENTS) and len(molecule.symbols) <= qm9.LARGEST


def _row(
    molecule: Structure | Refused, targets: Sequence[str], values: np.ndarray | None
) -> dict[str, str]:
    """A row of text; what is missing is empty."""
    row = {"molecule": molecule.name, "formula": "", "geometry": ""}
    if isinstance(molecule, Structure):
        row |= {"formula": molecule.formula, "geometry": molecule.geometry}
        reasons = structures.outside(molecule)
    else:
        reasons = [molecule.reason]
    for k, name in enumerate(targets):
        digits = 1 if qm9.UNITS[name] == "meV" else 3
        text = "" if values is None else f"{values[k]:.{digits}f}"
        row[f"{name} ({qm9.UNITS[name]})"] = text
    return row | {OUTSIDE: "; ".join(reasons) if reasons else "no"}


def _cell(text: str) -> str:
    """Text that cannot break a Markdown table or a terminal; "–" where there is none."""
    clean = "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|")
    return clean.strip() or "–"


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    """CSV in which no name is a formula of a spreadsheet, and missing numbers are empty."""
    numbers = [key for key in rows[0] if key not in ("molecule", "formula", "geometry", OUTSIDE)]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    for row in rows:
        text = {key: f"'{v}" if v[:1] in ("=", "+", "-", "@") else v for key, v in row.items()}
        writer.writerow(text | {key: row[key] for key in numbers})
    return file.getvalue()
