"""Reproducing the tables and figures of the paper: train every row and compare with the paper.

Complete runs are read and interrupted ones resumed, so each function can be stopped and called
again.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from egnn_jax.experiments import config as configs
from egnn_jax.experiments import paper, plots
from egnn_jax.experiments._options import replace
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.run import first_seed, load, train
from egnn_jax.experiments.tables import markdown, result_rows, table3_systems, write_table
from egnn_jax.graph._validation import require_count
from egnn_jax.training.checkpoint import RunFolder

FIGURE2_SIZES = (100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_000, 50_000)
FIGURE2_QUICK = (100, 1_600, 25_000)
FIGURE2_MODELS = ("egnn", "gnn", "radial_field")
OVERFIT_PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OVERFIT_QUICK = (0.1, 0.5, 0.9)
_NOISE = {"noise": "h", "draws": 10}
TABLE2_RECIPES = (
    "egnn", "egnn_best", "gnn", "gnn_best", "l1net", "linear", "radial_field",
    "radial_field_best", "schnet", "se3_transformer", "tfn",
)  # fmt: skip
FIGURE5_RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("baseline", {}),
    "egnn": ("egnn", {}),
    "egnn_best": ("egnn_best", {}),
    "gnn": ("gnn", {}),
    "gnn_best": ("gnn_best", {}),
    "noise_gnn": ("gnn", _NOISE),
    "noise_gnn_best": ("gnn_best", _NOISE),
    "radial_field": ("radial_field", {}),
    "radial_field_best": ("radial_field_best", {}),
}
"""The recipe and options of its task, for each row of Figure 5."""
OVERFIT_RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "egnn": ("overfit_egnn", {}),
    "noise_gnn": ("overfit_gnn", _NOISE),
    "gnn": ("overfit_gnn", {}),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of all reproductions.

    Args:
      runs: the folder of the runs.
      out: the folder for tables and figures.
      seeds: train this many seeds at once (default: the recipe's).
      epochs: train this many epochs (default: the recipe's).
    """

    runs: Path = Path("runs")
    out: Path = Path("runs/report")
    seeds: int | None = None
    epochs: int | None = None

    def recipe(self, name: str, **task: Any) -> Config:
        """A recipe with these options and the given options of its task."""
        config = configs.load(name)
        changes: dict[str, Any] = {"task": replace(config.task, task)}
        for option in ("seeds", "epochs"):
            if (value := getattr(self, option)) is not None:
                changes[option] = value
        return dataclasses.replace(config, **changes)

    def train(self, config: Config, run: str, title: str) -> dict[str, Any]:
        """Train a config in a folder of ``runs``."""
        print(f"== {title}: {config.epochs:,} epochs in {self.runs / run}", file=sys.stderr)
        return train(config, self.runs / run)


def table2(options: Options, only: Sequence[str] = ()) -> None:
    """Reproduce Table 2, N-body: every row, and our best recipes.

    Args:
      options: folders, seeds and epochs.
      only: the rows, for example egnn and gnn; all if not given.
    """
    rows = []
    for name in _select_rows(TABLE2_RECIPES, only):
        result = options.train(options.recipe(f"nbody/{name}"), f"nbody/{name}", name)
        (row,) = result_rows({name: result})
        row["parameters"] = f"{result['parameters']:,}"
        row["forward, batch 100 (ms)"] = f"{forward_ms(options.runs / 'nbody' / name):.2f}"
        published = paper.TABLE2_MS.get(result["config"]["model"]["name"])
        row["the paper's forward (ms)"] = "–" if published is None else f"{published:g}"
        rows.append(row)
    rows.sort(key=lambda row: -float(row["test mse"].split()[0]))
    _write_and_print(rows, options.out / "table2")


def figure2(options: Options, quick: bool = False, steps: int | None = None) -> None:
    """Reproduce Figure 2, N-body: test error over the number of training trajectories.

    Args:
      options: folders and seeds; epochs follow from the steps.
      quick: three sizes and 3,000 steps instead of ten and 30,000.
      steps: the steps of each run.
    """
    if steps is None:
        steps = 3_000 if quick else 30_000
    require_count("steps", steps)
    sizes = FIGURE2_QUICK if quick else FIGURE2_SIZES
    errors: dict[str, list[float]] = {}
    for name in FIGURE2_MODELS:
        for size in sizes:
            config = options.recipe(f"nbody/{name}", dataset="sweep", train_size=size)
            steps_per_epoch = size // min(config.batch_size, size)
            # Evaluate about every 1 % of the steps, in whole epochs.
            eval_every = max(1, round(steps / 100 / steps_per_epoch))
            epochs = max(1, round(steps / steps_per_epoch / eval_every)) * eval_every
            config = dataclasses.replace(
                config,
                batch_size=min(config.batch_size, size),
                epochs=epochs,
                eval_every=eval_every,
            )
            run = f"nbody/figure2/{steps}-steps/{name}-{size}"
            result = options.train(config, run, f"{name}, {size:,} trajectories")
            errors.setdefault(name, []).append(result["metrics"]["test"]["mse"])
    rows = [
        {"trajectories": f"{size:,}"} | {name: f"{e[k]:.5f}" for name, e in errors.items()}
        for k, size in enumerate(sizes)
    ]
    points = {name: list(zip(sizes, e, strict=True)) for name, e in errors.items()}
    labels = ("training trajectories", "test mse", f"Figure 2, {steps:,} steps a point")
    _write_and_print(rows, options.out / "figure2-table")
    print(plots.curves(points, *labels, options.out / "figure2.png", log=True))


def figure5(options: Options, only: Sequence[str] = ()) -> None:
    """Reproduce Figure 5, graph autoencoder: every encoder on both data sets, and our best recipes.

    Args:
      options: folders, seeds and epochs.
      only: the rows, for example egnn and gnn; all if not given.
    """
    for dataset, published in paper.FIGURE5.items():
        rows = []
        for name in _select_rows(FIGURE5_RECIPES, only):
            recipe, task = FIGURE5_RECIPES[name]
            config = options.recipe(f"autoencoder/{recipe}", dataset=dataset, **task)
            run = f"autoencoder/{dataset}_{name}"
            result = options.train(config, run, f"{dataset}, {name}")
            test = result["metrics"]["test"]
            first_draw = result.get("first_draw", result["metrics"])["test"]
            row = {"encoder": name, "BCE": f"{test['bce']:.2f}"}
            row |= {"% error": f"{test['error']:.3f}", "F1": f"{test['f1']:.4f}"}
            row |= {"draws": str(config.task.draws), "one draw: BCE": f"{first_draw['bce']:.2f}"}
            row["one draw: % error"] = f"{first_draw['error']:.3f}"
            row["one draw: F1"] = f"{first_draw['f1']:.4f}"
            encoder = name.removesuffix("_best")
            values = zip(("BCE", "% error", "F1"), published[encoder], strict=True)
            row |= {f"paper: {m}": "–" if v is None else f"{v:g}" for m, v in values}
            rows.append(row | {"minutes": f"{result['seconds'] / 60:.1f}"})
        rows.sort(key=lambda row: -float(row["BCE"]))
        print(dataset)
        _write_and_print(rows, options.out / f"figure5-{dataset}")


def figure5_overfit(options: Options, quick: bool = False) -> None:
    """Reproduce Figure 5, right: F1 on the 100 training graphs over the edge probability.

    Args:
      options: folders, seeds and epochs.
      quick: three probabilities and a tenth of the epochs.
    """
    probabilities = OVERFIT_QUICK if quick else OVERFIT_PROBABILITIES
    rows = {p: {"p_e": str(p)} for p in probabilities}
    results = {}
    task = None
    for name, (recipe, changes) in OVERFIT_RECIPES.items():
        for p in probabilities:
            config = options.recipe(f"autoencoder/{recipe}", edge_probability=p, **changes)
            if quick and options.epochs is None:
                config = dataclasses.replace(config, epochs=config.epochs // 10)
            task = config.task
            run = f"autoencoder/overfit/{name}-{p}-{config.epochs}-epochs"
            results[run] = options.train(config, run, f"{name}, p_e {p}")
            rows[p][name] = f"{results[run]['metrics']['test']['f1']:.4f}"
    _write_and_print(list(rows.values()), options.out / "figure5-overfit-table")
    assert task is not None
    (plot_path,) = task.compare(results, options.out)
    print(plot_path)


TABLE3_NOTE = (
    "Below: the recipes of all systems, then a training of one, which may be stopped. Errors are "
    "mean absolute errors of single trainings on the L1 loss with changed settings, described in "
    "docs/results/qm9.md; parameters and times of a step are those of the recipes."
)


def table3(
    options: Options,
    targets: Sequence[str] = paper.TABLE3_TARGETS,
    model: str = "egnn",
    together: bool = False,
    half_periods: int | None = None,
) -> None:
    """Reproduce Table 3, QM9: the error of each property on the test molecules, with the paper's
    rows and those of other models already trained for the same epochs. First, describe the systems.

    Args:
      options: folders, seeds and epochs.
      targets: the properties.
      model: the recipe, a row of the table: see :data:`egnn_jax.experiments.paper.TABLE3`.
      together: train the targets with the same learning rate at once (vmapped), for a GPU.
      half_periods: half periods of the cosine; 3 is the authors' code (default: the recipe's, 1).
    """
    if unknown := set(targets) - set(paper.TABLE3_TARGETS):
        raise ValueError(
            f"targets has {sorted(unknown)}; expected of {', '.join(paper.TABLE3_TARGETS)}"
        )
    if model not in paper.TABLE3:
        raise ValueError(f"model is {model!r}; expected one of {', '.join(paper.TABLE3)}")
    groups: dict[Any, list[str]] = {}
    for target in targets:
        rate = paper.QM9_LEARNING_RATES[target] if model in paper.QM9_RATES_OF else None
        groups.setdefault(rate if together else target, []).append(target)
    run_configs = []
    for group in groups.values():
        config = options.recipe(f"qm9/{model}", targets=tuple(group), independent=len(group) > 1)
        changes: dict[str, Any] = {}
        if model in paper.QM9_RATES_OF:
            changes["learning_rate"] = paper.QM9_LEARNING_RATES[group[0]]
        if half_periods is not None:
            changes["half_periods"] = half_periods
        optimizer = dataclasses.replace(config.optimizer, **changes)
        run_configs.append(dataclasses.replace(config, optimizer=optimizer))
    # Described first, since training takes days.
    print(TABLE3_NOTE, file=sys.stderr)
    _write_and_print(table3_systems(), options.out / "table3-systems")
    results, paths = {}, []
    for group, config in zip(groups.values(), run_configs, strict=True):
        run = f"{'-'.join(group)}-{config.epochs}-epochs"
        if config.optimizer.half_periods > 1:
            run += f"-{config.optimizer.half_periods}-half-periods"
        folders = {
            name: f"qm9/{run}" if name == "egnn" else f"qm9/{name}_{run}"
            for name in (*paper.TABLE3, model)
        }
        for name, folder in folders.items():
            run_folder = RunFolder(options.runs / folder)
            if name != model and run_folder.result_file.is_file():
                results[folder] = run_folder.result()
        results[folders[model]] = options.train(config, folders[model], ", ".join(group))
        paths = config.task.compare(results, options.out)  # in the loop: the next may take days
    print(f"{paths[0].read_text(encoding='utf-8')}\n{', '.join(map(str, paths))}")


def forward_ms(run: Path, repeats: int = 20) -> float:
    """The median time of a forward pass of 100 samples with a run's best parameters, in ms."""
    config, network, params = load(run)
    params = first_seed(config, params)
    batch = config.task.samples("test").pack(np.arange(100))
    key = jax.random.key(0)
    forward = jax.jit(lambda params, batch: network.apply(params, config.task.graph(batch, key)))
    jax.block_until_ready(forward(params, batch))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(forward(params, batch))
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def _select_rows(names: Any, only: Sequence[str]) -> list[str]:
    if unknown := set(only) - set(names):
        raise ValueError(
            f"--only got {', '.join(sorted(unknown))}; expected some of {', '.join(names)}"
        )
    return [name for name in names if not only or name in only]


def _write_and_print(rows: list[dict[str, str]], stem: Path) -> None:
    paths = write_table(rows, stem)
    print(f"{markdown(rows)}\n{', '.join(map(str, paths))}")
