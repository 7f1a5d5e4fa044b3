"""One optimiser step, K of them as one compiled scan, and evaluation: for one seed or several, on
one device or several.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from egnn_jax.experiments import Task
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.task import Apply
from egnn_jax.training.state import State

Step = Callable[[State, Any], tuple[State, jax.Array]]

AXIS = "data"
"""The mesh axis that the samples of a batch are spread over."""


def use_all_cores() -> None:
    """Make each CPU core a device, so that batches are spread over them; call before the first JAX
    computation.

    One thread per half batch scales far better than two threads per matrix product, and vectors of
    512 bits, where a CPU has them, than XLA's 256. Flags in ``$XLA_FLAGS`` stay as they are.
    Without effect on accelerators.
    """
    for flag, value in (
        ("xla_cpu_multi_thread_eigen", "false"),
        ("xla_cpu_prefer_vector_width", "512"),
    ):
        if flag not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{flag}={value}".strip()
    jax.config.update(
        "jax_num_cpu_devices",
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )


def free_heaps() -> None:
    """Give memory that is no longer used back to the system, which glibc's heaps, one a thread,
    rarely do by themselves.
    """
    if sys.platform == "linux" and (
        trim := getattr(ctypes.CDLL(None), "malloc_trim", None)
    ):  # musl has none
        trim(0)


def make_mesh(batch_size: int) -> Mesh:
    """As many devices as divide a batch evenly."""
    devices = max(d for d in range(1, len(jax.local_devices()) + 1) if batch_size % d == 0)
    return jax.make_mesh(
        (devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:devices]
    )


def layout(config: Config) -> tuple[Mesh, int]:
    """The devices that a batch is spread over, and in how many parts each takes its share:
    ``micro_batches`` on a CPU, else 1.
    """
    parts = config.micro_batches if jax.default_backend() == "cpu" else 1
    return make_mesh(config.batch_size // parts), parts


def make_step(
    task: Task,
    apply: Apply,
    transform: optax.GradientTransformation,
    decay: float,
    mesh: Mesh | None = None,
    parts: int = 1,
) -> Step:
    """A pure (state, batch) -> (state, loss).

    Args:
      task: gives the loss.
      apply: the model.
      transform: the optimiser.
      decay: that of the averaged parameters, where the state has them.
      mesh: the devices that the batch is spread over, where there are several; loss and gradient
        are averaged over them.
      parts: how many micro-batches, stacked along a leading axis, a batch consists of if there are
        several; loss and gradient are computed of one after the other and averaged.
    """
    spread = mesh is not None and mesh.size > 1

    def gradient_of(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(lambda params: task.loss(apply, params, batch, key))(params)

    def mean_gradient_of(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient_of(params, *part)), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        total, _ = jax.lax.scan(add, zeros, (batch, jax.random.split(key, parts)))
        return jax.tree.map(lambda a: a / parts, total)

    def step(state: State, batch: Any) -> tuple[State, jax.Array]:
        key = jax.random.fold_in(state.key, state.step)
        if spread:
            key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        loss, gradient = (gradient_of if parts == 1 else mean_gradient_of)(state.params, batch, key)
        if spread:
            flat, unravel = ravel_pytree((loss, gradient))  # one exchange instead of one per array
            loss, gradient = unravel(jax.lax.pmean(flat, AXIS))
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            # A short memory at first, so that the initial parameters are soon forgotten.
            rate = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
            average = jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, average, params)
        return state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, average=average
        ), loss

    return step


def make_train(step: Step, seeds: int, mesh: Mesh) -> Step:
    """K steps in one compiled call: (state, batches stacked (K, devices·parts, …)) -> (state,
    losses (K,)).

    With several seeds, state and losses have a leading axis of that size and all see the same
    batches. The state passed in is donated, so it cannot be used again.
    """

    def train(state: State, batches: Any) -> tuple[State, jax.Array]:
        return jax.lax.scan(step, state, _own(batches))

    train = train if seeds == 1 else jax.vmap(train, in_axes=(0, None))
    spread = jax.shard_map(
        train, mesh=mesh, in_specs=(P(), P(None, AXIS)), out_specs=P(), check_vma=False
    )
    return jax.jit(spread, donate_argnums=0)


def make_evaluate(
    task: Task, apply: Apply, seeds: int, mesh: Mesh
) -> Callable[[Any, Any, jax.Array], dict[str, jax.Array]]:
    """Each metric over stacked batches (K, devices, …): (params, batches, key) -> {metric: value,
    (seeds,) if several}.
    """

    def evaluate(params: Any, batches: Any, key: jax.Array) -> dict[str, jax.Array]:
        batches = _own(batches)
        keys = jax.random.split(
            jax.random.fold_in(key, jax.lax.axis_index(AXIS)), jax.tree.leaves(batches)[0].shape[0]
        )
        sums = jax.lax.map(lambda inputs: task.metrics(apply, params, *inputs), (batches, keys))
        sums = jax.lax.psum(jax.tree.map(partial(jnp.sum, axis=0), sums), AXIS)
        return {name: total / number for name, (total, number) in sums.items()}

    evaluate = evaluate if seeds == 1 else jax.vmap(evaluate, in_axes=(0, None, None))
    return jax.jit(
        jax.shard_map(
            evaluate, mesh=mesh, in_specs=(P(), P(None, AXIS), P()), out_specs=P(), check_vma=False
        )
    )


def _own(batches: Any) -> Any:
    """Of batches (K, devices·parts, …) those on this device: (K, …), or (K, parts, …) where there
    are several.
    """
    return jax.tree.map(lambda a: a[:, 0] if a.shape[1] == 1 else a, batches)
