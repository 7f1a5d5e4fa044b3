"""Training in several processes: joining a job, and exchanging plain values."""

import contextlib
import ctypes
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from egnn_jax.training._records import changes

HEARTBEAT = 30
"""Seconds without a heartbeat after which a process counts as lost and all others end."""

SHUTDOWN = 10
"""Seconds that a process that has ended or failed waits for all others to end."""


def join(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Join a job of several processes; arguments default to those of Slurm, Open MPI or Kubernetes.

    Call this before the first JAX computation.

    Args:
      coordinator: HOST:PORT at which process 0 listens.
      processes: the number of processes.
      process_id: the number of this process, from 0.

    Raises:
      ValueError: process 0 cannot listen there, or the cluster does not provide a missing argument.
    """
    if coordinator is not None:
        _require_address(coordinator, listens=process_id == 0)
    # Its SIGTERM handler would replace the one that saves the state.
    with contextlib.suppress(AttributeError):
        jax.config.update("jax_enable_preemption_service", False)
    try:
        with _stdout_to_stderr():  # Gloo reports the connections of CPUs on stdout
            jax.distributed.initialize(
                coordinator,
                processes,
                process_id,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=SHUTDOWN,
            )
            largest(0)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"process {process_id or 0} cannot join at {coordinator or 'the address found'} "
            f"({error}); expected HOST:PORT with a free port of the machine of process 0"
        ) from error


def _require_address(address: str, listens: bool) -> None:
    """Raise ValueError unless this is HOST:PORT, where this process can listen if ``listens``."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"the coordinator is {address!r}; expected HOST:PORT, from 1 to 65535")
    if not listens:
        return
    try:  # JAX itself would crash
        socket.create_server(("", int(port))).close()
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen at {address} ({error}); expected a free port of its machine"
        ) from error


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    sys.stdout.flush()
    stdout_copy = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(stdout_copy, 1)
        os.close(stdout_copy)


def is_first() -> bool:
    """Whether this is process 0, the only one that prints and writes."""
    return jax.process_index() == 0


def from_first(compute: Callable[[], Any]) -> Any:
    """Call a function in process 0 and return its plain value in all processes.

    Raises:
      ValueError: in all other processes, if the function raises an exception in process 0.
    """
    if jax.process_count() == 1:
        return compute()
    text = ""
    if is_first():
        try:
            text = json.dumps({"value": compute()})
        except Exception as error:
            _gather_texts(json.dumps({"error": str(error) or repr(error)}))
            raise
    reply = json.loads(_gather_texts(text)[0])
    if "error" in reply:
        raise ValueError(f"process 0: {reply['error']}")
    return reply["value"]


def require_same(values: Mapping[str, Any]) -> None:
    """Raise ValueError in all processes if plain values differ between any two of them."""
    if jax.process_count() == 1:
        return
    by_process = [json.loads(text) for text in _gather_texts(json.dumps(values))]
    for k in range(1, len(by_process)):
        differences = [
            f"{name} is {value!r} there and {first!r} in process 0"
            for name, (first, value) in changes(by_process[0], by_process[k])
        ]
        if differences:
            raise ValueError(
                f"process {k} of {len(by_process)} would train something else: "
                f"{'; '.join(differences)[:2_000]}; expected the same in all processes"
            )


def largest(*values: int) -> tuple[int, ...]:
    """The largest value of each number over all processes."""
    if jax.process_count() == 1:
        return values
    gathered = np.asarray(multihost_utils.process_allgather(np.array(values, np.int32)))
    return tuple(gathered.max(axis=0).tolist())


@contextlib.contextmanager
def exchanging() -> Iterator[None]:
    """Raise ConnectionError if a computation fails because another process has ended."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        text = str(error)
        if jax.process_count() == 1 or not re.match(r"[A-Z_]+: .*\b(Gloo|NCCL)\b", text):
            raise
        time.sleep(HEARTBEAT + SHUTDOWN)  # meanwhile JAX may end this process, naming the lost one
        raise ConnectionError(
            f"process {jax.process_index()} of {jax.process_count()} stops, since another one was "
            f"lost or has failed ({text.splitlines()[0][:300]}); the same command on all continues"
        ) from error


def _gather_texts(text: str) -> list[str]:
    """The texts of all processes."""
    content = np.frombuffer(text.encode(), np.uint8)
    (length,) = largest(len(content))
    padded = np.zeros(-(-length // 4_096) * 4_096, np.uint8)  # few lengths, so few compilations
    padded[: len(content)] = content
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row).rstrip(b"\0").decode() for row in gathered]
