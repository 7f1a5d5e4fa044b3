"""One training step, and K steps as one compiled scan, for one or several seeds and devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from egnn_jax.training.distributed import AXIS
from egnn_jax.training.state import State

Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, Any]]]
"""(params, batch, key) -> (scalar, metrics): the value to minimize and the metrics to report.

A metric is ``(total, count)``, the sum of a quantity over the real samples of a batch and their
number, or a scalar, which is averaged over batches weighted by their numbers of samples. The metric
``STATISTICS`` is special: it holds updated collections of variables, for example
``{"batch_stats": …}``, which replace those in ``params`` after the step.
"""

STATISTICS = "statistics"
"""The name of the metric in which a loss returns running statistics, see :data:`Loss`."""

LARGE = 2**18
"""Number of entries above which an array is exchanged alone."""

Step = Callable[[State, Any], tuple[State, jax.Array]]


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_decay: float = 0.0,
    mesh: Mesh | None = None,
    micro_batches: int = 1,
) -> Step:
    """Make a pure training step (state, batch) -> (state, loss).

    Args:
      loss: the loss to minimize.
      optimizer: an optax gradient transformation.
      ema_decay: decay of the averaged parameters, if the state has them.
      mesh: the devices over which the batch is sharded; loss and gradient are averaged over them.
      micro_batches: the number of parts of a batch, stacked along a leading axis; loss and
        gradient are computed sequentially over them and averaged.
    """
    sharded = mesh is not None and mesh.size > 1

    def gradient_of(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any, Any]:
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        return value, gradient, metrics.get(STATISTICS, {})

    def mean_gradient_of(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any, Any]:
        def add(total: Any, inputs: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient_of(params, *inputs)), None

        micro_batch = jax.tree.map(lambda a: a[0], batch)
        shapes = jax.eval_shape(gradient_of, params, micro_batch, key)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (batch, jax.random.split(key, micro_batches)))
        return jax.tree.map(lambda a: a / micro_batches, total)

    def step(state: State, batch: Any) -> tuple[State, jax.Array]:
        key = jax.random.fold_in(state.key, state.step)
        if sharded:
            key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))

        def compute_gradient(params: Any) -> tuple[jax.Array, Any, Any]:
            local_gradient = gradient_of if micro_batches == 1 else mean_gradient_of
            results = local_gradient(params, batch, key)
            return _mean_over_devices(results) if sharded else results

        def value_and_gradient(params: Any) -> tuple[jax.Array, Any]:
            return compute_gradient(params)[:2]

        value, gradient, statistics = compute_gradient(state.params)
        updates, opt_state = apply_optimizer(
            optimizer, value_and_gradient, value, gradient, state.opt_state, state.params
        )
        params: Any = optax.apply_updates(state.params, updates)
        if statistics:
            params = {**params, **statistics}
        average = state.average
        if average is not None:
            # A smaller decay at first, so that the initial parameters are soon forgotten.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            new_average = optax.incremental_update(params, average, 1 - decay)
            # The average of equal numbers is that number, without rounding.
            average = jax.tree.map(
                lambda new, old, mean: jnp.where(new == old, old, mean),
                params,
                average,
                new_average,
            )
        return state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, average=average
        ), value

    return step


def _mean_over_devices(tree: Any) -> Any:
    """Average arrays over devices: the small ones in one exchange, the large ones uncopied."""
    leaves, structure = jax.tree.flatten(tree)
    flat, unravel = ravel_pytree({k: x for k, x in enumerate(leaves) if x.size <= LARGE})
    means = unravel(jax.lax.pmean(flat, AXIS))
    for k, x in enumerate(leaves):
        if k not in means:
            means[k] = jax.lax.pmean(x, AXIS)
    return jax.tree.unflatten(structure, [means[k] for k in range(len(leaves))])


def apply_optimizer(
    optimizer: optax.GradientTransformation,
    value_and_gradient: Callable[[Any], tuple[jax.Array, Any]],
    value: jax.Array,
    gradient: Any,
    state: Any,
    params: Any,
) -> tuple[Any, Any]:
    """Call ``optimizer.update`` with the extra arguments that some optimizers need: the loss for
    ``optax.contrib.reduce_on_plateau``, and also its value at other parameters for ``optax.lbfgs``.
    """

    # The gradient is averaged over devices and micro-batches, so JAX must not derive its own.
    @jax.custom_vjp
    def value_fn(params: Any) -> jax.Array:
        return value_and_gradient(params)[0]

    def backward(gradient: Any, cotangent: jax.Array) -> tuple[Any]:
        return (jax.tree.map(lambda g: cotangent * g, gradient),)

    value_fn.defvjp(value_and_gradient, backward)
    try:
        update = optax.with_extra_args_support(optimizer).update
        return update(gradient, state, params, value=value, grad=gradient, value_fn=value_fn)
    except TypeError:  # some, for example optax.contrib.sam, take no extra arguments
        return optimizer.update(gradient, state, params)


def make_train(step: Step, seeds: int, mesh: Mesh) -> Step:
    """Compile K steps into one call: (state, batches (K, shards, …)) -> (state, losses (K,)).

    With several seeds, state and losses have a leading axis of that size, and all see the same
    batches. The input state is donated and cannot be used again.
    """

    def train(state: State, batches: Any) -> tuple[State, jax.Array]:
        return jax.lax.scan(step, state, local_shards(batches))

    train = train if seeds == 1 else jax.vmap(train, in_axes=(0, None))
    sharded = jax.shard_map(
        train, mesh=mesh, in_specs=(P(), P(None, AXIS)), out_specs=P(), check_vma=False
    )
    return jax.jit(sharded, donate_argnums=0)


def local_shards(batches: Any) -> Any:
    """This device's shards of batches (K, shards, …), as (K, …) if it has only one."""
    return jax.tree.map(lambda a: a[:, 0] if a.shape[1] == 1 else a, batches)
