"""Time a QM9 training step in one process and in two.

PYTHONPATH=scripts python -m benchmarks.processes

The recipe qm9/egnn (7 layers of 128, batches of 96 molecules) is trained by ``fit`` on 9,600
molecules, including packing, logging and the exchange of gradients: by one process with one core,
by one with two cores and devices, and by two processes with one core each. Prints the median time
of a step after the first chunks in each round, and the ratios.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

from egnn_jax._launch import free_port

LAYOUTS = {"1 process, 1 core": ("0",), "1 process, 2 devices": ("0,1",), "2 processes": ("0", "1")}


def worker(batch: int, steps: int, options: list[str]) -> None:
    """Train, and print the median time of a step and of packing a batch, in ms."""
    from egnn_jax.experiments._requirements import samples
    from egnn_jax.experiments.run import initial_parameters, network_input
    from egnn_jax.training.distributed import use_all_cores
    from egnn_jax.training.processes import is_first, join

    use_all_cores()
    if options:
        join(options[0], int(options[1]), int(options[2]))
    from benchmarks import table3

    import egnn_jax as egnn

    config = table3.recipe("egnn", ["--task.train-size", "9600", "--batch-size", str(batch)])
    task, network = config.task, config.network()
    train = samples(task, "train").loader(batch)

    timestamps = []

    class Times(egnn.Callback):
        def stepped(self, progress: Any) -> None:
            timestamps.append(time.monotonic())

    chunk = 10
    egnn.fit(
        task.loss(network.apply),
        initial_parameters(config, network, network_input(config)),
        train,
        None,
        config.optimizer.build(train.num_batches(0), 1),
        epochs=-(-steps // train.num_batches(0)),
        micro_batches=config.micro_batches,
        chunk_steps=chunk,
        callbacks=[Times()],
    )
    start = time.monotonic()
    train.batches(0, 0, chunk, config.micro_batches)
    packing = (time.monotonic() - start) / chunk
    if is_first():
        step = np.median(np.diff(timestamps)[2:]) / chunk
        print(json.dumps({"step": 1e3 * step, "packing": 1e3 * packing}))


def measure(layout: str, batch: int, steps: int) -> dict[str, float]:
    """Run a layout, and return what its first process prints."""
    cores, port = LAYOUTS[layout], free_port()
    command = [sys.executable, "-m", "benchmarks.processes", "--worker", str(batch), str(steps)]
    processes = []
    for k, core_list in enumerate(cores):
        options = [f"127.0.0.1:{port}", str(len(cores)), str(k)] if len(cores) > 1 else []
        processes.append(
            subprocess.Popen(
                ["taskset", "-c", core_list, *command, *options],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ
                | {"NPROC": "2" if len(cores) > 1 else str(len(core_list.split(",")))},
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    """Measure every layout in turn, several times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="of each training")
    parser.add_argument("--batches", type=int, nargs="+", default=[96], help="molecules of a batch")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(int(arguments.worker[0]), int(arguments.worker[1]), arguments.worker[2:])
        return
    for batch in arguments.batches:
        times: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
        for _ in range(arguments.rounds):
            for layout in LAYOUTS:
                result = measure(layout, batch, arguments.steps)
                times[layout].append(result["step"])
                print(f"{batch} molecules, {layout}: {result}", flush=True)
        one_core, two_devices, two_processes = (np.array(times[layout]) for layout in LAYOUTS)
        print(
            f"{batch} molecules: two processes / two devices "
            f"{np.median(two_processes / two_devices):.2f}, one "
            f"core / two processes {np.median(one_core / two_processes):.2f}"
        )


if __name__ == "__main__":
    main()
