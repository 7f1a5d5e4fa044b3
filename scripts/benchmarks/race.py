"""Compare the systems of Table 3 after equal training time.

    PYTHONPATH=scripts python -m benchmarks.race --minutes 30

Each system is trained by its recipe, with a warm-up of 2 % and a cosine schedule over as many steps
as fit into the time, estimated beforehand from the time of a step on the available cores. If they
are less than an epoch, the network sees that many molecules once. Interrupted runs resume, and
completed ones are read. Writes all rows so far to ``race.{md,png}`` in
``runs/race/MINUTES-minutes-TARGET``.

Only the number of steps matters, not the machine: ``--plan`` only counts them. Given the folder, a
machine with a GPU then runs the same steps in less time, with the systems side by side:

    PYTHONPATH=scripts python -m benchmarks.race --minutes 30 --plan
    PYTHONPATH=scripts python -m benchmarks.race --minutes 30 --micro-batches 1 egnn
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from benchmarks import table3

from egnn_jax._files import write_atomically
from egnn_jax.data.qm9_properties import UNITS
from egnn_jax.experiments import paper, plots
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.run import train
from egnn_jax.experiments.tables import markdown, write_table
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.distributed import use_all_cores

SMALL_BATCH = ("--batch-size", "96", "--micro-batches", "3", "--optimizer.schedule", "cosine")
ENTRANTS: dict[str, tuple[str, ...]] = {
    "egnn": (),
    "schnet": (),
    "dimenetpp": SMALL_BATCH,
    "nmp": (
        "--task.objective", "mae", "--optimizer.schedule", "cosine", "--optimizer.final", "0",
        "--optimizer.learning-rate", "1e-3",
    ),
    "cormorant": (*SMALL_BATCH, "--task.objective", "mae"),
    "se3_transformer": (
        "--model.features", "16", "--model.layers", "4", "--model.degree", "2",
        "--model.heads", "1", "--model.div", "4",
        "--task.no-augment", "--task.no-reflect",
    ),
    "tfn": ("--model.features", "16", "--model.layers", "4", "--model.degree", "2"),
    "lieconv": ("--model.features", "512", "--batch-size", "76"),
    "l1net": (
        "--model.features", "32", "--model.vectors", "10", "--model.hidden", "64",
        "--task.objective", "mae", "--optimizer.learning-rate", "1e-3",
        "--optimizer.schedule", "cosine", "--optimizer.final", "0",
    ),
}  # fmt: skip
"""Rows of Table 3, and their changes to recipes made for days on a GPU: smaller networks, larger
batches, batches that two cores share evenly, and learning rates of at least 1e-3. All minimize the
mean absolute error, and see molecules as they are, except LieConv, which needs random rotations.
"""

EVALUATION = 1.06
"""Time of an epoch including evaluation, relative to that of its steps alone."""


def plan(
    name: str, minutes: float, target: str, folder: Path, micro_batches: int | None = None
) -> tuple[Config, dict[str, Any]]:
    """Plan a run: return its config, and the measurements for it."""
    config = table3.recipe(name, ["--task.targets", target, *ENTRANTS[name]])
    config = dataclasses.replace(config, micro_batches=micro_batches or config.micro_batches)
    measurements_file = folder / f"{name}.json"
    if measurements_file.is_file():
        measurements = json.loads(measurements_file.read_text(encoding="utf-8"))
    else:
        small_task = dataclasses.replace(config.task, train_size=table3.MOLECULES)
        run, measurements = table3.step_of(dataclasses.replace(config, task=small_task), 5)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) / 5)
        measurements["seconds_a_step"] = sorted(times)[1]
        measurements["devices"] = f"{jax.device_count()} {jax.default_backend()}"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(measurements_file, json.dumps(measurements, indent=2).encode())
    full_size = config.task.train_size
    molecules = 60 * minutes / measurements["seconds_a_step"] / EVALUATION * config.batch_size
    epochs = max(1, math.ceil(molecules / full_size))
    train_size = min(full_size, int(molecules / epochs))
    measurements |= {"epochs": epochs, "train_size": train_size}
    optimizer = dataclasses.replace(config.optimizer, warmup_epochs=0.02 * epochs)
    task = dataclasses.replace(config.task, train_size=train_size)
    changes = {"task": task, "optimizer": optimizer, "epochs": epochs}
    return dataclasses.replace(config, **changes), measurements


def row(name: str, result: Mapping[str, Any], measurements: Mapping[str, Any], target: str) -> dict:
    """A row of the table."""
    published = paper.TABLE3[name][paper.TABLE3_TARGETS.index(target)]
    errors, unit = result["metrics"], UNITS[target]
    digits = ".1f" if unit == "meV" else ".3f"
    config = result["config"]
    return {
        "network": name,
        "parameters": f"{result['parameters']:,}",
        "batch": str(config["batch_size"]),
        "step (ms)": f"{1e3 * measurements['seconds_a_step']:.0f}",
        "on": measurements["devices"],
        "molecules seen": f"{measurements['epochs'] * measurements['train_size']:,}",
        f"{target}, valid ({unit})": f"{errors['valid'][target]:{digits}}",
        f"{target}, test ({unit})": f"{errors['test'][target]:{digits}}",
        f"the paper ({unit})": "–" if published is None else f"{published:g}",
    }


def main() -> None:
    """Train all systems in turn, and write the table after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("entrants", nargs="*", help=f"of {', '.join(ENTRANTS)}; default all")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training for each")
    targets = paper.TABLE3_TARGETS
    parser.add_argument("--target", default="homo", choices=targets, help="property, of Table 3")
    parser.add_argument("--plan", action="store_true", help="count the steps, and train nothing")
    parser.add_argument("--micro-batches", type=int, help="parts of a batch; default the recipe's")
    arguments = parser.parse_args()
    use_all_cores()
    folder = Path("runs/race") / f"{arguments.minutes:g}-minutes-{arguments.target}"
    unit = UNITS[arguments.target]
    if unknown := set(arguments.entrants) - set(ENTRANTS):
        parser.error(f"unknown entrants {sorted(unknown)}; expected of {', '.join(ENTRANTS)}")
    for name in arguments.entrants or ENTRANTS:
        config, measurements = plan(
            name, arguments.minutes, arguments.target, folder, arguments.micro_batches
        )
        if arguments.plan:
            print(name, json.dumps(measurements), flush=True)
            continue
        train(config, folder / name)
        rows, curves = [], {}
        for entrant in ENTRANTS:  # also those of earlier or concurrent commands
            run = RunFolder(folder / entrant)
            if not run.result_file.is_file():
                continue
            _, measurements = plan(entrant, arguments.minutes, arguments.target, folder)
            rows.append(row(entrant, run.result(), measurements, arguments.target))
            curves[entrant] = [
                (
                    arguments.minutes * entry["epoch"] / measurements["epochs"],
                    entry["valid"][arguments.target],
                )
                for entry in run.history()
            ]
        ordered = sorted(rows, key=lambda row: float(row[f"{arguments.target}, test ({unit})"]))
        paths = write_table(ordered, folder / "race")
        error = f"{arguments.target}, validation error ({unit})"
        labels = "minutes", error, f"{arguments.minutes:g} minutes"
        plots.curves(curves, *labels, folder / "race-curves.png", log=True)
        print(f"{markdown(ordered)}\n{', '.join(map(str, paths))}", flush=True)


if __name__ == "__main__":
    main()
