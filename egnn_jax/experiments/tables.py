"""Tables of results as Markdown and as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from egnn_jax._files import write_atomically
from egnn_jax.experiments import config as configs


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table whose head are the keys of the first row."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[row[key] for key in rows[0]] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_table(rows: Sequence[Mapping[str, str]], stem: Path) -> list[Path]:
    """Write the table as ``stem``.md and ``stem``.png; the two paths."""
    from egnn_jax.experiments import plots

    text = stem.with_suffix(".md")
    write_atomically(text, markdown(rows).encode())
    return [text, plots.table(rows, stem.with_suffix(".png"))]


def result_rows(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row of text a run: its errors, the paper's for the same model, epochs and time.

    Metrics that only other runs have are shown as "–".
    """
    tasks = {name: configs.from_dict(result["config"]).task for name, result in results.items()}
    units = {m: f" ({unit})" for task in tasks.values() for m, unit in task.units.items()}
    columns = dict.fromkeys(
        (split, metric)
        for result in results.values()
        for split, metrics in result["metrics"].items()
        for metric in metrics
    )
    rows = []
    for name, result in results.items():
        model, paper = result["config"]["model"]["name"], tasks[name].paper
        row = {"run": name}
        for split, metric in columns:
            value = result["metrics"][split].get(metric)
            text = "–" if value is None else f"{value:.5f}"
            if value is not None and "std" in result:
                text += f" ± {result['std'][split][metric]:.5f}"
            row[f"{split} {metric}{units.get(metric, '')}"] = text
        row["paper"] = f"{paper[model]:.4f}" if model in paper else "–"
        row["best epoch"] = str(result["best_epoch"])
        rows.append(row | {"minutes": f"{result['seconds'] / 60:.1f}"})
    return rows
