"""What training carries from step to step, and how the optimiser moves it."""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from egnn_jax.experiments.config import Optimizer
from egnn_jax.graph.graph import GraphsTuple


class State(flax.struct.PyTreeNode):
    """Step number, parameters, optimiser state, averaged parameters (or None) and the raw random
    key of one seed.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    average: Any
    key: jax.Array

    @property
    def evaluated(self) -> Any:
        """The parameters to evaluate and keep: the averaged ones where there are any."""
        return self.params if self.average is None else self.average


class Best(flax.struct.PyTreeNode):
    """The parameters with the smallest validation value so far, that value, and its epoch (0: none
    yet).
    """

    params: Any
    value: jax.Array
    epoch: jax.Array


def optimiser(config: Optimizer, steps_per_epoch: int, steps: int) -> optax.GradientTransformation:
    """The optax chain a config describes; the schedule counts optimiser steps, once each."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "cosine":
        falls = math.pi * config.half_periods / max(steps - warmup, 1)
        rate = lambda step: (
            config.learning_rate * (1 + jnp.cos(falls * jnp.minimum(step, steps - warmup))) / 2
        )
    else:
        rate = optax.constant_schedule(config.learning_rate)
    if warmup:
        rate = optax.join_schedules(
            [optax.linear_schedule(0.0, config.learning_rate, warmup), rate], [warmup]
        )
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.name == "adamw":
        parts.append(optax.adamw(rate, weight_decay=config.weight_decay))
    else:
        parts += [optax.add_decayed_weights(config.weight_decay), optax.adam(rate)]
    return optax.chain(*parts)


def init_state(
    model: nn.Module,
    graph: GraphsTuple,
    transform: optax.GradientTransformation,
    average: bool,
    seed: int,
) -> State:
    """The state before the first step; ``graph`` shows the model its input."""
    init_key, key = jax.random.split(jax.random.PRNGKey(seed))
    params = model.lazy_init(
        init_key, jax.eval_shape(lambda: graph)
    )  # without the forward pass, which takes time and memory
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=transform.init(params),
        average=jax.tree.map(jnp.copy, params) if average else None,
        key=key,
    )


def init_best(state: State) -> Best:
    """No best yet: an infinite value."""
    return Best(
        params=jax.tree.map(jnp.copy, state.evaluated),
        value=jnp.full(state.step.shape, jnp.inf, jnp.float32),
        epoch=jnp.zeros_like(state.step),
    )


def keep_best(best: Best, state: State, value: jax.Array, epoch: jax.Array) -> Best:
    """``best``, or the state's parameters where ``value`` is smaller."""
    better = value < best.value
    pick = lambda new, old: jnp.where(better, new, old)
    return Best(
        jax.tree.map(pick, state.evaluated, best.params),
        pick(value, best.value),
        pick(epoch, best.epoch),
    )
