"""What is asked of a model: inputs, readout, loss and metrics; and the registry that names the
tasks.
"""

from egnn_jax.experiments.autoencoder import GraphAutoencoder
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.qm9 import QM9
from egnn_jax.experiments.task import Task

TASKS: dict[str, type[Task]] = {"nbody": NBody, "autoencoder": GraphAutoencoder, "qm9": QM9}
"""What a config's ``task.name`` may be. A new task is one file and one line here."""

__all__ = ["QM9", "TASKS", "GraphAutoencoder", "NBody", "Task"]
