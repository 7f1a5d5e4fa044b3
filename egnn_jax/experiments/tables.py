"""Tables of results as Markdown and as images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from egnn_jax._files import write_atomically
from egnn_jax.data.qm9_properties import UNITS
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import paper
from egnn_jax.registry import MODELS


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table whose header is the keys of the first row."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[row[key] for key in rows[0]] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_table(rows: Sequence[Mapping[str, str]], stem: Path) -> list[Path]:
    """Write the table as ``stem``.md and ``stem``.png, and return the two paths."""
    from egnn_jax.experiments import plots

    text = stem.with_suffix(".md")
    write_atomically(text, markdown(rows).encode())
    return [text, plots.table(rows, stem.with_suffix(".png"))]


def upright(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Transpose the table if it is wide; the first key names the rows."""
    name_column, *columns = rows[0]
    if len(columns) <= max(len(rows), 12):
        return [dict(row) for row in rows]
    return [{name_column: name} | {row[name_column]: row[name] for row in rows} for name in columns]


def result_rows(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row of text per run: its errors, best epoch and time, and for a task of the paper its
    error for the same model.

    Metrics that only other runs have are shown as "–".
    """
    tasks = {name: configs.from_dict(result["config"]).task for name, result in results.items()}
    units = {m: f" ({unit})" for task in tasks.values() for m, unit in task.units.items()}
    has_paper_values = any(task.paper for task in tasks.values())
    columns = dict.fromkeys(
        (split, metric)
        for result in results.values()
        for split, metrics in result["metrics"].items()
        for metric in metrics
    )
    rows = []
    for name, result in results.items():
        model, paper_values = result["config"]["model"]["name"], tasks[name].paper
        row = {"run": name}
        for split, metric in columns:
            value = result["metrics"][split].get(metric)
            text = "–" if value is None else f"{value:.5f}"
            if value is not None and "std" in result:
                text += f" ± {result['std'][split][metric]:.5f}"
            row[f"{split} {metric}{units.get(metric, '')}"] = text
        if has_paper_values:
            row["paper"] = f"{paper_values[model]:.4f}" if model in paper_values else "–"
        row["best epoch"] = str(result["best_epoch"])
        rows.append(row | {"minutes": f"{result['seconds'] / 60:.1f}"})
    return rows


def table3_rows(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows of Table 3 and of runs on QM9, one per model and number of epochs."""
    metric_names = {name for result in results.values() for name in result["metrics"]["test"]}
    targets = [name for name in paper.TABLE3_TARGETS if name in metric_names]
    table: dict[str, dict[str, float | None]] = {
        row_name: dict(zip(paper.TABLE3_TARGETS, errors, strict=True))
        for row_name, errors in paper.TABLE3.items()
    }
    for run, result in results.items():
        config, test = result["config"], result["metrics"]["test"]
        errors = {name: error for name, error in test.items() if name in targets}
        row_name = f"ours: {config['model']['name']}, {config['epochs']:,} epochs"
        if (periods := config["optimizer"]["half_periods"]) > 1:
            row_name += f", {periods} half-periods"
        if set(errors) & set(table.get(row_name, {})):
            row_name = f"{row_name} ({run})"
        table.setdefault(row_name, {}).update(errors)
    rows = []
    for model, errors in table.items():
        values = {name: errors.get(name) for name in targets}
        cells = {
            f"{name} ({UNITS[name]})": "–" if value is None else f"{value:.3g}"
            for name, value in values.items()
        }
        rows.append({"model": model} | cells)
    return rows


def table3_systems() -> list[dict[str, str]]:
    """A description of each system of Table 3 as its recipe builds it, one row each."""
    return [
        {
            "model": name,
            "recipe": f"qm9/{name}",
            "homo, published (meV)": f"{paper.TABLE3[name][2]:g}",
            "homo, 30 minutes of two cores (meV)": f"{system.raced[0]:.1f}",
            "homo, 2 hours of two cores (meV)": f"{system.raced[1]:.1f}",
            "network of these two errors": system.raced_size or "as in the recipe",
            "parameters": f"{system.parameters:,}",
            "step / EGNN's": f"{system.step:.1f}",
            "symmetry": MODELS[paper.TABLE3_NETWORKS.get(name, name)].symmetry,
            "reads beside elements and positions": system.inputs,
            "differs from the authors'": system.differs,
        }
        for name, system in paper.TABLE3_SYSTEMS.items()
    ]
