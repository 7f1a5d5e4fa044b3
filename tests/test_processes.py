"""Several processes that train together: the numbers of one, and an end when one is lost."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

import ase.build
import ase.io
import jax
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import egnn_jax as egnn
from egnn_jax import _launch, _stderr
from egnn_jax._launch import free_port, launch, process_of_cluster
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.run import train
from egnn_jax.training import processes
from egnn_jax.training.checkpoint import RunFolder
from tests.helpers import egnn_command, equal_runs, tiny, wait_for


def written(folder, name="config.yaml", **changes):
    """A config of few steps, as a file."""
    for split in ("train", "valid", "test"):
        NBody().samples(split)  # so that the children find the data made
    config = tiny(**changes)
    (folder / name).write_text(configs.dump(config))
    return config


@contextlib.contextmanager
def launched(folder, run):
    arguments = ("launch", "-n", 2, "train", "config.yaml", "--run", run)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with egnn_command(*arguments, cwd=folder, **pipes) as process:
        try:
            yield process
        finally:
            process.terminate()


def joined(folder, configs_of, *options):
    """What each process wrote to stderr, and exited with; started by hand, one for each config."""
    address = f"127.0.0.1:{free_port()}"
    started = [
        egnn_command(
            "train", name, "--run", "run", "--coordinator", address, "--processes",
            len(configs_of), "--process-id", k, *options, cwd=folder, stderr=subprocess.PIPE,
        )
        for k, name in enumerate(configs_of)
    ]  # fmt: skip
    return [(process.communicate(timeout=200)[1], process.returncode) for process in started]


def process_of(launcher: subprocess.Popen, number: int) -> int:
    """The system's number of one of the processes that a launcher has started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text("utf-8").split()
    for child in map(int, children):
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if words[-3:-1] == [b"--process-id", str(number).encode()]:
            return child
    raise AssertionError(f"process {number} is not among {children}")


def test_two_processes_end_in_the_numbers_of_one_bit_for_bit(tmp_path):
    config = written(tmp_path, epochs=2)
    with launched(tmp_path, "two") as process:
        out, errors = process.communicate()
    assert process.returncode == 0, errors
    train(config, tmp_path / "one")
    equal_runs(tmp_path / "one", tmp_path / "two")
    # Process 0 alone prints, and nothing but the result goes to stdout.
    assert out.startswith("valid mse")
    assert out.count("test mse") == 1
    result = json.loads((tmp_path / "two" / "result.json").read_text("utf-8"))
    assert result["versions"]["devices"] == "2"


@pytest.mark.slow
def test_two_processes_equal_one_on_graphs_of_different_sizes(tmp_path):
    """Forces of molecules, in micro-batches; the test split is no whole number of batches."""
    names = ["H2O", "CH4", "H2", "CO2", "NH3", "C2H6", "CH3OH", "N2"]
    structures = []
    for k in range(60):
        atoms = ase.build.molecule(names[k % len(names)])
        atoms.rattle(0.05, seed=k)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        structures.append(atoms)
    ase.io.write(tmp_path / "mine.extxyz", structures)
    plain = {
        "task": {"name": "forces", "train": str(tmp_path / "mine.extxyz"), "cutoff": 4.0,
                 "valid": "0.2", "test": "0.21"},
        "model": {"name": "egnn", "features": 8, "layers": 2, "cutoff": 4.0, "num_rbf": 6,
                  "coordinate_aggregation": "sum"},
        "epochs": 3, "batch_size": 8, "micro_batches": 2,
    }  # fmt: skip
    config = configs.from_dict(plain)
    (tmp_path / "config.yaml").write_text(configs.dump(config))
    with launched(tmp_path, "two") as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    train(config, tmp_path / "one")
    equal_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_lost_process_is_named_and_the_others_end(tmp_path, number):
    written(tmp_path, epochs=1_000_000, eval_every=10)
    with launched(tmp_path, "run") as process:
        wait_for(tmp_path / "run" / "metrics.jsonl", 2, process)
        started = time.monotonic()
        os.kill(process_of(process, number), signal.SIGKILL)
        _, errors = process.communicate()
    assert time.monotonic() - started < 60
    assert process.returncode == 128 + signal.SIGKILL
    assert f"process {number} was ended by SIGKILL" in errors
    assert re.search(rf"egnn: error: process {1 - number} stops: process {number}\b", errors)
    assert "was lost" in errors
    assert "stack trace" not in errors


@pytest.mark.slow
def test_killed_after_the_last_step_ends_in_the_same_numbers(tmp_path):
    config = written(tmp_path)
    with launched(tmp_path, "run") as process:
        wait_for(tmp_path / "run" / "metrics.jsonl", config.epochs, process)
        for number in range(2):
            os.kill(process_of(process, number), signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "run" / "result.json").exists()
    with launched(tmp_path, "run") as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    train(config, tmp_path / "straight")
    equal_runs(tmp_path / "straight", tmp_path / "run")


@pytest.mark.slow
def test_killed_twenty_times_ends_in_the_same_numbers(tmp_path):
    config = written(tmp_path, epochs=300, eval_every=1, chunk_steps=1, checkpoint_seconds=0.0)
    rng = np.random.default_rng(0)
    kills = 0
    while kills < 20:
        metrics = tmp_path / "run" / "metrics.jsonl"
        before = metrics.read_text("utf-8").count("\n") if metrics.exists() else 0
        with launched(tmp_path, "run") as process:
            wait_for(metrics, before + 1, process)
            time.sleep(rng.uniform(0, 0.2))
            assert process.poll() is None
            # Both, one after the other, as a machine that fails; one alone is the test above.
            for number in rng.permutation(2):
                os.kill(process_of(process, number), signal.SIGKILL)
            process.communicate()
            kills += 1
    with launched(tmp_path, "run") as process:
        process.communicate()
        assert process.returncode == 0
    train(dataclasses.replace(config, checkpoint_seconds=1e6), tmp_path / "straight")
    equal_runs(tmp_path / "straight", tmp_path / "run")


@pytest.mark.slow
def test_a_full_disk_ends_all_and_the_run_goes_on_when_there_is_room(tmp_path):
    model = {"name": "egnn", "features": 64, "layers": 4}
    config = written(tmp_path, model=model, epochs=60, optimizer={"learning_rate": 1e-3})
    with launched(tmp_path, "run") as process:
        wait_for(tmp_path / "run" / "metrics.jsonl", 3, process)  # the first checkpoint is whole
        started = time.monotonic()
        limit = 100_000, resource.RLIM_INFINITY  # enough for metrics.jsonl alone
        resource.prlimit(process_of(process, 0), resource.RLIMIT_FSIZE, limit)
        _, errors = process.communicate(timeout=90)
    assert time.monotonic() - started < 60
    assert process.returncode == 1
    sentence = "a checkpoint cannot be written (File too large); the last one is intact"
    errors = [line for line in errors.splitlines() if line.startswith("egnn:")]
    assert len(errors) == 2  # one of each process
    assert all(sentence in line for line in errors)
    saved = RunFolder(tmp_path / "run").latest("last")
    assert saved is not None
    assert saved < 120
    with launched(tmp_path, "run") as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    train(config, tmp_path / "straight")
    equal_runs(tmp_path / "straight", tmp_path / "run")


@pytest.mark.slow
def test_sigterm_of_one_saves_on_all(tmp_path):
    written(tmp_path, epochs=1_000_000, eval_every=10, checkpoint_seconds=1e6)
    with launched(tmp_path, "run") as process:
        wait_for(tmp_path / "run" / "metrics.jsonl", 2, process)
        os.kill(process_of(process, 1), signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 143
    assert errors.count("SIGTERM at step") == 2
    run = RunFolder(tmp_path / "run")
    assert (run.latest("last") or 0) >= run.history()[-1]["step"]


@pytest.mark.slow
def test_processes_that_differ_are_refused_everywhere(tmp_path):
    written(tmp_path)
    written(tmp_path, "other.yaml", epochs=5)
    for errors, code in joined(tmp_path, ["config.yaml", "other.yaml"]):
        assert code in (1, 134)
        assert "process 1 of 2 would train something else: config.epochs is 5 there and" in errors
        assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(tmp_path):
    written(tmp_path)
    (errors, code), (own, _) = joined(tmp_path, ["config.yaml", "none.yaml"])
    assert code
    assert "process 1 ended before the others" in errors
    assert "none.yaml is not a file" in own
    assert "stack trace" not in errors + own


def test_a_coordinator_that_cannot_listen_is_an_error(tmp_path):
    written(tmp_path)
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ("--coordinator", address, "--processes", 2, "--process-id", 0)
        command = egnn_command("train", "config.yaml", *options, cwd=tmp_path, stderr=-1)
        errors = command.communicate()[1]
    assert command.returncode == 1
    assert f"process 0 cannot listen at {address}" in errors
    assert "expected a free port of its machine" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "2"], "--coordinator, --process-id is missing"),
        (["--processes", "0"], "--processes is 0; expected 1 or more"),
        (
            ["--coordinator", "a:1", "--processes", "2", "--process-id", "2"],
            "--process-id is 2 of 2 processes; expected 0 to 1",
        ),
    ],
)
def test_options_that_make_no_sense(options, message):
    from egnn_jax.cli import main

    with pytest.raises(SystemExit, match=re.escape(message)):
        main(["train", "nbody/egnn", *options])


@pytest.mark.parametrize(
    ("number", "arguments", "message"),
    [
        (0, ["train"], "-n is 0; expected 1 or more"),
        (2, ["predict", "CCO"], "launch starts predict; expected train"),
        (2, [], "launch starts nothing"),
        (2, ["train", "c", "--process-id=1"], "--process-id=1 is given; launch chooses"),
    ],
)
def test_launch_refuses(number, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        launch(number, arguments)


def test_signals_that_nohup_ignores_stay_ignored(monkeypatch):
    class Process:
        def __init__(self, *_, **__):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL

        def kill(self):
            pass

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(_launch, "_wait", lambda running, received: len(running))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert launch(2, ["train", "c"]) == 2
    finally:
        signal.signal(signal.SIGHUP, before)


def test_clusters_are_found_by_their_variables(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JOB_")):
            monkeypatch.delenv(name)
    assert process_of_cluster() is None
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_NTASKS", "4")
        patch.setenv("SLURM_PROCID", "3")
        assert process_of_cluster() is None  # a batch script without srun is one process
        patch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
        assert process_of_cluster() == 3
        patch.setenv("SLURM_NTASKS", "1")
        assert process_of_cluster() is None
    with monkeypatch.context() as patch:
        patch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        patch.setenv("JOB_COMPLETION_INDEX", "2")
        found = importlib.util.find_spec("kubernetes")
        assert process_of_cluster() == (2 if found else None)
    with monkeypatch.context() as patch:
        patch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1:34911")
        patch.setenv("OMPI_COMM_WORLD_SIZE", "2")
        patch.setenv("OMPI_COMM_WORLD_RANK", "1")
        assert process_of_cluster() == 1


def test_each_process_has_its_share_of_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(_launch, "_GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _launch.gpus_of(0, 2) == {}
    for k in range(5):
        (tmp_path / f"0000:0{k}:00.0").mkdir()
    shares = [_launch.gpus_of(k, 2)["CUDA_VISIBLE_DEVICES"] for k in range(2)]
    assert shares == ["0,1", "2,3"]
    assert _launch.gpus_of(0, 6) == {}  # such as processes on CPUs
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-1a,7")
    assert _launch.gpus_of(2, 3) == {"CUDA_VISIBLE_DEVICES": "7"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _launch.gpus_of(0, 1) == {}


def passed_on(text, monkeypatch):
    """What comes out, part by part, of the process through which ``text`` goes to stderr."""
    written: list[str] = []
    monkeypatch.setattr(_stderr, "_write", written.append)
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    _stderr._copy(read, " 1", "host:1")
    return written


HEADER = "E1128 00:52:01.1 7 coordination_service_agent.cc:289] Polled an error from coordination"
FATAL = "F1128 00:52:01.2 7 client.h:80] Terminating process because the JAX distributed service"


@pytest.mark.parametrize(
    ("cause", "sentence"),
    [
        (
            "The following tasks are unhealthy (stopped sending heartbeats):\n3\nThe tasks",
            "process 3 was lost",
        ),
        ("UNAVAILABLE: Failed to send RPC. Either the leader task was", "process 0, the coord"),
        ("DEADLINE_EXCEEDED\nRPC: /xla.CoordinationService/RegisterTask", "not all processes"),
        (
            "ALREADY_EXISTS: Aborted connect attempt\nRPC: RegisterTask",
            "another process of the job has",
        ),
        ("The first task at the barrier: 2. Some timed out", "process 2 ended before"),
        ("something new", "another process was lost"),
    ],
)
def test_what_jax_says_at_an_abort_becomes_a_sentence(monkeypatch, cause, sentence):
    text = f"step 3\n{HEADER}\n{FATAL}: {cause}\n*** Check failure stack trace: ***\n    @ 0x7f\n"
    written = passed_on(text, monkeypatch)
    assert written[0] == "step 3\n"
    assert f"egnn: error: process 1 stops: {sentence}" in "".join(written)
    assert ("0x7f" in "".join(written)) == (cause == "something new")


def test_what_is_no_abort_passes_unchanged(monkeypatch):
    text = f"one\n{HEADER}\nTraceback\n  error\n"
    assert "".join(passed_on(text, monkeypatch)) == text


def test_the_shards_of_a_process_are_those_of_all(rng):
    """What one process packs of a batch is what is packed of the whole, in its shape."""
    graphs = [
        egnn.complete_graph(x=rng.normal(size=(size, 3)), h=rng.normal(size=(size, 2)))
        for size in rng.integers(2, 9, 40)
    ]
    for data in (egnn.GraphDataset(graphs), egnn.ArrayDataset(rng.normal(size=(40, 3)))):
        loader = data.loader(8)
        for epoch in (0, None):
            whole = loader.batches(epoch, 1, 3, 4)
            for own in (slice(0, 2), slice(2, 4), slice(3, 4)):
                part = loader.batches(epoch, 1, 3, 4, own)
                jax.tree.map(
                    lambda a, b, own=own: np.testing.assert_array_equal(a, b[:, own]), part, whole
                )


def test_a_data_set_that_cannot_pack_a_share_is_refused():
    class Old(egnn.ArrayDataset):
        def pack(self, rows):
            return super().pack(rows)

    loader = Old(np.ones((40, 3))).loader(8)
    loader.batches(0, 0, 1, 4)
    with pytest.raises(ValueError, match=r"Old\.pack has no argument own; expected it among"):
        loader.batches(0, 0, 1, 4, slice(0, 2))


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    from egnn_jax.training.distributed import make_mesh

    monkeypatch.setattr(jax, "devices", lambda: [Device(0), Device(1), Device(2)])
    with pytest.raises(ValueError, match="has 8 samples; expected a multiple of the 3 processes"):
        make_mesh(8)


def test_differences_between_processes_are_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    texts = [json.dumps({"versions": {"jax": v}, "same": 1}) for v in ("1", "1", "2")]
    monkeypatch.setattr(processes, "_gather_texts", lambda _: texts)
    message = "process 2 of 3 would train something else: versions.jax is '2' there and '1' in"
    with pytest.raises(ValueError, match=message):
        processes.require_same({})
    monkeypatch.setattr(processes, "_gather_texts", lambda _: texts[:2])
    processes.require_same({})


def test_whatever_fails_in_the_first_process_fails_in_all(monkeypatch):
    told = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_gather_texts", lambda text: told.append(text) or told[:1])
    with pytest.raises(ZeroDivisionError):
        processes.from_first(lambda: 1 / 0)
    with pytest.raises(TypeError):  # no plain value
        processes.from_first(lambda: {1j})
    assert [json.loads(text)["error"] for text in told] == [
        "division by zero",
        "Object of type set is not JSON serializable",
    ]
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match="process 0: division by zero"):
        processes.from_first(lambda: None)
