"""Checks of the arguments of ``fit``, made before anything is written."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.training.callbacks import METHODS
from egnn_jax.training.step import STATISTICS, Loss


def require_optimizer(optimizer: Any) -> None:
    """Raise ValueError if ``optimizer`` is not an optax gradient transformation."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"optimizer is {optimizer!r}; expected an optax gradient transformation, such as "
            "optax.adam(1e-3)"
        )


def require_callbacks(callbacks: Any) -> None:
    """Raise ValueError if a callback has none of the methods of ``Callback``."""
    if not isinstance(callbacks, Sequence):
        raise ValueError(f"callbacks are {callbacks!r}; expected a list of them")
    for callback in callbacks:
        if isinstance(callback, type) or not any(hasattr(callback, name) for name in METHODS):
            raise ValueError(
                f"a callback is {callback!r}; expected an object with some of the methods "
                f"{', '.join(METHODS)}, see egnn_jax.Callback"
            )


def require_path(path: Path) -> None:
    """Raise ValueError if Orbax could not read the checkpoints that it writes to a folder."""
    if forbidden := [c for c in "[\\" if c in str(path) and c != os.sep]:
        raise ValueError(
            f"{path} has a {forbidden[0]} in its path; expected a folder without [ and \\"
        )


def require_settings(settings: Any, name: str = "settings") -> None:
    """Raise ValueError if settings are not plain values by name, which YAML and JSON can hold."""
    if name == "settings" and not isinstance(settings, Mapping):
        raise ValueError(f"settings is a {type(settings).__name__}; expected values by name")
    if name.count(".") > 100:
        return  # a mapping that contains itself is refused where it is written
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if not isinstance(key, str):
                raise ValueError(f"{name} has the key {key!r}; expected text as keys")
            require_settings(value, f"{name}.{key}")
    elif isinstance(settings, list | tuple):
        for k, value in enumerate(settings):
            require_settings(value, f"{name}.{k}")
    elif type(settings) not in (type(None), bool, int, float, str):
        raise ValueError(
            f"{name} is a {type(settings).__name__}; expected text, a number, a boolean, None, a "
            "list or a mapping"
        )


def require_parameters(params: Any, seeds: int) -> None:
    """Raise ValueError if ``params`` cannot be trained or lack a leading axis of several seeds."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(
            f"params are {params!r}; expected a tree of arrays, as from model.init(key, graph)"
        )
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        dtype, shape = jnp.result_type(leaf), jnp.shape(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(f"the parameter {name} is {dtype}; expected floating-point numbers")
        if seeds > 1 and shape[:1] != (seeds,):
            raise ValueError(
                f"the parameter {name} has shape {shape}; expected a leading axis of {seeds} seeds"
            )


def require_loss(loss: Loss, params: Any, batch: Any) -> None:
    """Raise ValueError if the loss does not return what :data:`.step.Loss` specifies."""
    if isinstance(loss, nn.Module) or not callable(loss):
        raise ValueError(
            f"the loss is a {type(loss).__name__}; expected a function (params, batch, key) -> "
            "(scalar, metrics), such as egnn.losses.mean_absolute_error(network)"
        )
    out = jax.eval_shape(loss, params, batch, jax.random.PRNGKey(0))
    if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)):
        shapes = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", out)
        raise ValueError(
            f"the loss returned {shapes}; expected (scalar, metrics), metrics a dict that may be "
            "empty"
        )
    value = out[0]
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        shapes = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", value)
        raise ValueError(f"the loss is {shapes}; expected a scalar of floating point, ()")
    # Flax keeps running statistics in the collection "batch_stats".
    has_batch_stats = isinstance(params, Mapping) and "batch_stats" in params
    if has_batch_stats and "batch_stats" not in (out[1].get(STATISTICS) or {}):
        raise ValueError(
            "the loss does not return the running statistics 'batch_stats', which would stay as "
            f"they are; expected metrics with {{{STATISTICS!r}: …}}, see docs/training.md"
        )


def require_metrics(metrics: Callable[..., Any], params: Any, batch: Any, monitor: str) -> None:
    """Raise ValueError if the metrics are not a dict that contains ``monitor``, a single number."""
    out = jax.eval_shape(metrics, params, batch, jax.random.PRNGKey(0))
    if not isinstance(out, dict):
        shapes = jax.tree.map(lambda a: a.shape, out)
        raise ValueError(f"metrics returned {shapes}; expected a dict of metrics by name")
    if monitor not in out:
        raise ValueError(f"monitor is {monitor!r}; expected one of {sorted(out)}")
    if shapes := [leaf.shape for leaf in jax.tree.leaves(out[monitor]) if leaf.shape]:
        raise ValueError(f"monitor {monitor!r} has the shape {shapes[0]}; expected a single number")
