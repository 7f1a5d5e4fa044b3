"""Losses for graphs with targets: (params, batch, key) -> (scalar, metrics), as ``fit`` takes them.

Each takes a network whose output has predictions in ``globals.y``, such as
:class:`egnn_jax.Readout`; batches are padded, and padding does not count.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple, graph_mask
from egnn_jax.training.step import Loss


def mean_absolute_error(network: nn.Module) -> Loss:
    """Σ |ŷ − y| / (G T) over the targets (G, T) of real graphs; also the metric ``mae``."""
    return _regression(network, jnp.abs, "mae")


def mean_squared_error(network: nn.Module) -> Loss:
    """Σ (ŷ − y)² / (G T) over the targets (G, T) of real graphs; also the metric ``mse``."""
    return _regression(network, jnp.square, "mse")


def _regression(network: nn.Module, penalty: Callable[[jax.Array], jax.Array], name: str) -> Loss:
    def loss(params: Any, batch: GraphsTuple, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        y: Any = batch.globals.y
        out: Any = network.apply(params, batch)
        predicted = out.globals.y
        if y is None or jnp.shape(predicted) != jnp.shape(y):
            raise ValueError(
                f"the targets have shape {None if y is None else jnp.shape(y)} and the predictions "
                f"{jnp.shape(predicted)}; expected one shape: y of each graph, and as many outputs"
            )
        real = graph_mask(batch)[:, None]
        total = jnp.sum(jnp.where(real, penalty(predicted - y), 0))
        count = jnp.sum(real) * y.shape[1]
        return total / jnp.maximum(count, 1), {name: (total, count)}

    return loss
