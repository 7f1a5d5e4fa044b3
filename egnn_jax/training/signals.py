"""Stopping training by a signal, between two compiled calls and with the state saved."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}
REASONS = (None, *_SIGNALS.values())
"""The values that the function of :func:`stop_requested` can return."""


class Interrupted(Exception):
    """Training was stopped by Ctrl-C, SIGTERM or SIGHUP.

    Attributes:
      exit_code: the exit code for the program: 130, 143 or 129.
    """

    def __init__(self, message: str, reason: str = "Ctrl-C") -> None:
        super().__init__(message)
        self.exit_code = {"SIGTERM": 143, "SIGHUP": 129}.get(reason, 130)


def print_to_stderr(text: str) -> None:
    """Print a line to stderr, or nothing if its reader is gone.

    The terminal may have been closed, or Ctrl-C may also have ended a program such as ``tee``.
    """
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # what stays in its buffer would fail again at exit
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    except RuntimeError:  # the signal came while a line was written
        return


@contextmanager
def stop_requested() -> Iterator[Callable[[], str | None]]:
    """Yield a function that returns the signal received, or None; a second signal ends at once.

    Only the main thread receives signals; in other threads the function always returns None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received: list[str] = []
    previous_handlers: dict[Any, Any] = {}

    def handle(signum: int, _: Any) -> None:
        received.append(_SIGNALS[signal.Signals(signum).name])
        signal.signal(signum, previous_handlers[signum])
        print_to_stderr(
            f"\n{received[-1]}: saving after the steps under way; once more stops at once"
        )

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        # Signals that a shell's background job or nohup ignores stay ignored.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            previous_handlers[number] = signal.signal(number, handle)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
