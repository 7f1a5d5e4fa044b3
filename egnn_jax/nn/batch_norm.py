"""Batch normalization as a pure function, with running statistics in a separate collection."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple, dtype_of_sums

COLLECTION = "batch_stats"
"""The variable collection that holds running means and variances, next to "params"."""


def in_training(
    apply: Callable[..., Any], variables: Mapping[str, Any], graph: GraphsTuple
) -> tuple[Any, dict[str, Any]]:
    """Apply a model in training mode; return its output and the updated ``{"batch_stats": …}``, or
    {} if the model has no running statistics.

    A loss returns them as ``{egnn_jax.training.step.STATISTICS: …}`` alongside its value.
    """
    if COLLECTION not in variables:
        return apply(variables, graph), {}
    return apply(variables, graph, mutable=[COLLECTION])


class BatchNorm(nn.Module):
    """Batch normalization γ (x - μ) / √max(σ², ε) + β of each channel (Ioffe and Szegedy 2015).

    √max(σ², ε) is that of LieConv's authors, in place of the usual √(σ² + ε).

    ``apply(variables, graph)`` takes μ and σ² from the running statistics, so the output depends
    neither on the other graphs of a batch nor on padding. In training, ``apply(variables, graph,
    mutable=["batch_stats"])`` takes the mean and the variance over all real rows; with several
    devices or micro-batches, over those of each. It also returns the running statistics, updated to
    (1 - momentum) · old + momentum · new, with the new mean and unbiased variance.

    Call: takes x (M, C) and a mask of real rows (M,), or None if all are; returns (M, C).
    """

    epsilon: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        dtype = dtype_of_sums(x)
        shape = x.shape[-1:]
        running_mean = self.variable(COLLECTION, "mean", jnp.zeros, shape, dtype)
        running_var = self.variable(COLLECTION, "var", jnp.ones, shape, dtype)
        scale = self.param("scale", nn.initializers.ones, shape, x.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, x.dtype)
        mean, var = running_mean.value.astype(dtype), running_var.value.astype(dtype)
        if self.is_mutable_collection(COLLECTION) and not self.is_initializing():
            x_cast = x.astype(dtype)
            weight: Any = jnp.ones(x.shape[:1], dtype) if mask is None else mask.astype(dtype)
            count = jnp.maximum(jnp.sum(weight), 1)
            mean = weight @ x_cast / count
            var = weight @ (x_cast - mean) ** 2 / count
            unbiased_var = var * count / jnp.maximum(count - 1, 1)
            for running, new in ((running_mean, mean), (running_var, unbiased_var)):
                running.value += self.momentum * (new.astype(running.value.dtype) - running.value)
        else:
            mean, var = jax.lax.stop_gradient((mean, var))
        factor = jax.lax.rsqrt(jnp.maximum(var, self.epsilon))
        return ((x.astype(dtype) - mean) * factor).astype(x.dtype) * scale + bias
