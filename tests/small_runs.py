"""Runs of seconds on made-up molecules, for what is tested around a training."""

import numpy as np

import egnn_jax as egnn
from egnn_jax.data import qm9
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.optimizer import Optimizer
from egnn_jax.experiments.qm9 import QM9

SIZES = {"train": 16, "valid": 8, "test": 8}


def molecules():
    """A data set of the form of QM9, with few and random molecules."""
    rng = np.random.default_rng(0)
    number = sum(SIZES.values())
    n_atoms = rng.integers(3, 6, number)
    total = n_atoms.sum()
    return qm9.QM9(
        index=np.arange(number),
        n_atoms=n_atoms,
        atomic_numbers=rng.choice(list(qm9.ELEMENTS.values()), total).astype(np.int8),
        positions=rng.normal(size=(total, 3)).astype(np.float32),
        targets={name: 100 + 50 * rng.normal(size=number) for name in qm9.TARGETS},
        splits=dict(zip(SIZES, np.split(np.arange(number), [16, 24]), strict=True)),
    )


def config(**options):
    """A config of two steps an epoch; its weight decay moves every parameter that may move."""
    defaults = {
        "task": QM9(targets=("homo", "U0")),
        "model": egnn.EGNN(4, 2, update_coordinates=False),
        "optimizer": Optimizer("adamw", learning_rate=1e-2, weight_decay=0.1),
        "epochs": 2,
        "batch_size": 8,
        "eval_every": 1,
    }
    return Config(**defaults | options)
