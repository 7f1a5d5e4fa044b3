"""The devices of one or several processes, and how a batch is sharded over them."""

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from egnn_jax._launch import number_of_cores
from egnn_jax.data.loader import Loader, require_own

DEVICES = threading.RLock()
"""Held while a program with collective operations runs: two such programs, started by two threads,
would deadlock.
"""
AXIS = "data"
"""The mesh axis over which the samples of a batch are sharded."""


def use_all_cores() -> None:
    """Make each CPU core a JAX device, so that batches are sharded over cores.

    Call this before the first JAX computation. One thread per half of a batch scales better than
    two threads per matrix product, and 512-bit vectors, if the CPU has them, are faster than XLA's
    256-bit default. Flags already in ``$XLA_FLAGS`` are kept. No effect on accelerators.
    """
    for flag, value in (
        ("xla_cpu_multi_thread_eigen", "false"),
        ("xla_cpu_prefer_vector_width", "512"),
    ):
        flags = os.environ.get("XLA_FLAGS", "")
        if flag not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --{flag}={value}".strip()
    jax.config.update("jax_num_cpu_devices", number_of_cores())


def make_mesh(batch_size: int) -> Mesh:
    """A mesh of as many devices as divide a batch evenly, the same number in each process.

    Raises:
      ValueError: the number of processes does not divide the batch.
    """
    devices: dict[int, list[Any]] = {}  # by process
    for device in jax.devices():
        devices.setdefault(device.process_index, []).append(device)
    if batch_size % len(devices):
        raise ValueError(
            f"a batch, or a micro-batch, has {batch_size} samples; expected a multiple of the "
            f"{len(devices)} processes"
        )
    return _mesh_of(batch_size, [devices[process] for process in sorted(devices)])


def local_mesh(batch_size: int) -> Mesh:
    """A mesh of as many devices of this process as divide a batch evenly."""
    return _mesh_of(batch_size, [jax.local_devices()])


def _mesh_of(batch_size: int, process_devices: list[list[Any]]) -> Mesh:
    processes, available = len(process_devices), min(map(len, process_devices))
    per_process = max(d for d in range(1, available + 1) if batch_size % (d * processes) == 0)
    devices = [device for local in process_devices for device in local[:per_process]]
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def batch_layout(batch_size: int, micro_batches: int) -> tuple[Mesh, int]:
    """The mesh over which a batch is sharded, and the number of micro-batches on each device.

    Micro-batches save memory and time on CPUs; other devices process their share at once.
    """
    if jax.default_backend() != "cpu":
        micro_batches = 1
    return make_mesh(batch_size // micro_batches), micro_batches


def process_shards(mesh: Mesh, shards: int) -> slice:
    """The slice of a batch's shards that belongs to the devices of this process."""
    process = jax.process_index()
    indices = [k for k, device in enumerate(mesh.devices.flat) if device.process_index == process]
    per_device = shards // mesh.size
    return slice(indices[0] * per_device, (indices[-1] + 1) * per_device)


def load_shards(
    loader: Loader, mesh: Mesh, shards: int, epoch: int | None, start: int, count: int
) -> Any:
    """The shards of ``count`` batches on this process, as :meth:`Loader.batches` returns them.

    Raises:
      ValueError: the loader returns another number of batches.
    """
    if mesh.is_multi_process:
        require_own(loader, "batches")
        batches = loader.batches(epoch, start, count, shards, process_shards(mesh, shards))
    else:
        batches = loader.batches(epoch, start, count, shards)
    if unexpected := {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)} - {(count,)}:
        raise ValueError(
            f"the loader returned arrays with the leading axis {unexpected.pop()} for the batches "
            f"{start} to {start + count} of epoch {epoch}; expected ({count},)"
        )
    return batches


def put(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Put host arrays on the devices of a mesh; each process passes its part of a sharded axis."""
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), tree
    )


@contextlib.contextmanager
def freed_after_compiling() -> Iterator[None]:
    """Free what each compilation leaves over, before the compiled program needs memory itself."""

    def free_if_compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            free_heaps()

    jax.monitoring.register_event_duration_secs_listener(free_if_compiled)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(free_if_compiled)


def free_heaps() -> None:
    """Return unused memory to the system; glibc's per-thread heaps rarely do so themselves."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
