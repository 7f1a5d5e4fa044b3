"""Processes that would train different things are refused in all, and nothing is written."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from egnn_jax._launch import free_port
from egnn_jax.experiments.nbody import NBody
from tests.helpers import environment

CASES = Path(__file__).parent / "differing_processes.py"


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """By case, what each of two processes said."""
    folder = tmp_path_factory.mktemp("differ")
    for split in ("train", "valid", "test"):
        NBody().samples(split)  # so that the children find the data made
    nodes = [folder / "node0", folder / "node1"]
    nodes[0].mkdir()
    subprocess.run([sys.executable, CASES, "make"], cwd=nodes[0], env=environment(), check=True)
    shutil.copytree(nodes[0], nodes[1])  # before the last of two checkpoints
    last = nodes[1] / "run" / "checkpoints" / "last"
    shutil.rmtree(max(last.iterdir(), key=lambda path: int(path.name)))
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, CASES, address, str(k)],
            cwd=node, env=environment(), stdout=subprocess.PIPE, text=True,
        )
        for k, node in enumerate(nodes)
    ]  # fmt: skip
    texts = [process.communicate(timeout=200)[0] for process in started]
    lines = [dict(line.split(": ", 1) for line in t.splitlines() if ": " in line) for t in texts]
    return folder, lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "difference"),
    [
        ("optimizer", "compiled.optimizer is"),
        ("optimizer and folder", "compiled.optimizer is"),
        ("eval_every", "eval_every is 2 there and 1 in process 0"),
        ("test", "test samples (SHA-256) is"),
        ("epochs", "epochs is 3 there and 2 in process 0"),
        ("folder", "the last checkpoint is 6 there and 9 in process 0"),
    ],
)
def test_a_difference_is_refused_everywhere(said, case, difference):
    for lines in said[1]:
        assert lines[case].startswith("process 1 of 2 would train something else: ")
        assert difference in lines[case]


@pytest.mark.slow
def test_nothing_is_written_where_processes_differ(said):
    """Of the run that is extended its config stays as it was, which the processes assert."""
    assert {path.name for path in said[0].iterdir()} == {"node0", "node1", "extended"}


@pytest.mark.slow
def test_validation_batches_need_not_be_a_multiple_of_the_processes(said):
    for lines in said[1]:
        assert lines["validation batches of 3"] == "trained"
