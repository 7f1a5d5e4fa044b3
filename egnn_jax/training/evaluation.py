"""Evaluation of metrics over all samples of a loader."""

import math
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from egnn_jax.data.loader import Loader, require_loader
from egnn_jax.graph._forks import require_usable_jax
from egnn_jax.graph._validation import require_count
from egnn_jax.graph.graph import PaddedGraphsTuple, graph_mask
from egnn_jax.training._validation import require_loss
from egnn_jax.training.distributed import (
    AXIS,
    DEVICES,
    free_heaps,
    load_shards,
    local_mesh,
    make_mesh,
    put,
)
from egnn_jax.training.step import STATISTICS, Loss, local_shards

MAX_CHUNK_BYTES = 2**28
"""The largest size of the batches that are on the devices at once. If all batches of an evaluation
fit, they are packed once and stay there.
"""

Metrics = Callable[[Any, Any, jax.Array], dict[str, Any]]
"""(params, batch, key) -> metrics, like the second value of :data:`egnn_jax.training.step.Loss`."""


def metrics_of(loss: Loss) -> Metrics:
    """The metrics of a loss, including its value as "loss"."""

    def metrics(params: Any, batch: Any, key: jax.Array) -> dict[str, Any]:
        require_loss(loss, params, batch)
        value, metrics = loss(params, batch, key)
        return {"loss": value} | {k: metrics[k] for k in metrics if k != STATISTICS}

    return metrics


class Evaluation:
    """Evaluate metrics over all samples of a loader, compiled once.

    Args:
      metrics: the metrics to evaluate.
      loader: the loader; its batches for epoch None are evaluated.
      seeds: the number of sets of parameters, along a leading axis if several.
      seed: seed of the random key.

    Call: (params, draw) -> {metric: value, (seeds,) if several}; ``draw`` selects the random key.

    Raises:
      ValueError: the loader has no samples.
    """

    def __init__(self, metrics: Metrics, loader: Loader, seeds: int = 1, seed: int = 0) -> None:
        divisible = loader.batch_size % jax.process_count() == 0
        self._mesh = (make_mesh if divisible else local_mesh)(loader.batch_size)
        self._key = jax.random.PRNGKey(seed)
        self._loader = loader
        self._num_batches = loader.num_batches(None)
        if not self._num_batches and self._remainder is None:
            raise ValueError("the loader has no batches to evaluate; expected at least one")
        self._cached_batches: Any = None
        self._seconds = math.inf  # of the last call
        self._evaluate = self._compile(metrics, seeds)

    def __call__(self, params: Any, draw: int = 0) -> dict[str, jax.Array]:
        """Evaluate parameters; padding in the last batch does not count."""
        started = time.monotonic()
        if self._seconds > 1:  # the next call after freeing is some milliseconds slower
            free_heaps()
        key = jax.random.fold_in(self._key, draw)
        sums = []
        if self._num_batches:
            if jax.process_count() > 1:  # arrays of all processes, and perhaps a mesh of one
                params = jax.device_get(params)
            replicated = put(params, self._mesh, P())
            chunk = self._chunk_size
            for start in range(0, self._num_batches, chunk):
                batches = self._batches(start, min(chunk, self._num_batches - start))
                with DEVICES:
                    chunk_sums = self._evaluate(replicated, batches, key, start)
                    sums.append(jax.block_until_ready(chunk_sums))
        if (remainder := self._remainder) is not None:
            sums.append(self._evaluate_remainder(jax.device_get(params), remainder, key))
        self._seconds = time.monotonic() - started
        totals = jax.tree.map(lambda *terms: sum(jax.device_get(terms)), *sums)
        return {name: jnp.divide(total, count) for name, (total, count) in totals.items()}

    @property
    def _remainder(self) -> Any:
        """The samples left over by the batches, or None."""
        remainder = getattr(self._loader, "remainder", None)
        return None if remainder is None else remainder()

    @cached_property
    def _chunk_size(self) -> int:
        """The number of batches that are on the devices at once."""
        batch = self._pack(0, 1)
        num_bytes = self._num_batches * sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
        chunks = min(-(-num_bytes // MAX_CHUNK_BYTES), self._num_batches)
        return -(-self._num_batches // max(chunks, 1))

    def _batches(self, start: int, count: int) -> Any:
        if count < self._num_batches:
            return put(self._pack(start, count), self._mesh, P(None, AXIS))
        if self._cached_batches is None:
            self._cached_batches = put(self._pack(0, count), self._mesh, P(None, AXIS))
        return self._cached_batches

    def _pack(self, start: int, count: int) -> Any:
        return load_shards(self._loader, self._mesh, self._mesh.size, None, start, count)

    def _compile(self, metrics: Metrics, seeds: int) -> Any:
        def batch_sums(params: Any, inputs: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
            batch, key = inputs
            values = metrics(params, batch, key)
            return {name: _sum_and_count(value, batch) for name, value in values.items()}

        def evaluate(
            params: Any, batches: Any, key: jax.Array, start: jax.Array
        ) -> dict[str, jax.Array]:
            batches = local_shards(batches)
            count = jax.tree.leaves(batches)[0].shape[0]
            key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
            keys = jax.random.split(key, self._num_batches)
            keys = jax.lax.dynamic_slice_in_dim(keys, start, count)
            sums = jax.lax.map(partial(batch_sums, params), (batches, keys))
            return jax.lax.psum(jax.tree.map(partial(jnp.sum, axis=0), sums), AXIS)

        def evaluate_remainder(params: Any, batch: Any, key: jax.Array) -> dict[str, Any]:
            return batch_sums(params, (batch, key))

        if seeds > 1:
            evaluate_remainder = jax.vmap(evaluate_remainder, in_axes=(0, None, None))
        self._evaluate_remainder = jax.jit(evaluate_remainder)
        evaluate = evaluate if seeds == 1 else jax.vmap(evaluate, in_axes=(0, None, None, None))
        specs = (P(), P(None, AXIS), P(), P())
        sharded = jax.shard_map(
            evaluate, mesh=self._mesh, in_specs=specs, out_specs=P(), check_vma=False
        )
        return jax.jit(sharded)


def evaluate(loss: Loss, params: Any, loader: Loader, seed: int = 0) -> dict[str, Any]:
    """Evaluate the metrics of a loss over all samples of a loader.

    Args:
      loss: see :data:`egnn_jax.training.step.Loss`; its value is reported as "loss".
      params: the parameters.
      loader: the samples, for example ``dataset.loader(32)``.
      seed: seed of the random key passed to the loss.

    Returns:
      The metrics by name: numbers, or lists for metrics with several values.

    Raises:
      ValueError: ``loader`` is not a loader, the seed is not from 0 to 2³² - 1, or the loss does
        not return (scalar, metrics).
    """
    require_usable_jax()
    require_count("seed", seed, 0, 2**32 - 1)
    require_loader("loader", loader)
    values = Evaluation(metrics_of(loss), loader, seed=seed)(params)
    return {name: np.asarray(value).tolist() for name, value in values.items()}


def _sum_and_count(metric: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    if isinstance(metric, tuple):
        return metric
    if isinstance(batch, PaddedGraphsTuple):
        count = jnp.sum(graph_mask(batch))
    else:
        count = jnp.asarray(jax.tree.leaves(batch)[0].shape[0])
    # A shard without samples may divide 0 by 0.
    return jnp.where(count > 0, metric * count, 0), count
