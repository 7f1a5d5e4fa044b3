"""A task's metrics over whole splits, and what a run tells of them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from egnn_jax.experiments import Task
from egnn_jax.experiments.config import Config
from egnn_jax.training.step import AXIS, layout, make_evaluate


class Evaluation:
    """The task's metrics over whole splits, compiled once: (params, split) -> {metric: value,
    (seeds,) if several}.
    """

    def __init__(self, task: Task, model: nn.Module, config: Config) -> None:
        mesh, parts = layout(config)
        self.task, self.config, self._width = task, config, config.batch_size // parts
        self._devices, self._spread = mesh.size, NamedSharding(mesh, PartitionSpec(None, AXIS))
        self._evaluate = make_evaluate(task, model.apply, config.seeds, mesh)
        self._packed: dict[str, Any] = {}

    def __call__(self, params: Any, split: str, draw: int = 0) -> dict[str, jax.Array]:
        """Evaluate a split ("train", "valid" or "test"), the last batch filled with padding;
        ``draw`` numbers the key.
        """
        if split not in self._packed:
            size = self.task.size(split)
            steps = -(-size // self._width)
            rows = np.full(steps * self._width, -1)
            rows[:size] = np.arange(size)
            dealt = self.task.deal(split, rows, steps, self._devices, np.random.default_rng(0))
            self._packed[split] = jax.device_put(self.task.pack(split, dealt), self._spread)
        return self._evaluate(
            params,
            self._packed[split],
            jax.random.fold_in(jax.random.PRNGKey(self.config.seed), draw),
        )


def summary(evaluate: Evaluation, params: Any) -> dict[str, Any]:
    """``metrics`` on valid and test: the mean over the task's ``draws``, with ``first_draw`` where
    there are several.

    Where there are several seeds, the mean over them, with ``std`` and ``seeds``.
    """
    draws = {
        split: [evaluate(params, split, draw) for draw in range(evaluate.task.draws)]
        for split in ("valid", "test")
    }
    every = {
        split: {name: np.array([m[name] for m in each], np.float64) for name in each[0]}
        for split, each in draws.items()
    }
    values = _each(every, lambda a: a.mean(axis=0))
    result = {"metrics": _each(values, lambda a: float(a.mean()))}
    if evaluate.task.draws > 1:
        result |= {"first_draw": _each(every, lambda a: float(a[0].mean()))}
    if evaluate.config.seeds > 1:
        result |= {
            "std": _each(values, lambda a: float(a.std(ddof=1))),
            "seeds": _each(values, lambda a: a.tolist()),
        }
    return result


def _each(
    tree: dict[str, dict[str, np.ndarray]], f: Callable[[np.ndarray], Any]
) -> dict[str, dict[str, Any]]:
    return {
        split: {name: f(value) for name, value in metrics.items()}
        for split, metrics in tree.items()
    }
