"""What a run looks like to a person: loss curves, a table beside the paper's, and the task's own pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from egnn_jax import config as configs
from egnn_jax.tasks.base import save, write_table
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.loop import first_seed, load


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
        written.append(config.task.draw(model.apply, first_seed(config, params), folder / f"{name}-predictions.png"))
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
