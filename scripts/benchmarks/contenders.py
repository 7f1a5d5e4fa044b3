"""What benchmark.py times: ours, and peers on the same samples and parameters.

A worker process calls :func:`turn` for one contender after the other. What a contender needs is
made, compiled and run once at its first turn, before the clock starts.
"""

import dataclasses
import functools
import operator
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarks import costs, textbook
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from egnn_jax.data import nbody
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.autoencoder import GraphAutoencoder
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.qm9 import QM9
from egnn_jax.experiments.task import Apply, Task
from egnn_jax.training.state import init_state, optimiser
from egnn_jax.training.step import AXIS, layout, make_step, make_train, use_all_cores

CONFIGS = Path(__file__).parents[2] / "configs"


class Setting(NamedTuple):
    """A config, the batch size, how many batches a turn has, and how often ours scans over them in
    one call.
    """

    config: str
    batch_size: int
    batches: int
    scans: int


SETTINGS = {
    "nbody": Setting("nbody/egnn.yaml", 100, 30, 5),
    "autoencoder_1": Setting("autoencoder/community_egnn.yaml", 1, 100, 2),
    "autoencoder_32": Setting("autoencoder/community_egnn.yaml", 32, 20, 5),
    "qm9": Setting("qm9/homo.yaml", 96, 4, 3),
}
"""Ours is timed over about as many steps as a chunk of training has."""

MOLECULES = 9_600
"""Of QM9, to pack batches from."""
TRAJECTORIES = 8
"""Of the literal loop in a turn."""


class Unavailable(Exception):
    """A contender cannot do the case here; the message says why."""


def start(all_cores: bool) -> None:
    """Make a worker: ours spreads over all cores as in training; the peers get their libraries'
    defaults.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two workers share a GPU
    if all_cores:
        use_all_cores()


class Inputs:
    """What all contenders of a case are given: the task, its samples, our model and its
    parameters.
    """

    def __init__(self, case: str) -> None:
        self.setting = SETTINGS[case]
        self.config = dataclasses.replace(
            configs.load(CONFIGS / self.setting.config), batch_size=self.setting.batch_size
        )
        task: Any = self.config.task
        self.task: Task = (
            dataclasses.replace(task, train_size=MOLECULES) if isinstance(task, QM9) else task
        )
        self.model = configs.build_model(self.config)
        self.per_epoch = self.task.size("train") // self.setting.batch_size
        self.transform = optimiser(
            self.config.optimizer, self.per_epoch, self.config.epochs * self.per_epoch
        )
        self.key = jax.random.PRNGKey(0)
        graph = self.task.graph(self.task.pack("train", self.rows(1)[0, 0]), self.key)
        self.state = jax.device_get(
            init_state(self.model, graph, self.transform, average=False, seed=0)
        )

    def rows(self, groups: int) -> np.ndarray:
        """The samples of each batch (K, groups, B/groups): the first batches of an epoch, the same
        for any number of groups.
        """
        generator = np.random.default_rng(0)
        rows = generator.permutation(self.task.size("train"))[
            : self.per_epoch * self.setting.batch_size
        ]
        return self.task.deal("train", rows, self.per_epoch, groups, generator)[
            : self.setting.batches
        ]

    def batches(self) -> Any:
        """Batches (K, …) as one device takes them."""
        return jax.tree.map(lambda a: a[:, 0], self.task.pack("train", self.rows(1)))

    def first(self) -> Any:
        return jax.tree.map(lambda a: a[0], self.batches())

    def noise(self) -> np.ndarray:
        """The coordinates that ours starts from in the first batch."""
        return np.asarray(self.task.graph(self.first(), self.key).nodes.x)


@functools.cache
def inputs_of(case: str) -> Inputs:
    return Inputs(case)


def output(task: Task, apply: Apply, params: Any, batch: Any, key: jax.Array) -> jax.Array:
    """What is compared: positions (N, 3), standardised labels (G,), or probabilities of edges (E,
    1).
    """
    out = apply(params, task.graph(batch, key))
    match task:
        case NBody():
            return out.nodes.x
        case QM9():
            return out.globals[:-1, 0]
        case _:
            return jax.nn.sigmoid(out.edges)


def loss(task: Task, apply: Apply, params: Any, batch: Any, key: jax.Array) -> jax.Array:
    """The task's loss, of the padded batch as it is."""
    if isinstance(task, GraphAutoencoder):
        total, graphs = task.metrics(apply, params, batch, key)["bce"]
        return total / graphs
    return task.loss(apply, params, batch, key)


def textbook_apply(inputs: Inputs) -> Apply:
    encoder = getattr(inputs.model, "encoder", inputs.model)
    return functools.partial(textbook.egnn, shrinkage=encoder.shrinkage)


def told(case: str, name: str, reference: str | None = None) -> tuple[np.ndarray, float]:
    """Output and loss of the first batch, which have to agree between contenders; of the data,
    positions and no loss.
    """
    if case == "data":
        made = (nbody._generate if name == "ours" else textbook.trajectories)(
            "small", "train", TRAJECTORIES
        )
        return np.concatenate([made["x"], made["target"]]), 0.0
    inputs = inputs_of(case)
    if name not in ("ours", "textbook_jax"):
        from benchmarks import torch_contenders

        return attempt(name, lambda: torch_contenders.told(inputs, name, reference))
    apply = inputs.model.apply if name == "ours" else textbook_apply(inputs)
    found, value = (
        jax.jit(functools.partial(f, inputs.task, apply))(
            inputs.state.params, inputs.first(), inputs.key
        )
        for f in (output, loss)
    )
    real = inputs.first().n_edge[:-1].sum() if isinstance(inputs.task, GraphAutoencoder) else None
    return np.asarray(found[:real]), float(value)


def turn(case: str, part: str, name: str, reference: str | None = None) -> float:
    """Seconds of one step of a contender, from one call of many steps."""
    run, steps = contender(case, part, name, reference)
    begun = time.perf_counter()
    run()
    return (time.perf_counter() - begun) / steps


@functools.cache
def contender(
    case: str, part: str, name: str, reference: str | None
) -> tuple[Callable[[], Any], float]:
    """A call that blocks until all is done, run once, and how many steps it makes.

    Raises:
      Unavailable: it cannot do the case here.
    """
    if name == "matmul":
        run, steps = matmul()
    elif case == "data":
        function, steps = (
            (nbody._generate, nbody.CHUNK)
            if name == "ours"
            else (textbook.trajectories, TRAJECTORIES)
        )
        run = functools.partial(function, "small", "train", steps)
    else:
        inputs = inputs_of(case)
        steps = inputs.setting.batches * (
            inputs.setting.scans if (name, part) == ("ours", "train_step") else 1
        )
        if name == "ours":
            run = (ours_train if part == "train_step" else ours_forward)(inputs)
        elif name == "textbook_jax":
            run = (textbook_train if part == "train_step" else textbook_forward)(inputs)
        else:
            from benchmarks import torch_contenders

            run = torch_contenders.contender(inputs, part, name, reference)
    attempt(name, run)
    return run, steps


def attempt(name: str, call: Callable[[], Any]) -> Any:
    """``call()``, where torch.compile may fail for whatever it lacks on this machine, such as a C++
    compiler.
    """
    try:
        return call()
    except Exception as error:
        if name != "torch_compiled":
            raise
        raise Unavailable(f"torch.compile failed: {str(error).splitlines()[0]}") from None


def matmul() -> tuple[Callable[[], Any], float]:
    """Products of square float32 matrices, one on each device; a step is 1e9 operations."""
    devices, size = jax.local_devices(), 1_024 if jax.default_backend() == "cpu" else 8_192
    matrices = [jax.device_put(jnp.ones((size, size)), device) for device in devices]
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(
        [product(a, a) for a in matrices for _ in range(10)]
    ), 20e-9 * size**3 * len(devices)


@functools.cache
def compiled_train(inputs: Inputs) -> tuple[Any, Any, Any]:
    """The scan over training steps as ``fit`` makes it, compiled, with its batches and the state,
    which the first call donates.
    """
    mesh, parts = layout(inputs.config)
    rows = np.tile(inputs.rows(mesh.size * parts), (inputs.setting.scans, 1, 1))
    batches = jax.device_put(inputs.task.pack("train", rows), NamedSharding(mesh, P(None, AXIS)))
    state = jax.device_put(inputs.state, NamedSharding(mesh, P()))
    step = make_step(inputs.task, inputs.model.apply, inputs.transform, 0.0, mesh, parts)
    return make_train(step, 1, mesh).lower(state, batches).compile(), state, batches


def ours_train(inputs: Inputs) -> Callable[[], Any]:
    train, state, batches = compiled_train(inputs)

    def run() -> None:
        nonlocal state
        state, losses = train(state, batches)
        jax.block_until_ready(losses)

    return run


def ours_forward(inputs: Inputs) -> Callable[[], Any]:
    """One call a batch, spread over devices and micro-batches as in training."""
    mesh, parts = layout(inputs.config)

    def forward(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        told = jax.lax.map(
            lambda part: output(inputs.task, inputs.model.apply, params, part, key), batch
        )
        return told.reshape(-1, *told.shape[2:])

    spread = jax.jit(
        jax.shard_map(
            forward, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(AXIS), check_vma=False
        )
    )
    params, key = jax.device_put((inputs.state.params, inputs.key), NamedSharding(mesh, P()))
    batches = separate(
        inputs.task.pack("train", inputs.rows(mesh.size * parts)), NamedSharding(mesh, P(AXIS))
    )
    return lambda: [jax.block_until_ready(spread(params, batch, key)) for batch in batches]


def textbook_train(inputs: Inputs) -> Callable[[], Any]:
    """One jitted step called from Python, again and again."""
    apply, batches = textbook_apply(inputs), separate(inputs.batches())
    params, opt_state = jax.device_put((inputs.state.params, inputs.state.opt_state))

    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        gradient = jax.grad(lambda params: loss(inputs.task, apply, params, batch, key))(params)
        updates, opt_state = inputs.transform.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def run() -> None:
        nonlocal params, opt_state
        for batch in batches:
            params, opt_state = step(params, opt_state, batch, inputs.key)
        jax.block_until_ready(params)

    return run


def textbook_forward(inputs: Inputs) -> Callable[[], Any]:
    forward = jax.jit(functools.partial(output, inputs.task, textbook_apply(inputs)))
    params, batches = jax.device_put(inputs.state.params), separate(inputs.batches())
    return lambda: [jax.block_until_ready(forward(params, batch, inputs.key)) for batch in batches]


def separate(batches: Any, where: NamedSharding | None = None) -> list[Any]:
    """Stacked batches (K, …) as K of their own, on the device or spread over devices."""
    count = len(jax.tree.leaves(batches)[0])
    return [
        jax.device_put(jax.tree.map(operator.itemgetter(k), batches), where) for k in range(count)
    ]


def facts(case: str, part: str) -> dict[str, Any]:
    """What there is to know of our program beside its time: the operations of its products, and how
    its scan was compiled.
    """
    inputs = inputs_of(case)
    arguments = (inputs.state.params, inputs.first(), inputs.key)
    if part == "forward":
        return {
            "flops": costs.flops(
                functools.partial(output, inputs.task, inputs.model.apply), *arguments
            )
        }
    step = make_step(inputs.task, inputs.model.apply, inputs.transform, 0.0)
    train, state, _ = compiled_train(inputs)
    compiled = costs.compiled(train.as_text())
    return (
        {"flops": costs.flops(step, inputs.state, inputs.first())}
        | compiled
        | {"leaves": len(jax.tree.leaves(state))}
    )
