"""What a run looks like to a person: loss curves, a table beside the paper's, and the task's own pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from egnn_jax import config as configs
from egnn_jax.data.cache import write_atomically
from egnn_jax.tasks.base import save
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.loop import load


def report(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write ``loss.png``, ``table.{md,png}`` and its task's pictures, of each run and of all together, into ``folder``.

    Returns:
      The files written.

    Raises:
      ValueError: a folder is no run, is not complete, or the runs are of different tasks.
    """
    results = {run.name: RunFolder(run).result() for run in runs}
    loaded = {run.name: load(run) for run in runs}
    tasks = {type(config.task) for config, _, _ in loaded.values()}
    if len(tasks) > 1:
        raise ValueError(f"the runs are of the tasks {sorted(t.__name__ for t in tasks)}; expected runs of one task")
    folder.mkdir(parents=True, exist_ok=True)
    written = [loss_curves({run.name: RunFolder(run).history() for run in runs}, loaded[runs[0].name][0].task.metric, folder / "loss.png")]
    written += write_table(result_rows(results), folder / "table")
    for name, (config, model, params) in loaded.items():
        if config.seeds > 1:
            params = _first_seed(params)
        written.append(config.task.draw(model.apply, params, folder / f"{name}-predictions.png"))
    return written + loaded[runs[0].name][0].task.compare(results, folder)


def result_rows(results: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """One row of text a run: its errors beside the paper's for the same model."""
    rows = []
    for name, result in results.items():
        model, paper = result["config"]["model"]["name"], configs.from_dict(result["config"]).task.paper
        row = {"run": name}
        for split, metrics in result["metrics"].items():
            for metric, value in metrics.items():
                spread = f" ± {result['std'][split][metric]:.5f}" if "std" in result else ""
                row[f"{split} {metric}"] = f"{value:.5f}{spread}"
        row |= {"paper": f"{paper[model]:.4f}" if model in paper else "–", "best epoch": str(result["best_epoch"])}
        rows.append(row | {"minutes": f"{result['seconds'] / 60:.1f}"})
    return rows


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table; the first row's keys are its head."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([row[key] for key in rows[0]] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_table(rows: Sequence[dict[str, str]], stem: Path) -> list[Path]:
    """The table as ``stem``.md and ``stem``.png."""
    text, picture = stem.with_suffix(".md"), stem.with_suffix(".png")
    write_atomically(text, markdown(rows).encode())
    figure, axes = plt.subplots(figsize=(1.6 * len(rows[0]), 0.4 * (len(rows) + 1)))
    axes.axis("off")
    table = axes.table([list(row.values()) for row in rows], colLabels=list(rows[0]), loc="center", cellLoc="center")
    table.scale(1, 1.4)
    save(figure, picture)
    return [text, picture]


def loss_curves(histories: dict[str, list[dict[str, Any]]], metric: str, path: Path) -> Path:
    """Training loss (thin) and validation metric over epochs, one colour a run."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for k, (name, history) in enumerate(histories.items()):
        epochs = [entry["epoch"] for entry in history]
        axes.plot(epochs, [np.mean(entry["train"]["loss"]) for entry in history], color=f"C{k}", lw=0.8, alpha=0.5)
        axes.plot(epochs, [np.mean(entry["valid"][metric]) for entry in history], color=f"C{k}", label=name)
    axes.set(xscale="log", yscale="log", xlabel="epoch", ylabel=f"{metric} (thin: training loss)", title="Validation error while training")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return save(figure, path)


def _first_seed(params: Any) -> Any:
    return {key: _first_seed(value) if isinstance(value, dict) else value[0] for key, value in params.items()}
