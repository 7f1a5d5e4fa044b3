"""What several test files need: short experiments, children that train, and comparisons of runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import flax.linen as nn
import jax
import numpy as np

import egnn_jax as egnn
from egnn_jax import interop
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import run as experiments
from egnn_jax.experiments.config import Config
from egnn_jax.training.checkpoint import RunFolder

ROOT = Path(__file__).parent.parent

PLAIN = {
    "task": {"name": "nbody", "train_size": 210},
    "model": {"name": "egnn", "features": 8, "layers": 2},
    "optimizer": {"learning_rate": 1e-2},
    "ema_decay": 0.9,
    "epochs": 4,
    "batch_size": 100,
    "eval_every": 1,
    "checkpoint_seconds": 0.0,
}
"""An experiment of eight steps, two an epoch, as plain values."""


def tiny(**changes) -> Config:
    """:data:`PLAIN` with changes, as a config."""
    return configs.from_dict(PLAIN | changes)


def equal_runs(one: Path, other: Path) -> None:
    """Assert that two complete runs are the same, bit for bit."""
    results = [RunFolder(p).result() for p in (one, other)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["best_epoch"] == results[1]["best_epoch"]
    histories = [[{**e, "seconds": 0} for e in RunFolder(p).history()] for p in (one, other)]
    assert histories[0] == histories[1]
    chex.assert_trees_all_equal(experiments.load(one)[2], experiments.load(other)[2])


def labelled_graphs(number: int = 24, seed: int = 0) -> list:
    """Complete graphs of 2 to 5 nodes whose target is their number of nodes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 6, number)
    return [
        egnn.complete_graph(
            x=rng.standard_normal((size, 3)), h=np.ones((size, 1)), y=np.array([float(size)])
        )
        for size in sizes
    ]


def script(name: str, *arguments, cwd: Path, ok: bool = True) -> str:
    """What a script prints: on stdout, or on stderr where it has to fail."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == ok, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout if ok else done.stderr


def egnn_command(*arguments, cwd: Path, **options) -> subprocess.Popen:
    """The command ``egnn``, started, with signals as in a terminal, whatever they are here."""
    listen = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    )
    command = [sys.executable, "-c", f"{listen}; from egnn_jax.cli import main; main()"]
    return subprocess.Popen(
        [*command, *map(str, arguments)], cwd=cwd, env=environment(), text=True, **options
    )


def environment() -> dict[str, str]:
    """Of children: this library, and a folder for matplotlib's cache."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "MPLCONFIGDIR": os.environ["EGNN_JAX_DATA"],
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def wait_for(metrics: Path, lines: int, process: subprocess.Popen) -> None:
    """Wait until ``lines`` evaluations are logged, or the process has ended."""
    while process.poll() is None and not (
        metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") >= lines
    ):
        time.sleep(0.02)


def interrupt(process: subprocess.Popen, metrics: Path, number: signal.Signals) -> str:
    """Send a signal once three evaluations are logged; return what the process wrote to stderr."""
    wait_for(metrics, 3, process)
    process.send_signal(number)
    try:
        return process.communicate(timeout=60)[1]
    finally:
        process.kill()


def first(batches):
    """The first batch of those that a loader returns, without its axis of shards."""
    return jax.tree.map(lambda a: a[0, 0], batches)


def graph_of_distinct_places():
    """A random graph without nodes at one place, which have no direction to each other."""
    graph = egnn.testing.random_graph(padding=False)
    x = graph.nodes.x + 0.1 * jax.random.normal(jax.random.key(1), graph.nodes.x.shape)
    return graph._replace(nodes=graph.nodes.replace(x=x))


def under(z, start):
    """What is under a name such as "param/" in a golden file, without it."""
    return {k.removeprefix(start): value for k, value in z.items() if k.startswith(start)}


def there_and_back(state, model):
    """The variables of the model from the authors' state dict, which they give again exactly."""
    variables = interop.from_torch_state_dict(state, model)
    chex.assert_trees_all_equal(interop.to_torch_state_dict(variables, model), dict(state))
    return variables


def arguments_of(name, model, variables, graph):
    """What the submodule of this name is called with when the model is applied to the graph."""

    def read(graph):
        seen = []

        def keep(call, args, kwargs, context):
            if context.module.name == name and context.method_name == "__call__":
                seen.extend(args)
            return call(*args, **kwargs)

        with nn.intercept_methods(keep):
            model.apply(variables, graph)
        return seen

    return jax.jit(read, compiler_options={"xla_backend_optimization_level": 0})(graph)
