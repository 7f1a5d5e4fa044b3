"""What is asked of a model: inputs, readout, loss and metrics; and the registry that names the tasks."""

from egnn_jax.tasks.autoencoder import GraphAutoencoder
from egnn_jax.tasks.base import Task
from egnn_jax.tasks.nbody import NBody
from egnn_jax.tasks.qm9 import QM9

TASKS: dict[str, type[Task]] = {"nbody": NBody, "autoencoder": GraphAutoencoder, "qm9": QM9}
"""What a config's ``task.name`` may be. A new task is one file and one line here."""

__all__ = ["QM9", "TASKS", "GraphAutoencoder", "NBody", "Task"]
