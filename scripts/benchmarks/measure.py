"""Measurements: check that contenders agree, then time them in turn, in worker processes."""

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
"""Number of trajectories that the authors simulate for `small`; ours are the half that is used."""


@contextmanager
def worker(all_cores: bool = False) -> Iterator[Callable[..., Any]]:
    """Start a worker process; yields ``call(f, *arguments)``, which runs a function in it."""
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
    """Time our network and its peers on a case.

    Args:
      case: a key of :data:`benchmarks.inputs.SETTINGS`, or "data".
      parts: what to time: "forward" and "train_step", or "small" for "data".
      repeats: number of measurements of each contender.
      reference: a checkout of the authors' repository, or None.

    Yields:
      The name and the result of each part, as soon as it is measured.

    Raises:
      ValueError: the results of a peer differ from ours.
    """
    peers = ["numpy_loop"]
    if case != "data":
        peers = [peer for peer in PEERS if peer not in ("numpy_loop", "reference")]
        peers += ["reference"] if reference else []
    with worker(all_cores=True) as our_worker, worker() as peer_worker:
        machine = peer_worker(costs.machine)
        our_output, left_out = our_worker(contenders.first_output, case, "ours"), {}
        for part in parts:
            name = f"{case}_{part}"
            for peer in (peer for peer in peers if peer not in left_out):
                print(f"== {name}: {PEERS[peer]}", file=sys.stderr)
                try:
                    # egnn-pytorch computes something else.
                    if part == parts[0] and peer != "egnn_pytorch":
                        peer_output = peer_worker(contenders.first_output, case, peer, reference)
                        require_agreement(
                            f"{peer} in {case}", our_output, peer_output, machine["device"]
                        )
                    peer_worker(contenders.seconds_per_step, case, part, peer, reference)
                except Unavailable as reason:
                    left_out[peer] = str(reason)
            workers = {"ours": our_worker}
            if case != "data":
                workers["matmul"] = our_worker
            workers |= {peer: peer_worker for peer in peers if peer not in left_out}
            seconds = []
            for k in range(repeats):
                print(f"== {name}: repeat {k + 1} of {repeats}", file=sys.stderr)
                seconds.append(
                    {
                        contender: call(
                            contenders.seconds_per_step, case, part, contender, reference
                        )
                        for contender, call in workers.items()
                    }
                )
            result = summary(seconds)
            if case == "data":  # from a part of the trajectories
                result["small_ours_s"] = result["ours_ms"] * SMALL / 2e3
                result["small_numpy_loop_s"] = result["numpy_loop_ms"] * SMALL / 1e3
            else:
                result |= our_worker(contenders.program_costs, case, part)
                result["floor_ms"] = 1e-6 * result["flops"] / result["matmul_gflops"]
            yield name, result | {"left_out": left_out} | machine


def require_agreement(
    name: str, ours: tuple[np.ndarray, float], theirs: tuple[np.ndarray, float], device: str
) -> None:
    """Raise ValueError if outputs or losses of the same batch differ by more than rounding.

    Otherwise, the times would be those of different computations.

    Args:
      name: name of the comparison, for the message.
      ours, theirs: output and loss of each.
      device: device of both.
    """
    # GPUs round the factors of their products to 10 bits.
    tolerance = 1e-3 if device.startswith("cpu") else 1e-2
    (output, loss), (their_output, their_loss) = ours, theirs
    if output.shape != their_output.shape:
        raise ValueError(
            f"the output of {name} has shape {their_output.shape}; expected {output.shape}, as ours"
        )
    difference = np.abs(output - their_output).max() / np.abs(output).max()
    if not (difference <= tolerance and math.isclose(loss, their_loss, rel_tol=tolerance)):
        raise ValueError(
            f"the output of {name} differs from ours by {difference:.1e} of its largest entry, and "
            f"the loss is {their_loss:.6g}; expected {loss:.6g}, both to {tolerance:g}"
        )


def summary(seconds: Sequence[dict[str, float]]) -> Result:
    """Median times, and the median, smallest and largest ratio of each peer's time to ours.

    Args:
      seconds: seconds per step of each contender, by repeat.
    """
    result: Result = {"repeats": len(seconds)}
    for name in seconds[0]:
        times = np.array([repeat[name] for repeat in seconds])
        if name == "matmul":  # a step is 1e9 operations
            result["matmul_gflops"] = float(1 / np.median(times))
            continue
        result[f"{name}_ms"] = float(1e3 * np.median(times))
        if name != "ours":
            ratios = times / np.array([repeat["ours"] for repeat in seconds])
            result[f"ratio_vs_{name}"] = float(np.median(ratios))
            result[f"ratio_vs_{name}_min"] = float(ratios.min())
            result[f"ratio_vs_{name}_max"] = float(ratios.max())
    return result


def size(repeats: int) -> Result:
    """Measure time and memory of forward pass and gradient versus graph size.

    See :func:`benchmarks.sizes.measure`; each graph is measured in a fresh process.
    """
    result: Result = {"nodes": list(SIZES), "repeats": repeats}
    for part in ("forward", "gradient"):
        for nodes in SIZES:
            print(f"== size: {part} of {nodes:,} nodes", file=sys.stderr)
            with worker() as call:
                measurements = call(sizes.measure, nodes, part, repeats)
                machine = call(costs.machine)
            for name, value in measurements.items():
                result.setdefault(f"{part}_{name}", []).append(value)
        result[f"{part}_exponents"] = exponents(SIZES, result[f"{part}_s"])
    return result | {"peak_gib": result["gradient_peak_gib"][-1]} | machine


def exponents(nodes: Sequence[float], times: Sequence[float]) -> list[float]:
    """Scaling exponents p of time ~ nodes^p, between each size and the next."""
    return (np.diff(np.log(times)) / np.diff(np.log(nodes))).tolist()
