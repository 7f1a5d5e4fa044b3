"""A user's own model and task, registered: in YAML, the command line, checkpoints and reports."""

import dataclasses
import json
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax._extras import import_plugin
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.report import report
from egnn_jax.experiments.run import load, train
from egnn_jax.registry import MODELS, TASKS, Registry
from tests.helpers import egnn_command, environment, tiny

PLUGIN = '''
import dataclasses

import egnn_jax as egnn
import flax.linen as nn
from tests.helpers import labelled_graphs


@egnn.MODELS.register("wide")
class Wide(nn.Module):
    """h' of one dense layer, of the sum over neighbors."""

    features: int = 3

    @nn.compact
    def __call__(self, graph):
        sums = egnn.sum_at_receivers(graph, graph.nodes.h[graph.senders])
        h = nn.Dense(self.features)(sums)
        return graph._replace(nodes=graph.nodes.replace(h=h))


@egnn.TASKS.register("sizes")
@dataclasses.dataclass(frozen=True)
class Sizes(egnn.Task):
    """How many nodes a graph has; two methods and a head.

    Args:
      number: of graphs to train on.
    """

    number: int = 24

    def samples(self, split):
        number = {"train": self.number, "valid": 9, "test": 10}[split]
        return egnn.GraphDataset(labelled_graphs(number, seed=len(split)))

    def loss(self, apply):
        def loss(params, batch, key):
            return egnn.losses.mean_absolute_error(Applied(apply))(params, batch, key)

        return loss

    def network(self, model):
        return egnn.Readout(model)


class Applied:
    """A network that is only its apply."""

    def __init__(self, apply):
        self.apply = apply
'''
YAML = """
task: {name: sizes, number: 20}
model: {name: wide, features: 4}
optimizer: {learning_rate: 0.05}
epochs: 4
batch_size: 4
eval_every: 2
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a plugin, a config, and the run that the command made of them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "sizes.yaml").write_text(YAML)
    out = run("--plugin", "mine.py", "train", "sizes.yaml", "--task.number", "12", "--run", "run",
              cwd=folder)  # fmt: skip
    assert "test mae: " in out
    return folder


def run(*arguments, cwd, code=0):
    with egnn_command(
        *arguments, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        out, errors = process.communicate()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return errors if code else out


@pytest.fixture
def plugin(trained):
    """The same plugin, imported here for one test."""
    names = {}
    exec(compile(PLUGIN, "mine.py", "exec"), names)
    yield names
    del MODELS._classes["wide"], TASKS._classes["sizes"]


def test_ones_own_model_and_task_train_from_yaml_and_the_command_line(trained):
    result = json.loads((trained / "run" / "result.json").read_text())
    assert result["config"]["task"] == {"name": "sizes", "number": 12}
    assert result["config"]["model"] == {"name": "wide", "features": 4}
    assert set(result["metrics"]["test"]) == {"loss", "mae"}
    printed = json.loads(run("--plugin", "mine.py", "evaluate", "run", cwd=trained))
    assert printed["metrics"]["test"]["mae"] == pytest.approx(result["metrics"]["test"]["mae"])
    help_ = run("--plugin", "mine.py", "train", "sizes.yaml", "--options", cwd=trained)
    assert "--task.number" in help_
    assert "of graphs to train on" in help_


def test_ones_own_run_is_loaded_and_reported(trained, plugin, tmp_path):
    config, network, params = load(trained / "run")
    assert type(config.model) is plugin["Wide"]
    assert config.task == plugin["Sizes"](12)
    result = json.loads((trained / "run" / "result.json").read_text())
    test = config.task.samples("test")
    errors = [
        abs(float(network.apply(params, test[k]).globals.y[0, 0]) - test.y[k, 0])
        for k in range(len(test))
    ]
    assert result["metrics"]["test"]["mae"] == pytest.approx(np.mean(errors), rel=1e-4)
    written = report([trained / "run"], tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert {path.name for path in written} == {"loss.png", "table.md", "table.png"}
    assert f"{result['metrics']['test']['mae']:.5f}" in table
    assert "paper" not in table, "the paper does not have this task"
    config = dataclasses.replace(config, seeds=2)
    assert configs.from_dict(configs.to_dict(config)) == config
    assert train(config, tmp_path / "two")["seeds"]["test"]["mae"][0] > 0


def test_a_plugin_imports_modules_beside_it(tmp_path, monkeypatch):
    before = [*sys.path]
    monkeypatch.setattr(sys, "path", [*before])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_a_plugin.py").write_text("NUMBER = 24")
    (tmp_path / "own_plugin.py").write_text("from beside_a_plugin import NUMBER")
    for path in ("own_plugin.py", str(tmp_path / "own_plugin.py")):
        import_plugin(path)
    assert sys.path == [*before, str(tmp_path)]
    assert sys.modules.pop("own_plugin").NUMBER == 24
    assert sys.modules.pop("beside_a_plugin").NUMBER == 24


def test_without_the_plugin_the_names_are_unknown(trained):
    errors = run("train", "sizes.yaml", cwd=trained, code=1)
    assert "task.name is 'sizes'; expected one of" in errors
    errors = run("--plugin", "none.py", "train", "sizes.yaml", cwd=trained, code=1)
    assert "--plugin none.py is not a file; expected a .py file or a module" in errors
    errors = run("--plugin", "no_such_module", "train", "sizes.yaml", cwd=trained, code=1)
    assert "no_such_module is not a module; expected a module or a .py file" in errors


def test_a_plugin_may_be_a_module(trained):
    code = f"import sys; sys.path.insert(0, {str(trained)!r})\n"
    code += "from egnn_jax.cli import main; main(['--plugin', 'mine', 'evaluate', 'run'])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=trained, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mae" in json.loads(done.stdout)["metrics"]["test"]


def test_an_unregistered_subclass_is_refused_not_recorded_as_its_parent():
    class Mine(egnn.EGNN):
        pass

    @dataclasses.dataclass(frozen=True)
    class Harder(NBody):
        pass

    config = tiny()
    with pytest.raises(ValueError, match=r"Mine is not a registered model; .* @egnn_jax\.MODELS\."):
        dataclasses.replace(config, model=Mine())
    with pytest.raises(ValueError, match=r"Harder is not a registered task; .* @egnn_jax\.TASKS\."):
        dataclasses.replace(config, task=Harder())


def test_options_that_only_python_can_hold_are_refused_in_a_config(tmp_path):
    class Layer(egnn.EGCL):
        pass

    for options, message in (
        ({"layer": Layer}, "model.layer is .*, which YAML cannot hold"),
        ({"activation": jax.nn.tanh}, "model.activation is .*, which YAML cannot hold"),
    ):
        config = dataclasses.replace(tiny(), model=egnn.EGNN(8, 2, **options))
        with pytest.raises(ValueError, match=message):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_name_is_given_once_and_a_notebooks_cell_may_run_again():
    registry = Registry("model", "egnn_jax.none", {"egnn": "egnn_jax.models.egnn:EGNN"})
    make = lambda: type("Mine", (nn.Module,), {})
    first, second = make(), make()
    assert registry.register("mine")(first) is first
    assert registry.register("mine")(second) is second  # the same cell, run again
    assert registry["mine"] is second
    assert registry.name_of(second) == "mine"
    with pytest.raises(ValueError, match="Mine is not a registered model"):
        registry.name_of(first)
    with pytest.raises(ValueError, match="the model 'mine' exists; expected another name"):
        registry.register("mine")(type("Other", (nn.Module,), {}))
    with pytest.raises(ValueError, match="the model 'egnn' exists"):
        registry.register("egnn")(make())
    assert (sorted(registry), len(registry)) == (["egnn", "mine"], 2)
    assert registry["egnn"] is egnn.EGNN
    assert registry.name_of(egnn.EGNN) == "egnn"
    with pytest.raises(KeyError):
        registry["none"]


def test_another_packages_entry_point_is_known(tmp_path, monkeypatch):
    """What its pyproject.toml says is enough; the module is imported when the name is used."""
    (tmp_path / "theirs.py").write_text(
        "import flax.linen as nn\nclass Theirs(nn.Module):\n    width: int = 2\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[egnn_jax.models]\ntheirs = theirs:Theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "theirs" in MODELS
    assert "theirs" not in sys.modules
    plain = {"task": {"name": "nbody"}, "model": {"name": "theirs", "width": 5}}
    config = configs.from_dict(plain)
    assert (type(config.model).__name__, config.model.width) == ("Theirs", 5)
    assert configs.to_dict(config)["model"] == {"name": "theirs", "width": 5}
    del MODELS._classes["theirs"], sys.modules["theirs"]


def test_a_task_of_two_methods_has_all_else(plugin):
    task = plugin["Sizes"]()
    assert (task.metric, task.draws) == ("loss", 1)
    assert (task.units, task.paper, task.constants(), task.metrics(None)) == ({}, {}, {}, None)
    assert task.with_constants({}) is task
    assert task.details(None, None) == {}
    assert task.plot(None, None, None) is None
    assert task.compare({}, None) == []
    with pytest.raises(NotImplementedError):
        egnn.Task().samples("train")
