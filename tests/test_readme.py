import dataclasses
import re

from egnn_jax.experiments import config as configs
from egnn_jax.experiments.run import train
from tests.helpers import ROOT


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configs.load("autoencoder/egnn_fast")
    task = dataclasses.replace(config.task, dataset="erdos_renyi")
    config = dataclasses.replace(config, task=task, epochs=1, batch_size=50)
    train(config, "runs/autoencoder/erdos_renyi_egnn_fast")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 6
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["forces"].shape == (500, 3)
    assert names["x"].shape == (10, 5, 3)
    assert names["z"].shape == (10, 8)
    assert len(names["again"]) == 10
