"""Pools of processes."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def workers(processes: int | None = None) -> ProcessPoolExecutor:
    """A pool of so many processes, one for each core if not given, which end with this one."""
    # New ones: those that are forked could hold locks of JAX's threads.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """End with the process that started this one, however that ends, and at Ctrl-C silently."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
