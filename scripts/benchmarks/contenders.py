"""The contenders that ``make benchmark`` times: ours and textbook JAX; PyTorch's are beside this.

A worker process calls :func:`seconds_per_step` for one contender after the other. What a contender
needs is made, compiled and run once before its first measurement.
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
"""How many the literal loop makes in a measurement."""


def start(all_cores: bool) -> None:
    """Set up a worker: ours uses all cores as in training, peers their libraries' defaults."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two workers share a GPU
    if all_cores:
        use_all_cores()


def output(task: Any, apply: Apply, params: Any, batch: Any, key: jax.Array) -> jax.Array:
    """What is compared: positions (N, 3), standardised labels (G,), or probabilities of edges (E,
    1).
    """
    out = apply(params, task.graph(batch, key))
    match task:
        case NBody():
            return out.nodes.x
        case QM9():
            return out.globals.y[:-1, 0]
        case _:
            return jax.nn.sigmoid(out.edges.a)


def loss(task: Any, apply: Apply, params: Any, batch: Any, key: jax.Array) -> jax.Array:
    """The task's loss, of the padded batch as it is."""
    if isinstance(task, GraphAutoencoder):
        total, graphs = task.metrics(apply)(params, batch, key)["bce"]
        return total / graphs
    return task.loss(apply)(params, batch, key)[0]


def textbook_apply(inputs: Inputs) -> Apply:
    encoder = getattr(inputs.network, "encoder", inputs.network)
    return functools.partial(textbook.egnn, shrinkage=encoder.shrinkage)


def first_output(case: str, name: str, reference: str | None = None) -> tuple[np.ndarray, float]:
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

        return attempt(name, lambda: torch_contenders.first_output(inputs, name, reference))
    apply = inputs.network.apply if name == "ours" else textbook_apply(inputs)
    found, value = (
        jax.jit(functools.partial(f, inputs.task, apply))(
            inputs.state.params, inputs.first(), inputs.key
        )
        for f in (output, loss)
    )
    real = inputs.first().n_edge[:-1].sum() if isinstance(inputs.task, GraphAutoencoder) else None
    return np.asarray(found[:real]), float(value)


def seconds_per_step(case: str, part: str, name: str, reference: str | None = None) -> float:
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
    mesh, parts = batch_layout(inputs.config.batch_size, inputs.config.micro_batches)
    stacked = inputs.stacked(mesh.size * parts, inputs.setting.scans)
    batches = jax.device_put(stacked, NamedSharding(mesh, P(None, AXIS)))
    state = jax.device_put(inputs.state, NamedSharding(mesh, P()))
    step = make_step(inputs.task.loss(inputs.network.apply), inputs.optimizer, 0.0, mesh, parts)
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
    mesh, parts = batch_layout(inputs.config.batch_size, inputs.config.micro_batches)

    def forward(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        outputs = jax.lax.map(
            lambda part: output(inputs.task, inputs.network.apply, params, part, key), batch
        )
        return outputs.reshape(-1, *outputs.shape[2:])

    spread = jax.jit(
        jax.shard_map(
            forward, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(AXIS), check_vma=False
        )
    )
    params, key = jax.device_put((inputs.state.params, inputs.key), NamedSharding(mesh, P()))
    batches = separate(inputs.stacked(mesh.size * parts), NamedSharding(mesh, P(AXIS)))
    return lambda: [jax.block_until_ready(spread(params, batch, key)) for batch in batches]


def textbook_train(inputs: Inputs) -> Callable[[], Any]:
    """One jitted step called from Python, again and again."""
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
                functools.partial(output, inputs.task, inputs.network.apply), *arguments
            )
        }
    step = make_step(inputs.task.loss(inputs.network.apply), inputs.optimizer)
    train, state, _ = compiled_train(inputs)
    compiled = costs.compiled(train.as_text())
    return (
        {"flops": costs.flops(step, inputs.state, inputs.first())}
        | compiled
        | {"leaves": len(jax.tree.leaves(state))}
    )
