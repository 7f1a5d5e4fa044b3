"""What a run says of its numbers, and what more epochs mean for it."""

import json

import numpy as np
import pytest

from egnn_jax.cli import main
from egnn_jax.experiments.export import load_pretrained
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.outcome import judge
from egnn_jax.experiments.run import initial_parameters, load, network_input, train
from egnn_jax.experiments.start import weights_of
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.evaluation import Evaluation
from egnn_jax.training.plan import FitResult
from tests.helpers import equal_runs, tiny


@pytest.mark.slow
def test_more_epochs_equal_those_in_one_go(tmp_path):
    short = train(tiny(epochs=2), tmp_path / "run")
    train(tiny(epochs=3), tmp_path / "run")
    long = train(tiny(epochs=4), tmp_path / "run")
    assert long == train(tiny(epochs=4), tmp_path / "run")
    assert len(RunFolder(tmp_path / "run").history()) == 4
    assert long["metrics"] != short["metrics"]
    assert load(tmp_path / "run")[0] == tiny(epochs=4)
    train(tiny(epochs=4), tmp_path / "straight")
    equal_runs(tmp_path / "run", tmp_path / "straight")


@pytest.mark.slow
def test_an_extension_that_was_stopped_still_has_its_checkpoints(tmp_path):
    train(tiny(epochs=2), tmp_path / "run")
    RunFolder(tmp_path / "run").extend(4)
    with pytest.warns(UserWarning, match="its training is not complete"):
        config, _, _ = load(tmp_path / "run")  # checks the SHA-256 of the checkpoint
    assert config.epochs == 4
    train(config, tmp_path / "run")
    train(tiny(epochs=4), tmp_path / "straight")
    equal_runs(tmp_path / "run", tmp_path / "straight")


def test_epochs_that_would_mean_something_else_are_refused(tmp_path):
    cosine = {"schedule": "cosine", "learning_rate": 1e-2}
    train(tiny(epochs=2, optimizer=cosine), tmp_path / "run")
    with pytest.raises(ValueError, match=r"going on would give neither run.* --init .*run"):
        train(tiny(epochs=4, optimizer=cosine), tmp_path / "run")
    with pytest.raises(ValueError, match="a run of 2 epochs and the config has 1; expected as"):
        train(tiny(epochs=1, optimizer=cosine), tmp_path / "run")
    with pytest.raises(ValueError, match="other settings"):
        train(tiny(epochs=4), tmp_path / "run")
    assert RunFolder(tmp_path / "run").result()["metrics"]


def test_an_explosion_is_said_and_what_was_good_is_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--task.train-size", "20", "--batch-size", "10", "--eval-every", "1"]
    options += ["--model.features", "4", "--model.layers", "1", "--epochs", "5", "--run", "run"]
    for _ in range(2):  # the second time the result is read
        with pytest.raises(SystemExit) as stop:
            main(["train", "nbody/egnn", *options, "--optimizer.learning-rate", "3"])
        assert "the training exploded" in str(stop.value)
        said = capsys.readouterr().err
        assert "no better than" in said
        assert "of a trivial prediction (no motion)" in said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["exploded"] is True
    assert len(result["notes"]) == 2
    assert np.isfinite(result["metrics"]["valid"]["mse"])
    for use, *arguments in (
        (main, ["evaluate", "run"]),  # and so whatever loads a run, such as report
        (main, ["export", "run", "it.safetensors"]),
        (load_pretrained, "it.safetensors"),
        (weights_of, "run"),  # of train --init
    ):
        with pytest.warns(UserWarning, match=r"(run|it\.safetensors): its training exploded"):
            use(*arguments)


def judged(history, best):
    """What is said of a run with this history."""
    config = tiny(epochs=max(len(history), 1))
    network = config.network()
    params = initial_parameters(config, network, network_input(config))
    return judge(config, network, FitResult(params, best, 1, history, 1.0))


@pytest.mark.parametrize(("best", "exploded"), [(1e9, True), (1e-9, False)])
def test_a_run_whose_metrics_were_deleted_is_judged_by_its_best_value(best, exploded):
    assert judged([], best).get("exploded", False) == exploded


@pytest.mark.parametrize(("learned", "exploded"), [(True, False), (False, True)])
def test_overfitting_is_no_explosion(learned, exploded):
    history = [
        {"train": {"loss": 1.0}, "valid": {"mse": 1.0}},
        {"train": {"loss": 0.1 if learned else 2.0}, "valid": {"mse": 1e6}},
    ]
    found = judged(history, best=0.01)
    assert found.get("exploded", False) is exploded


def test_tasks_without_metrics_are_judged_by_their_loss(monkeypatch):
    monkeypatch.setattr(NBody, "metrics", lambda self, apply: None)
    monkeypatch.setattr(NBody, "metric", "loss")
    found = judged([], best=1e9)
    assert 0 < found["trivial"]["loss"] < 10
    assert found["exploded"]
    assert "no better than" in found["notes"][0]


def test_a_trivial_prediction_without_error_is_no_explosion(monkeypatch):
    monkeypatch.setattr(NBody, "trivial", lambda self, apply: ("itself", apply))
    monkeypatch.setattr(Evaluation, "__call__", lambda self, params: {"mse": 0.0})
    history = [{"train": {"loss": 1.0}, "valid": {"mse": 0.1}}]
    found = judged(history, best=0.1)
    assert "exploded" not in found
    assert "no better than 0 of a trivial prediction (itself)" in found["notes"][0]


def test_a_good_run_has_nothing_to_say(tmp_path):
    result = train(tiny(epochs=4), tmp_path / "run")
    data = tiny().task.samples("valid").arrays
    still = np.mean((data.x - data.target) ** 2)
    np.testing.assert_allclose(result["trivial"]["mse"], still, rtol=1e-5)
    assert result["trivial"]["answer"] == "no motion"
    assert result["metrics"]["valid"]["mse"] < still
    assert "notes" not in result
    assert "exploded" not in result
