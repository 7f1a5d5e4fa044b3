"""Measurements: contenders in turns, each in a worker process, after they were seen to agree."""

import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from benchmarks import contenders, costs, sizes
from benchmarks.inputs import Unavailable
from benchmarks.tables import PEERS

Result = dict[str, Any]

SIZES = (1_000, 10_000, 100_000)
SMALL = 14_000
"""Trajectories that the authors' generator makes for the data set `small`; ours makes the half that
is used.
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
        machine, expected, left_out = (
            others(costs.machine),
            ours(contenders.first_output, case, "ours"),
            {},
        )
        for part in parts:
            name = f"{case}_{part}"
            for peer in (peer for peer in peers if peer not in left_out):
                print(f"== {name}: {PEERS[peer]}", file=sys.stderr)
                try:
                    if part == parts[0] and peer != "egnn_pytorch":  # whose maths is another
                        require_agreement(
                            f"{peer} in {case}",
                            expected,
                            others(contenders.first_output, case, peer, reference),
                            machine["device"],
                        )
                    others(contenders.seconds_per_step, case, part, peer, reference)
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
                        who: place(who)(contenders.seconds_per_step, case, part, who, reference)
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
