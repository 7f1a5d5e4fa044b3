"""Reproduce a table or figure of the paper, e.g.: python scripts/reproduce.py table2

Runs that are already complete are read, interrupted ones resumed, so the command can be stopped and called again.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np

from egnn_jax import config as configs
from egnn_jax.config import Config, build_model
from egnn_jax.training.logging import show_progress
from egnn_jax.training.loop import Interrupted, fit, load
from egnn_jax.training.step import use_all_cores

CONFIGS = Path(__file__).parent.parent / "configs"
FIGURE2_SIZES = (100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_000, 50_000)
FIGURE2_QUICK = (100, 1_600, 25_000)


def table2(arguments: argparse.Namespace) -> None:
    """Every row of Table 2 that has a config, and our best recipe."""
    from egnn_jax.report import markdown, result_rows, write_table
    from egnn_jax.tasks import NBody

    rows = []
    for path in sorted((CONFIGS / "nbody").glob("*.yaml")):
        if path.stem == "quick" or (arguments.only and path.stem not in arguments.only):
            continue
        config = with_arguments(configs.load(path), arguments)
        run = arguments.runs / path.stem
        print(f"== {path.stem}: {config.epochs:,} epochs in {run}", file=sys.stderr)
        result = fit(config.task, build_model(config), config, run)
        (row,) = result_rows({path.stem: result}, NBody.paper)
        rows.append(row | {"parameters": f"{result['parameters']:,}", "forward, batch 100 (ms)": f"{forward_ms(run):.2f}"})
    if not rows:
        raise ValueError(f"--only {arguments.only} names no config; expected names of files in {CONFIGS / 'nbody'}")
    rows.sort(key=lambda row: -float(row["test mse"].split()[0]))
    write_table(rows, arguments.out / "table2")
    print(f"{markdown(rows)}\n{arguments.out / 'table2.md'}, {arguments.out / 'table2.png'}")


def figure2(arguments: argparse.Namespace) -> None:
    """Test error against the number of training trajectories, each point trained for the same number of steps."""
    import matplotlib.pyplot as plt

    from egnn_jax.report import markdown, save, write_table

    steps = arguments.steps or (3_000 if arguments.quick else 30_000)
    sizes = FIGURE2_QUICK if arguments.quick else FIGURE2_SIZES
    errors: dict[str, list[float]] = {}
    for name in ("egnn", "gnn", "radial_field"):
        for size in sizes:
            config = configs.load(CONFIGS / "nbody" / f"{name}.yaml")
            batch_size = min(config.batch_size, size)
            per_epoch = size // batch_size
            # An evaluation about every 1 % of the steps, in whole epochs, and as many of them as fit.
            eval_every = max(1, round(steps / 100 / per_epoch))
            epochs = max(1, round(steps / per_epoch / eval_every)) * eval_every
            config = dataclasses.replace(
                with_arguments(config, arguments),
                task=dataclasses.replace(config.task, dataset="sweep", train_size=size),  # pyright: ignore
                epochs=epochs,
                eval_every=eval_every,
            )
            print(f"== {name}, {size:,} trajectories: {epochs:,} epochs", file=sys.stderr)
            result = fit(config.task, build_model(config), config, arguments.runs / "figure2" / f"{steps}-steps" / f"{name}-{size}")
            errors.setdefault(name, []).append(result["metrics"]["test"]["mse"])
    rows = [{"trajectories": f"{s:,}"} | {name: f"{e[k]:.5f}" for name, e in errors.items()} for k, s in enumerate(sizes)]
    write_table(rows, arguments.out / "figure2-table")
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, values in errors.items():
        axes.plot(sizes, values, marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="training trajectories", ylabel="test mse", title=f"Figure 2, {steps:,} steps a point")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    print(f"{markdown(rows)}\n{save(figure, arguments.out / 'figure2.png')}")


def with_arguments(config: Config, arguments: argparse.Namespace) -> Config:
    """The config with the command line's --seeds and --epochs, where given."""
    changes = {name: value for name in ("seeds", "epochs") if (value := getattr(arguments, name, None)) is not None}
    return dataclasses.replace(config, **changes)


def forward_ms(run: Path, repeats: int = 20) -> float:
    """The median time of one forward pass of a batch of 100 through a run's best model, on one device."""
    config, model, params = load(run)
    if config.seeds > 1:
        params = jax.tree.map(lambda a: a[0], params)
    batch = jax.tree.map(lambda a: a[0], config.task.pack("test", np.arange(100)[None]))
    forward = jax.jit(lambda params, batch: model.apply(params, config.task.graph(batch)))
    jax.block_until_ready(forward(params, batch))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(forward(params, batch))
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    shared: dict[str, Any] = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    for function in (table2, figure2):
        command = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__, **shared)
        command.set_defaults(function=function)
        command.add_argument("--runs", type=Path, default=Path("runs/nbody"), help="where the runs are")
        command.add_argument("--out", type=Path, default=Path("runs/report"), help="where tables and pictures go")
        command.add_argument("--seeds", type=int, help="train so many seeds at once (default: the config's)")
        if function is table2:
            command.add_argument("--epochs", type=int, help="train so many epochs (default: the config's)")
            command.add_argument("--only", nargs="+", metavar="ROW", help="only these rows, such as egnn gnn")
        else:
            command.add_argument("--quick", action="store_true", help=f"only {FIGURE2_QUICK} trajectories, 3,000 steps a point")
            command.add_argument("--steps", type=int, help="steps a point (default: 30,000, or 3,000 with --quick)")
    arguments = parser.parse_args()
    use_all_cores()
    show_progress()
    mpl.use("Agg")
    arguments.function(arguments)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"reproduce.py: {stop}")
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"reproduce.py: error: {error}")
