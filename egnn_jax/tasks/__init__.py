"""What is asked of a model: inputs, readout, loss and metrics; and the registry that names the tasks."""

from egnn_jax.tasks.base import Task
from egnn_jax.tasks.nbody import NBody

TASKS: dict[str, type[Task]] = {"nbody": NBody}
"""What a config's ``task.name`` may be. A new task is one file and one line here."""

__all__ = ["TASKS", "NBody", "Task"]
