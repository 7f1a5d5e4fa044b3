"""One optimiser step, K of them as one compiled scan, and evaluation, all for one seed or several."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egnn_jax.tasks import Task
from egnn_jax.tasks.base import Apply
from egnn_jax.training.state import State


def make_step(task: Task, apply: Apply, transform: optax.GradientTransformation, decay: float) -> Callable[[State, Any], tuple[State, jax.Array]]:
    """A pure (state, batch) -> (state, loss). ``decay`` is that of the averaged parameters."""

    def step(state: State, batch: Any) -> tuple[State, jax.Array]:
        key = jax.random.fold_in(state.key, state.step)
        loss, gradient = jax.value_and_grad(lambda params: task.loss(apply, params, batch, key))(state.params)
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            # A short memory at first, so that the initial parameters are soon forgotten.
            rate = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
            average = jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, average, params)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state, average=average), loss

    return step


def make_train(step: Callable[[State, Any], tuple[State, jax.Array]], seeds: int) -> Callable[[State, Any], tuple[State, jax.Array]]:
    """K steps in one compiled call: (state, batches stacked K) -> (state, losses (K,)).

    With several seeds, state and losses have a leading axis of that size and all see the same batches. The state
    passed in is donated, so it cannot be used again.
    """

    def train(state: State, batches: Any) -> tuple[State, jax.Array]:
        return jax.lax.scan(step, state, batches)

    return jax.jit(train if seeds == 1 else jax.vmap(train, in_axes=(0, None)), donate_argnums=0)


def make_evaluate(task: Task, apply: Apply, seeds: int) -> Callable[[Any, Any, jax.Array], dict[str, jax.Array]]:
    """Each metric over K stacked batches: (params, batches, key) -> {metric: value, (seeds,) if several}."""

    def evaluate(params: Any, batches: Any, key: jax.Array) -> dict[str, jax.Array]:
        count = jax.tree.leaves(batches)[0].shape[0]
        keys = jax.random.split(key, count)
        sums = jax.lax.map(lambda inputs: task.metrics(apply, params, *inputs), (batches, keys))
        return {name: jnp.sum(total) / jnp.sum(number) for name, (total, number) in sums.items()}

    return jax.jit(evaluate if seeds == 1 else jax.vmap(evaluate, in_axes=(0, None, None)))
