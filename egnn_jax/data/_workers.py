"""What each process of a pool does first."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """End with the process that started this one, however that ends, and at Ctrl-C silently."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
