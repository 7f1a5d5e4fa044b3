"""Time our networks and their peers on the same inputs, and print the speedups.

python scripts/benchmark.py --cases nbody qm9 --reference ~/egnn

Every repeat measures each contender once, over many steps, so that changes in the machine's speed
affect all of them. Ratios of times are computed within a repeat, and reported as the median with
the smallest and the largest. Ours run in one process, as in training, the peers in another, with
their libraries' defaults; only one computes at a time. Before timing, outputs and losses must
agree. The floor is the time of our matrix products alone, at the speed of large products in the
same repeats. "data" simulates N-body trajectories; "size" uses one large graph.

Results go to runs/benchmark.{json,md,png}, which keep those of other cases.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
import time
from pathlib import Path

from benchmarks import costs, measure, tables
from benchmarks.measure import Result

from egnn_jax._files import write_atomically
from egnn_jax.data.qm9 import TARGETS
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import reproduce
from egnn_jax.experiments.run import train
from egnn_jax.training.distributed import use_all_cores

CASES: dict[str, list[str]] = {
    "nbody": ["nbody"],
    "autoencoder": ["autoencoder_1", "autoencoder_32"],
    "qm9": ["qm9"],
    "data": ["data"],
    "size": ["size"],
}
"""Measured parts of each case on the command line."""


def measure_cases(arguments: argparse.Namespace, again: bool = True) -> dict[str, str]:
    """Measure the cases, write each result as soon as it is available, and show all.

    Args:
      arguments: parsed command-line arguments.
      again: also repeat what was measured on this machine before.

    Returns:
      The machine, as :func:`benchmarks.costs.machine` describes it.
    """
    with measure.worker() as call:
        machine_info = call(costs.machine)
    previous = {} if again else read(arguments.out)
    done = {
        name
        for name, result in previous.items()
        if result.get("machine") == machine_info["machine"]
    }
    for case in (case for group in arguments.cases for case in CASES[group]):
        if case == "size":
            results = [] if case in done else [(case, measure.size(min(arguments.repeats, 3)))]
        else:
            parts = ["small"] if case == "data" else ["forward", "train_step"]
            parts = [part for part in parts if f"{case}_{part}" not in done]
            results = []
            if parts:
                results = measure.compare(case, parts, arguments.repeats, arguments.reference)
        for name, result in results:
            write(arguments.out, name, result)
    show(arguments, machine_info["machine"])
    return machine_info


def show(arguments: argparse.Namespace, machine: str) -> None:
    """Write this machine's results as a table and a plot, and print the table."""
    results = read(arguments.out)
    table = tables.text(results, machine)
    write_atomically(arguments.out.with_suffix(".md"), table.encode())
    picture = tables.draw(results, machine, arguments.out.with_suffix(".png"))
    print(f"{machine}\n\n{table}\n{arguments.out}, {picture}")


def read(out: Path) -> dict[str, Result]:
    """Read the results so far, by name.

    Raises:
      ValueError: the file exists but holds no results.
    """
    try:
        results = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{out} is no JSON file ({error}); expected results of this program"
        ) from error
    if not isinstance(results, dict) or not all(
        isinstance(result, dict) for result in results.values()
    ):
        raise ValueError(f"{out} holds something else; expected results of this program")
    return results


def write(out: Path, name: str, result: Result) -> None:
    """Add a result with today's date, and keep those of other names."""
    results = read(out) | {name: result | {"date": time.strftime("%Y-%m-%d")}}
    write_atomically(out, json.dumps(results, indent=2).encode())


def campaign(arguments: argparse.Namespace) -> None:
    """Measure on a GPU that is available for minutes only: cases, N-body with four seeds, QM9.

    Stops after ``arguments.seconds``, or at Ctrl-C; the same command continues from there.
    """
    # A shell's background jobs ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, arguments.seconds)
    machine_info = measure_cases(arguments, again=False)
    use_all_cores()
    config = dataclasses.replace(configs.load("nbody/egnn"), seeds=4)
    result = train(config, Path("runs/nbody/egnn-4-seeds"))
    summary = {name: result[name] for name in ("metrics", "std", "best_epoch", "seconds")}
    write(arguments.out, "nbody_4_seeds", summary | machine_info)
    show(arguments, machine_info["machine"])
    options = reproduce.Options(out=arguments.out.parent, epochs=arguments.qm9_epochs)
    reproduce.table3(options, arguments.targets, together=True)


def main() -> None:
    """Run the command line of scripts/benchmark.py.

    Raises:
      ValueError: an argument is invalid, PyTorch is missing, or a peer disagrees with ours.
    """
    arguments = parser().parse_args()
    require_valid(arguments)
    os.environ.setdefault("MPLBACKEND", "Agg")
    (campaign if arguments.gpu_campaign else measure_cases)(arguments)


def parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = ", ".join(CASES)
    add("--cases", nargs="+", default=list(CASES), metavar="CASE", help=f"of {names} (all)")
    add(
        "--repeats",
        type=int,
        default=5,
        help="times to measure each (5; size: at most 3)",
    )
    add("--reference", metavar="PATH", help="a checkout of the authors' repository, timed too")
    out = Path("runs/benchmark.json")
    add("--out", type=Path, default=out, help=f"the file of the results ({out})")
    add("--gpu-campaign", action="store_true", help="the cases, N-body with four seeds, and QM9")
    add("--seconds", type=float, default=540, help="stop the campaign after so long (540)")
    add("--targets", nargs="+", default=list(TARGETS), choices=TARGETS, metavar="TARGET",
        help=f"of QM9 in the campaign: {', '.join(TARGETS)} (all)")  # fmt: skip
    add("--qm9-epochs", type=int, default=200, help="of QM9 in the campaign (200)")
    return parser


def require_valid(arguments: argparse.Namespace) -> None:
    """Raise ValueError if an argument is invalid or needs a package that is missing."""
    if unknown := set(arguments.cases) - set(CASES):
        raise ValueError(f"--cases has {sorted(unknown)}; expected some of {', '.join(CASES)}")
    if arguments.repeats < 1 or not arguments.seconds > 0:
        raise ValueError(
            f"--repeats is {arguments.repeats} and --seconds {arguments.seconds}; expected at "
            "least 1 and more than 0"
        )
    if arguments.reference and not Path(arguments.reference).is_dir():
        raise ValueError(
            f"--reference is {arguments.reference}; expected the folder of a checkout of the "
            "authors' repository"
        )
    packages = ("torch", "egnn_pytorch")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing and set(arguments.cases) - {"data", "size"}:
        raise ValueError(
            f"{' and '.join(missing)} not found; expected what pip install -e '.[bench]' brings"
        )
