"""The training state and the best parameters so far."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class State(flax.struct.PyTreeNode):
    """The state of one seed, or of several along a leading axis.

    Attributes:
      step: the number of steps taken.
      params: the parameters.
      opt_state: the optimizer's state.
      average: an exponential moving average of the parameters, or None.
      key: a raw random key; each step folds in its number.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    average: Any
    key: jax.Array

    @property
    def evaluated(self) -> Any:
        """The parameters to evaluate and keep: the average if there is one."""
        return self.params if self.average is None else self.average


class Best(flax.struct.PyTreeNode):
    """The parameters with the smallest validation value, that value and its epoch (0: none yet)."""

    params: Any
    value: jax.Array
    epoch: jax.Array


def init_state(
    params: Any, optimizer: optax.GradientTransformation, average: bool, key: jax.Array
) -> State:
    """The state of one seed before the first step."""
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        average=jax.tree.map(jnp.copy, params) if average else None,
        key=key,
    )


def init_best(state: State) -> Best:
    """The initial :class:`Best`, with an infinite value."""
    return Best(
        params=jax.tree.map(jnp.copy, state.evaluated),
        value=jnp.full(state.step.shape, jnp.inf, jnp.result_type(float)),
        epoch=jnp.zeros_like(state.step),
    )


def keep_best(best: Best, state: State, value: jax.Array, epoch: jax.Array) -> Best:
    """Replace ``best`` by the parameters of the state if ``value`` is smaller."""
    value = value.astype(best.value.dtype)
    better = value < best.value

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better, new, old)

    params = jax.tree.map(pick, state.evaluated, best.params)
    return Best(params, pick(value, best.value), pick(epoch, best.epoch))
