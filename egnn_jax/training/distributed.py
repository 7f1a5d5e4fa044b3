"""The devices of this process, and how a batch is spread over them."""

import ctypes
import os
import sys
import threading

import jax
from jax.sharding import AxisType, Mesh

DEVICES = threading.RLock()
"""Held while a program runs whose devices exchange values, since two of them started by two threads
would wait for each other for ever.
"""
AXIS = "data"
"""The mesh axis that the samples of a batch are spread over."""


def use_all_cores() -> None:
    """Make each CPU core a device, so that batches are spread over cores.

    To be called before the first JAX computation. One thread per half of a batch scales better
    than two threads per matrix product, and vectors of 512 bits, where a CPU has them, better than
    XLA's 256. Flags that are in ``$XLA_FLAGS`` already stay. No effect on accelerators.
    """
    for flag, value in (
        ("xla_cpu_multi_thread_eigen", "false"),
        ("xla_cpu_prefer_vector_width", "512"),
    ):
        given = os.environ.get("XLA_FLAGS", "")
        if flag not in given:
            os.environ["XLA_FLAGS"] = f"{given} --{flag}={value}".strip()
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    jax.config.update("jax_num_cpu_devices", cores)


def make_mesh(batch_size: int) -> Mesh:
    """As many local devices as divide a batch evenly."""
    local = jax.local_devices()
    number = max(d for d in range(1, len(local) + 1) if batch_size % d == 0)
    return jax.make_mesh((number,), (AXIS,), axis_types=(AxisType.Auto,), devices=local[:number])


def batch_layout(batch_size: int, micro_batches: int) -> tuple[Mesh, int]:
    """The devices that a batch is spread over, and the number of micro-batches on each.

    Micro-batches save memory, and on CPUs time; other devices take their share at once.
    """
    parts = micro_batches if jax.default_backend() == "cpu" else 1
    return make_mesh(batch_size // parts), parts


def free_heaps() -> None:
    """Return unused memory to the system, which glibc's per-thread heaps rarely do themselves."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
