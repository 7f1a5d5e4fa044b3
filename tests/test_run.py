"""Experiments from a config, made short: results, seeds, refusals, what a run folder holds."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egnn_jax.data.loader import ArrayDataset
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import run as experiments
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.run import load, train
from egnn_jax.registry import TASKS
from egnn_jax.training import loop
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.evaluation import Evaluation
from tests.helpers import tiny


def test_a_whole_run_compiles_training_and_evaluation_once(tmp_path, monkeypatch):
    traces, evaluations = [], []
    make, metrics = loop.make_step, NBody.metrics

    def counted(*arguments):
        step = make(*arguments)
        return lambda *inputs: (traces.append(1), step(*inputs))[1]

    def counted_metrics(task, apply):
        found = metrics(task, apply)
        return lambda *inputs: (evaluations.append(1), found(*inputs))[1]

    monkeypatch.setattr(loop, "make_step", counted)
    monkeypatch.setattr(NBody, "metrics", counted_metrics)
    train(tiny(epochs=6), tmp_path)
    assert len(traces) == 1
    # Checked, for fit, at the end for valid and test, and for the trivial prediction.
    assert len(evaluations) == 5


@pytest.mark.parametrize("seeds", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_micro_batches_change_nothing_but_rounding(tmp_path, seeds):
    whole, parts = (
        train(tiny(seeds=seeds, micro_batches=micro), tmp_path / str(micro)) for micro in (1, 5)
    )
    for split in ("valid", "test"):
        np.testing.assert_allclose(
            parts["metrics"][split]["mse"], whole["metrics"][split]["mse"], rtol=1e-4
        )


def test_result_holds_metrics_config_and_versions(tmp_path):
    config = tiny(epochs=2)
    result = train(config, tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored.pop("sha256")
    assert result == stored == RunFolder(tmp_path).result()
    assert {"metrics", "best_epoch", "seconds", "config", "versions"} <= set(result)
    assert set(result["metrics"]) == {"valid", "test"}
    assert configs.from_dict(result["config"]) == config
    assert result["versions"]["jax"] == jax.__version__
    config, network, params = load(tmp_path)
    metrics, samples = config.task.metrics(network.apply), config.task.samples("test")
    value = Evaluation(metrics, samples.loader(config.batch_size))(params)["mse"]
    batch = samples.pack(np.arange(2_000))
    predicted = np.asarray(config.task.predict(network.apply, params, batch))
    np.testing.assert_allclose(value, np.mean((predicted - batch.target) ** 2), rtol=1e-5)
    np.testing.assert_allclose(result["metrics"]["test"]["mse"], value, rtol=1e-6)
    assert result["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_best_is_the_epoch_with_the_smallest_validation_error(tmp_path):
    result = train(tiny(epochs=12, optimizer={"learning_rate": 0.1}), tmp_path)
    values = [entry["valid"]["mse"] for entry in RunFolder(tmp_path).history()]
    assert result["best_epoch"] == 1 + int(np.argmin(values))
    np.testing.assert_allclose(result["metrics"]["valid"]["mse"], min(values), rtol=1e-6)


def test_patience_stops_early(tmp_path):
    result = train(tiny(epochs=300, patience=2, optimizer={"learning_rate": 0.3}), tmp_path)
    assert RunFolder(tmp_path).history()[-1]["epoch"] == result["best_epoch"] + 2


def test_seeds_are_one_vmapped_state(tmp_path):
    config = tiny(seeds=3, epochs=2, optimizer={"learning_rate": 1e-3})
    result = train(config, tmp_path / "three")
    ones = [train(dataclasses.replace(config, seeds=1), tmp_path / "one")]
    values = result["seeds"]["test"]["mse"]
    assert len(set(values)) == 3
    np.testing.assert_allclose(values[0], ones[0]["metrics"]["test"]["mse"], rtol=1e-4)
    np.testing.assert_allclose(result["metrics"]["test"]["mse"], np.mean(values), rtol=1e-6)
    np.testing.assert_allclose(result["std"]["test"]["mse"], np.std(values, ddof=1), rtol=1e-6)
    assert len(result["best_epoch"]) == 3


class Changed(ArrayDataset):
    """Training samples of which the third chunk is changed."""

    def __init__(self, arrays, change):
        super().__init__(arrays)
        self.change, self.calls = change, -1  # the first pack only serves to find out shapes

    def pack(self, rows):
        batch = super().pack(rows)
        self.calls += 1
        if self.calls == 3:
            self.change(batch)
        return batch


@dataclasses.dataclass(frozen=True)
class Poisoned(NBody):
    def samples(self, split):
        samples = super().samples(split)
        if split == "train" and not isinstance(samples, Changed):
            samples = self._splits[split] = Changed(samples.arrays, self.change)
        return samples

    def change(self, batch):
        batch.x[1, 0, 0, 0] = np.nan


@dataclasses.dataclass(frozen=True)
class Flat(Poisoned):
    """Its loss is finite, but has no gradient in the third step."""

    def change(self, batch):
        batch.x[..., 0, 0, 0] = 7.0

    def loss(self, apply):
        usual = super().loss(apply)

        def loss(params, batch, key):
            value, metrics = usual(params, batch, key)
            inside = jnp.where(batch.x[0, 0, 0] == 7.0, 0.0 * value, 1.0)
            return value + jnp.sqrt(inside), metrics

        return loss


@dataclasses.dataclass(frozen=True)
class Blind(NBody):
    def metrics(self, apply):
        usual = super().metrics(apply)

        def metrics(params, batch, key):
            total, number = usual(params, batch, key)["mse"]
            return {"mse": (total * jnp.nan, number)}

        return metrics


@pytest.fixture
def registered():
    """Tasks of this file, registered for one test."""
    classes = {"poisoned": Poisoned, "flat": Flat, "blind": Blind}
    for name, cls in classes.items():
        TASKS.register(name)(cls)
    yield
    for name in classes:
        del TASKS._classes[name]


def test_nan_stops_the_run_and_names_step_batch_and_checkpoint(tmp_path, registered):
    config = tiny(epochs=8, task={"name": "poisoned", "train_size": 210})
    with pytest.raises(
        FloatingPointError,
        match=r"step 5 \(epoch 3, batch 2 of 2\); the last good checkpoint is "
        r".*/checkpoints/last/4",
    ):
        train(config, tmp_path)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_validation_value_that_never_is_finite_is_no_result(tmp_path, registered, seeds):
    config = tiny(seeds=seeds, task={"name": "blind", "train_size": 210})
    with pytest.raises(FloatingPointError, match="mse of the validation samples was never finite"):
        train(config, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_parameters_that_are_not_finite_are_no_checkpoint(tmp_path, registered):
    config = tiny(chunk_steps=1, task={"name": "flat", "train_size": 210})
    with pytest.raises(
        FloatingPointError,
        match=r"parameters are not finite after step 3; the last good checkpoint is .*/last/2",
    ):
        train(config, tmp_path)


def test_reading_a_run_leaves_alone_what_is_being_written(tmp_path):
    train(tiny(epochs=1), tmp_path)
    unfinished = tmp_path / "checkpoints" / "best" / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    load(tmp_path)
    assert unfinished.exists()


def test_another_config_in_the_same_folder_is_refused(tmp_path):
    train(tiny(epochs=1), tmp_path)
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate 0\.01 -> 0\.5"):
        train(tiny(epochs=1, optimizer={"learning_rate": 0.5}), tmp_path)
    assert configs.from_dict(RunFolder(tmp_path).settings()) == tiny(epochs=1)


def test_a_run_extended_by_another_process_at_its_end_gets_no_result(tmp_path, monkeypatch):
    judge = experiments.judge

    def extended(*arguments):
        RunFolder(tmp_path).extend(400)
        return judge(*arguments)

    monkeypatch.setattr(experiments, "judge", extended)
    with pytest.raises(ValueError, match="epochs 400 -> 1"):
        train(tiny(epochs=1), tmp_path)
    assert not RunFolder(tmp_path).result_file.exists()


def test_a_finished_run_is_not_trained_again(tmp_path):
    result = train(tiny(epochs=1), tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert train(tiny(epochs=1), tmp_path) == result
    assert (tmp_path / "metrics.jsonl").read_text() == lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 211}, "batch_size is 211; expected at most"),
        (
            {"task": {"name": "nbody", "train_size": 3_001}},
            "task.train_size is 3001; expected 1 to 3000",
        ),
        ({"task": {"name": "nbody", "train_size": 0}}, "task.train_size is 0"),
        ({"model": {"name": "egnn", "layers": 0}}, "layers is 0"),
    ],
)
def test_nonsense_sizes_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nan_in_the_data_is_found_before_training(tmp_path, monkeypatch):
    from egnn_jax.data import nbody

    real = nbody.load

    def poisoned(name, split):
        data = real(name, split)
        if split == "valid":
            data.v[7, 0, 0] = np.nan
        return data

    monkeypatch.setattr(nbody, "load", poisoned)
    with pytest.raises(ValueError, match=r"the valid split .* v of sample 7 is not finite"):
        train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run"):
        load(tmp_path)
    folder = RunFolder(tmp_path)
    folder.start(configs.to_dict(tiny()))
    folder.close()
    with pytest.raises(ValueError, match="no checkpoint 'best'"):
        load(tmp_path)
    with pytest.raises(ValueError, match="not complete"):
        RunFolder(tmp_path).result()
