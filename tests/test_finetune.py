"""Training that starts from trained parameters, and parts that stay as they are, bit by bit."""

import dataclasses
import json
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import config, molecules

import egnn_jax as egnn
from egnn_jax import cli
from egnn_jax.data import qm9
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import start
from egnn_jax.experiments.optimizer import Optimizer
from egnn_jax.experiments.qm9 import QM9
from egnn_jax.experiments.run import load, train
from egnn_jax.training.parameters import from_names, named, transfer
from egnn_jax.training.state import init_state
from egnn_jax.training.step import make_step


@pytest.fixture(autouse=True, scope="module")
def small_data():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qm9, "load", molecules)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of two seeds and its exported file, to start from."""
    folder = tmp_path_factory.mktemp("finetune")
    train(config(seeds=2), folder / "base")
    egnn.export(folder / "base", folder / "base.safetensors")
    return folder


def bits(array):
    return np.asarray(array).tobytes()


def trained(folder, seed=None):
    params = load(folder)[2]
    return named(params if seed is None else jax.tree.map(lambda a: a[seed], params))


def split(before, after, part):
    """Whether each parameter is the same bit by bit: those of a part, and the others."""
    same = {name: bits(before[name]) == bits(after[name]) for name in before}
    return (
        [value for name, value in same.items() if name.startswith(part)],
        [value for name, value in same.items() if not name.startswith(part)],
    )


PARAMS = {
    "params": {
        # Many numbers, since a weighted mean of a number and itself rounds only now and then.
        "encoder": {
            "a": jnp.array([-0.0, 0.0, 1e-30, *np.random.default_rng(0).normal(size=500)]),
            "b": jnp.array([[2.0, -0.0]]),
        },
        "head": {"a": jnp.array([0.3, -0.7])},
    }
}


def steps(optimizer, compiled, number=10, ema_decay=0.9):
    def loss(params, batch, key):
        leaves = jax.tree.leaves(params)
        return sum(jnp.sum((a - batch) ** 2) for a in leaves), {}

    state = init_state(PARAMS, optimizer, True, jax.random.PRNGKey(0))
    # Compiled for this CPU, products and sums are fused and happen not to round.
    step = make_step(loss, optimizer, ema_decay)
    step = jax.jit(step) if compiled else step
    for _ in range(number):
        state, _ = step(state, jnp.array(5.0))
    return state


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(0.1, weight_decay=0.5),
        optax.sgd(0.1, momentum=0.9),
        optax.chain(
            optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), optax.lion(0.1)
        ),
    ],
)
def test_frozen_parameters_and_their_average_keep_every_bit(optimizer, compiled):
    free = steps(optimizer, compiled)
    state = steps(egnn.freeze(optimizer, "encoder/*"), compiled)
    before = named(PARAMS)
    for tree, moves in ((state, False), (free, True)):
        for found in (named(tree.params), named(tree.average)):
            for name in ("encoder/a", "encoder/b"):
                assert (bits(found[name]) != bits(before[name])) == moves
            assert np.abs(found["head/a"] - before["head/a"]).min() > 0.05


def test_a_frozen_zero_keeps_its_sign_outside_of_jit():
    optimizer = egnn.freeze(optax.sgd(0.1), "encoder/*")
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    after, before = named(optax.apply_updates(PARAMS, updates)), named(PARAMS)
    assert bits(after["encoder/a"]) == bits(before["encoder/a"])
    assert bits(after["head/a"]) != bits(before["head/a"])


def test_the_others_train_as_if_they_were_alone():
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.1))
    gradient = {"frozen": jnp.array([100.0]), "free": jnp.array([0.05])}
    params = {"frozen": jnp.array([1.0]), "free": jnp.array([1.0])}
    frozen = egnn.freeze(optimizer, ["frozen"])
    updates, state = frozen.update(gradient, frozen.init(params), params)
    alone = {"free": params["free"]}
    expected, _ = optimizer.update({"free": gradient["free"]}, optimizer.init(alone), alone)
    np.testing.assert_array_equal(updates["free"], expected["free"])
    assert sum(a.size for a in jax.tree.leaves(state)) < 6  # no moments of what is frozen


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["encoder/c*"], r"'encoder/c\*' matches no parameter; expected one of encoder/a; encod"),
        (["*"], "freeze all 3 parameters"),
        (["params/head/*"], "matches no parameter"),
        (["ENCODER/*"], "matches no parameter"),
    ],
)
def test_patterns_that_make_no_sense(patterns, message):
    with pytest.raises(ValueError, match=message):
        egnn.freeze(optax.adam(1e-3), patterns).init(PARAMS)


def test_names_are_matched_and_all_misfits_listed():
    size = PARAMS["params"]["encoder"]["a"].size
    other = {"encoder/a": np.ones(size), "encoder/b": np.ones((2, 2)), "extra/x": np.ones(3)}
    with pytest.raises(ValueError, match="is missing") as raised:
        transfer(other, PARAMS)
    for words in (
        "head/a (2,) is missing",
        "extra/x (3,) is left over",
        "encoder/b has shape (2, 2), expected (1, 2)",
        "init_skip",
    ):
        assert words in str(raised.value)
    moved = named(transfer(other, PARAMS, ["head/*", "extra/*", "encoder/b"]))
    np.testing.assert_array_equal(moved["encoder/a"], np.ones(size))
    assert moved["encoder/a"].dtype == np.float32
    for name in ("encoder/b", "head/a"):
        assert bits(moved[name]) == bits(named(PARAMS)[name])
    with pytest.raises(ValueError, match="'nothing' matches no parameter"):
        transfer(other, PARAMS, ["head/*", "extra/*", "encoder/b", "nothing"])
    again = from_names(named(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, again, PARAMS)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_starts_from_a_file_and_freezes(place, tmp_path, ema_decay):
    start = config(
        init=str(place / "base.safetensors"), freeze=("encoder/layer_0/*",), ema_decay=ema_decay
    )
    train(start, tmp_path / "run")
    source = named(egnn.load_pretrained(place / "base.safetensors").params)
    frozen, free = split(source, trained(tmp_path / "run"), "encoder/layer_0/")
    assert len(frozen) > 5
    assert all(frozen)
    assert not any(free)
    assert load(tmp_path / "run")[0] == start


def test_several_seeds_start_from_one_and_a_run_is_a_start_too(place, tmp_path):
    start = config(init=str(place / "base"), freeze=("encoder/*",), seeds=2, epochs=1)
    train(start, tmp_path / "run")
    source = trained(place / "base", seed=0)
    for seed in range(2):
        frozen, free = split(source, trained(tmp_path / "run", seed), "encoder/")
        assert all(frozen)
        assert not any(free)


def test_a_new_head_is_left_new(place, tmp_path):
    other = config(task=QM9(targets=("gap",)), init=str(place / "base.safetensors"), epochs=1)
    with pytest.raises(ValueError, match="graph_dec/Dense_1/kernel has shape") as raised:
        train(other, tmp_path / "run")
    assert "graph_dec/Dense_1/bias has shape (2,), expected (1,)" in str(raised.value)
    assert not (tmp_path / "run/config.yaml").exists()
    other = dataclasses.replace(other, init_skip=("graph_dec/*",), freeze=("encoder/*",))
    train(other, tmp_path / "run")
    found = trained(tmp_path / "run")
    assert found["graph_dec/Dense_1/kernel"].shape == (4, 1)
    source = named(egnn.load_pretrained(place / "base.safetensors").params)
    names = [name for name in source if name.startswith("encoder/")]
    assert all(bits(source[name]) == bits(found[name]) for name in names)
    exported = egnn.export(tmp_path / "run", tmp_path / "gap.safetensors")
    assert egnn.load_pretrained(exported).config.init == "base.safetensors"


class StopAfter(egnn.Callback):
    """Fails after the first evaluation."""

    def evaluated(self, progress):
        raise KeyboardInterrupt


def test_resume_is_exact_and_needs_no_file(place, tmp_path):
    file = tmp_path / "start.safetensors"
    file.write_bytes((place / "base.safetensors").read_bytes())
    start = config(
        init=str(file),
        init_skip=("node_dec/*",),
        freeze=("encoder/layer_1/*",),
        ema_decay=0.5,
        seeds=2,
        checkpoint_seconds=0.0,
        chunk_steps=1,
    )
    train(start, tmp_path / "whole")
    for folder in ("early", "late"):
        with pytest.raises(KeyboardInterrupt):
            train(start, tmp_path / folder, callbacks=[StopAfter()])
    saved = [path.name for path in (tmp_path / "late/checkpoints/last").iterdir()]
    assert saved == ["1"]
    # Killed before the first checkpoint.
    for path in sorted((tmp_path / "early/checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    file.unlink()
    for folder in ("early", "late"):
        train(start, tmp_path / folder)
        jax.tree.map(
            np.testing.assert_array_equal, load(tmp_path / "whole")[2], load(tmp_path / folder)[2]
        )
    # A complete run is read without the file too.
    result = train(start, tmp_path / "whole")
    assert result["metrics"] == train(start, tmp_path / "late")["metrics"]
    with pytest.raises(ValueError, match=r"start\.safetensors: there is no such file"):
        train(start, tmp_path / "new")


def test_a_changed_start_is_refused(place, tmp_path):
    file = tmp_path / "start.safetensors"
    egnn.export(place / "base", file)
    start = config(init=str(file), freeze=("encoder/*",), epochs=1)
    train(start, tmp_path / "run")
    train(start, tmp_path / "run")
    egnn.export(place / "base", file, seed=1)
    with pytest.raises(ValueError, match=r"other settings .*initial_parameters"):
        train(start, tmp_path / "run")
    file.unlink()
    for name, value in (
        ("freeze", ("encoder/layer_0/*",)),
        ("freeze", ()),
        ("init", "another.safetensors"),
        ("init", None),
        ("init_skip", ("graph_dec/*",)),
    ):
        with pytest.raises(ValueError, match=f"other settings .*{name}"):
            train(dataclasses.replace(start, **{name: value}), tmp_path / "run")


def test_parameters_from_python(place, tmp_path):
    params = jax.tree.map(lambda a: a[0], load(place / "base")[2])
    start = config(freeze=("encoder/*",), epochs=1)
    train(start, tmp_path / "run", params=params)
    frozen, free = split(named(params), trained(tmp_path / "run"), "encoder/")
    assert all(frozen)
    assert not any(free)
    train(start, tmp_path / "run", params=params)
    (tmp_path / "run/result.json").unlink()
    train(start, tmp_path / "run")  # a resumed run keeps what it started from
    others = jax.tree.map(lambda a: a + 1, params)
    with pytest.raises(ValueError, match=r"other settings .*initial_parameters"):
        train(start, tmp_path / "run", params=others)
    both = dataclasses.replace(start, init=str(place / "base"))
    with pytest.raises(ValueError, match="expected one of them"):
        train(both, tmp_path / "both", params=params)


def test_other_options_than_those_of_the_weights_are_said(place, tmp_path):
    own = config(init=str(place / "base"), epochs=1)
    for source in ("base", "base.safetensors"):
        other = dataclasses.replace(
            own, init=str(place / source), model=dataclasses.replace(own.model, activation="relu")
        )
        with pytest.warns(UserWarning, match=rf"{source}: model.activation is relu, not silu$"):
            train(other, tmp_path / source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(own, tmp_path / "same")


def test_the_networks_that_come_with_the_library_are_a_start():
    chex.assert_trees_all_equal(
        start.weights_of("qm9")[0], dict(named(egnn.load_pretrained("qm9").params))
    )


def test_settings_of_fine_tuning():
    plain = configs.to_dict(config())
    assert not {"init", "init_skip", "freeze"} & set(plain)
    start = config(init="m.safetensors", init_skip=("a*",), freeze=("b", "c"))
    assert configs.from_dict(configs.to_dict(start)) == start
    for options, message in (
        ({"init_skip": ("a",)}, "init_skip is"),
        ({"init": ""}, "init is ''"),
        ({"freeze": (3,)}, r"freeze\[0\] is 3"),
    ):
        with pytest.raises(ValueError, match=message):
            config(**options)


def test_the_command(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start = dataclasses.replace(config(epochs=1), optimizer=Optimizer("adamw", weight_decay=0.1))
    (tmp_path / "small.yaml").write_text(configs.dump(start))
    cli.main(
        [
            *("train", "small.yaml", "--init", str(place / "base.safetensors")),
            *("--freeze", "encoder/layer_0/*", "--freeze", "encoder/layer_1/*"),
            *("--init-skip", "graph_dec/*", "--run", "run"),
        ]
    )
    assert "test homo" in capsys.readouterr().out
    found, before = trained("run"), named(egnn.load_pretrained(place / "base.safetensors").params)
    frozen, _ = split(before, found, "encoder/layer_")
    assert all(frozen)
    recorded = json.loads(json.dumps(configs.to_dict(load("run")[0])))
    assert recorded["freeze"] == ["encoder/layer_0/*", "encoder/layer_1/*"]
    assert recorded["init_skip"] == ["graph_dec/*"]
    with pytest.raises(SystemExit, match="'decoder' matches no parameter"):
        cli.main(["train", "small.yaml", "--freeze", "decoder", "--run", "other"])
    with pytest.raises(SystemExit, match=r"init_skip is .* expected no patterns"):
        cli.main(["train", "small.yaml", "--init", "none", "--init-skip", "a", "--run", "other"])
    with pytest.raises(SystemExit, match="init is ''; expected a file"):
        cli.main(["train", "small.yaml", "--init", "", "--run", "other"])
    with pytest.raises(SystemExit, match=r"there is no such file; expected .* qm9, qm9-smiles"):
        cli.main(["train", "small.yaml", "--init", "qm10", "--run", "other"])
    cli.main(["evaluate", "run"])


def test_the_folder_of_a_run_has_a_plain_name():
    recipe = configs.load("molecules/table")
    new = dataclasses.replace(recipe, init=None, init_skip=())
    assert configs.differences(recipe, new) == {"init": None}
    path = cli.default_folder(configs.find("nbody/egnn"), {"freeze": ["a/*", "b/[01]?"]})
    assert path.parts[-1] == "egnn,freeze=a--+b--01--"
