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
        given = os.environ.get("XLA_FLAGS", "")
        if flag not in given:
            os.environ["XLA_FLAGS"] = f"{given} --{flag}={value}".strip()
    jax.config.update("jax_num_cpu_devices", number_of_cores())


def make_mesh(batch_size: int) -> Mesh:
    """A mesh of as many devices as divide a batch evenly, the same number in each process.

    Raises:
      ValueError: the number of processes does not divide the batch.
    """
    by_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    if batch_size % len(by_process):
        raise ValueError(
            f"a batch, or a micro-batch, has {batch_size} samples; expected a multiple of the "
            f"{len(by_process)} processes"
        )
    return _mesh_of(batch_size, [by_process[k] for k in sorted(by_process)])


def local_mesh(batch_size: int) -> Mesh:
    """A mesh of as many devices of this process as divide a batch evenly."""
    return _mesh_of(batch_size, [jax.local_devices()])


def _mesh_of(batch_size: int, by_process: list[list[Any]]) -> Mesh:
    number, most = len(by_process), min(map(len, by_process))
    each = max(d for d in range(1, most + 1) if batch_size % (d * number) == 0)
    devices = [device for local in by_process for device in local[:each]]
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def batch_layout(batch_size: int, micro_batches: int) -> tuple[Mesh, int]:
    """The mesh over which a batch is sharded, and the number of micro-batches on each device.

    Micro-batches save memory and time on CPUs; other devices process their share at once.
    """
    parts = micro_batches if jax.default_backend() == "cpu" else 1
    return make_mesh(batch_size // parts), parts


def own_shards(mesh: Mesh, shards: int) -> slice:
    """The slice of a batch's shards that belongs to the devices of this process."""
    places = [k for k, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    each = shards // mesh.size
    return slice(places[0] * each, (places[-1] + 1) * each)


def own_batches(
    loader: Loader, mesh: Mesh, shards: int, epoch: int | None, start: int, count: int
) -> Any:
    """The shards of ``count`` batches on this process, as :meth:`Loader.batches` returns them.

    Raises:
      ValueError: the loader returns another number of batches.
    """
    if mesh.is_multi_process:
        require_own(loader, "batches")
        found = loader.batches(epoch, start, count, shards, own_shards(mesh, shards))
    else:
        found = loader.batches(epoch, start, count, shards)
    if wrong := {np.shape(leaf)[:1] for leaf in jax.tree.leaves(found)} - {(count,)}:
        raise ValueError(
            f"the loader returned arrays with the leading axis {wrong.pop()} for the batches "
            f"{start} to {start + count} of epoch {epoch}; expected ({count},)"
        )
    return found


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

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            free_heaps()

    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)


def free_heaps() -> None:
    """Return unused memory to the system; glibc's per-thread heaps rarely do so themselves."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
