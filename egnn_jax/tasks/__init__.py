"""What is asked of a model: inputs, readout, loss and metrics; and the registry that names the tasks."""

from egnn_jax.tasks.autoencoder import GraphAutoencoder
from egnn_jax.tasks.base import Task
from egnn_jax.tasks.nbody import NBody

TASKS: dict[str, type[Task]] = {"nbody": NBody, "autoencoder": GraphAutoencoder}
"""What a config's ``task.name`` may be. A new task is one file and one line here."""

__all__ = ["TASKS", "GraphAutoencoder", "NBody", "Task"]
