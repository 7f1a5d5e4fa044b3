"""Training in several processes on this machine, and detecting those started by a cluster."""

import ctypes
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_GRACE_SECONDS = 90.0
"""Seconds that the other processes get to end by themselves after one has failed."""


def process_of_cluster() -> int | None:
    """The number of this process in a job of Slurm, Open MPI or Kubernetes, or None.

    Reads the same environment variables as ``jax.distributed.initialize``.
    """
    for size_variable, rank_variable, job_variable in (
        ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_hnp_uri"),
    ):
        if job_variable in os.environ and int(os.environ.get(size_variable, 1)) > 1:
            return int(os.environ[rank_variable])
    is_indexed_job = (
        "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    )
    if is_indexed_job and importlib.util.find_spec("kubernetes"):  # which JAX asks about the job
        return int(os.environ["JOB_COMPLETION_INDEX"])
    return None


def launch(num_processes: int, arguments: Sequence[str], options: Sequence[str] = ()) -> int:
    """Run ``egnn train`` in several processes, each on its share of the cores and GPUs.

    Ctrl-C, SIGTERM and SIGHUP are passed on to all of them.

    Args:
      num_processes: the number of processes.
      arguments: ``train`` and its arguments.
      options: options of ``egnn`` before the command.

    Returns:
      The exit code of the first process that failed, 128 plus the signal if one ended it, or 0.

    Raises:
      ValueError: the number is below 1, or the command is not ``train``.
    """
    if num_processes < 1:
        raise ValueError(f"-n is {num_processes}; expected 1 or more processes")
    if not arguments or arguments[0] != "train":
        raise ValueError(
            f"launch starts {arguments[0] if arguments else 'nothing'}; expected train CONFIG"
        )
    for argument in arguments:
        if argument.partition("=")[0] in _RESERVED_OPTIONS:
            raise ValueError(
                f"{argument} is given; launch chooses {', '.join(_RESERVED_OPTIONS)} itself"
            )
    program = [sys.executable, "-c", "from egnn_jax.cli import main; main()"]
    program += [*options, *arguments, "--coordinator", f"127.0.0.1:{free_port()}"]
    # XLA splits loops by the number of threads, which affects rounding: keep that of one process.
    environment = {"NPROC": str(number_of_cores())} | os.environ
    received: list[int] = []
    # nohup ignores one of them.
    handled_signals = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    previous_handlers = {
        n: signal.signal(n, lambda n, _: received.append(n)) for n in handled_signals
    }
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for k in range(num_processes):
            command = [*program, "--processes", str(num_processes), "--process-id", str(k)]
            # In its own session, so that Ctrl-C arrives only once.
            running[k] = subprocess.Popen(
                command,
                start_new_session=True,
                preexec_fn=lambda k=k: _prepare(k, num_processes),
                env=environment | gpus_of(k, num_processes),
            )
        return _wait(running, received)
    finally:
        for process in running.values():
            process.kill()
        for n, handler in previous_handlers.items():
            signal.signal(n, handler)


_GPUS = Path("/proc/driver/nvidia/gpus")
_RESERVED_OPTIONS = ("--coordinator", "--processes", "--process-id")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _wait(running: dict[int, subprocess.Popen[bytes]], received: list[int]) -> int:
    exit_code, deadline = 0, float("inf")
    while running:
        while received:
            signal_number = received.pop(0)
            for process in running.values():
                process.send_signal(signal_number)
        for k, process in list(running.items()):
            status = process.poll()
            if status is None:
                continue
            del running[k]
            if status and not exit_code:
                exit_code = status if status > 0 else 128 - status
                deadline = time.monotonic() + _GRACE_SECONDS
                if status < 0:
                    name = signal.Signals(-status).name
                    print(f"egnn: process {k} was ended by {name}", file=sys.stderr, flush=True)
        if time.monotonic() > deadline:
            for process in running.values():
                process.kill()
        time.sleep(0.05)
    return exit_code


def _prepare(k: int, num_processes: int) -> None:
    """Bind process ``k`` to its cores before it starts, and let it end with its parent."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[k % len(cores) :: num_processes])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def gpus_of(k: int, num_processes: int) -> dict[str, str]:
    """The variable that gives process ``k`` its share of the NVIDIA GPUs, if there is one for each.

    Without it, every process would use all GPUs.
    """
    visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible_gpus is None:
        gpus = list(map(str, range(len(list(_GPUS.glob("*"))))))
    else:
        gpus = [name for name in visible_gpus.split(",") if name.strip()]
    gpus_per_process = len(gpus) // num_processes
    if not gpus_per_process:
        return {}
    gpus = gpus[k * gpus_per_process : (k + 1) * gpus_per_process]
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def number_of_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
