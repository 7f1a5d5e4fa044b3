"""Reports of runs: loss curves, a table with the paper's values, plots of predictions."""

from collections.abc import Sequence
from pathlib import Path

from egnn_jax._files import make_folder, resolved
from egnn_jax.experiments import plots, tables
from egnn_jax.experiments.run import first_seed, load
from egnn_jax.experiments.start import require_same_files
from egnn_jax.training.checkpoint import RunFolder


def report(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write ``loss.png``, ``table.{md,png}`` and the task's plots to ``folder``.

    Returns:
      The files written.

    Raises:
      ValueError: a folder is not a run, is not complete or has no metrics, the runs have different
        tasks, or a file that one was trained on has changed.
    """
    if len(set(map(resolved, runs))) < len(runs):
        raise ValueError(f"the runs are {', '.join(map(str, runs))}; expected each once")
    names = [resolved(run).name for run in runs]
    if len(set(names)) < len(names):
        names = [str(resolved(run)).strip("/").replace("/", "-") for run in runs]
    folders = dict(zip(names, map(RunFolder, runs), strict=True))
    results = {name: run.result() for name, run in folders.items()}
    loaded = {name: load(run.path) for name, run in folders.items()}
    tasks = {type(config.task) for config, _, _ in loaded.values()}
    if len(tasks) > 1:
        task_names = sorted(task.__name__ for task in tasks)
        raise ValueError(f"the runs are of the tasks {task_names}; expected runs of one task")
    histories = {name: run.history() for name, run in folders.items()}
    if empty_runs := [run for name, run in folders.items() if not histories[name]]:
        raise ValueError(
            f"{empty_runs[0].metrics_file} is missing or empty; expected a line or more"
        )
    for run, (config, _, _) in zip(runs, loaded.values(), strict=True):
        require_same_files(config, run)
    make_folder(folder)
    metrics = {name: config.task.metric for name, (config, _, _) in loaded.items()}
    files = [plots.loss_curves(histories, metrics, folder / "loss.png")]
    files += tables.write_table(tables.upright(tables.result_rows(results)), folder / "table")
    for name, (config, network, params) in loaded.items():
        path = folder / f"{name}-predictions.png"
        plot_file = config.task.plot(network.apply, first_seed(config, params), path)
        files += [] if plot_file is None else [plot_file]
    return files + loaded[names[0]][0].task.compare(results, folder)
