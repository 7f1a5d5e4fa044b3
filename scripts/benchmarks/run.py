"""Time ours and its peers in turns, on the same inputs, and print how many times faster ours is:
make benchmark

python scripts/benchmark.py --cases nbody qm9 --reference ~/egnn

Every repeat gives each contender one turn of many steps, so that the machine's moods meet all
alike; a ratio is formed in each repeat, and told as the median with the smallest and the largest.
Ours runs in one process, as in training, the peers in another with their libraries' defaults; only
one computes at a time. Before anything is timed, outputs and losses have to agree.

Results go to runs/benchmark.{json,md,png}, where those of other cases stay, and into the section
"Benchmark" of docs/results.md.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import contenders, costs, report, sizes
from benchmarks.contenders import Unavailable
from benchmarks.report import PEERS

from egnn_jax.data.cache import write_atomically
from egnn_jax.data.qm9 import TARGETS
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.config import build_model
from egnn_jax.training.fit import fit
from egnn_jax.training.logging import show_progress
from egnn_jax.training.step import use_all_cores

Result = dict[str, Any]

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"
CASES = {
    "nbody": ["nbody"],
    "autoencoder": ["autoencoder_1", "autoencoder_32"],
    "qm9": ["qm9"],
    "data": ["data"],
    "size": ["size"],
}
SIZES = (1_000, 10_000, 100_000)
SMALL = 14_000
"""Trajectories that the authors' generator makes for the data set `small`, of which ours makes the
half that is used.
"""


@contextmanager
def worker(all_cores: bool = False) -> Iterator[Callable[..., Any]]:
    """A process of its own that calls one function after the other."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        1, mp_context=spawn, initializer=contenders.start, initargs=(all_cores,)
    )
    try:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown()


def compare(
    case: str, parts: Sequence[str], repeats: int, reference: str | None
) -> Iterator[tuple[str, Result]]:
    """The results of the parts ("forward", "train_step") of a case, as they come."""
    peers = (
        ["numpy_loop"]
        if case == "data"
        else [peer for peer in PEERS if peer != "numpy_loop" and (peer != "reference" or reference)]
    )
    with worker(all_cores=True) as ours, worker() as others:
        machine, expected, left_out = others(costs.machine), ours(contenders.told, case, "ours"), {}
        for part in parts:
            name = f"{case}_{part}"
            for peer in (peer for peer in peers if peer not in left_out):
                print(f"== {name}: {PEERS[peer]}", file=sys.stderr)
                try:
                    if part == parts[0] and peer != "egnn_pytorch":  # whose maths is another
                        require_agreement(
                            f"{peer} in {case}",
                            expected,
                            others(contenders.told, case, peer, reference),
                            machine["device"],
                        )
                    others(contenders.turn, case, part, peer, reference)
                except Unavailable as reason:
                    left_out[peer] = str(reason)
            taking_part = [
                "ours",
                *([] if case == "data" else ["matmul"]),
                *(peer for peer in peers if peer not in left_out),
            ]
            rounds = []
            for k in range(repeats):
                print(f"== {name}: repeat {k + 1} of {repeats}", file=sys.stderr)
                place = lambda contender: ours if contender in ("ours", "matmul") else others
                rounds.append(
                    {
                        who: place(who)(contenders.turn, case, part, who, reference)
                        for who in taking_part
                    }
                )
            result = summary(rounds)
            if case == "data":  # what is measured is a part of the trajectories
                result |= {
                    "small_ours_s": result["ours_ms"] * SMALL / 2e3,
                    "small_numpy_loop_s": result["numpy_loop_ms"] * SMALL / 1e3,
                }
            else:
                result |= ours(contenders.facts, case, part)
                result["floor_ms"] = 1e-6 * result["flops"] / result["matmul_gflops"]
            yield name, result | {"left_out": left_out} | machine


def require_agreement(
    what: str, ours: tuple[np.ndarray, float], theirs: tuple[np.ndarray, float], device: str
) -> None:
    """Raises ValueError where outputs or losses differ by more than rounding: the times would be
    those of different maths.
    """
    tolerance = (
        1e-3 if device.startswith("cpu") else 1e-2
    )  # a GPU rounds the factors of its products to 10 bits
    (output, loss), (their_output, their_loss) = ours, theirs
    if output.shape != their_output.shape:
        raise ValueError(
            f"the output of {what} has shape {their_output.shape}; expected {output.shape}, as ours"
        )
    apart = np.abs(output - their_output).max() / np.abs(output).max()
    if not (apart <= tolerance and math.isclose(loss, their_loss, rel_tol=tolerance)):
        raise ValueError(
            f"{what} is {apart:.1e} of the output from ours, with loss {their_loss:.6g}; "
            f"expected {loss:.6g}, to {tolerance:g}"
        )


def summary(rounds: Sequence[dict[str, float]]) -> Result:
    """From seconds a step in each repeat: medians in ms, and each peer's time over ours, its
    median, min and max.
    """
    result: Result = {"repeats": len(rounds)}
    for name in rounds[0]:
        times = np.array([turns[name] for turns in rounds])
        if name == "matmul":  # whose step is 1e9 operations
            result["matmul_gflops"] = float(1 / np.median(times))
            continue
        result[f"{name}_ms"] = float(1e3 * np.median(times))
        if name != "ours":
            ratios = times / np.array([turns["ours"] for turns in rounds])
            result |= {f"ratio_vs_{name}": float(np.median(ratios))}
            result |= {
                f"ratio_vs_{name}_min": float(ratios.min()),
                f"ratio_vs_{name}_max": float(ratios.max()),
            }
    return result


def size(repeats: int) -> Result:
    """EGNN 4 x 64, about 50 neighbours a node: time and memory of forward pass and gradient, each
    graph in a process of its own.
    """
    result: Result = {"nodes": list(SIZES), "repeats": repeats}
    for part in ("forward", "gradient"):
        for nodes in SIZES:
            print(f"== size: {part} of {nodes:,} nodes", file=sys.stderr)
            with worker() as alone:
                found, machine = alone(sizes.measure, nodes, part, repeats), alone(costs.machine)
            for name, value in found.items():
                result.setdefault(f"{part}_{name}", []).append(value)
        result[f"{part}_exponents"] = exponents(SIZES, result[f"{part}_s"])
    return result | {"peak_gib": result["gradient_peak_gib"][-1]} | machine


def exponents(nodes: Sequence[float], times: Sequence[float]) -> list[float]:
    """p of time ~ size^p, between each size and the next."""
    return (np.diff(np.log(times)) / np.diff(np.log(nodes))).tolist()


def measure(arguments: argparse.Namespace, again: bool = True) -> dict[str, str]:
    """Measure the cases and write each result as soon as it is there, then tell all; not ``again``
    those measured on this machine.

    Returns:
      What :func:`bench.costs.machine` says of the machine.
    """
    with worker() as alone:
        here = alone(costs.machine)
    done = {
        name
        for name, result in read(arguments.out).items()
        if result.get("machine") == here["machine"] and not again
    }
    for case in (case for group in arguments.cases for case in CASES[group]):
        if case == "size":
            made = [] if case in done else [(case, size(min(arguments.repeats, 3)))]
        else:
            parts = [
                part
                for part in (["small"] if case == "data" else ["forward", "train_step"])
                if f"{case}_{part}" not in done
            ]
            made = compare(case, parts, arguments.repeats, arguments.reference) if parts else []
        for name, result in made:
            write(arguments.out, name, result)
    tell(arguments, here["machine"])
    return here


def tell(arguments: argparse.Namespace, here: str) -> None:
    """Write what was measured on this machine as table and picture, and print it."""
    results = read(arguments.out)
    table = report.text(results, here)
    write_atomically(arguments.out.with_suffix(".md"), table.encode())
    picture = report.draw(results, here, arguments.out.with_suffix(".png"))
    print(f"{here}\n\n{table}\n{arguments.out}, {picture}")
    if arguments.record:
        write_atomically(DOCUMENT, report.recorded(DOCUMENT.read_text(), here, table).encode())


def read(out: Path) -> dict[str, Result]:
    """The results so far, by name.

    Raises:
      ValueError: the file is there but holds no results.
    """
    try:
        results = json.loads(out.read_text()) if out.exists() else {}
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
    results = read(out) | {name: result | {"date": time.strftime("%Y-%m-%d")}}
    write_atomically(out, json.dumps(results, indent=2).encode())


def campaign(arguments: argparse.Namespace) -> None:
    """What is to be measured on a GPU, in order; stopped by the timer or by Ctrl-C, the same
    command goes on from there.
    """
    from egnn_jax.experiments import reproduce

    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which a shell's background jobs ignore
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, arguments.seconds)
    here = measure(arguments, again=False)
    use_all_cores()
    config = dataclasses.replace(configs.load(contenders.CONFIGS / "nbody" / "egnn.yaml"), seeds=4)
    found = fit(config.task, build_model(config), config, Path("runs/nbody/egnn-4-seeds"))
    write(
        arguments.out,
        "nbody_4_seeds",
        {name: found[name] for name in ("metrics", "std", "best_epoch", "seconds")} | here,
    )
    tell(arguments, here["machine"])
    table3 = {
        "model": "egnn",
        "targets": arguments.targets,
        "together": True,
        "epochs": arguments.qm9_epochs,
    }
    reproduce.table3(argparse.Namespace(**table3, runs=Path("runs/qm9"), out=arguments.out.parent))


def main() -> None:
    """The command line of scripts/benchmark.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=list(CASES),
        metavar="CASE",
        help=f"some of {', '.join(CASES)} (default: all)",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="turns of each contender (default: 5)"
    )
    parser.add_argument(
        "--reference", metavar="PATH", help="a checkout of the authors' repository, to be timed too"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/benchmark.json"),
        help="results (default: runs/benchmark.json)",
    )
    parser.add_argument(
        "--no-record", dest="record", action="store_false", help="leave docs/results.md as it is"
    )
    parser.add_argument(
        "--gpu-campaign",
        action="store_true",
        help="the cases, then N-body with four seeds, then QM9; resumed if stopped",
    )
    parser.add_argument(
        "--seconds", type=float, default=540, help="stop the campaign after so long (default: 540)"
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        default=list(TARGETS),
        choices=TARGETS,
        help="of QM9 in the campaign (default: all)",
    )
    parser.add_argument(
        "--qm9-epochs", type=int, default=200, help="of the campaign (default: 200)"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        raise ValueError(f"--cases has {sorted(unknown)}; expected some of {', '.join(CASES)}")
    if arguments.repeats < 1 or not arguments.seconds > 0:
        raise ValueError(
            f"--repeats is {arguments.repeats} and --seconds {arguments.seconds}; expected at "
            f"least 1 and more than 0"
        )
    if arguments.reference and not Path(arguments.reference).is_dir():
        raise ValueError(
            f"--reference is {arguments.reference}; expected the folder of a checkout of the "
            f"authors' repository"
        )
    missing = [
        package
        for package in ("torch", "egnn_pytorch")
        if importlib.util.find_spec(package) is None
    ]
    if missing and set(arguments.cases) - {"data", "size"}:
        raise ValueError(
            f"{' and '.join(missing)} not found; expected what pip install -e '.[bench]' brings"
        )
    os.environ.setdefault("MPLBACKEND", "Agg")
    show_progress()
    (campaign if arguments.gpu_campaign else measure)(arguments)
