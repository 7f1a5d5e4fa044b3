"""Ablation of the choices in a recipe for few epochs, on QM9.

    PYTHONPATH=scripts python -m benchmarks.recipe_choices

A network for all twelve properties (the recipe ``qm9/painn`` with 64 features) is trained on 10,000
molecules for 10 epochs, and again with one choice changed, given as printed options. Others are
trained for one property, or for a family, with the readout and loss of the task ``qm9``.
Interrupted trainings resume, and completed ones are read. Prints errors on the validation molecules
and writes ``choices.{md,png}`` to ``runs/recipe_choices``.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from benchmarks import table3

from egnn_jax.experiments.config import Config
from egnn_jax.experiments.qm9 import QM9, Target
from egnn_jax.experiments.run import train
from egnn_jax.experiments.tables import markdown, write_table
from egnn_jax.training.distributed import use_all_cores

SHOWN: tuple[Target, ...] = ("homo", "U0", "mu", "r2")
BASE = (
    "--task.train-size", "10000", "--model.features", "64", "--epochs", "10", "--eval-every", "10",
    "--ema-decay", "0.99",
)  # fmt: skip
CHOICES: dict[str, str] = {
    "as it is": "",
    "no averaged weights": "--ema-decay 0",
    "no weight decay": "--optimizer.weight-decay 0",
    "no warm-up": "--optimizer.warmup-epochs 0",
    "constant learning rate": "--optimizer.schedule constant",
    "no clipping": "--optimizer.clip-norm None",
    "half the learning rate": "--optimizer.learning-rate 5e-4",
    "twice the learning rate": "--optimizer.learning-rate 2e-3",
    "batches of 50": "--batch-size 50 --micro-batches 5",
    "batches of 200": "--batch-size 200 --micro-batches 10",
    "narrow and deep": "--model.features 48 --model.layers 5",
    "wide and shallow": "--model.features 96 --model.layers 2",
    "cutoff of 4 Å": "--task.cutoff 4 --model.cutoff 4",
    "cutoff of 7 Å": "--task.cutoff 7 --model.cutoff 7",
    "8 Bessel functions": "--model.num-rbf 8",
    "32 Bessel functions": "--model.num-rbf 32",
}
"""Changed choices, and the ``egnn train`` options that change them."""

TOGETHER: tuple[tuple[Target, ...], ...] = (
    ("homo",), ("homo", "lumo", "gap"), ("U0",), ("U0", "U", "H", "G"), ("mu",),
)  # fmt: skip
"""Properties for which a network of the task ``qm9`` is trained."""


def trainings() -> Iterator[tuple[str, str, Config]]:
    """Iterate over the trainings: the change in words and in options, and the config."""
    for change, options in CHOICES.items():
        yield change, options, table3.recipe("painn", [*BASE, *options.split()])
    config = table3.recipe("painn", BASE)
    size, cutoff = config.task.train_size, config.task.cutoff
    for targets in TOGETHER:
        task = QM9(targets=targets, features="numbers", train_size=size, cutoff=cutoff)
        change = f"{', '.join(targets)} alone"
        yield change, "the task qm9", dataclasses.replace(config, task=task)


def main() -> None:
    """Train all networks in turn, and write the table after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    use_all_cores()
    folder, rows = Path("runs/recipe_choices"), []
    for change, options, config in trainings():
        result = train(config, folder / change.replace(", ", "-").replace(" ", "-"))
        errors = result["metrics"]["valid"]
        row = {"change": change, "options": options, "parameters": f"{result['parameters']:,}"}
        row |= {name: f"{errors[name]:.3g}" if name in errors else "" for name in SHOWN}
        rows.append(row | {"minutes": f"{result['seconds'] / 60:.1f}"})
        write_table(rows, folder / "choices")
    print(markdown(rows))


if __name__ == "__main__":
    main()
