"""The contenders that ``make benchmark`` times: our networks, and the same in textbook JAX.

The PyTorch contenders are in :mod:`benchmarks.torch_contenders`. A worker process calls
:func:`seconds_per_step` for each contender in turn. Each is built, compiled and run once before its
first measurement.
"""

import functools
import operator
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarks import costs, textbook
from benchmarks.inputs import Inputs, Unavailable, inputs_of
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from egnn_jax.data import nbody
from egnn_jax.experiments.autoencoder import GraphAutoencoder
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.qm9 import QM9
from egnn_jax.experiments.task import Apply
from egnn_jax.training.distributed import AXIS, batch_layout, use_all_cores
from egnn_jax.training.step import make_step, make_train

TRAJECTORIES = 8
"""Number of trajectories that the NumPy loop simulates per measurement."""


def start(all_cores: bool) -> None:
    """Set up a worker: ours uses all cores, as in training; peers use their libraries' defaults."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two workers share a GPU
    if all_cores:
        use_all_cores()


def output(task: Any, apply: Apply, params: Any, batch: Any, key: jax.Array) -> jax.Array:
    """The positions (N, 3), standardized labels (G,) or edge probabilities (E, 1) to compare."""
    out = apply(params, task.graph(batch, key))
    match task:
        case NBody():
            return out.nodes.x
        case QM9():
            return out.globals.y[:-1, 0]
        case _:
            return jax.nn.sigmoid(out.edges.a)


def loss(task: Any, apply: Apply, params: Any, batch: Any, key: jax.Array) -> jax.Array:
    """The task's loss of a whole padded batch, as textbook JAX computes it."""
    if isinstance(task, GraphAutoencoder):
        total, graphs = task.metrics(apply)(params, batch, key)["bce"]
        return total / graphs
    return task.loss(apply)(params, batch, key)[0]


def textbook_apply(inputs: Inputs) -> Apply:
    """The textbook EGNN with the options of our network."""
    encoder = getattr(inputs.network, "encoder", inputs.network)
    return functools.partial(textbook.egnn, shrinkage=encoder.shrinkage)


def first_output(case: str, name: str, reference: str | None = None) -> tuple[np.ndarray, float]:
    """Output and loss of the first batch, on which contenders must agree.

    For the case "data", positions and a loss of 0.
    """
    if case == "data":
        simulate = nbody._generate if name == "ours" else textbook.trajectories
        trajectories = simulate("small", "train", TRAJECTORIES)
        return np.concatenate([trajectories["x"], trajectories["target"]]), 0.0
    inputs = inputs_of(case)
    if name not in ("ours", "textbook_jax"):
        from benchmarks import torch_contenders

        return attempt(name, lambda: torch_contenders.first_output(inputs, name, reference))
    apply = inputs.network.apply if name == "ours" else textbook_apply(inputs)
    batch = inputs.first()
    outputs, value = (
        jax.jit(functools.partial(f, inputs.task, apply))(inputs.state.params, batch, inputs.key)
        for f in (output, loss)
    )
    n_edge = batch.n_edge[:-1].sum() if isinstance(inputs.task, GraphAutoencoder) else None
    return np.asarray(outputs[:n_edge]), float(value)


def seconds_per_step(case: str, part: str, name: str, reference: str | None = None) -> float:
    """Time one step of a contender, from one call of many steps.

    Args:
      case: a key of :data:`benchmarks.inputs.SETTINGS`, or "data".
      part: "forward" or "train_step"; "small" for "data".
      name: "ours", "matmul", or one of :data:`benchmarks.tables.PEERS`.
      reference: a checkout of the authors' repository, for the contender of that name.

    Raises:
      Unavailable: the contender cannot run the case here.
    """
    run, steps = contender(case, part, name, reference)
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / steps


@functools.cache
def contender(
    case: str, part: str, name: str, reference: str | None
) -> tuple[Callable[[], Any], float]:
    """Return a warmed-up function that blocks until it is done, and its number of steps."""
    if name == "matmul":
        run, steps = matmul()
    elif case == "data":
        simulate, steps = textbook.trajectories, TRAJECTORIES
        if name == "ours":
            simulate, steps = nbody._generate, nbody.CHUNK
        run = functools.partial(simulate, "small", "train", steps)
    else:
        inputs = inputs_of(case)
        scans = inputs.setting.scans if (name, part) == ("ours", "train_step") else 1
        steps = inputs.setting.batches * scans
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
    """Run ``call()``; raise :class:`Unavailable` if torch.compile fails, e.g. lacks a compiler."""
    try:
        return call()
    except Exception as error:
        if name != "torch_compiled":
            raise
        raise Unavailable(f"torch.compile failed: {str(error).splitlines()[0]}") from None


def matmul() -> tuple[Callable[[], Any], float]:
    """Multiply square float32 matrices on every device; a step is 1e9 operations."""
    devices, size = jax.local_devices(), 1_024 if jax.default_backend() == "cpu" else 8_192
    matrices = [jax.device_put(jnp.ones((size, size)), device) for device in devices]
    product, repeats = jax.jit(jnp.matmul), 10

    def run() -> None:
        jax.block_until_ready([product(a, a) for a in matrices for _ in range(repeats)])

    return run, 1e-9 * 2 * size**3 * repeats * len(devices)


@functools.cache
def compiled_train(inputs: Inputs) -> tuple[Any, Any, Any]:
    """Return the scan over training steps, compiled as in ``fit``, with its state and batches.

    The first call donates the state.
    """
    mesh, micro_batches = batch_layout(inputs.config.batch_size, inputs.config.micro_batches)
    stacked = inputs.stacked(mesh.size * micro_batches, inputs.setting.scans)
    batches = jax.device_put(stacked, NamedSharding(mesh, P(None, AXIS)))
    state = jax.device_put(inputs.state, NamedSharding(mesh, P()))
    loss = inputs.task.loss(inputs.network.apply)
    step = make_step(loss, inputs.optimizer, 0.0, mesh, micro_batches)
    return make_train(step, 1, mesh).lower(state, batches).compile(), state, batches


def ours_train(inputs: Inputs) -> Callable[[], Any]:
    """Call :func:`compiled_train` once, from the state that the last call returned."""
    train, state, batches = compiled_train(inputs)

    def run() -> None:
        nonlocal state
        state, losses = train(state, batches)
        jax.block_until_ready(losses)

    return run


def ours_forward(inputs: Inputs) -> Callable[[], Any]:
    """Make one call per batch, split over devices and micro-batches as in training."""
    mesh, micro_batches = batch_layout(inputs.config.batch_size, inputs.config.micro_batches)

    def forward(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        outputs = jax.lax.map(
            lambda shard: output(inputs.task, inputs.network.apply, params, shard, key), batch
        )
        return outputs.reshape(-1, *outputs.shape[2:])

    sharded = jax.jit(
        jax.shard_map(
            forward, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(AXIS), check_vma=False
        )
    )
    params, key = jax.device_put((inputs.state.params, inputs.key), NamedSharding(mesh, P()))
    batches = separate(inputs.stacked(mesh.size * micro_batches), NamedSharding(mesh, P(AXIS)))
    return lambda: [jax.block_until_ready(sharded(params, batch, key)) for batch in batches]


def textbook_train(inputs: Inputs) -> Callable[[], Any]:
    """Run one jitted step, called from Python for every batch."""
    apply, batches = textbook_apply(inputs), separate(inputs.batches())
    params, opt_state = jax.device_put((inputs.state.params, inputs.state.opt_state))

    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        gradient = jax.grad(lambda params: loss(inputs.task, apply, params, batch, key))(params)
        updates, opt_state = inputs.optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def run() -> None:
        nonlocal params, opt_state
        for batch in batches:
            params, opt_state = step(params, opt_state, batch, inputs.key)
        jax.block_until_ready(params)

    return run


def textbook_forward(inputs: Inputs) -> Callable[[], Any]:
    """Make one jitted call per batch."""
    forward = jax.jit(functools.partial(output, inputs.task, textbook_apply(inputs)))
    params, batches = jax.device_put(inputs.state.params), separate(inputs.batches())
    return lambda: [jax.block_until_ready(forward(params, batch, inputs.key)) for batch in batches]


def separate(batches: Any, sharding: NamedSharding | None = None) -> list[Any]:
    """Split stacked batches (K, …) into a list of K, on the device or sharded over devices."""
    count = len(jax.tree.leaves(batches)[0])
    unstacked = [jax.tree.map(operator.itemgetter(k), batches) for k in range(count)]
    return [jax.device_put(batch, sharding) for batch in unstacked]


def program_costs(case: str, part: str) -> dict[str, Any]:
    """Our ``flops`` in matrix products per step; for training, also how its scan was compiled."""
    inputs = inputs_of(case)
    if part == "forward":
        forward = functools.partial(output, inputs.task, inputs.network.apply)
        return {"flops": costs.flops(forward, inputs.state.params, inputs.first(), inputs.key)}
    step = make_step(inputs.task.loss(inputs.network.apply), inputs.optimizer)
    train, state, _ = compiled_train(inputs)
    flops = costs.flops(step, inputs.state, inputs.first())
    leaves = len(jax.tree.leaves(state))
    return {"flops": flops} | costs.compiled(train.as_text()) | {"leaves": leaves}
