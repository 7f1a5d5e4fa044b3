"""Replace JAX's output about a lost process of a job by one sentence.

When a process is lost, JAX logs messages and a stack trace to stderr and calls ``abort``, after
which no Python code runs. So stderr goes through a small process, forked before JAX starts its
threads, which outlives the abort.
"""

import os
import re
import signal
import sys
from collections.abc import Iterable

_COORDINATION_ERROR = re.compile(r"^[EF]\d{4} .*(coordination_service|/client\.h|client\.h:\d)")
_FATAL = re.compile(r"^F\d{4} ", re.MULTILINE)
_NOISE = "[Gloo] Rank"


def explain_aborts(process_id: int | None, coordinator: str | None) -> None:
    """Send stderr through a process that explains JAX's aborts, from now on.

    Args:
      process_id: the number of this process in its job, if known.
      coordinator: HOST:PORT of process 0, if known.
    """
    if not hasattr(os, "fork"):
        return
    read, write = os.pipe()
    sys.stderr.flush()
    if os.fork():
        os.close(read)
        os.dup2(write, 2)
        os.close(write)
        return
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # meant for the job; this ends after it
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.close(write)
    for descriptor in (0, 1):  # a reader of stdout must not wait for this process
        os.close(descriptor)
    try:
        _copy(read, "" if process_id is None else f" {process_id}", coordinator or "its address")
    finally:
        os._exit(0)


def _copy(read: int, process: str, coordinator: str) -> None:
    """Copy lines to stderr, and replace JAX's messages about a lost process by a sentence.

    The lines from the first such message on are held back until the input ends.
    """
    held_lines: list[str] = []
    explained = False
    with os.fdopen(read, encoding="utf-8", errors="replace", newline="") as lines:
        for line in lines:
            if held_lines or _COORDINATION_ERROR.match(line):
                held_lines.append(line)
            elif _NOISE not in line:
                _write(line)
            explained |= line.startswith("egnn: error:")
    if not _FATAL.search("".join(held_lines)):
        _write("".join(held_lines))
        return
    _write("".join(line for line in held_lines if line.startswith("egnn:")))
    if not explained:
        _write(f"egnn: error: process{process} stops: {_explanation(held_lines, coordinator)}\n")


def _explanation(lines: Iterable[str], coordinator: str) -> str:
    text = "".join(lines)
    restart_advice = "the same command on all continues from the last checkpoint"
    if "RegisterTask" in text:
        if "ALREADY_EXISTS" in text or "Aborted connect attempt" in text:
            return "another process of the job has the same number; expected each number once"
        return (
            f"not all processes came to the coordinator, process 0 at {coordinator}, in time; "
            "expected all to be started, with the same address and number of processes"
        )
    if lost_match := re.search(
        r"(?:stopped sending heartbeats\):|tasks are unhealthy)\D*([\d, \n]+)", text
    ):
        numbers = re.findall(r"\d+", lost_match[1])
        return f"process {', '.join(numbers)} was lost (killed, or out of reach); {restart_advice}"
    if barrier_match := re.search(r"first task at the barrier: (\d+)", text):
        return f"process {barrier_match[1]} ended before the others; see its message"
    if "leader task" in text or "Failed to send RPC" in text:
        return (
            f"process 0, the coordinator at {coordinator}, was lost (killed, or out of reach); "
            f"{restart_advice}"
        )
    return f"another process was lost; {restart_advice}. JAX says:\n{text}"


def _write(text: str) -> None:
    data = text.encode(errors="replace")
    while data:
        data = data[os.write(2, data) :]
