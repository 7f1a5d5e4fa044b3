"""Requirements that a config must meet before it is trained."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from egnn_jax.data._splits import SPLITS
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.task import Task


def require_trainable(config: Config) -> None:
    """Raise ValueError if task or model lack a method, or their cutoffs are inconsistent."""
    _require_methods(config.task, config.model)
    cutoffs: list[Any] = [
        getattr(options, "cutoff", None) for options in (config.task, config.model)
    ]
    if all(isinstance(cutoff, int | float) for cutoff in cutoffs):
        task_cutoff, model_cutoff = cutoffs
        if model_cutoff > task_cutoff:
            raise ValueError(
                f"model.cutoff is {model_cutoff} and task.cutoff {task_cutoff}, where the edges of "
                "the graphs end, so that messages would end there abruptly; expected a "
                "model.cutoff of at most task.cutoff"
            )


def samples(config: Config, split: str) -> Any:
    """The samples of a split.

    Raises:
      ValueError: they have no method ``loader``, or a graph is too large for the model.
    """
    task: Any = config.task
    dataset = task.samples(split)
    if not callable(getattr(dataset, "loader", None)):
        raise ValueError(
            f"{type(task).__name__}.samples({split!r}) is a {type(dataset).__name__}; expected "
            "what has loader(batch_size, seed), such as a GraphDataset"
        )
    n_node = getattr(dataset, "n_node", ())
    require_room(config.model, n_node, lambda k: f"graph {k} of {split}")
    return dataset


def require_room(model: Any, n_node: Any, name: Callable[[int], str]) -> None:
    """Raise ValueError if a graph has more nodes than a model's ``max_nodes``, if it has this.

    Within ``jit``, where models cannot raise it, NMP's h of such a graph is NaN.

    Args:
      model: the model.
      n_node: the number of nodes of each graph (S,).
      name: the name of the graph of this index, in the message.
    """
    max_nodes = getattr(model, "max_nodes", None)
    if max_nodes is not None and len(n_node) and np.max(n_node) > max_nodes:
        k = int(np.argmax(n_node))
        raise ValueError(
            f"{name(k)} has {n_node[k]} nodes; expected at most model.max_nodes, {max_nodes}"
        )


def _require_methods(task: Any, model: Any) -> None:
    name = type(task).__name__
    if not isinstance(task, Task):
        raise ValueError(f"task is a {name}; expected a subclass of egnn_jax.Task")
    for method, arguments in (("samples", f"split, one of {SPLITS}"), ("loss", "apply")):
        if getattr(type(task), method) is getattr(Task, method):
            raise ValueError(
                f"{name} has no method {method}; expected {method}({arguments}), see egnn_jax.Task"
            )
    name = type(model).__name__
    has_call = any("__call__" in vars(cls) for cls in type(model).__mro__ if cls is not nn.Module)
    if not isinstance(model, nn.Module) or not has_call:
        raise ValueError(
            f"model is a {name} without __call__(graph); expected a flax module, graph to graph"
        )
