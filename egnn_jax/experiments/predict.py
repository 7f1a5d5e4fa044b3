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
"""The largest number of atoms, summed over conformers, predicted without XLA's optimizations."""

SHOWN = 20
"""The largest number of molecules that are printed."""


class _Prediction(NamedTuple):
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
    molecules_by_model: dict[str, list[Structure]] = {}
    for molecule in molecules:
        if isinstance(molecule, Structure):
            default = BY_GEOMETRY.get(molecule.geometry, "qm9-smiles")
            molecules_by_model.setdefault(str(model or default), []).append(molecule)
    networks = {name: load_pretrained(name) for name in molecules_by_model or [str(model or "qm9")]}
    for name, network in networks.items():
        if not hasattr(network.config.task, "properties"):
            task_type = type(network.config.task).__name__
            raise ValueError(
                f"{name} is a run of {task_type}, which predicts no properties of molecules; "
                "expected one on QM9 or on a table, or of another task that has properties"
            )
    task: Any = next(iter(networks.values())).config.task
    predictions = {
        id(m): _Prediction([m.reason], None, {}) for m in molecules if isinstance(m, Refused)
    }
    for name, group in molecules_by_model.items():
        predictions |= zip(map(id, group), _predictions(networks[name], group), strict=True)
    pairs = [(molecule, predictions[id(molecule)]) for molecule in molecules]
    rows = [_row(molecule, task, prediction) for molecule, prediction in pairs]
    _print_table(rows, task)
    for remark in dict.fromkeys(m.remark for m in molecules if isinstance(m, Structure)):
        if remark:
            print(f"\nnote: {remark}")
    for name, network in networks.items():
        errors = _card_numbers(network, "details", "errors", "test")
        errors = errors or _card_numbers(network, "metrics", "test")
        if errors:
            texts = [f"{t} {errors[t]:.4g} {task.units.get(t, '')}".rstrip() for t in errors]
            suffix = "" if model else f" ({name})"
            print(f"\nmean absolute error on {task.test_set}{suffix}: {', '.join(texts)}")
    if any(prediction.widths for prediction in predictions.values()):
        print(
            f"±: holds for {COVERAGE:.0%} of {task.alike}; none where a molecule is outside "
            f"{task.trained_on}, or too few values were known"
        )
    if out is not None:
        records = [_record(molecule, task, prediction) for molecule, prediction in pairs]
        units = {name: task.units.get(name, "") for name in task.columns}
        rows = [_row(molecule, task, prediction, exact=True) for molecule, prediction in pairs]
        _prediction_files.write(out, molecules, rows, records, units)
    unusable = [f"{m.name}: {'; '.join(p.outside)}" for m, p in pairs if p.values is None]
    if unusable:
        noun = "molecules or files" if failures else "molecules"
        raise ValueError(
            printable(
                f"{len(unusable)} of {len(molecules)} {noun} cannot be used: {'; '.join(unusable)}"
            )
        )


def _read(sources: Sequence[str]) -> tuple[list[Structure | Refused], list[str]]:
    """Read the molecules of all sources; return them and the errors of the sources that fail, for
    which there is a :class:`Refused` among the molecules.
    """
    entries: list[Structure | Refused | Smiles] = []
    failures = []
    for source in sources:
        try:
            entries += structures.entries(source)
        except ValueError as error:
            failures.append(str(error))
            entries.append(Refused(source, failures[-1]))
    smiles_count = sum(isinstance(entry, Smiles) for entry in entries)
    if smiles_count < structures.PARALLEL_THRESHOLD:
        return list(structures.generate_geometries(entries)), failures
    molecules = structures.generate_geometries(entries, structures.useful_processes(smiles_count))
    molecules = progress_bar(molecules, total=len(entries), unit="molecule", desc="geometries")
    return list(molecules), failures


def _predictions(network: Pretrained, molecules: Sequence[Structure]) -> Iterator[_Prediction]:
    task: Any = network.config.task
    supported = [task.takes(molecule) for molecule in molecules]
    inputs = list(compress(molecules, supported))
    few_atoms = sum(map(_num_atoms, inputs)) <= FEW_ATOMS and jax.default_backend() == "cpu"
    with _without_optimizations() if few_atoms else nullcontext():
        values = iter(_values(network, inputs))
    for molecule, is_supported in zip(molecules, supported, strict=True):
        outside = task.outside(molecule)
        value = next(values) if is_supported else None
        if isinstance(value, str):
            value, outside = None, [*outside, value]
        elif value is not None and not np.isfinite(value).all():
            value, outside = None, [*outside, "the network's prediction is not a finite number"]
        # Intervals are measured on molecules like those in training, and do not hold for others.
        widths = {} if outside else _widths(network, molecule)
        yield _Prediction(outside, value, widths)


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


def _num_atoms(molecule: Structure) -> int:
    return len(molecule.symbols) * (1 if molecule.conformers is None else len(molecule.conformers))


@contextmanager
def _without_optimizations() -> Iterator[None]:
    """Compile without optimizations, which takes less time than one prediction would gain."""
    option = "jax_disable_most_optimizations"
    previous = jax.config.values[option]
    jax.config.update(option, True)
    try:
        yield
    finally:
        jax.config.update(option, previous)


def _widths(network: Pretrained, molecule: Structure) -> Mapping[str, float]:
    """The half-widths of prediction intervals for molecules of this size; empty if not known."""
    intervals: Any = network.card.get("details", {})
    for name in ("intervals", "by_atoms"):
        intervals = intervals.get(name, {}) if isinstance(intervals, Mapping) else {}
    for sizes in intervals:
        lower, _, upper = sizes.partition(" to ")
        is_range = lower.isdecimal() and upper.isdecimal()
        if is_range and int(lower) <= len(molecule.symbols) <= int(upper):
            return _card_numbers(network, "details", "intervals", "by_atoms", sizes)
    return {}


def _card_numbers(network: Pretrained, *path: str) -> dict[str, float]:
    """The known numbers of columns in the card of a network; empty if it has none, for example in a
    file of another version or from another program.
    """
    task: Any = network.config.task
    values: Any = network.card
    try:
        for key in path:
            values = values[key]
        names = [name for name in task.columns if values[name] is not None]
        return {name: float(values[name]) for name in names}
    except (KeyError, TypeError, ValueError):
        return {}


def _row(
    molecule: Structure | Refused, task: Any, prediction: _Prediction, exact: bool = False
) -> dict[str, str]:
    """One row of the table as text; missing values are empty. If ``exact``, numbers have the nine
    digits that determine a float32, otherwise fewer.
    """
    row = {"molecule": molecule.name, "formula": "", "geometry": ""}
    reasons, values, widths = prediction
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


def _record(molecule: Structure | Refused, task: Any, prediction: _Prediction) -> dict[str, Any]:
    """A molecule and its properties as plain values for JSON, with null for missing ones."""
    if isinstance(molecule, Refused):
        return {"molecule": molecule.name, "refused": molecule.reason, "properties": None}
    values = None
    if prediction.values is not None:
        values = dict(zip(task.columns, prediction.values.tolist(), strict=True))
    return {
        "molecule": molecule.name,
        "refused": "; ".join(prediction.outside) if values is None else None,
        "formula": molecule.formula,
        "charge": molecule.charge,
        "geometry": molecule.geometry,
        "conformers": 1 if molecule.conformers is None else len(molecule.conformers),
        "outside": prediction.outside,
        "remark": molecule.remark or None,
        "properties": values,
        "half_widths": dict(prediction.widths) or None,
    }


def _column(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _print_table(rows: Sequence[Mapping[str, str]], task: Any) -> None:
    """Print the first molecules as Markdown, one per row, or per column if properties are many."""
    table = []
    for row in rows[:SHOWN]:
        cells = {name: _cell(text) for name, text in row.items() if name != "remark"}
        for name in task.columns:
            unit = task.units.get(name, "")
            width = cells.pop(_column(f"{name} ±", unit), None)
            if width is not None:
                cells[_column(name, unit)] += f" ± {width}"
        table.append(cells)
    if len(task.columns) <= 3:
        print(markdown(table), end="")
    else:
        for start in range(0, len(table), 4):
            group = table[start : start + 4]
            names = [row["molecule"] for row in group]
            headers = [f"{n} ({k})" if names.count(n) > 1 else n for k, n in enumerate(names, 1)]
            transposed = [
                {"": name} | dict(zip(headers, (row[name] for row in group), strict=True))
                for name in list(group[0])[1:]
            ]
            print(markdown(transposed), end="\n" if start + 4 < len(table) else "")
    if len(rows) > SHOWN:
        print(f"\n{len(rows) - SHOWN:,} more molecules: --out FILE writes all")


def _cell(text: str) -> str:
    """Text that cannot break a Markdown table or a terminal; "–" if it is empty."""
    clean = "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|")
    return clean.strip() or "–"
