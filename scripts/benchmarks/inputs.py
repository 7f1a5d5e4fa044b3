"""Inputs that all contenders of a case share: samples, batches, our network and its parameters."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from egnn_jax.data.loader import DatasetLoader
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.qm9 import QM9
from egnn_jax.training.state import init_state


class Setting(NamedTuple):
    """Settings for timing a case.

    Attributes:
      recipe: the config of the task and our network.
      batch_size: samples per batch.
      batches: number of different batches per measurement.
      scans: number of passes over the batches in one call of our training step, so that a call has
        about as many steps as one of ``fit``.
    """

    recipe: str
    batch_size: int
    batches: int
    scans: int


SETTINGS = {
    "nbody": Setting("nbody/egnn", 100, 30, 5),
    "autoencoder_1": Setting("autoencoder/egnn", 1, 100, 2),
    "autoencoder_32": Setting("autoencoder/egnn", 32, 20, 5),
    "qm9": Setting("qm9/egnn", 96, 4, 3),
}

MOLECULES = 9_600
"""Number of QM9 molecules from which batches are drawn."""


class Unavailable(Exception):
    """A contender cannot run the case here; the message says why."""


class Inputs:
    """The task of a case, its samples, our network and the state of its training."""

    def __init__(self, case: str) -> None:
        self.setting = SETTINGS[case]
        config = configs.load(self.setting.recipe)
        if isinstance(config.task, QM9):
            task = dataclasses.replace(config.task, train_size=MOLECULES)
            config = dataclasses.replace(config, task=task)
        self.config = dataclasses.replace(config, batch_size=self.setting.batch_size)
        self.task: Any = self.config.task
        self.network = self.config.network()
        self.samples: Any = self.task.samples("train")
        self.loader: DatasetLoader = self.samples.loader(self.setting.batch_size)
        steps = self.loader.num_batches(0)
        self.optimizer = self.config.optimizer.build(steps, self.config.epochs * steps)
        self.key = jax.random.PRNGKey(0)
        graph = jax.eval_shape(self.task.graph, self.first(), self.key)
        params = self.network.lazy_init(jax.random.split(self.key)[0], graph)
        self.state = jax.device_get(init_state(params, self.optimizer, False, self.key))

    def rows(self, shards: int) -> np.ndarray:
        """Sample indices of each batch (K, shards, B/shards), the first batches of an epoch."""
        return self.loader.rows(0, shards)[: self.setting.batches]

    def stacked(self, shards: int, scans: int = 1) -> Any:
        """Stacked batches (scans·K, shards, …)."""
        return self.samples.pack(np.tile(self.rows(shards), (scans, 1, 1)))

    def batches(self) -> Any:
        """The batches (K, …) for one device."""
        return jax.tree.map(lambda a: a[:, 0], self.stacked(1))

    def first(self) -> Any:
        """The first batch."""
        return jax.tree.map(lambda a: a[0], self.batches())

    def noise(self) -> np.ndarray:
        """The random coordinates that our autoencoder gets for the first batch (N, n)."""
        return np.asarray(self.task.graph(self.first(), self.key).nodes.x)


@functools.cache
def inputs_of(case: str) -> Inputs:
    """The inputs of a case, created once per process."""
    return Inputs(case)
