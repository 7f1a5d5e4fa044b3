import dataclasses
import json
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import egnn_jax as egnn
from egnn_jax._files import finite, read_yaml, yaml_text
from egnn_jax.experiments import config as configs
from egnn_jax.experiments._options import plain_hints
from egnn_jax.experiments.autoencoder import GraphAutoencoder
from egnn_jax.experiments.forces import Forces
from egnn_jax.experiments.optimizer import Optimizer
from egnn_jax.experiments.property_table import Table
from egnn_jax.experiments.qm9 import QM9
from egnn_jax.registry import MODELS
from tests.helpers import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PLAIN = {"task": {"name": "nbody"}, "model": {"name": "egnn"}}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_config_loads_builds_and_round_trips(path):
    config = configs.load(path)
    assert configs.from_dict(yaml.safe_load(configs.dump(config))) == config
    try:
        model = config.network()
    except (ValueError, UserWarning) as error:
        if isinstance(config.task, Forces) and "is not a file" in str(error):
            pytest.skip("the recipe's structures are not on this machine")
        if isinstance(config.task, Table) and "task.train is empty" in str(error):
            pytest.skip("the recipe is for a table of the user's")
        raise
    model = getattr(model, "encoder", model)  # inside a task's readout
    assert isinstance(model, MODELS[configs.to_dict(config)["model"]["name"]])
    for field in dataclasses.fields(config.model):
        if field.name not in ("parent", "name"):  # which flax gives to every module
            assert getattr(model, field.name) == getattr(config.model, field.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "epoch is unknown.*did you mean 'epochs'"),
        (
            {"model": {"name": "egnn", "feature": 3}},
            "model.feature is unknown.*did you mean 'features'",
        ),
        ({"model": {"name": "ecnn"}}, "model.name is 'ecnn'; expected one of.*did you mean 'egnn'"),
        ({"model": None}, "model is None; expected a mapping"),
        ({"task": {"name": "nbody", "dataset": "large"}}, "task.dataset is 'large'"),
        ({"task": {"name": "nbody", "huber": 0}}, "task.huber is 0.0"),
        (
            {"optimizer": {"learning_rate": "fast"}},
            "optimizer.learning_rate is 'fast'; expected float",
        ),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate is nan"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"checkpoint_seconds": float("inf")}, "checkpoint_seconds is inf; expected a finite num"),
        (
            {"optimizer": {"clip_norm": float("inf")}},
            "optimizer.clip_norm is inf; expected a finite",
        ),
        ({"optimizer": {"clip_norm": 0}}, "optimizer.clip_norm is 0.0"),
        ({"optimizer": {"final": 0.1}}, "final is 0.1 where optimizer.schedule is 'constant'"),
        (
            {"optimizer": {"half_periods": 3, "schedule": "exponential", "final": 0.1}},
            "half_periods is 3 where .* 'exponential', which does not use it; expected 1",
        ),
        ({"optimizer": {"name": "rprop"}}, "'rprop'; expected .* which may be a schedule"),
        ({"optimizer": {"name": "sm3"}}, "'sm3'; expected .* which may be a schedule"),
        ({"task": {"name": "nbody", "huber": float("inf")}}, "task.huber is inf; expected a fin"),
        (
            {"task": {"name": "autoencoder", "edge_probability": 0.9}},
            "edge_probability is 0.9 of the dataset 'community', which does not use it",
        ),
        ({"optimizer": [1]}, "optimizer is .*expected a mapping"),
        ({"epochs": 1.5}, "epochs is 1.5; expected int"),
        ({"epochs": True}, "epochs is True; expected int"),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        (
            {"model": {"name": "egnn", "features": 10**18}},
            "model.features is 10+; expected",
        ),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, f"seed is {2**32}; expected 0 to {2**32 - 1}"),
        ({"seed": 2**32 - 2, "seeds": 3}, f"seed is {2**32 - 2}; expected 0 to {2**32 - 3}"),
        ({"batch_size": 10, "micro_batches": 3}, "micro_batches is 3; expected a divisor of 10"),
        ({"optimizer": {"name": "adm"}}, "optimizer.name is 'adm'; expected 'adam', 'adamw' or"),
        ({"optimizer": {"name": "apply_updates"}}, "optimizer.name is 'apply_updates'"),
        (
            {"eval_every": 5, "patience": 3},
            "patience is 3; expected 0, or at least 5, the eval_every",
        ),
        ({"task": {"name": "qm9", "targets": "homo"}}, "task.targets is 'homo'; expected a list"),
    ],
)
def test_nonsense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        configs.from_dict(PLAIN | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": Optimizer(schedule="linear")}, r"optimizer\.schedule is 'linear'"),
        ({"task": QM9(("homo", "lomo"))}, r"task\.targets\[1\] is 'lomo'"),
        ({"task": GraphAutoencoder(noise="coords")}, r"task\.noise is 'coords'"),
    ],
)
def test_nonsense_is_refused_from_python_too(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(configs.from_dict(PLAIN), **change)


def test_an_optimizer_that_optax_does_not_have_is_refused_where_it_is_made():
    with pytest.raises(ValueError, match=r"optimizer\.name is 'sdg'; expected 'adam', 'adamw' or"):
        Optimizer(name="sdg")


def test_numbers_that_look_decimal_are():
    assert read_yaml("[0, -0, 12, 1_000, 0x10, 0.5, 00.5, 1e3, .inf, '010', '1:30']") == [
        0, 0, 12, 1000, 16, 0.5, 0.5, "1e3", float("inf"), "010", "1:30",
    ]  # fmt: skip


def test_yaml_floats_without_a_dot_are_read():
    config = configs.from_dict(
        yaml.safe_load(
            "{task: {name: nbody}, model: {name: egnn}, optimizer: {learning_rate: 5e-4}}"
        )
    )
    assert config.optimizer.learning_rate == 5e-4
    with pytest.raises(ValueError, match=r"ema_decay is '0\.99'; expected the number 0\.99"):
        dataclasses.replace(config, ema_decay="0.99")
    text = dataclasses.replace(config.optimizer, learning_rate="5e-4")
    with pytest.raises(ValueError, match=r"learning_rate is '5e-4'; expected the number 0\.0005"):
        dataclasses.replace(config, optimizer=text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["task", "model", "optimizer", "epochs", "seeds", "x"]), values)
    | values
)
def test_anything_else_is_a_value_error_too(plain):
    try:
        config = configs.from_dict(plain)
    except ValueError:
        return
    assert isinstance(config, configs.Config)


@given(st.binary(max_size=60))
def test_any_bytes_in_a_file_are_refused_with_its_path(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"fuzz\.yaml"):
        configs.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 1\nepochs: 2\n", "the key 'epochs' appears twice"),
        ("task: {name: nbody, name: qm9}\n", "the key 'name' appears twice"),
        ("task: &a {name: nbody}\nmodel: *a\n", "an alias .* is used"),
        ("[" * 60 + "]" * 60, "nested deeper than 50 levels"),
        ("x: " + "y" * 1_000_001, "has 1000004 characters; expected at most 1000000"),
        ("!!python/object/apply:os.getcwd []", "this is no YAML"),
        ("epochs: 4\n<<: {epochs: 3}\n", r"a merge key \(<<\) is used"),
        ("<<: [{epochs: 3}, {epochs: 4}]\n", r"a merge key \(<<\) is used"),
        ("epochs: 010\n", "a number is 010; expected a decimal"),
        ("epochs: -0_7\n", "a number is -0_7; expected a decimal"),
        ("epochs: 1:30\n", "a number is 1:30; expected a decimal"),
        ("optimizer: {learning_rate: 1:30.5}\n", "a number is 1:30.5; expected a decimal"),
    ],
    ids=[
        "twice",
        "twice inside",
        "alias",
        "deep",
        "large",
        "code",
        "merged",
        "several merged",
        "octal",
        "negative octal",
        "base 60",
        "base 60 with a fraction",
    ],
)
def test_yaml_that_is_ambiguous_or_unbounded_is_refused(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.yaml: .*{message}"):
        configs.load(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "3\nwater\n" + "O 0.0 0.0 0.0\n" * 20_000,
        "3\nenergy: -76.4\n" + "O 0.0 0.0 0.0\n" * 20_000,
        '3\nLattice="5 0 0" x: y\n' + "O 0.0 0.0 0.0\n" * 20_000,
        f"!{'y' * 300_000} 3",
        f"? {'y' * 300_000}\n: 1\n? {'y' * 300_000}\n: 2\n",
        f"task: {{name: {'y' * 300_000}}}",
    ],
)
def test_training_on_a_structure_file_by_mistake_prints_little_of_it(tmp_path, text):
    path = tmp_path / "molecule.xyz"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected|no YAML|the key") as error:
        configs.load(path)
    assert len(str(error.value)) <= 500 + len(f"{path}: ")


def test_recipes_are_found_by_name():
    config = configs.load(ROOT / "configs/nbody/egnn.yaml")
    for name in ("nbody/egnn", "nbody/egnn.yaml", "configs/nbody/egnn.yaml"):
        assert configs.load(name) == config
    assert {f"{p.parent.name}/{p.stem}" for p in CONFIGS} == set(configs.recipes())
    with pytest.raises(ValueError, match=r"nbody/ecnn is not a file; expected .* a recipe: .*egnn"):
        configs.load("nbody/ecnn")


def test_missing_file():
    with pytest.raises(ValueError, match=r"no\.yaml is not a file"):
        configs.load("no.yaml")


def test_overrides():
    config = configs.from_dict(PLAIN)
    flags = [
        "--epochs",
        "7",
        "--optimizer.learning-rate",
        "0.1",
        "--model.layers",
        "2",
        "--task.train-size",
        "50",
        "--model.output-features",
        "3",
    ]
    changed = configs.override(config, flags, "x", "")
    assert (changed.epochs, changed.optimizer.learning_rate, changed.model.layers) == (7, 0.1, 2)
    assert (changed.task.train_size, changed.model.output_features) == (50, 3)
    assert configs.override(config, [], "x", "") == config
    assert configs.from_dict(configs.to_dict(changed)) == changed


def test_another_model_keeps_the_options_that_it_has_too():
    config = configs.load("forces/ethanol")
    tensornet = configs.override(
        config, ["--model.name", "tensornet", "--model.num-rbf", "8"], "x", ""
    )
    assert tensornet.model == egnn.TensorNet(features=64, layers=3, num_rbf=8, cutoff=5.0)
    assert dataclasses.replace(tensornet, model=config.model) == config
    schnet = configs.override(config, ["--model.name=schnet"], "x", "")
    assert schnet.model == egnn.SchNet(features=64, layers=3, num_rbf=20, cutoff=5.0)
    with pytest.raises(ValueError, match=r"model.name is 'schnett'; expected one of .*schnet"):
        configs.override(config, ["--model.name", "schnett"], "x", "")


def test_help_names_every_option_and_its_default(capsys):
    config = configs.from_dict(PLAIN)
    with pytest.raises(SystemExit):
        configs.override(config, ["--help"], "x", "")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part, prefix in (
        (config, ""),
        (config.task, "task."),
        (config.model, "model."),
        (config.optimizer, "optimizer."),
    ):
        for name in plain_hints(type(part)):  # not what only Python can hold, as a layer class
            value, flag = getattr(part, name), f"--{prefix}{name}".replace("_", "-")
            default = re.search(rf"{re.escape(flag)}[ ,].*?\(default: ?(.*?)\)", text)
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert default is not None, flag
            assert default[1] == shown, flag


@pytest.mark.parametrize(
    "name", ["cormorant", "dimenetpp", "l1net", "lieconv", "nmp", "se3_transformer", "tfn"]
)
def test_options_for_two_cores_are_options(name):
    text = (ROOT / "configs" / "qm9" / f"{name}.yaml").read_text(encoding="utf-8")
    comment = " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    (options,) = re.findall(r"On two cores: `(.*?)`", comment)
    config = configs.load(f"qm9/{name}")
    changed = configs.override(config, options.split(), "x", "")
    assert changed.epochs < config.epochs
    assert changed.batch_size // changed.micro_batches % 2 == 0


def test_an_option_is_none_in_lower_case_too():
    """And "none" as text stays text."""
    config = configs.override(configs.load("molecules/table"), [], "x", "")
    assert config.task.cutoff == 5.0
    assert config.optimizer.clip_norm == 1.0
    for none in ("none", "None"):
        flags = ["--task.cutoff", none, "--optimizer.clip-norm", none, "--task.bonds", "none"]
        changed = configs.override(config, flags, "x", "")
        assert changed.task.cutoff is changed.optimizer.clip_norm is None
        assert changed.task.bonds == "none"
        flags = [f"--task.cutoff={none}", "--optimizer.clip_norm", none, "--task.bonds=none"]
        assert configs.override(config, flags, "x", "") == changed
    l1net = configs.load("qm9/l1net")
    assert configs.override(l1net, ["--model.output-features", "none"], "x", "") == l1net
    assert configs.override(l1net, ["--task.cutoff", "none"], "x", "").task.cutoff is None


def test_overrides_that_do_not_exist_are_refused(capsys):
    with pytest.raises(SystemExit):
        configs.override(configs.from_dict(PLAIN), ["--epoch", "3"], "x", "")
    assert "--epochs" in capsys.readouterr().err


def test_what_is_written_is_read_again():
    with pytest.raises(ValueError, match=r"settings: the text has .* characters; expected at most"):
        yaml_text({"rows": list(range(300_000))})
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    with pytest.raises(ValueError, match=r"settings: .*nested"):
        yaml_text({"deep": deep})


def test_numbers_of_numpy_and_jax_are_plain_in_json():
    found = finite({"a": np.float32(1.5), "b": np.array([1.0, np.nan]), "c": (jnp.ones(()), True)})
    assert json.loads(json.dumps(found)) == {"a": 1.5, "b": [1.0, None], "c": [1.0, True]}
