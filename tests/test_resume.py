"""Training that is stopped, in whatever way, and goes on: the same numbers, bit for bit."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import egnn_jax as egnn
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.run import load, train
from egnn_jax.training import loop
from egnn_jax.training.checkpoint import RunFolder
from tests.helpers import egnn_command, environment, equal_runs, interrupt, tiny


@pytest.mark.parametrize(
    ("eval_every", "stopped"),
    [
        pytest.param(1, 4, id="at an evaluation", marks=pytest.mark.slow),
        pytest.param(2, 3, id="in mid-epoch"),
        pytest.param(3, 1, id="before any", marks=pytest.mark.slow),
    ],
)
def test_stop_and_resume_equals_straight_bit_for_bit(tmp_path, monkeypatch, eval_every, stopped):
    config = tiny(eval_every=eval_every, chunk_steps=1, seeds=2)
    train(config, tmp_path / "straight")
    save = loop.Training._save

    def save_then_stop(self):
        save(self)
        if self.progress.step == stopped:
            self.folder.wait()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_save", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "resumed")
    assert not (tmp_path / "resumed" / "result.json").exists()
    assert RunFolder(tmp_path / "resumed").latest("last") == stopped
    train(config, tmp_path / "resumed")
    equal_runs(tmp_path / "straight", tmp_path / "resumed")


def long(tmp_path, **changes):
    """A training that takes a while, as a file."""
    config = tiny(eval_every=10, chunk_steps=4, checkpoint_seconds=1e6, **changes)
    for split in ("train", "valid", "test"):
        NBody().samples(split)  # so that the child finds the data made
    (tmp_path / "config.yaml").write_text(configs.dump(config))
    return config


def test_ctrl_c_saves_and_the_same_call_continues(tmp_path):
    long(tmp_path, epochs=3_000_000)
    arguments = ("train", "config.yaml", "--run", "stopped")
    with egnn_command(*arguments, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        metrics = tmp_path / "stopped" / "metrics.jsonl"
        errors = interrupt(process, metrics, signal.SIGINT)
    assert process.returncode == 130
    assert "Ctrl-C at step" in errors
    assert "the same command continues from there" in errors
    assert "Traceback" not in errors
    saved = RunFolder(tmp_path / "stopped").latest("last")
    assert saved is not None
    assert saved >= RunFolder(tmp_path / "stopped").history()[-1]["step"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The training of 600 epochs, undisturbed."""
    folder = tmp_path_factory.mktemp("long")
    train(long(folder, epochs=600), folder / "straight")
    return folder / "straight"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(signal.SIGHUP, 129, id="SIGHUP", marks=pytest.mark.slow),
    ],
)
def test_signals_save_and_the_rest_is_bit_identical(tmp_path, straight, number, code):
    config = long(tmp_path, epochs=600)
    arguments = ("train", "config.yaml", "--run", "stopped")
    with egnn_command(*arguments, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        metrics = tmp_path / "stopped" / "metrics.jsonl"
        errors = interrupt(process, metrics, number)
    assert process.returncode == code
    assert f"{number.name} at step" in errors
    assert "Traceback" not in errors
    assert 30 <= RunFolder(tmp_path / "stopped").latest("last") < 1_200
    train(config, tmp_path / "stopped")
    equal_runs(straight, tmp_path / "stopped")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
def test_a_signal_saves_also_if_the_reader_of_stderr_is_gone(tmp_path):
    """As of ``egnn train … 2>&1 | tee log``, where Ctrl-C ends tee too."""
    code = (
        "import os, signal, egnn_jax as egnn; from tests.test_fit import fit\n"
        "from egnn_jax.training.signals import Interrupted\n"
        "class Kill(egnn.Callback):\n"
        "    def stepped(self, progress):\n"
        "        if progress.step == 6: os.kill(os.getpid(), signal.SIGTERM)\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 2)\n"
        "try: fit(epochs=9, folder='run', callbacks=[egnn.ProgressBar(), Kill()])\n"
        "except Interrupted as stop: raise SystemExit(stop.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment())
    assert done.returncode == 143
    assert RunFolder(tmp_path / "run").latest("last") == 6


def test_metrics_cut_short_by_a_kill_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (2, 4, 6):
        folder.log({"step": step})
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 8, "val')
    assert [e["step"] for e in folder.rewind(4)] == [2, 4]
    assert [e["step"] for e in folder.history()] == [2, 4]


def test_two_trainings_in_one_folder_at_once_are_refused(tmp_path):
    first = RunFolder(tmp_path)
    first.start({"a": 1})
    code = (
        "import sys; from egnn_jax.training.checkpoint import RunFolder\n"
        "try:\n    RunFolder(sys.argv[1]).start({'a': 1})\n"
        "except ValueError as error:\n    sys.exit(str(error))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = lambda: subprocess.run(command, env=environment(), capture_output=True, text=True)
    refused = run()
    assert refused.returncode == 1
    assert f"is being trained by process {os.getpid()}; expected another folder" in refused.stderr
    with pytest.raises(ValueError, match=f"is being trained by process {os.getpid()}"):
        train(tiny(), tmp_path)
    assert RunFolder(tmp_path).settings() == {"a": 1}  # reading is allowed
    first.close()
    assert run().returncode == 0


def quadratic(params, batch, key):
    return (params["w"] ** 2).sum() + 0.0 * batch["a"].sum(), {}


def plain_fit(folder, w=1.0, **options):
    loader = egnn.ArrayDataset({"a": np.ones((6, 1), np.float32)}).loader(2)
    params = {"w": jax.numpy.full((2,), w)}
    options = {"epochs": 2, "callbacks": ()} | options
    return egnn.fit(quadratic, params, loader, loader, optax.sgd(0.1), folder=folder, **options)


def test_other_initial_parameters_in_the_same_folder_are_refused(tmp_path):
    result = plain_fit(tmp_path)
    np.testing.assert_array_equal(plain_fit(tmp_path).params["w"], result.params["w"])
    with pytest.raises(ValueError, match=r"holds a run of other settings .*initial_parameters"):
        plain_fit(tmp_path, w=2.0)


def test_resuming_with_another_number_of_devices_warns_and_is_noted(tmp_path, monkeypatch):
    """On one device instead of two: other sums, and no longer the numbers of one machine."""
    config = tiny()

    class Stop(egnn.Callback):
        def evaluated(self, progress):
            if progress.step == 4:
                raise KeyboardInterrupt

    # A save after each chunk, so that there is a checkpoint of step 2.
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, callbacks=[Stop()])
    assert RunFolder(tmp_path).latest("last") == 2
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: first)
    with pytest.warns(UserWarning, match="resumed at step 2 with 1 shards of a batch and 32-bit"):
        result = train(config, tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert len(result["notes"]) == 1
    assert "before, 2 and 32" in result["notes"][0]
    assert stored["notes"] == result["notes"]


def test_a_crash_of_a_callback_loses_nothing(tmp_path):
    config = tiny(seeds=2)
    train(config, tmp_path / "straight")

    class Crash(egnn.Callback):
        def stepped(self, progress):
            if progress.step == 6:
                raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        train(config, tmp_path / "crashed", callbacks=[Crash()])
    train(config, tmp_path / "crashed")
    equal_runs(tmp_path / "straight", tmp_path / "crashed")
    assert load(tmp_path / "crashed")[0] == config


class Stop(egnn.Callback):
    """Interrupts after an evaluation, whose step is not saved then."""

    def __init__(self, step):
        self.step = step

    def evaluated(self, progress):
        if progress.step == self.step:
            raise KeyboardInterrupt


def test_notes_of_every_change_of_devices_stay(tmp_path, monkeypatch):
    options = {"epochs": 6, "checkpoint_seconds": 0.0}
    devices = jax.devices()

    def stopped(step, number):
        monkeypatch.setattr(jax, "devices", lambda: devices[:number])
        with pytest.raises(KeyboardInterrupt):
            plain_fit(tmp_path, callbacks=(Stop(step),), **options)

    stopped(6, 2)
    with pytest.warns(UserWarning, match="resumed at step 3 with 1 shards"):
        stopped(12, 1)
    with pytest.warns(UserWarning, match="resumed at step 9 with 2 shards"):
        stopped(15, 2)
    notes = plain_fit(tmp_path, **options).notes  # on as many devices as before
    assert [note.split(" of")[0] for note in notes] == [
        "resumed at step 3 with 1 shards", "resumed at step 9 with 2 shards",
    ]  # fmt: skip
    assert [note.split("before, ")[1][0] for note in notes] == ["2", "1"]
    assert plain_fit(tmp_path, **options | {"epochs": 7}).notes == notes


def test_without_a_change_of_devices_checkpoints_are_as_in_older_versions(tmp_path):
    """Shards and bits, so that older ones are read."""
    with pytest.raises(KeyboardInterrupt):
        plain_fit(tmp_path, callbacks=(Stop(6),), checkpoint_seconds=0.0)
    assert RunFolder(tmp_path).restore("last")["arithmetic"].tolist() == [2, 32]


def test_the_best_parameters_are_kept_where_a_resumed_training_fails(tmp_path):
    """In the steps after the one where it was stopped."""

    def loss(params, batch, key):
        return jax.numpy.log(params["w"]).sum() + 0.0 * batch["a"].sum(), {}

    def fit(seconds, *callbacks):
        loader = egnn.ArrayDataset({"a": np.ones((6, 1), np.float32)}).loader(2)
        params = {"w": jax.numpy.full((2,), 1.0)}
        options = {"epochs": 9, "chunk_steps": 1, "checkpoint_seconds": seconds}
        egnn.fit(
            loss, params, loader, loader, optax.sgd(0.08), folder=tmp_path, callbacks=callbacks,
            **options,
        )  # fmt: skip

    class StopAfter(egnn.Callback):
        def stepped(self, progress):
            if progress.step == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(0.0, StopAfter())
    assert RunFolder(tmp_path).latest("last") == 7
    with pytest.raises(FloatingPointError, match="the best parameters, of epoch 2, are kept"):
        fit(1e6)
    best = RunFolder(tmp_path).restore("best")
    assert best["epoch"] == 2


def test_settings_that_are_no_numbers_are_the_same_when_called_again(tmp_path):
    settings = {"nothing": float("nan"), "all": float("inf"), "pair": (1, 2)}
    for _ in range(2):
        run = RunFolder(tmp_path)
        run.start(settings)
        run.close()
    with pytest.raises(ValueError, match=r"of other settings \(nothing nan -> 1\)"):
        run.start(settings | {"nothing": 1})


def test_settings_that_name_one_list_twice_are_read_back(tmp_path):
    files = ["one.xyz", "two.xyz"]
    settings = {"train": files, "valid": files, "both": {"a": files}}
    result = plain_fit(tmp_path, settings=settings)
    assert RunFolder(tmp_path).settings() == settings
    np.testing.assert_array_equal(plain_fit(tmp_path, settings=settings).params["w"],
                                  result.params["w"])  # fmt: skip
    files.append(files)
    with pytest.raises(ValueError, match=r"settings: .*; expected numbers, text, lists"):
        plain_fit(tmp_path / "other", settings=settings)


@pytest.mark.parametrize("content", ["- 1", None])
def test_a_training_that_fails_to_start_holds_no_lock(tmp_path, monkeypatch, content):
    """Because of a damaged config.yaml, or one that cannot be written."""

    def full(*_):
        raise OSError("the disk is full")

    run = RunFolder(tmp_path)
    with monkeypatch.context() as patch:
        if content:
            (tmp_path / "config.yaml").write_text(content)
        else:
            patch.setattr("egnn_jax.training.checkpoint.write_atomically", full)
        with pytest.raises((ValueError, OSError), match=r"it holds a list|the disk is full"):
            run.start({"a": 1})
    (tmp_path / "config.yaml").unlink(missing_ok=True)
    other = RunFolder(tmp_path)
    other.start({"a": 1})
    other.close()


@pytest.mark.parametrize("written", [False, True])
def test_an_extension_that_is_killed_goes_on(tmp_path, monkeypatch, written):
    """Before and after it writes the settings."""

    def killed(path, content):
        if written:
            path.write_bytes(content)
        raise KeyboardInterrupt

    train(tiny(epochs=1), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("egnn_jax.training.checkpoint.write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(epochs=2), tmp_path)
    assert train(tiny(epochs=2), tmp_path)["config"]["epochs"] == 2
