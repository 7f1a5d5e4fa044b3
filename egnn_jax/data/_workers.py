"""Pools of worker processes."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from egnn_jax._launch import number_of_cores


class NoProcessError(BrokenProcessPool):
    """Raised if new processes end before they do anything."""


def workers(processes: int | None = None) -> ProcessPoolExecutor:
    """A pool of processes (default: one per core) that end when this process ends.

    Raises:
      NoProcessError: they end at once.
    """
    # Spawned, since forked processes could inherit locks held by JAX's threads.
    context = multiprocessing.get_context("spawn")
    processes = processes or number_of_cores()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)
    try:
        for future in [pool.submit(int) for _ in range(processes)]:
            future.result()
    except BrokenProcessPool as error:
        raise NoProcessError(
            "new processes end at once: each first runs the script again, whose calls are expected "
            'under if __name__ == "__main__", or memory does not suffice'
        ) from error
    return pool


def _end_with_parent() -> None:
    """Make this process end with its parent, and silently at Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
