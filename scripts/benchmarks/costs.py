"""Costs of a program besides its time (operations, memory, transfers), and the machine."""

import importlib.metadata
import math
import platform
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from egnn_jax._launch import number_of_cores
from egnn_jax.experiments.run import versions


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Count the operations of all matrix products in ``function(*arguments)``.

    A product of (n, k) and (k, m) is 2 n k m operations. Unused products do not count, only the
    cheapest of several branches counts, and loops without a fixed length count once.
    """
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    return _flops(partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))[0])


def _flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _), (lhs, _) = equation.params["dimension_numbers"], equation.invars
            total += (
                2
                * math.prod(equation.outvars[0].aval.shape)
                * math.prod(lhs.aval.shape[axis] for axis in contracted)
            )
        groups = [
            value if isinstance(value, tuple) else (value,) for value in equation.params.values()
        ]
        programs = [getattr(value, "jaxpr", value) for group in groups for value in group]
        if inner_flops := [_flops(program) for program in programs if hasattr(program, "eqns")]:
            total += (
                min(inner_flops)
                if equation.primitive.name == "cond"
                else sum(inner_flops) * equation.params.get("length", 1)
            )
    return total


def compiled(text: str) -> dict[str, Any]:
    """Extract properties of a compiled program from its text.

    Args:
      text: the program, from ``compiled.as_text()``.

    Returns:
      ``host_transfers``, the kinds of operations that exchange data with the host, and
      ``donated``, the number of inputs that share memory with an output.
    """
    transfers = re.findall(r"[ )](infeed|outfeed|send|recv)(?:-done)?\(", text) + re.findall(
        r'custom_call_target="(\w*callback\w*)"', text
    )
    transfers += ["host memory"] * bool(re.search(r"\{[^{}]*S\(5\)\}", text))
    return {
        "host_transfers": sorted(set(transfers)),
        "donated": len(re.findall(r"(?:may|must)-alias", text)),
    }


def relative_cutoff(share: float) -> float:
    """The distance within which a given share of all pairs of random points in a unit cube lies.

    Args:
      share: the share, up to 0.5.
    """
    s = np.linspace(0, 1, 100_001)
    shares = 4 / 3 * math.pi * s**3 - 3 / 2 * math.pi * s**4 + 8 / 5 * s**5 - s**6 / 6
    return float(np.interp(share, shares, s))


def peak_gib() -> float:
    """Peak memory use so far in GiB, of the GPU or of this process."""
    if stats := jax.local_devices()[0].memory_stats():
        return stats["peak_bytes_in_use"] / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss starts from the parent process's value
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


def machine() -> dict[str, str]:
    """Processor, cores, device and versions, including PyTorch's if it is installed."""
    cpu = Path("/proc/cpuinfo")
    cpu_names = (
        re.findall(r"model name\s*: (.*)", cpu.read_text(encoding="utf-8"))[:1]
        if cpu.exists()
        else []
    )
    cores = number_of_cores()
    software = versions()
    gpu = "" if software["device"].startswith("cpu") else f", {jax.devices()[0].device_kind}"
    for package in ("torch", "egnn-pytorch"):
        try:
            software[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": f"{cores} cores of "
        f"{(cpu_names or [platform.processor() or platform.machine()])[0]}{gpu}"
    } | software
