"""Folders that cannot be written to, full disks, and paths as people type them."""

import errno
import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import _files
from egnn_jax.cli import main
from egnn_jax.data.cache import cached_arrays, default_folder
from egnn_jax.experiments.run import train
from egnn_jax.training.checkpoint import RunFolder
from tests.helpers import tiny


def refuse(number):
    """What a file system does that is full (ENOSPC), read-only (EROFS) or forbidden (EACCES)."""

    def fsync(_):
        raise OSError(number, os.strerror(number))

    return fsync


ERRORS = [errno.ENOSPC, errno.EROFS, errno.EACCES]


@pytest.mark.parametrize("number", ERRORS, ids=os.strerror)
def test_arrays_are_there_though_their_cache_cannot_be_written(tmp_path, monkeypatch, number):
    made = []

    def build():
        made.append(1)
        return {"x": np.arange(3)}

    path = tmp_path / "cache" / "x.npz"
    monkeypatch.setattr(_files.os, "fsync", refuse(number))
    for _ in range(2):
        with pytest.warns(UserWarning, match=rf"x\.npz cannot be written .*{os.strerror(number)}"):
            assert cached_arrays(path, build)["x"].tolist() == [0, 1, 2]
    assert not list(path.parent.iterdir())
    monkeypatch.undo()
    cached_arrays(path, build)
    assert cached_arrays(path, build)["x"].tolist() == [0, 1, 2]
    assert len(made) == 3


def test_a_cache_under_a_file_is_no_cache(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be written"):
        found = cached_arrays(tmp_path / "file" / "x.npz", lambda: {"x": np.ones(2)})
    assert found["x"].tolist() == [1, 1]


@pytest.mark.parametrize("number", ERRORS, ids=os.strerror)
def test_what_cannot_be_written_is_one_sentence(home, monkeypatch, number):
    monkeypatch.setattr(_files.os, "fsync", refuse(number))
    with pytest.raises(SystemExit) as stop:
        main(["export", "~/run", "~/whole.safetensors"])
    sentence = f"egnn: error: {home}/whole.safetensors: {os.strerror(number)}"
    assert str(stop.value) == sentence
    assert not list(home.glob("*whole*"))


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(tmp_path):
    # In a process of its own: orbax's threads go on after the failure, and would raise in the
    # tests that follow.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(write_beyond_the_limit, tmp_path / "run").result()


def write_beyond_the_limit(folder):
    run = RunFolder(folder)
    run.start({"epochs": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    def write():
        run.save("last", 1, {"x": np.random.default_rng(0).standard_normal(10**6)})
        run.wait()

    try:
        with pytest.raises(OSError, match=r"checkpoint cannot be written .*; the last one"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        try:
            run.close()
        except OSError:  # it says so again
            assert run._lock is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nbody/egnn", "--run", "file"], r"file cannot be made .*; expected a folder"),
        (["train", "nbody/egnn", "--run", "file/x"], r"x cannot be made .*; expected a folder"),
        (
            ["train", "nbody/egnn", "--run", "x", "--seed", str(2**63)],
            r"seed is \d+; expected 0 to",
        ),
        (["train", "nbody/egnn", "--run", "x", "--seed", "-1"], "seed is -1; expected 0 to"),
        (["train", "nbody/egnn", "--run", "x", "--init", "~/none"], "/home/none: there is no such"),
        (["train", "~/none.yaml"], r"/home/none\.yaml is not a file; expected a config"),
        (["train", "folder"], "folder is a folder; expected a YAML file"),
        (
            ["--plugin", "~/none.py", "train", "nbody/egnn"],
            r"none\.py is not a file; expected a \.py",
        ),
        (["evaluate", "~/none"], "/home/none is not a run: it has no config.yaml"),
        (["export", "~/run", "folder.safetensors"], "is a folder; expected a file"),
        (["export", "~/run", "file/x.safetensors"], r"file cannot be made .*; expected a folder"),
        (["export", "~/run", "x.safetensors", "--seed", "-1"], "seed is -1; expected 0 to 0"),
        (["train", "~nobody_here/x.yaml"], "nobody_here/x.yaml has no folder"),
        (["train", "nbody/egnn", "--run", "x", "--init", "~nobody_here/x"], "has no folder"),
        (
            ["train", "forces/ethanol", "--task.train", "~nobody_here/x", "--task.test", "0.1"],
            "has no folder",
        ),
        (["--plugin", "~nobody_here/x.py", "train", "nbody/egnn"], "has no folder"),
        (["md", "~nobody_here/x.xyz", "--model", "~/run"], "has no folder"),
        (["export", "~/run", "loop/x.safetensors"], "leads nowhere .*; expected no circle of"),
        (["report", "loop"], "loop leads nowhere .*; expected no circle of links"),
        (["report", "~/run", "--out", "file"], r"file cannot be made .*; expected a folder"),
        (["report", "~/run", "--out", "file/x"], r"x cannot be made .*; expected a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_paths_that_lead_nowhere_are_one_sentence(home, arguments, message):
    with pytest.raises(SystemExit, match=f"egnn: error: .*{message}"):
        main(arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("place") / "home"
    train(tiny(epochs=1), home / "run")
    return home


@pytest.fixture
def home(finished, monkeypatch):
    """A working directory with a file and two folders, and a home with a finished run."""
    monkeypatch.setenv("HOME", str(finished))
    monkeypatch.chdir(finished.parent)
    Path("file").touch()
    if not Path("loop").is_symlink():
        Path("loop").symlink_to("loop")
    for name in ("folder", "folder.safetensors"):
        Path(name).mkdir(exist_ok=True)
    return finished


def test_a_home_folder_of_nobody_is_told_by_the_parser(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "~nobody_here/run"])
    assert stop.value.code == 2
    assert "argument run: ~nobody_here/run has no folder" in capsys.readouterr().err


def test_ctrl_c_is_one_line_wherever_it_comes(home, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("egnn_jax.experiments.predict.predict", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["predict", "CCO"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "egnn: stopped by Ctrl-C\n"


def test_a_tilde_is_the_home_folder(home, monkeypatch, capsys):
    main(["export", "~/run", "~/out.safetensors"])
    main(["evaluate", "~/out.safetensors"])
    main(["report", "~/run", "--out", "~/report"])
    assert "mse" in capsys.readouterr().out
    assert {"run", "out.safetensors", "report"} <= {path.name for path in home.iterdir()}
    assert not Path("~").exists()
    monkeypatch.setenv("EGNN_JAX_DATA", "~/data")
    assert default_folder() == home / "data"


def test_a_file_system_without_locks_is_trained_on(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    run = RunFolder(tmp_path / "run")
    run.start({"a": 1})
    assert run.settings() == {"a": 1}
    run.close()
    graphs = [egnn.complete_graph(np.eye(3))]
    assert len(egnn.GraphDataset.write(tmp_path / "set", graphs)) == 1
