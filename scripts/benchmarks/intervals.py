"""Compare two ways to find prediction intervals on QM9: validation errors, and an ensemble.

    PYTHONPATH=scripts python -m benchmarks.intervals

Four networks of the size of :mod:`benchmarks.recipe_choices`, different seeds of one training,
predict all twelve properties. Prints, for each way, the share of test molecules whose true value
lies inside its 90 % interval, and the mean half-width. Writes ``intervals.{md,png}`` to
``runs/intervals``.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from benchmarks import table3
from benchmarks.recipe_choices import BASE, SHOWN

import egnn_jax as egnn
from egnn_jax.experiments.molecules import COVERAGE, SIZES, conformal
from egnn_jax.experiments.run import train
from egnn_jax.experiments.tables import markdown, write_table
from egnn_jax.training.distributed import use_all_cores

SEEDS = 4


def by_size(errors: np.ndarray, n_atoms: dict[str, np.ndarray]) -> np.ndarray:
    """Quantiles of errors on validation (S, T), for the sizes of the test molecules (S', T)."""
    widths = np.zeros((len(n_atoms["test"]), errors.shape[1]))
    for least, most in SIZES:
        of = {split: (n >= least) & (n <= most) for split, n in n_atoms.items()}
        widths[of["test"]] = conformal(errors[of["valid"]])
    return widths


def main() -> None:
    """Train the networks, compare their intervals and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    use_all_cores()
    folder = Path("runs/intervals")
    run = folder / "networks"
    train(table3.recipe("painn", [*BASE, "--seeds", str(SEEDS)]), run)
    networks = [egnn.load_pretrained(run, seed=seed) for seed in range(SEEDS)]
    task: Any = networks[0].config.task
    n_atoms, error, errors, spread = {}, {}, {}, {}
    for split in ("valid", "test"):
        rows = task.molecules.splits[split]
        each = np.stack([task.predictions(n.network.apply, n.params, split) for n in networks])
        n_atoms[split] = task.molecules.n_atoms[rows]
        error[split] = np.abs(each[0] - task.labels[rows])
        errors[split] = np.abs(each.mean(axis=0) - task.labels[rows])
        spread[split] = each.std(axis=0, ddof=1)
    # What holds if the true value and the predictions were drawn from one normal distribution.
    factor = scipy.stats.t.ppf((1 + COVERAGE) / 2, SEEDS - 1) * (1 + 1 / SEEDS) ** 0.5
    scaled = by_size(errors["valid"] / spread["valid"], n_atoms)
    ways = {
        "one network, validation errors by size": (error, by_size(error["valid"], n_atoms)),
        "ensemble, validation errors by size": (errors, by_size(errors["valid"], n_atoms)),
        f"ensemble, {factor:.2f} times the spread": (errors, factor * spread["test"]),
        "ensemble, spread scaled by validation errors by size": (errors, scaled * spread["test"]),
    }
    table = []
    for words, (found, widths) in ways.items():
        row = {"interval": words}
        for name in SHOWN:
            k = task.targets.index(name)
            inside = np.mean(found["test"][:, k] <= widths[:, k])
            unit = task.units[name]
            row[f"{name} ({unit})"] = f"{inside:.1%}, ± {widths[:, k].mean():.3g}"
        table.append(row)
    write_table(table, folder / "intervals")
    print(markdown(table))


if __name__ == "__main__":
    main()
