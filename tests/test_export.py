"""One file that predicts anywhere, and trainings that start from it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import egnn_jax as egnn
from egnn_jax.cli import main
from egnn_jax.data import qm9
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.export import export
from egnn_jax.experiments.run import load, train

NBODY = {
    "task": {"name": "nbody", "train_size": 100},
    "model": {"name": "egnn", "features": 8, "layers": 2},
    "optimizer": {"learning_rate": 1e-2},
    "ema_decay": 0.9,
    "epochs": 2,
    "batch_size": 50,
    "eval_every": 1,
}


def leaves(params):
    flat = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): np.asarray(v) for k, v in flat}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(configs.from_dict(NBODY), folder)
    return folder


@pytest.fixture
def file(run, tmp_path):
    return export(run, tmp_path / "tiny.safetensors")


def test_a_file_gives_the_same_outputs_as_the_run(run, file):
    config, network, params = load(run)
    graph = config.task.graph(config.task.samples("test").pack(np.arange(4)))
    pretrained = egnn.load_pretrained(file)
    np.testing.assert_array_equal(
        pretrained(graph).nodes.x, jax.jit(network.apply)(params, graph).nodes.x
    )
    errors = json.loads((run / "result.json").read_text())["metrics"]
    assert pretrained.card["metrics"] == errors
    assert pretrained.config.model == config.model
    for name, value in leaves(params).items():
        np.testing.assert_array_equal(leaves(pretrained.params)[name], value)
    with pytest.raises(ValueError, match=r"edges\.a of the graph is None; expected"):
        pretrained(egnn.complete_graph(np.eye(3), v=np.eye(3)))


def test_a_file_on_qm9_predicts_without_the_data(tmp_path, monkeypatch):
    plain = NBODY | {
        "task": {"name": "qm9", "targets": ["U0", "homo"], "train_size": 200},
        "model": {"name": "egnn", "features": 8, "layers": 1, "update_coordinates": False},
        "epochs": 1,
    }
    config = configs.from_dict(plain)
    train(config, tmp_path / "run")
    path = export(tmp_path / "run", tmp_path / "two.safetensors")
    first = config.task.molecules.n_atoms[0]
    positions, numbers = config.task.molecules.positions, config.task.molecules.atomic_numbers
    _, network, params = load(tmp_path / "run")
    expected = config.task.properties(
        network.apply, params, np.array([first]), numbers[:first], positions[:first]
    )
    shutil.rmtree(tmp_path / "run")
    monkeypatch.setattr(qm9, "load", lambda *_: pytest.fail("the data set was read"))
    import ase

    pretrained = egnn.load_pretrained(path)
    methane = ase.Atoms(numbers[:first], positions[:first])
    predicted = pretrained.predict([methane, methane])
    assert list(predicted) == ["U0", "homo"]
    np.testing.assert_allclose(predicted["U0"], [expected[0, 0]] * 2, rtol=1e-6)
    assert -1.2e6 < predicted["U0"][0] < -1.0e6  # about -40.5 hartree, in meV
    assert pretrained.card["units"] == {"U0": "meV", "homo": "meV"}
    assert pretrained.card["elements"] == ["H", "C", "N", "O", "F"]
    with pytest.raises(ValueError, match=r"atomic_numbers has \[16\]"):
        pretrained.predict(ase.Atoms("SH2", np.eye(3)))
    main(["predict", str(path), "O"])


def damaged(content, kind):
    match kind:
        case "cut":
            return content[:-3]
        case "flipped":
            return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        case "header":
            return (10**12).to_bytes(8, "little") + content[8:]
        case "empty":
            return b""
        case "text":
            return b"weights" * 100


@pytest.mark.parametrize("kind", ["cut", "flipped", "header", "empty", "text"])
def test_a_damaged_file_is_refused_and_named(file, kind):
    file.write_bytes(damaged(file.read_bytes(), kind))
    with pytest.raises(ValueError, match=r"tiny\.safetensors: "):
        egnn.load_pretrained(file)


def test_a_file_of_others_is_refused(tmp_path):
    save_file({"w": np.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: .*metadata"):
        egnn.load_pretrained(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="there is no such file"):
        egnn.load_pretrained(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"expected a name\.safetensors"):
        export(tmp_path, tmp_path / "model.pkl")


def test_training_starts_from_a_file_and_leaves_frozen_parts(file, tmp_path):
    pattern = "layer_0/phi_e/*"
    arguments = ["train", "nbody/egnn", "--run", str(tmp_path / "tuned"), "--init", str(file)]
    options = {"epochs": 2, "batch-size": 50, "eval-every": 1, "task.train-size": 100}
    options |= {"model.features": 8, "model.layers": 2, "optimizer.weight-decay": 0.1}
    for name, value in options.items():
        arguments += [f"--{name}", str(value)]
    arguments += ["--ema-decay", "0.9", "--freeze", pattern]
    main(arguments)
    before, after = load_file(file), leaves(load(tmp_path / "tuned")[2])
    frozen = {name for name in before if name.startswith("layer_0/phi_e/")}
    assert len(frozen) == 4
    for name, value in before.items():
        same = np.array_equal(value, after[f"params/{name}"])
        assert same == (name in frozen), name
    file.unlink()  # a finished or stopped run does not need it again
    main(arguments)


def test_what_does_not_fit_is_listed(file, tmp_path):
    wider = configs.from_dict(NBODY | {"model": {"name": "egnn", "features": 9, "layers": 1}})
    for config, message in (
        (configs.from_dict(NBODY | {"init": str(file), "freeze": ["nothing*"]}), "'nothing"),
        (
            configs.from_dict(configs.to_dict(wider) | {"init": str(file)}),
            r"layer_1/phi_e/kernel \(18, 8\) is left over|expected \(2, 9\)|embedding",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train(config, tmp_path / "x")
        assert not (tmp_path / "x" / "checkpoints").exists()


def test_freeze_works_with_any_optimizer():
    params = {"a": jnp.array([1.0, -0.0]), "b": {"c": jnp.ones(2)}}
    optimizer = egnn.freeze(optax.adamw(0.1, weight_decay=0.5), "a")
    state = optimizer.init(params)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(gradient, state, params)
    after = optax.apply_updates(params, updates)
    assert np.asarray(after["a"]).tobytes() == np.asarray(params["a"]).tobytes()
    assert (after["b"]["c"] < 0.95).all()
    with pytest.raises(ValueError, match="'z' matches no parameter"):
        egnn.freeze(optax.sgd(0.1), "z").init(params)
