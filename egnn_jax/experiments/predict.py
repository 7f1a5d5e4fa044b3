"""Predicting properties of your own molecules with a trained network, as a table."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from egnn_jax._files import printable
from egnn_jax._progress import progress_bar
from egnn_jax.data import structures
from egnn_jax.data.structures import Refused, Smiles, Structure
from egnn_jax.experiments import _prediction_files
from egnn_jax.experiments.export import load_pretrained
from egnn_jax.experiments.molecules import COVERAGE
from egnn_jax.experiments.pretrained import Pretrained
from egnn_jax.experiments.tables import markdown

BY_GEOMETRY = {"as given": "qm9", "MMFF94": "qm9-smiles", "ETKDG": "qm9-smiles"}
"""The network for each kind of geometry, see :func:`egnn_jax.load_pretrained`."""

FEW_ATOMS = 500
"""The largest number of atoms, with those of all conformers, predicted without optimizations."""

SHOWN = 20
"""The largest number of molecules that are printed."""


class _Found(NamedTuple):
    """The prediction for one molecule.

    Attributes:
      outside: how it differs from the training molecules, or why it is refused.
      values: predictions (T,); None if the network does not support its elements or size.
      widths: half-widths of the prediction intervals by name; empty if not known.
    """

    outside: list[str]
    values: np.ndarray | None
    widths: Mapping[str, float]


def predict(
    sources: Sequence[str], model: Path | str | None = None, out: Path | None = None
) -> None:
    """Predict properties of molecules, print them as a table, and optionally write a file.

    Args:
      sources: files of molecules, or SMILES.
      model: the folder of a run of a task that predicts properties of molecules, or an exported
        file; by default the networks included in this library, see :data:`BY_GEOMETRY`.
      out: a file, ``.csv``, ``.json`` or, with geometries and properties as tags, ``.sdf``.

    Raises:
      ValueError: the model does not predict properties of molecules, no molecule can be read,
        ``out`` cannot be written to, or (after all output) a source or some molecules cannot be
        read or have elements that the model does not support.
    """
    if out is not None:
        _prediction_files.kind(out)
        if any(os.path.isfile(s) and out.exists() and out.samefile(s) for s in sources):
            raise ValueError(f"--out {out} is one of the files to read; expected another file")
    molecules, failures = _read(sources)
    if len(failures) == len(sources):
        raise ValueError(printable("; ".join(failures)))
    by_model: dict[str, list[Structure]] = {}
    for molecule in molecules:
        if isinstance(molecule, Structure):
            default = BY_GEOMETRY.get(molecule.geometry, "qm9-smiles")
            by_model.setdefault(str(model or default), []).append(molecule)
    networks = {name: load_pretrained(name) for name in by_model or [str(model or "qm9")]}
    for name, network in networks.items():
        if not hasattr(network.config.task, "properties"):
            kind = type(network.config.task).__name__
            raise ValueError(
                f"{name} is a run of {kind}, which predicts no properties of molecules; expected "
                "one on QM9 or on a table, or of another task that has properties"
            )
    task: Any = next(iter(networks.values())).config.task
    found = {id(m): _Found([m.reason], None, {}) for m in molecules if isinstance(m, Refused)}
    for name, own in by_model.items():
        found |= zip(map(id, own), _predicted(networks[name], own), strict=True)
    each = [(molecule, found[id(molecule)]) for molecule in molecules]
    rows = [_row(molecule, task, one) for molecule, one in each]
    _print(rows, task)
    for remark in dict.fromkeys(m.remark for m in molecules if isinstance(m, Structure)):
        if remark:
            print(f"\nnote: {remark}")
    for name, network in networks.items():
        errors = _of_card(network, "details", "errors", "test")
        if errors := errors or _of_card(network, "metrics", "test"):
            shown = [f"{t} {errors[t]:.4g} {task.units.get(t, '')}".rstrip() for t in errors]
            of = "" if model else f" ({name})"
            print(f"\nmean absolute error on {task.test_set}{of}: {', '.join(shown)}")
    if any(one.widths for one in found.values()):
        print(
            f"±: holds for {COVERAGE:.0%} of {task.alike}; none where a molecule is outside "
            f"{task.trained_on}, or too few values were known"
        )
    if out is not None:
        records = [_record(molecule, task, one) for molecule, one in each]
        units = {name: task.units.get(name, "") for name in task.columns}
        rows = [_row(molecule, task, one, exact=True) for molecule, one in each]
        _prediction_files.write(out, molecules, rows, records, units)
    missing = [f"{m.name}: {'; '.join(one.outside)}" for m, one in each if one.values is None]
    if missing:
        kind = "molecules or files" if failures else "molecules"
        raise ValueError(
            printable(
                f"{len(missing)} of {len(molecules)} {kind} cannot be used: {'; '.join(missing)}"
            )
        )


def _read(sources: Sequence[str]) -> tuple[list[Structure | Refused], list[str]]:
    """Read the molecules of all sources, with an entry that says why for each that fails; also
    return the errors of these.
    """
    entries: list[Structure | Refused | Smiles] = []
    failures = []
    for source in sources:
        try:
            entries += structures.entries(source)
        except ValueError as error:
            failures.append(str(error))
            entries.append(Refused(source, failures[-1]))
    waiting = sum(isinstance(entry, Smiles) for entry in entries)
    if waiting < structures.MANY:
        return list(structures.made(entries)), failures
    made = structures.made(entries, structures.useful_processes(waiting))
    shown = progress_bar(made, total=len(entries), unit="molecule", desc="geometries")
    return list(shown), failures


def _predicted(network: Pretrained, molecules: Sequence[Structure]) -> Iterator[_Found]:
    task: Any = network.config.task
    taken = [task.takes(molecule) for molecule in molecules]
    known = list(compress(molecules, taken))
    few = sum(map(_atoms, known)) <= FEW_ATOMS and jax.default_backend() == "cpu"
    with _without_optimizations() if few else nullcontext():
        values = iter(_values(network, known))
    for molecule, known_elements in zip(molecules, taken, strict=True):
        outside = task.outside(molecule)
        value = next(values) if known_elements else None
        if isinstance(value, str):
            value, outside = None, [*outside, value]
        elif value is not None and not np.isfinite(value).all():
            value, outside = None, [*outside, "the network's prediction is not a finite number"]
        # Intervals are measured on molecules like those in training, and do not hold for others.
        widths = {} if outside else _widths(network, molecule)
        yield _Found(outside, value, widths)


def _values(network: Pretrained, molecules: Sequence[Structure]) -> list[np.ndarray | str]:
    """The predictions (T,) for each molecule, or why it has none."""
    if not molecules:
        return []
    try:
        return list(map(np.array, zip(*network(molecules).values(), strict=True)))
    except ValueError as error:
        if len(molecules) == 1:
            return [str(error)]
        half = len(molecules) // 2
        return [*_values(network, molecules[:half]), *_values(network, molecules[half:])]


def _atoms(molecule: Structure) -> int:
    return len(molecule.symbols) * (1 if molecule.conformers is None else len(molecule.conformers))


@contextmanager
def _without_optimizations() -> Iterator[None]:
    """Compile without optimizations, which takes less time than one prediction would gain."""
    option = "jax_disable_most_optimizations"
    before = jax.config.values[option]
    jax.config.update(option, True)
    try:
        yield
    finally:
        jax.config.update(option, before)


def _widths(network: Pretrained, molecule: Structure) -> Mapping[str, float]:
    """The half-widths of prediction intervals for molecules of this size; empty if not known."""
    intervals: Any = network.card.get("details", {})
    for name in ("intervals", "by_atoms"):
        intervals = intervals.get(name, {}) if isinstance(intervals, Mapping) else {}
    for sizes in intervals:
        least, _, most = sizes.partition(" to ")
        known = least.isdecimal() and most.isdecimal()
        if known and int(least) <= len(molecule.symbols) <= int(most):
            return _of_card(network, "details", "intervals", "by_atoms", sizes)
    return {}


def _of_card(network: Pretrained, *path: str) -> dict[str, float]:
    """The known numbers of columns in the card of a network; empty if it has none, for example in a
    file of another version or from another program.
    """
    task: Any = network.config.task
    found: Any = network.card
    try:
        for name in path:
            found = found[name]
        known = [name for name in task.columns if found[name] is not None]
        return {name: float(found[name]) for name in known}
    except (KeyError, TypeError, ValueError):
        return {}


def _row(
    molecule: Structure | Refused, task: Any, found: _Found, exact: bool = False
) -> dict[str, str]:
    """One row of the table as text; missing values are empty. If ``exact``, numbers have the digits
    of float32, otherwise those that matter.
    """
    row = {"molecule": molecule.name, "formula": "", "geometry": ""}
    reasons, values, widths = found
    if isinstance(molecule, Structure):
        row |= {"formula": molecule.formula, "geometry": molecule.geometry}
        if molecule.conformers is not None and len(molecule.conformers) > 1:
            row["geometry"] += f" (mean of {len(molecule.conformers)})"
    for k, name in enumerate(task.columns):
        unit = task.units.get(name, "")
        digits = ".9g" if exact else {"meV": ".1f", "": ".4g"}.get(unit, ".3f")
        row[_column(name, unit)] = "" if values is None else f"{values[k]:{digits}}"
        if name in widths:
            row[_column(f"{name} ±", unit)] = f"{widths[name]:{digits}}"
    row[f"outside {task.trained_on}"] = "; ".join(reasons) if reasons else "no"
    if isinstance(molecule, Structure) and molecule.remark:
        row["remark"] = molecule.remark
    return row


def _record(molecule: Structure | Refused, task: Any, found: _Found) -> dict[str, Any]:
    """A molecule and its properties as plain values for JSON, with null for missing ones."""
    if isinstance(molecule, Refused):
        return {"molecule": molecule.name, "refused": molecule.reason, "properties": None}
    values = None
    if found.values is not None:
        values = dict(zip(task.columns, found.values.tolist(), strict=True))
    return {
        "molecule": molecule.name,
        "refused": "; ".join(found.outside) if values is None else None,
        "formula": molecule.formula,
        "charge": molecule.charge,
        "geometry": molecule.geometry,
        "conformers": 1 if molecule.conformers is None else len(molecule.conformers),
        "outside": found.outside,
        "remark": molecule.remark or None,
        "properties": values,
        "half_widths": dict(found.widths) or None,
    }


def _column(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _print(rows: Sequence[Mapping[str, str]], task: Any) -> None:
    """Print the first molecules as Markdown, one per row, or per column if properties are many."""
    shown = []
    for row in rows[:SHOWN]:
        cells = {name: _cell(text) for name, text in row.items() if name != "remark"}
        for name in task.columns:
            unit = task.units.get(name, "")
            width = cells.pop(_column(f"{name} ±", unit), None)
            if width is not None:
                cells[_column(name, unit)] += f" ± {width}"
        shown.append(cells)
    if len(task.columns) <= 3:
        print(markdown(shown), end="")
    else:
        for first in range(0, len(shown), 4):
            group = shown[first : first + 4]
            names = [row["molecule"] for row in group]
            heads = [f"{n} ({k})" if names.count(n) > 1 else n for k, n in enumerate(names, 1)]
            table = [
                {"": name} | dict(zip(heads, (row[name] for row in group), strict=True))
                for name in list(group[0])[1:]
            ]
            print(markdown(table), end="\n" if first + 4 < len(shown) else "")
    if len(rows) > SHOWN:
        print(f"\n{len(rows) - SHOWN:,} more molecules: --out FILE writes all")


def _cell(text: str) -> str:
    """Text that cannot break a Markdown table or a terminal; "–" if it is empty."""
    clean = "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|")
    return clean.strip() or "–"
