"""Kills, damaged files and full disks: a run ends in the same numbers or says which file is in the
way, nothing in between.
"""

import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from egnn_jax.data.cache import cached_arrays
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import pretrained
from egnn_jax.experiments import run as experiments
from egnn_jax.experiments.export import load_pretrained
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.property_table import Table
from egnn_jax.experiments.report import report
from egnn_jax.experiments.run import load, read_config, read_stored, train
from egnn_jax.training._records import write_plain
from egnn_jax.training.checkpoint import RunFolder
from tests.helpers import equal_runs, tiny

# Orbax leaves event loops behind where reading fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def child(config, folder, file_size=None):
    """A run in a process of its own, that can be killed; ``file_size`` is the room left for any one
    file, in bytes.
    """
    jax.config.update("jax_num_cpu_devices", 2)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    train(configs.from_dict(config), folder)


@pytest.fixture(scope="module")
def start():
    """Start a child: a fork of a process that has imported everything and computed nothing."""
    for split in ("train", "valid", "test"):
        NBody().samples(split)  # so that the children find the data made
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_damage"])

    def start(config, *arguments):
        process = context.Process(target=child, args=(configs.to_dict(config), *arguments))
        process.start()
        return process

    return start


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_equals_an_undisturbed_one(tmp_path, start, monkeypatch, kills):
    config = tiny(epochs=75 * max(kills, 4), eval_every=10, chunk_steps=4)
    train(dataclasses.replace(config, checkpoint_seconds=1e6), tmp_path / "straight")
    folder, rng = tmp_path / "killed", np.random.default_rng(0)
    metrics = folder / "metrics.jsonl"
    for kill in range(kills):
        logged = metrics.stat().st_size if metrics.exists() else 0
        process = start(config, folder)
        # Every fourth at any moment of the start, the others while it trains, logs and saves.
        while kill % 4 and not (metrics.exists() and metrics.stat().st_size > logged):
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15 if kill % 4 else 3.0))
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert not (folder / "result.json").exists()
    # The rest without a checkpoint after each chunk, which would take a minute.
    fit = experiments.fit
    rarely = lambda *arguments, **options: fit(*arguments, **options | {"checkpoint_seconds": 1e6})
    monkeypatch.setattr(experiments, "fit", rarely)
    train(config, folder)
    equal_runs(tmp_path / "straight", folder)


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before_usable(tmp_path, start):
    config = tiny(
        model={"name": "egnn", "features": 64, "layers": 4},
        optimizer={"learning_rate": 1e-4},
        epochs=12,
        eval_every=3,
    )
    train(config, tmp_path / "straight")
    folder = tmp_path / "full"
    process = start(config, folder)
    while not list(folder.glob("checkpoints/last/[0-9]*")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = RunFolder(folder).latest("last")
    process = start(config, folder, 100_000)  # enough for the metrics, not for a checkpoint
    process.join()
    assert process.exitcode == 1
    assert RunFolder(folder).latest("last") == before
    train(config, folder)
    equal_runs(tmp_path / "straight", folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(tiny(), folder)
    return folder


def truncated(content, position):
    return content[: int(position * len(content))]


def flipped(content, position):
    k = int(position * len(content))
    return content[:k] + bytes([content[k] ^ 0x10]) + content[k + 1 :]


def refusal(function, *arguments):
    """What a ValueError of the call says, and what the call returns."""
    try:
        return None, function(*arguments)
    except ValueError as error:
        return str(error), None


damages = pytest.mark.parametrize(
    "damage", [truncated, pytest.param(flipped, marks=pytest.mark.slow)]
)


@damages
@pytest.mark.parametrize("kind", ["best", pytest.param("last", marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_named_or_does_no_harm(finished, tmp_path, damage, kind):
    """Whatever file of it is hit, wherever: the same arrays come back, or none and the checkpoint
    is named.
    """
    like = None if kind == "best" else RunFolder(finished).restore("last")
    expected = jax.tree.leaves(RunFolder(finished).restore(kind, like))
    files = [
        p.relative_to(finished)
        for p in sorted((finished / "checkpoints" / kind).rglob("*"))
        if p.is_file()
    ]
    refused = 0
    for k, file in enumerate(files * 3):
        folder = tmp_path / str(k)
        shutil.copytree(finished, folder)
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(damage(content, (k + 0.5) / (3 * len(files))))
        message, restored = refusal(RunFolder(folder).restore, kind, like)
        if message is None:
            np.testing.assert_equal(jax.tree.leaves(restored), expected)
        else:
            assert (
                str(folder / "checkpoints" / kind) in message
                or str(folder / "config.yaml") in message
            )
            refused += 1
    assert refused >= 3


def test_what_a_damaged_checkpoint_says_to_do_helps(finished, tmp_path):
    expected = load(finished)[2]
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for checkpoint in ("best", "last/8"):
        (data,) = (folder / "checkpoints" / checkpoint).glob("**/default/d/*")  # what lists arrays
        data.write_bytes(flipped(data.read_bytes(), 0.6))
    with pytest.raises(
        ValueError, match=r"checkpoints/best/.* delete that folder and result\.json"
    ):
        load(folder)
    shutil.rmtree(next((folder / "checkpoints" / "best").iterdir()))
    (folder / "result.json").unlink()
    with pytest.raises(
        ValueError,
        match=r"checkpoints/last/8 .* the same command resumes from the checkpoint before it",
    ):
        train(tiny(), folder)
    shutil.rmtree(folder / "checkpoints" / "last" / "8")
    train(tiny(), folder)
    equal_runs(finished, folder)
    np.testing.assert_equal(jax.tree.leaves(load(folder)[2]), jax.tree.leaves(expected))


@damages
def test_a_damaged_config_of_a_run_is_named(finished, tmp_path, damage):
    content = (finished / "config.yaml").read_bytes()
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    refused = 0
    for k in range(len(content)):
        (folder / "config.yaml").write_bytes(damage(content, k / len(content)))
        message, config = refusal(read_config, RunFolder(folder))
        if message is not None:
            assert str(folder / "config.yaml") in message
            refused += 1
        elif config != tiny() and k % 20 == 0:  # well-formed, but not what was trained
            with pytest.raises(ValueError, match=r"setting in .*config\.yaml was changed"):
                load(folder)
            refused += 1
    assert refused > len(content) / 4
    (folder / "config.yaml").write_text("- 1")
    with pytest.raises(ValueError, match=r"config\.yaml: it holds a list; expected settings by"):
        load(folder)


def test_comments_in_the_config_of_a_run_do_no_harm(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(f"# the best so far\n{text}# ends here\n")
    np.testing.assert_equal(load(folder)[2], load(finished)[2])
    (folder / "result.json").unlink()
    train(tiny(), folder)
    equal_runs(finished, folder)


def test_runs_of_an_older_version_can_still_be_read(tmp_path, monkeypatch):
    """An option added since is not in their config.yaml, which the checksum is over."""
    newer = configs.to_dict

    def older(config):
        plain = newer(config)
        del plain["optimizer"]["half_periods"]
        return plain

    monkeypatch.setattr(configs, "to_dict", older)
    train(tiny(), tmp_path)
    monkeypatch.undo()
    assert "half_periods" not in (tmp_path / "config.yaml").read_text()
    assert load(tmp_path)[0] == tiny()
    (tmp_path / "result.json").unlink()
    train(tiny(), tmp_path)


@damages
def test_a_damaged_result_or_log_is_named(finished, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    content, expected = (folder / "result.json").read_bytes(), RunFolder(folder).result()
    for k in range(len(content) - 1):
        (folder / "result.json").write_bytes(damage(content, k / len(content)))
        message, found = refusal(RunFolder(folder).result)
        if message is None:  # a flip in the name of the checksum
            assert {name: found[name] for name in expected} == expected
        else:
            assert str(folder / "result.json") in message
    (folder / "result.json").write_bytes(content)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl is missing or empty; expected a line"):
        report([folder], tmp_path / "report")
    assert not (tmp_path / "report").exists()
    (folder / "metrics.jsonl").write_text('{"step": 2}\n{"step": \n{"step": 6}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged"):
        RunFolder(folder).history()


@damages
@pytest.mark.parametrize("name", ["constants.json", "input.json"])
def test_what_is_kept_beside_the_weights_is_whole_or_named(finished, tmp_path, damage, name):
    """Also as older versions wrote it, without its checksum."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path, task = folder / name, Table(train="none.csv", targets=("logP",))
    if name == "constants.json":
        column = {"name": "logP", "mean": 1.5, "scale": 2.0}
        plain = {"elements": ["C", "H"], "atoms": [3, 9], "columns": [column]}
        write_plain(path, plain)
        read = lambda path: task.with_constants(path).constants()
    else:
        plain, read = json.loads(path.read_text()), pretrained.abstract
        assert plain.pop("sha256")
    expected, content = read(plain), path.read_bytes()
    for k in range(0, len(content) - 1, 3):
        path.write_bytes(damage(content, k / len(content)))
        message, found = refusal(read_stored, path, read)
        if message is None:  # a flip in the name of the checksum
            assert found == expected
        else:
            assert message.startswith(f"{path} is damaged")
            assert "delete it" in message
    for text in ("", "[" * 200_000, '{"columns": NaN}', json.dumps(plain)[:-9] + "1e999"):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"{path} is damaged \("):
            load_pretrained(folder)
    path.write_text(json.dumps(plain))
    assert read_stored(path, read) == expected


@damages
def test_a_damaged_cache_is_named_and_built_again(tmp_path, damage):
    path, arrays = tmp_path / "arrays.npz", {"x": np.random.default_rng(0).standard_normal((20, 3))}
    cached_arrays(path, lambda: arrays)
    content = path.read_bytes()
    for k in range(0, len(content), 7):
        path.write_bytes(damage(content, k / len(content)))
        with pytest.warns(UserWarning, match=f"{path} is damaged or incomplete"):
            np.testing.assert_equal(cached_arrays(path, lambda: arrays), arrays)
        assert path.read_bytes() == content
