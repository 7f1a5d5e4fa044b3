"""Time training steps of Table 3's systems relative to EGNN's, alternating in one process.

    python scripts/benchmarks/table3.py dimenetpp cormorant --repeats 7 --micro-batches 6

Each is trained by its recipe, but on batches of 96 molecules, in three micro-batches. Further
arguments are those of ``egnn train`` and change all systems but EGNN. On a shared machine, rely on
the median ratio of processor time.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np
from benchmarks import costs
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from egnn_jax.experiments import config as configs
from egnn_jax.experiments.config import Config
from egnn_jax.training.distributed import AXIS, batch_layout, use_all_cores
from egnn_jax.training.state import init_state
from egnn_jax.training.step import make_step, make_train

MOLECULES = 9_600


def recipe(name: str, changes: Sequence[str] = ()) -> Config:
    """The recipe of a row of Table 3, changed by arguments of ``egnn train``."""
    return configs.override(configs.load(f"qm9/{name}"), changes, "table3", "")


def step_of(config: Config, steps: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return a warmed-up function that runs ``steps`` training steps on one batch, and its number
    of parameters, operations per step and temporary memory (GiB).
    """
    samples, network = config.task.samples("train"), config.network()
    mesh, micro_batches = batch_layout(config.batch_size, config.micro_batches)
    rows = samples.loader(config.batch_size).rows(0, mesh.size * micro_batches)[:1]
    batch = samples.pack(np.tile(rows, (steps, 1, 1)))
    graph = config.task.graph(jax.tree.map(lambda a: a[0, 0], batch))
    params = network.lazy_init(jax.random.key(0), jax.eval_shape(lambda: graph))
    optimizer = config.optimizer.build(1_000, 1_000_000)
    state = init_state(params, optimizer, False, jax.random.key(1))
    loss = config.task.loss(network.apply)
    step = make_step(loss, optimizer, 0.0, mesh, micro_batches)
    single_step = make_step(loss, optimizer)
    first_batch = jax.tree.map(lambda a: a[0, 0], batch)
    flops = costs.flops(single_step, state, first_batch) * mesh.size * micro_batches
    batch = jax.device_put(batch, NamedSharding(mesh, P(None, AXIS)))
    state = jax.device_put(state, NamedSharding(mesh, P()))
    train = make_train(step, 1, mesh).lower(state, batch).compile()
    step_costs = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "gflop": flops / 1e9,
        "temporaries_gib": train.memory_analysis().temp_size_in_bytes / 2**30,
    }

    def run() -> None:
        nonlocal state
        state, losses = train(state, batch)
        losses.block_until_ready()

    run()
    return run, step_costs


def main() -> None:
    """Print each model's cost, and the median, least and largest ratio to EGNN's step time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of a measurement")
    arguments, overrides = parser.parse_known_args()
    use_all_cores()
    runs, step_costs = {}, {}
    base_arguments = [
        "--task.train-size",
        str(MOLECULES),
        "--batch-size",
        "96",
        "--micro-batches",
        "3",
    ]
    for name in ("egnn", *arguments.models):
        changes = base_arguments + (overrides if name != "egnn" else [])
        runs[name], step_costs[name] = step_of(recipe(name, changes), arguments.steps)
    seconds: dict[str, list[list[float]]] = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            start = time.perf_counter(), time.process_time()
            run()
            end = time.perf_counter(), time.process_time()
            seconds[name].append(
                [(b - a) / arguments.steps for a, b in zip(start, end, strict=True)]
            )
    for name, times in seconds.items():
        ratios = np.array(times) / np.array(seconds["egnn"])
        print(
            f"{name}: {np.median(times, axis=0)[0]:.3f} s a step; relative to EGNN's "
            + ", ".join(
                f"{np.median(ratios[:, k]):.2f} ({ratios[:, k].min():.2f} to "
                f"{ratios[:, k].max():.2f}) in {clock} time"
                for k, clock in enumerate(("wall", "processor"))
            )
        )
        print("  " + ", ".join(f"{k} {v:,.4g}" for k, v in step_costs[name].items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process {peak:.2f} GiB; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
