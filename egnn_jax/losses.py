"""Losses for graphs with targets: (params, batch, key) -> (scalar, metrics), as ``fit`` expects.

Each takes a network that returns predictions in ``globals.y``, for example
:class:`egnn_jax.Readout`. Batches must be padded, as those of loaders are; padding does not count.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph._validation import require_not_negative
from egnn_jax.graph.exchange import sum_over_parts
from egnn_jax.graph.graph import (
    Globals,
    GraphsTuple,
    graph_mask,
    node_mask,
    require_geometric,
    total_nodes,
)
from egnn_jax.training.step import Loss


def mean_absolute_error(network: nn.Module | Callable[..., Any]) -> Loss:
    """Mean absolute error Σ ``|ŷ − y|`` / (G T) over the targets (G, T) of real graphs, ``mae``."""
    return _regression(network, jnp.abs, "mae")


def mean_squared_error(network: nn.Module | Callable[..., Any]) -> Loss:
    """Mean squared error Σ (ŷ − y)² / (G T) over the targets (G, T) of real graphs, ``mse``."""
    return _regression(network, jnp.square, "mse")


def energy_forces(
    potential: nn.Module | Callable[..., Any],
    energy: float = 1.0,
    forces: float = 1.0,
    stress: float = 0.0,
) -> Loss:
    """Weighted mean squared errors of the energy per atom, the forces and the stress.

    w_E mean((ΔE/M)²) + w_F mean(ΔF²) + w_S mean(Δσ²), averaged over graphs and components. The
    mean absolute errors ``energy`` (per graph), ``forces`` and ``stress`` are metrics, in the units
    of the labels.

    Args:
      potential: a network, for example :class:`egnn_jax.Potential`, or its ``apply``, that returns
        ``globals.y``, ``nodes.y`` and ``globals.stress``; batches have their labels in the same
        places, see :func:`egnn_jax.from_ase`.
      energy: w_E, in 1/eV² for labels in eV and Å.
      forces: w_F, in Å²/eV².
      stress: w_S, in Å⁶/eV².

    Raises:
      ValueError: a weight is not a finite number of at least 0, all are 0, or a term has a weight,
        but the batch has no labels for it.
    """
    weights = {"energy": energy, "forces": forces, "stress": stress}
    require_not_negative(**weights)
    if not any(weights.values()):
        raise ValueError("the weights of energy, forces and stress are 0; expected one above 0")
    apply = getattr(potential, "apply", potential)

    def loss(params: Any, batch: GraphsTuple, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        _require_labels(batch)
        outputs: Any = apply(params, batch)
        real_graphs, real_nodes = graph_mask(batch), node_mask(batch)
        n_node = jnp.maximum(total_nodes(batch), 1)[:, None]
        total, metrics = jnp.zeros(()), {}
        for name, predictions, labels, row_mask, scale in (
            ("energy", outputs.globals.y, batch.globals.y, real_graphs, 1 / n_node),
            ("forces", outputs.nodes.y, batch.nodes.y, real_nodes, 1),
            ("stress", outputs.globals.stress, batch.globals.stress, real_graphs, 1),
        ):
            if not weights[name]:
                continue
            if labels is None or predictions is None or jnp.shape(labels) != jnp.shape(predictions):
                shapes = [None if a is None else jnp.shape(a) for a in (labels, predictions)]
                raise ValueError(
                    f"the labels of {name} have shape {shapes[0]} and the predictions {shapes[1]}; "
                    "expected one shape"
                )
            mask = row_mask.reshape(-1, *(1,) * (labels.ndim - 1))
            error = jnp.where(mask, predictions - labels, 0)
            sums = (jnp.sum((error * scale) ** 2), jnp.sum(jnp.abs(error)), jnp.sum(row_mask))
            if row_mask is real_nodes:
                sums = sum_over_parts(batch, sums)
            squared_error, absolute_error, num_rows = sums
            count = jnp.maximum(num_rows * (labels.size // labels.shape[0]), 1)
            total += weights[name] * squared_error / count
            metrics[name] = (absolute_error, count)
        return total, metrics

    return loss


def _require_labels(batch: GraphsTuple) -> None:
    """Raise ValueError if ``batch`` is not a batch of graphs that can have labels."""
    require_geometric(batch)
    if not isinstance(batch.globals, Globals):
        raise ValueError(
            f"the batch's globals are of type {type(batch.globals).__name__}; expected egnn.Globals"
        )


def _regression(
    network: nn.Module | Callable[..., Any],
    error_function: Callable[[jax.Array], jax.Array],
    name: str,
) -> Loss:
    apply = getattr(network, "apply", network)

    def loss(params: Any, batch: GraphsTuple, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        _require_labels(batch)
        targets: Any = batch.globals.y
        outputs: Any = apply(params, batch)
        predictions = outputs.globals.y
        if (
            targets is None
            or jnp.ndim(targets) != 2
            or jnp.shape(predictions) != jnp.shape(targets)
        ):
            raise ValueError(
                f"the targets have shape {None if targets is None else jnp.shape(targets)} and "
                f"the predictions {jnp.shape(predictions)}; expected one shape (G, T): y of each "
                "graph, and as many outputs"
            )
        mask = graph_mask(batch)[:, None]
        total = jnp.sum(jnp.where(mask, error_function(predictions - targets), 0))
        count = jnp.sum(mask) * targets.shape[1]
        return total / jnp.maximum(count, 1), {name: (total, count)}

    return loss
