"""What a run looks like to a person: loss curves, a table beside the paper's, and the task's own
pictures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from egnn_jax.experiments import config as configs
from egnn_jax.experiments.task import save, write_table
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.fit import first_seed, load


def report(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write ``loss.png``, ``table.{md,png}`` and its task's pictures, of each run and of all
    together, into ``folder``.

    Returns:
      The files written.

    Raises:
      ValueError: a folder is no run, is not complete, or the runs are of different tasks.
    """
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.resolve()).strip("/").replace("/", "-") for run in runs]
    named = dict(zip(names, runs, strict=True))
    results = {name: RunFolder(run).result() for name, run in named.items()}
    loaded = {name: load(run) for name, run in named.items()}
    tasks = {type(config.task) for config, _, _ in loaded.values()}
    if len(tasks) > 1:
        raise ValueError(
            f"the runs are of the tasks {sorted(t.__name__ for t in tasks)}; expected runs of "
            f"one task"
        )
    folder.mkdir(parents=True, exist_ok=True)
    histories = {name: RunFolder(run).history() for name, run in named.items()}
    written = [
        loss_curves(
            histories,
            {name: config.task.metric for name, (config, *_) in loaded.items()},
            folder / "loss.png",
        )
    ]
    written += write_table(result_rows(results), folder / "table")
    for name, (config, model, params) in loaded.items():
        written.append(
            config.task.draw(
                model.apply, first_seed(config, params), folder / f"{name}-predictions.png"
            )
        )
    return written + loaded[names[0]][0].task.compare(results, folder)


def result_rows(results: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """One row of text a run: its errors beside the paper's for the same model; "–" for those that
    only other runs have.
    """
    tasks = {name: configs.from_dict(result["config"]).task for name, result in results.items()}
    units = {metric: f" ({unit})" for task in tasks.values() for metric, unit in task.units.items()}
    metrics = list(
        dict.fromkeys(
            (split, m)
            for result in results.values()
            for split, told in result["metrics"].items()
            for m in told
        )
    )
    rows = []
    for name, result in results.items():
        model, paper = result["config"]["model"]["name"], tasks[name].paper
        row = {"run": name}
        for split, metric in metrics:
            value = result["metrics"][split].get(metric)
            spread = (
                f" ± {result['std'][split][metric]:.5f}"
                if value is not None and "std" in result
                else ""
            )
            row[f"{split} {metric}{units.get(metric, '')}"] = (
                "–" if value is None else f"{value:.5f}{spread}"
            )
        row |= {
            "paper": f"{paper[model]:.4f}" if model in paper else "–",
            "best epoch": str(result["best_epoch"]),
        }
        rows.append(row | {"minutes": f"{result['seconds'] / 60:.1f}"})
    return rows


def loss_curves(
    histories: dict[str, list[dict[str, Any]]], metrics: dict[str, str], path: Path
) -> Path:
    """Training loss (thin) and validation metric over epochs, one colour a run."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for k, (name, history) in enumerate(histories.items()):
        epochs = [entry["epoch"] for entry in history]
        axes.plot(
            epochs,
            [np.mean(entry["train"]["loss"]) for entry in history],
            color=f"C{k}",
            lw=0.8,
            alpha=0.5,
        )
        axes.plot(
            epochs,
            [np.mean(entry["valid"][metrics[name]]) for entry in history],
            color=f"C{k}",
            label=name,
        )
    shown = ", ".join(dict.fromkeys(metrics.values()))
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="epoch",
        ylabel=f"{shown} (thin: training loss)",
        title="Validation error while training",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return save(figure, path)
