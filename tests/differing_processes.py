"""One of two processes that would train different things; see test_processes_differ.py.

Arguments: the coordinator and the number of the process; or "make", for a run that is to differ.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

import egnn_jax as egnn
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.run import train
from tests.helpers import tiny

address, *rest = sys.argv[1:]
number = int(rest[0]) if rest else 0
jax.config.update("jax_num_cpu_devices", 1 if rest else 2)
if rest:
    jax.distributed.initialize(address, num_processes=2, process_id=number)

SHARED = Path.cwd().parent
HERE = "/proc/self/cwd"
"""Of each process its own folder, under one name, as on two machines that share no disk."""


def loss(params, batch, key):
    return (params["w"] ** 2).sum() + 0.0 * batch["a"].sum(), {}


def fit(folder, rate=0.1, valid=2, **options):
    data = egnn.ArrayDataset({"a": np.ones((6, 1), np.float32)})
    loader = data.loader(2)
    params = {"w": jax.numpy.ones(2)}
    options = {"epochs": 3, "callbacks": (), "checkpoint_seconds": 0.0} | options
    return egnn.fit(
        loss, params, loader, data.loader(valid), optax.sgd(rate), folder=folder, **options
    )


def train_with_other_test():
    usual = NBody.samples
    if number:
        NBody.samples = lambda self, split: usual(self, "valid" if split == "test" else split)
    try:
        train(tiny(), SHARED / "tested")
    finally:
        NBody.samples = usual


def extended():
    fit(SHARED / "extended", epochs=1)
    before = (SHARED / "extended/config.yaml").read_text("utf-8")
    try:
        fit(SHARED / "extended", epochs=2 + number)
    finally:
        assert (SHARED / "extended/config.yaml").read_text("utf-8") == before


CASES = {
    "optimizer": lambda: fit(None, rate=0.1 + number),
    "optimizer and folder": lambda: fit(SHARED / "rate", rate=0.1 + number),
    "eval_every": lambda: fit(SHARED / "often", eval_every=1 + number),
    "test": train_with_other_test,
    "epochs": extended,
    "folder": lambda: fit(f"{HERE}/run"),
    "validation batches of 3": lambda: fit(None, valid=3),
}

if not rest:
    fit(f"{HERE}/run")
    sys.exit()
for name, case in CASES.items():
    try:
        case()
        print(f"{name}: trained")
    except ValueError as error:
        print(f"{name}: {error}".replace("\n", " "))
