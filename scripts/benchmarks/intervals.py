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
    for smallest, largest in SIZES:
        masks = {split: (n >= smallest) & (n <= largest) for split, n in n_atoms.items()}
        widths[masks["test"]] = conformal(errors[masks["valid"]])
    return widths


def main() -> None:
    """Train the networks, compare their intervals and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    use_all_cores()
    folder = Path("runs/intervals")
    run_folder = folder / "networks"
    train(table3.recipe("painn", [*BASE, "--seeds", str(SEEDS)]), run_folder)
    networks = [egnn.load_pretrained(run_folder, seed=seed) for seed in range(SEEDS)]
    task: Any = networks[0].config.task
    n_atoms, single_errors, ensemble_errors, ensemble_std = {}, {}, {}, {}
    for split in ("valid", "test"):
        rows = task.molecules.splits[split]
        predictions = np.stack(
            [task.predictions(n.network.apply, n.params, split) for n in networks]
        )
        n_atoms[split] = task.molecules.n_atoms[rows]
        single_errors[split] = np.abs(predictions[0] - task.labels[rows])
        ensemble_errors[split] = np.abs(predictions.mean(axis=0) - task.labels[rows])
        ensemble_std[split] = predictions.std(axis=0, ddof=1)
    # What holds if the true value and the predictions were drawn from one normal distribution.
    factor = scipy.stats.t.ppf((1 + COVERAGE) / 2, SEEDS - 1) * (1 + 1 / SEEDS) ** 0.5
    std_quantiles = by_size(ensemble_errors["valid"] / ensemble_std["valid"], n_atoms)
    methods = {
        "one network, validation errors by size": (
            single_errors,
            by_size(single_errors["valid"], n_atoms),
        ),
        "ensemble, validation errors by size": (
            ensemble_errors,
            by_size(ensemble_errors["valid"], n_atoms),
        ),
        f"ensemble, {factor:.2f} times the spread": (
            ensemble_errors,
            factor * ensemble_std["test"],
        ),
        "ensemble, spread scaled by validation errors by size": (
            ensemble_errors,
            std_quantiles * ensemble_std["test"],
        ),
    }
    table = []
    for description, (errors, widths) in methods.items():
        row = {"interval": description}
        for name in SHOWN:
            k = task.targets.index(name)
            coverage = np.mean(errors["test"][:, k] <= widths[:, k])
            unit = task.units[name]
            row[f"{name} ({unit})"] = f"{coverage:.1%}, ± {widths[:, k].mean():.3g}"
        table.append(row)
    write_table(table, folder / "intervals")
    print(markdown(table))


if __name__ == "__main__":
    main()
