"""Requirements that a config must meet before it is trained."""

from typing import Any

import flax.linen as nn

from egnn_jax.data._splits import SPLITS
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.task import Task


def require_trainable(config: Config) -> None:
    """Raise ValueError if task or model lack a method, or their cutoffs are inconsistent."""
    _require_methods(config.task, config.model)
    cutoffs: list[Any] = [getattr(part, "cutoff", None) for part in (config.task, config.model)]
    if all(isinstance(cutoff, int | float) for cutoff in cutoffs):
        of_task, of_model = cutoffs
        if of_model > of_task:
            raise ValueError(
                f"model.cutoff is {of_model} and task.cutoff {of_task}, where the edges of the "
                "graphs end, so that messages would end there abruptly; expected a model.cutoff of "
                "at most task.cutoff"
            )


def samples(task: Task, split: str) -> Any:
    """The samples of a split.

    Raises:
      ValueError: they have no method ``loader``.
    """
    found = task.samples(split)
    if not callable(getattr(found, "loader", None)):
        raise ValueError(
            f"{type(task).__name__}.samples({split!r}) is a {type(found).__name__}; expected what "
            "has loader(batch_size, seed), such as a GraphDataset"
        )
    return found


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
    calls = any("__call__" in vars(cls) for cls in type(model).__mro__ if cls is not nn.Module)
    if not isinstance(model, nn.Module) or not calls:
        raise ValueError(
            f"model is a {name} without __call__(graph); expected a flax module, graph to graph"
        )
