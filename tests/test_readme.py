import dataclasses
import re
from pathlib import Path

from egnn_jax.experiments import config as configs
from egnn_jax.experiments.config import build_model
from egnn_jax.training.fit import fit

ROOT = Path(__file__).parent.parent


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configs.load(ROOT / "configs/autoencoder/erdos_renyi_egnn_fast.yaml")
    config = dataclasses.replace(config, epochs=1, batch_size=50)
    fit(config.task, build_model(config), config, "runs/autoencoder/erdos_renyi_egnn_fast")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 6
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["forces"].shape == (500, 3)
    assert names["x"].shape == (10, 5, 3)
    assert names["z"].shape == (10, 8)
    assert len(names["again"]) == 10
