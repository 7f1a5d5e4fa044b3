"""A run becomes one file that predicts without the run and the data, and damage is refused."""

import dataclasses
import json
import os
import shutil
import struct
from pathlib import Path

import ase
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors
from small_runs import config, molecules

import egnn_jax as egnn
from egnn_jax import _weights, cli
from egnn_jax.data import qm9
from egnn_jax.data.loader import ArrayDataset
from egnn_jax.data.structures import Structure
from egnn_jax.experiments import pretrained
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.run import load, train
from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.parameters import named

WATER = ase.Atoms("OHH", [[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])
METHANE = ase.Atoms("CHHHH", [[0, 0, 0], [1, 0, 0], [-0.4, 1, 0], [-0.4, -0.5, 0.9], [0, 0, -1]])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of two seeds, and its exported files."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qm9, "load", molecules)
        train(config(seeds=2, seed=5, ema_decay=0.9), folder / "run", callbacks=())
    egnn.export(folder / "run", folder / "first.safetensors")
    egnn.export(folder / "run", folder / "second.safetensors", seed=6)
    return folder


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    def missing():
        raise AssertionError("the data set is read")

    monkeypatch.setattr(qm9, "load", missing)
    monkeypatch.setenv("EGNN_JAX_DATA", str(tmp_path / "empty"))


def parts(file):
    """Arrays and metadata texts of a file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return dict(safetensors.load(content)), json.loads(content[8 : 8 + length])["__metadata__"]


def forged(path, arrays, texts):
    """A file whose checksum is right, as a stranger can write it."""
    texts = {key: text for key, text in texts.items() if key != "sha256"}
    texts["sha256"] = json.dumps(_weights._checksum(arrays, texts))
    path.write_bytes(safetensors.save(arrays, metadata=texts))
    return path


def changed(path, file, key, value):
    arrays, texts = parts(file)
    return forged(path, arrays, texts | {key: json.dumps(value)})


@pytest.mark.parametrize(("name", "row"), [("first", 0), ("second", 1)])
def test_a_file_predicts_without_the_data_and_the_run(place, no_data, tmp_path, name, row):
    shutil.copy(place / f"{name}.safetensors", tmp_path / "alone.safetensors")
    config_, network, params = load(place / "run")
    expected = config_.task.properties(
        network.apply,
        jax.tree.map(lambda a: a[row], params),
        np.array([3, 5]),
        np.concatenate([WATER.numbers, METHANE.numbers]),
        np.concatenate([WATER.positions, METHANE.positions]),
    )
    alone = egnn.load_pretrained(tmp_path / "alone.safetensors")
    got = alone([WATER, METHANE])
    assert list(got) == ["homo", "U0"]
    for k, values in enumerate(got.values()):
        assert values.shape == (2,)
        np.testing.assert_allclose(values, expected[:, k], rtol=1e-5)
    assert np.abs(got["homo"][0] - got["homo"][1]) > 1e-3  # the network reads its input
    # Alone, and as the structure of another reader.
    water = Structure("water", list(WATER.symbols), WATER.positions)
    for one in (WATER, water):
        np.testing.assert_allclose(alone(one)["U0"], expected[:1, 1], rtol=1e-5)
    other = {"first": "second", "second": "first"}[name]
    others = egnn.load_pretrained(place / f"{other}.safetensors")([WATER, METHANE])
    assert np.abs(others["homo"] - got["homo"]).min() > 1e-3


def test_the_card_says_what_a_reader_needs(place, no_data):
    model = egnn.load_pretrained(place / "second.safetensors")
    result = json.loads((place / "run/result.json").read_text())
    assert model.card["units"] == {"homo": "meV", "U0": "meV"}
    assert model.card["elements"] == ["H", "C", "N", "O", "F"]
    assert model.card["cutoff"] is None
    assert model.card["dtype"] == "float32"
    assert model.card["seed"] == model.config.seed == 6
    assert model.config.seeds == 1
    assert model.card["versions"] == result["versions"]
    assert model.card["versions"]["egnn_jax"] == egnn.__version__
    assert model.card["best_epoch"] == result["best_epoch"][1]
    for split, errors in model.card["metrics"].items():
        assert errors == {name: values[1] for name, values in result["seeds"][split].items()}
    folder = egnn.load_pretrained(place / "run")
    first = egnn.load_pretrained(place / "first.safetensors")
    assert folder.card == {**first.card, "seeds": 2}
    assert first.card["seeds"] == 1
    assert folder.config == first.config
    jax.tree.map(np.testing.assert_array_equal, folder.params, first.params)


def test_details_are_of_the_seed_that_is_exported(place, tmp_path):
    run = RunFolder(shutil.copytree(place / "run", tmp_path / "run"))
    run.finish(run.result() | {"details": {"errors": {"test": {"homo": 1.0}}}})
    assert egnn.load_pretrained(run.path).card["details"]["errors"]
    assert egnn.load_pretrained(run.path, seed=6).card["details"] == {}


def test_a_call_applies_the_network_to_a_graph(place, no_data):
    model = egnn.load_pretrained(place / "first.safetensors")
    graph = egnn.complete_graph(
        x=WATER.positions.astype(np.float32), h=np.ones((3, 15), np.float32)
    )
    expected = model.network.apply(model.params, graph).globals.y
    np.testing.assert_allclose(model(graph).globals.y, expected, rtol=1e-5)
    narrow = egnn.complete_graph(x=graph.nodes.x, h=graph.nodes.h[:, :3])
    with pytest.raises(ValueError, match=r"nodes\.h of the graph is \(…, 3\); expected \(…, 15\)"):
        model(narrow)
    flat = egnn.complete_graph(x=graph.nodes.x[:, :2], h=graph.nodes.h)
    with pytest.raises(ValueError, match=r"nodes\.x of the graph is \(…, 2\); expected \(…, 3\)"):
        model(flat)


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        ([], "structures is empty"),
        ("watr", "'watr' is no SMILES, nor a file"),
        ([1], "structure 0 is 1; expected a SMILES, a file, ASE's Atoms"),
        (b"CCO", "structure 0 is b'CCO'; expected a SMILES"),
        ({"positions": []}, "structure 0 is {'positions'"),
        ([egnn.complete_graph(x=np.eye(3))], "structure 0 is GraphsTuple"),
        (ase.Atoms("Si"), "expected of"),
        (ase.Atoms(), "at least one"),
        (ase.Atoms("H", cell=[3, 3, 3], pbc=True), "structure 0 is periodic"),
        ([WATER, ase.Atoms("H", [[0, 0, np.nan]])], "positions of structure 1 is nan"),
    ],
)
def test_structures_that_cannot_be_predicted(place, no_data, structures, message):
    with pytest.raises(ValueError, match=message):
        egnn.load_pretrained(place / "first.safetensors")(structures)


def test_what_cannot_be_exported(place, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    with pytest.raises(ValueError, match=r"expected a name\.safetensors"):
        egnn.export(run, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="seed is 4; expected 5 to 6"):
        egnn.export(run, tmp_path / "model.safetensors", seed=4)
    (run / "result.json").unlink()
    with pytest.raises(ValueError, match="the run is not complete"):
        egnn.export(run, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is not a run"):
        egnn.export(tmp_path / "none", tmp_path / "model.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


def test_nothing_is_half_written(place, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    egnn.export(place / "run", path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        egnn.export(place / "run", path, seed=6)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_every_flipped_bit_and_every_cut_is_refused(place, no_data, tmp_path, rng):
    content = (place / "first.safetensors").read_bytes()
    path = tmp_path / "damaged.safetensors"
    places = {0, 7, *rng.integers(0, len(content), 150).tolist()}
    for k in sorted(places):
        damaged = bytearray(content)
        damaged[k] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.safetensors: "):
            egnn.load_pretrained(path)
    for length in (0, 5, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"damaged\.safetensors: "):
            egnn.load_pretrained(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"damaged\.safetensors: "):
        egnn.load_pretrained(path)


def test_arrays_that_do_not_fit_are_refused(place, no_data, tmp_path):
    arrays, texts = parts(place / "first.safetensors")
    name = "encoder/layer_1/phi_h/Dense_0/kernel"
    path = tmp_path / "model.safetensors"
    wrong = {
        "could not find|Could not find": {k: a for k, a in arrays.items() if k != name},
        r"surplus \(2,\) is left over": arrays | {"surplus": np.zeros(2, np.float32)},
        "expected to generate shape|has shape": arrays | {name: arrays[name][:-1].copy()},
        f"{name} has a value that is not finite": arrays | {name: arrays[name] * np.nan},
        "inside another parameter": arrays | {f"{name}/deeper": np.zeros(2, np.float32)},
        "expected one of": arrays | {name: arrays[name].astype(np.uint16)},
    }
    for message, others in wrong.items():
        forged(path, others, texts)
        with pytest.raises(ValueError, match=rf"model\.safetensors: .*({message})"):
            egnn.load_pretrained(path)
    forged(path, arrays, texts)
    egnn.load_pretrained(path)  # what is changed above is what is refused


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "another", "its format is 'another'"),
        ("format_version", 99, "its format version is 99"),
        ("config", {}, "task is None"),
        ("config", [1], "expected values by name"),
        ("constants", {"mean": [0.0]}, "constants are"),
        ("constants", {"mean": {}, "mean_absolute_deviation": "x"}, "constants are"),
        ("constants", {"mean": [0, 0], "mean_absolute_deviation": [1, 0]}, "constants are"),
        ("input", {}, "expected shapes of a graph"),
        ("input", {"nodes": 3}, "expected shapes of a graph"),
        ("units", None, "units in its metadata is None"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(place, no_data, tmp_path, key, value, message):
    path = changed(tmp_path / "model.safetensors", place / "first.safetensors", key, value)
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{message}"):
        egnn.load_pretrained(path)


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("model", {"name": "os:system"}, "model.name is 'os:system'; expected one of"),
        ("model", {"name": "builtins:exec"}, "model.name"),
        ("task", {"name": "unknown"}, "task.name is 'unknown'"),
        ("model", {"featurs": 3}, "featurs is unknown"),
        ("model", {"features": "8"}, "features is '8'"),
        ("model", {"features": 10**9}, "expected at most 1,000,000"),
        ("model", {"layers": 10**6}, "does not fit its parameters"),
        ("model", {"features": 10**6}, "does not fit its parameters"),
        ("model", {"activation": "os.system"}, "activation"),
        ("task", {"targets": ["homo", "rm -rf"]}, "targets"),
        ("optimizer", {"name": "__import__"}, "optimizer.name"),
    ],
)
def test_a_strangers_options_are_checked(place, no_data, tmp_path, part, options, message):
    _, texts = parts(place / "first.safetensors")
    plain = json.loads(texts["config"])
    plain[part] |= options
    file = place / "first.safetensors"
    path = changed(tmp_path / "model.safetensors", file, "config", plain)
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{message}"):
        egnn.load_pretrained(path)


def test_a_header_is_bounded_before_it_is_parsed(place, no_data, tmp_path):
    arrays, texts = parts(place / "first.safetensors")
    path = tmp_path / "model.safetensors"
    deep = "[" * 100_000 + "]" * 100_000
    for constants in (deep, "[" * 60 + "]" * 60):
        forged(path, arrays, texts | {"constants": constants})
        with pytest.raises(ValueError, match=r"model\.safetensors: .*nested deeper"):
            egnn.load_pretrained(path)
    header = b'{"__metadata__":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*nested deeper"):
        egnn.load_pretrained(path)
    for number, message in (("NaN", "finite"), ("1e999", "finite"), ("{", "")):
        forged(path, arrays, texts | {"constants": number})
        with pytest.raises(ValueError, match=rf"model\.safetensors: .*{message}"):
            egnn.load_pretrained(path)
    header = json.dumps({"__metadata__": {"comment": "x" * 100_000_000}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"header has 100,0.* bytes; expected at most 8,000,000"):
        egnn.load_pretrained(path)
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ValueError, match="expected at most 8,000,000"):
        egnn.load_pretrained(path)
    path.write_bytes(safetensors.save(arrays))
    with pytest.raises(ValueError, match="expected a file that egnn_jax wrote"):
        egnn.load_pretrained(path)
    for name in (tmp_path / "none.safetensors", "QM9"):
        with pytest.raises(ValueError, match=r"there is no such file; expected .* qm9, qm9-smiles"):
            egnn.load_pretrained(name)
    for name in (None, 5, ""):
        with pytest.raises(ValueError, match=r"the model is .*; expected a path, or one of qm9"):
            egnn.load_pretrained(name)


def test_running_statistics_are_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(qm9, "load", molecules)
    model = egnn.LieConv(features=8, layers=1, kernel_features=4)
    train(config(model=model), tmp_path / "run", callbacks=())
    read = egnn.load_pretrained(egnn.export(tmp_path / "run", tmp_path / "file.safetensors"))
    _, _, params = load(tmp_path / "run")
    chex.assert_trees_all_equal(read.params, params)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(params["batch_stats"]))
    assert np.isfinite(read(METHANE)["homo"]).all()


def test_a_network_is_shown_without_its_weights():
    assert len(repr(egnn.load_pretrained("qm9"))) < 3_000


@egnn.MODELS.register("shift_of_test")
class Shift(egnn.Linear):
    """x' = x + t v."""


@egnn.TASKS.register("points_of_test")
@dataclasses.dataclass(frozen=True)
class Points(egnn.Task):
    """x + 1.5 v is to be found; a scale comes from the data."""

    scale: float | None = None

    def samples(self, split):
        ones = np.ones((4, 3, 3), np.float32)
        return ArrayDataset({"x": ones, "v": 2 * ones})

    def graph(self, batch, key):
        x, v = (batch[name].reshape(-1, 3) for name in ("x", "v"))
        empty = jnp.zeros(0, jnp.int32)
        return GraphsTuple(
            nodes=egnn.Nodes(h=None, x=x, v=v),
            edges=egnn.Edges(),
            globals=egnn.Globals(),
            senders=empty,
            receivers=empty,
            n_node=jnp.full(len(x) // 3, 3),
            n_edge=jnp.zeros(len(x) // 3, jnp.int32),
        )

    def loss(self, apply):
        def loss(params, batch, key):
            out = apply(params, self.graph(batch, key)).nodes.x
            return jnp.mean((out - 4) ** 2), {}

        return loss

    def constants(self):
        return {"scale": 2.5}

    def with_constants(self, constants):
        return dataclasses.replace(self, scale=constants["scale"])


def test_models_and_tasks_of_ones_own(tmp_path):
    own = Config(Points(), Shift(), epochs=1, batch_size=2)
    train(own, tmp_path / "run")
    path = egnn.export(tmp_path / "run", tmp_path / "own.safetensors")
    model = egnn.load_pretrained(path)
    assert type(model.network) is Shift
    assert model.config.task == Points(scale=2.5)
    graph = egnn.complete_graph(x=np.zeros((2, 3), np.float32), v=np.ones((2, 3), np.float32))
    t = named(model.params)["time"]
    assert t.shape == ()
    np.testing.assert_allclose(model(graph).nodes.x, np.full((2, 3), t), rtol=1e-6)
    with pytest.raises(ValueError, match="Points predicts no properties of atoms"):
        model(WATER)
    broken = changed(tmp_path / "broken.safetensors", path, "constants", {"scal": 1})
    with pytest.raises(ValueError, match=r"broken\.safetensors: .*scale"):
        egnn.load_pretrained(broken)


def test_what_is_no_graph_cannot_be_described():
    with pytest.raises(ValueError, match="the network's input is a NoneType"):
        pretrained.describe(None)


def test_the_commands(place, tmp_path, capsys, monkeypatch):
    path = tmp_path / "model.safetensors"
    cli.main(["export", str(place / "run"), str(path), "--seed", "6"])
    assert capsys.readouterr().out.strip() == str(path)
    monkeypatch.setattr(qm9, "load", molecules)
    cli.main(["evaluate", str(path)])
    printed = json.loads(capsys.readouterr().out)
    for split, errors in egnn.load_pretrained(path).card["metrics"].items():
        assert printed["metrics"][split] == pytest.approx(errors, rel=1e-4)
    with pytest.raises(SystemExit, match=r"egnn: error: .*there is no such file"):
        cli.main(["evaluate", str(tmp_path / "none.safetensors")])
    assert Path(path).is_file()
