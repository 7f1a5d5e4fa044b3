"""Reproduce a table or figure of the paper, e.g.: python scripts/reproduce.py table2

Runs that are already complete are read, interrupted ones resumed, so the command can be stopped and
called again.
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

from egnn_jax.experiments import config as configs
from egnn_jax.experiments.config import Config, build_model
from egnn_jax.experiments.task import markdown, save, write_table
from egnn_jax.training.fit import first_seed, fit, load
from egnn_jax.training.logging import show_progress
from egnn_jax.training.step import use_all_cores

CONFIGS = Path(__file__).parents[2] / "configs"
FIGURE2_SIZES = (100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_000, 50_000)
FIGURE2_QUICK = (100, 1_600, 25_000)
TABLE2_MS = {
    "linear": 0.1,
    "se3_transformer": 134.6,
    "tfn": 34.3,
    "gnn": 3.2,
    "radial_field": 3.9,
    "egnn": 6.2,
}
"""The paper's times of a forward pass of a batch of 100, by the registry's name of the model."""
OVERFIT_PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OVERFIT_QUICK = (0.1, 0.5, 0.9)


def table2(arguments: argparse.Namespace) -> None:
    """Every row of Table 2 that has a config, and our best recipe; the paper's times are those of a
    GTX 1080 Ti.
    """
    from egnn_jax.experiments.report import result_rows

    rows = []
    for path in sorted((CONFIGS / "nbody").glob("*.yaml")):
        if path.stem == "quick" or (arguments.only and path.stem not in arguments.only):
            continue
        config = with_arguments(configs.load(path), arguments)
        run = arguments.runs / path.stem
        print(f"== {path.stem}: {config.epochs:,} epochs in {run}", file=sys.stderr)
        result = fit(config.task, build_model(config), config, run)
        (row,) = result_rows({path.stem: result})
        paper = TABLE2_MS.get(result["config"]["model"]["name"])
        row |= {
            "parameters": f"{result['parameters']:,}",
            "forward, batch 100 (ms)": f"{forward_ms(run):.2f}",
        }
        rows.append(row | {"the paper's forward (ms)": "–" if paper is None else f"{paper:g}"})
    if not rows:
        raise ValueError(
            f"--only {arguments.only} names no config; expected names of files in "
            f"{CONFIGS / 'nbody'}"
        )
    rows.sort(key=lambda row: -float(row["test mse"].split()[0]))
    write_table(rows, arguments.out / "table2")
    print(f"{markdown(rows)}\n{arguments.out / 'table2.md'}, {arguments.out / 'table2.png'}")


def figure2(arguments: argparse.Namespace) -> None:
    """Test error against the number of training trajectories, each point trained for the same
    number of steps.
    """
    import matplotlib.pyplot as plt

    steps = arguments.steps or (3_000 if arguments.quick else 30_000)
    sizes = FIGURE2_QUICK if arguments.quick else FIGURE2_SIZES
    errors: dict[str, list[float]] = {}
    for name in ("egnn", "gnn", "radial_field"):
        for size in sizes:
            config = configs.load(CONFIGS / "nbody" / f"{name}.yaml")
            batch_size = min(config.batch_size, size)
            per_epoch = size // batch_size
            # An evaluation about every 1 % of the steps, in whole epochs, and as many of them as
            # fit.
            eval_every = max(1, round(steps / 100 / per_epoch))
            epochs = max(1, round(steps / per_epoch / eval_every)) * eval_every
            config = dataclasses.replace(
                with_arguments(config, arguments),
                task=dataclasses.replace(config.task, dataset="sweep", train_size=size),  # pyright: ignore
                epochs=epochs,
                eval_every=eval_every,
            )
            print(f"== {name}, {size:,} trajectories: {epochs:,} epochs", file=sys.stderr)
            result = fit(
                config.task,
                build_model(config),
                config,
                arguments.runs / "figure2" / f"{steps}-steps" / f"{name}-{size}",
            )
            errors.setdefault(name, []).append(result["metrics"]["test"]["mse"])
    rows = [
        {"trajectories": f"{s:,}"} | {name: f"{e[k]:.5f}" for name, e in errors.items()}
        for k, s in enumerate(sizes)
    ]
    write_table(rows, arguments.out / "figure2-table")
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, values in errors.items():
        axes.plot(sizes, values, marker="o", label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="training trajectories",
        ylabel="test mse",
        title=f"Figure 2, {steps:,} steps a point",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    print(f"{markdown(rows)}\n{save(figure, arguments.out / 'figure2.png')}")


def figure5(arguments: argparse.Namespace) -> None:
    """The tables of Figure 5: every encoder on both sets of random graphs, and our best recipes."""
    from egnn_jax.experiments.autoencoder import FIGURE5

    for dataset, paper in FIGURE5.items():
        rows = []
        for path in sorted((CONFIGS / "autoencoder").glob(f"{dataset}_*.yaml")):
            encoder = path.stem.removeprefix(f"{dataset}_")
            if arguments.only and encoder not in arguments.only:
                continue
            config = with_arguments(configs.load(path), arguments)
            run = arguments.runs / path.stem
            print(f"== {path.stem}: {config.epochs:,} epochs in {run}", file=sys.stderr)
            result = fit(config.task, build_model(config), config, run)
            test, first = (
                result["metrics"]["test"],
                result.get("first_draw", result["metrics"])["test"],
            )
            row = {
                "encoder": encoder,
                "BCE": f"{test['bce']:.2f}",
                "% error": f"{test['error']:.3f}",
                "F1": f"{test['f1']:.4f}",
            }
            row |= {"draws": str(config.task.draws), "one draw: BCE": f"{first['bce']:.2f}"}
            row |= {
                "one draw: % error": f"{first['error']:.3f}",
                "one draw: F1": f"{first['f1']:.4f}",
            }
            bce, error, f1 = paper.get(
                encoder.removesuffix("_best").removesuffix("_fast"), (None, None, None)
            )
            row |= {
                f"paper: {name}": "–" if value is None else f"{value:g}"
                for name, value in (("BCE", bce), ("% error", error), ("F1", f1))
            }
            rows.append(row | {"minutes": f"{result['seconds'] / 60:.1f}"})
        if not rows:
            raise ValueError(
                f"--only {arguments.only} names no config; expected encoders such as "
                f"{sorted(paper)}"
            )
        rows.sort(key=lambda row: -float(row["BCE"]))
        write_table(rows, arguments.out / f"figure5-{dataset}")
        print(
            f"{dataset}\n\n{markdown(rows)}\n{arguments.out / f'figure5-{dataset}.md'}, "
            f"{arguments.out / f'figure5-{dataset}.png'}"
        )


def figure5_overfit(arguments: argparse.Namespace) -> None:
    """F1 on 100 graphs that were trained on, over the probability of an edge, for embeddings of 16
    dimensions.
    """
    probabilities = OVERFIT_QUICK if arguments.quick else OVERFIT_PROBABILITIES
    rows = {p: {"p_e": str(p)} for p in probabilities}
    results = {}
    for name in ("egnn", "noise_gnn", "gnn"):
        for p in probabilities:
            config = with_arguments(
                configs.load(CONFIGS / "autoencoder" / f"overfit_{name}.yaml"), arguments
            )
            if arguments.quick and arguments.epochs is None:
                config = dataclasses.replace(config, epochs=config.epochs // 10)
            config = dataclasses.replace(
                config, task=dataclasses.replace(config.task, edge_probability=p)
            )  # pyright: ignore
            run = f"{name}-{p}-{config.epochs}-epochs"
            print(f"== {name}, p_e {p}: {config.epochs:,} epochs", file=sys.stderr)
            results[run] = fit(
                config.task, build_model(config), config, arguments.runs / "overfit" / run
            )
            rows[p][name] = f"{results[run]['metrics']['test']['f1']:.4f}"
    write_table(list(rows.values()), arguments.out / "figure5-overfit-table")
    (picture,) = config.task.compare(results, arguments.out)
    print(f"{markdown(list(rows.values()))}\n{picture}")


def table3(arguments: argparse.Namespace) -> None:
    """Table 3: the error of each property of QM9 on the test molecules, in the paper's units,
    beside every row of the paper.
    """
    prefix = "" if arguments.model == "egnn" else f"{arguments.model}_"
    files = {target: CONFIGS / "qm9" / f"{prefix}{target}.yaml" for target in arguments.targets}
    configured = {
        target: with_arguments(configs.load(file), arguments) for target, file in files.items()
    }
    groups: dict[Any, list[str]] = {}
    for target, config in configured.items():
        groups.setdefault(config.optimizer if arguments.together else target, []).append(target)
    results = {}
    for targets in groups.values():
        config = configured[targets[0]]
        config = dataclasses.replace(
            config,
            task=dataclasses.replace(
                config.task, targets=tuple(targets), independent=len(targets) > 1
            ),
        )
        schedule = (
            ""
            if config.optimizer.half_periods == 1
            else f"-{config.optimizer.half_periods}-half-periods"
        )
        run = arguments.runs / f"{prefix}{'-'.join(targets)}-{config.epochs}-epochs{schedule}"
        print(f"== {', '.join(targets)}: {config.epochs:,} epochs in {run}", file=sys.stderr)
        results[run.name] = fit(config.task, build_model(config), config, run)
        table, picture = config.task.compare(
            results, arguments.out
        )  # already now: the next may take days
    print(f"{table.read_text()}\n{table}, {picture}")


def with_arguments(config: Config, arguments: argparse.Namespace) -> Config:
    """The config with the command line's --seeds, --epochs and --half-periods, where given."""
    changes = {
        name: value
        for name in ("seeds", "epochs")
        if (value := getattr(arguments, name, None)) is not None
    }
    if (half_periods := getattr(arguments, "half_periods", None)) is not None:
        changes["optimizer"] = dataclasses.replace(config.optimizer, half_periods=half_periods)
    return dataclasses.replace(config, **changes)


def forward_ms(run: Path, repeats: int = 20) -> float:
    """The median time of one forward pass of a batch of 100 through a run's best model, on one
    device.
    """
    config, model, params = load(run)
    params = first_seed(config, params)
    batch = config.task.pack("test", np.arange(100))
    forward = jax.jit(
        lambda params, batch: model.apply(params, config.task.graph(batch, jax.random.key(0)))
    )
    jax.block_until_ready(forward(params, batch))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(forward(params, batch))
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def main() -> None:
    """The command line of scripts/reproduce.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    shared: dict[str, Any] = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    folders = {
        table2: "nbody",
        figure2: "nbody",
        figure5: "autoencoder",
        figure5_overfit: "autoencoder",
        table3: "qm9",
    }
    for function, folder in folders.items():
        name = function.__name__.replace("_", "-")
        command = commands.add_parser(
            name, help=function.__doc__, description=function.__doc__, **shared
        )
        command.set_defaults(function=function)
        command.add_argument(
            "--runs", type=Path, default=Path("runs") / folder, help="where the runs are"
        )
        command.add_argument(
            "--out", type=Path, default=Path("runs/report"), help="where tables and pictures go"
        )
        command.add_argument(
            "--seeds", type=int, help="train so many seeds at once (default: the config's)"
        )
        if function is not figure2:
            command.add_argument(
                "--epochs", type=int, help="train so many epochs (default: the config's)"
            )
        if function in (table2, figure5):
            command.add_argument(
                "--only", nargs="+", metavar="ROW", help="only these rows, such as egnn gnn"
            )
        if function is figure5_overfit:
            command.add_argument(
                "--quick",
                action="store_true",
                help=f"only p_e {OVERFIT_QUICK}, a tenth of the epochs",
            )
        if function is figure2:
            command.add_argument(
                "--quick",
                action="store_true",
                help=f"only {FIGURE2_QUICK} trajectories, 3,000 steps a point",
            )
            command.add_argument(
                "--steps", type=int, help="steps a point (default: 30,000, or 3,000 with --quick)"
            )
        if function is table3:
            targets = sorted(
                path.stem for path in (CONFIGS / "qm9").glob("*.yaml") if "_" not in path.stem
            )
            command.add_argument(
                "--half-periods",
                type=int,
                help="of the cosine; 3 is the authors' code (default: the config's, 1)",
            )
            command.add_argument(
                "--model", choices=("egnn", "schnet"), default="egnn", help="which network"
            )
            command.add_argument(
                "--targets",
                nargs="+",
                choices=targets,
                default=targets,
                metavar="TARGET",
                help=f"of {', '.join(targets)}",
            )
            command.add_argument(
                "--together",
                action="store_true",
                help="train the targets of one learning rate at once (vmapped), for a GPU",
            )
    arguments = parser.parse_args()
    use_all_cores()
    show_progress()
    mpl.use("Agg")
    arguments.function(arguments)
