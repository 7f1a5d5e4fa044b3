"""The Python of the documents, run as it stands."""

import ast
import doctest
import importlib
import re
import shlex
from operator import attrgetter
from pathlib import Path

import ase
import ase.build
import ase.io
import jax
import numpy as np
import optax
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

import egnn_jax as egnn
from egnn_jax.cli import main
from egnn_jax.data.xtb import simulated_frames

ROOT = Path(__file__).parent.parent


def blocks(document, language="python"):
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.fixture
def structures(tmp_path, monkeypatch):
    """80 clusters of argon with the energy of a Lennard-Jones potential."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lattice = np.array(list(np.ndindex(3, 2, 2)), float) * 3.7
    frames = []
    for n in rng.integers(3, 9, 80):
        atoms = ase.Atoms(f"Ar{n}", lattice[:n] + rng.normal(0, 0.2, (n, 3)))
        r = atoms.get_all_distances()[np.triu_indices(n, 1)]
        energy = np.sum(4 * 0.01 * ((3.4 / r) ** 12 - (3.4 / r) ** 6))
        atoms.calc = SinglePointCalculator(atoms, energy=float(energy))
        atoms.info["gap"] = float(energy)
        frames.append(atoms)
    ase.io.write("mine.extxyz", frames)


def test_the_readmes_python_runs(structures):
    prediction, layer, own_data, simulation = blocks("README.md")
    names = {}
    exec(layer, names)
    exec(own_data, names)
    found = egnn.evaluate(names["loss"], names["result"].params, names["test"].loader(16))
    scale = float(names["train"].y.std())
    assert found["mae"] < 0.5 * scale, "it learns: guessing the mean would be about 0.8"
    exec(simulation, names)
    exec(prediction, names)
    predicted = names["model"](ase.build.molecule("CH3CH2OH"))
    assert predicted["homo"] == pytest.approx(-7000, abs=500)


def test_an_own_data_set_takes_ten_lines():
    _, _, own_data, _ = blocks("README.md")
    lines = [line for line in own_data.splitlines() if line.strip()]
    statements = [line for line in lines if not line.startswith(("import ", "from "))]
    assert len(statements) <= 10


def test_the_file_of_an_own_task_is_complete(tmp_path, monkeypatch):
    """What the page calls mine.py is a plugin as it stands, with no line of another block."""
    monkeypatch.chdir(tmp_path)
    (plugin,) = [block for block in blocks("docs/training.md") if "TASKS.register" in block]
    Path("mine.py").write_text(
        plugin.replace('"mean_field"', '"own"').replace('"sizes"', '"own"'), encoding="utf-8"
    )
    (config,) = blocks("docs/training.md", "yaml")
    Path("mine.yaml").write_text(
        config.replace("mean_field", "own").replace("sizes", "own"), encoding="utf-8"
    )
    main(["--plugin", "mine.py", "train", "mine.yaml", "--epochs", "1", "--eval-every", "1"])
    assert list(Path("runs").rglob("result.json"))


def test_the_training_pages_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs_training"}
    for block in blocks("docs/training.md"):
        exec(block, names)
    (config,) = blocks("docs/training.md", "yaml")
    Path("mine.yaml").write_text(config, encoding="utf-8")
    main(["train", "mine.yaml", "--epochs", "2", "--eval-every", "1", "--run", "runs/mine"])
    main(["report", "runs/mine"])
    assert Path("runs/mine/report/table.md").is_file()


@pytest.mark.parametrize(
    "page",
    ["large-graphs", "potentials", "pretrained", "pytorch", "scale", "simulation", "testing"],
)
def test_a_pages_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(f"docs/{page}.md"):
        exec(block, names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_active_learning_goes_on_where_the_potentials_disagree(tmp_path, monkeypatch):
    """The loop of the page, with three epochs."""
    pytest.importorskip("tblite")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("docs/simulation.md", "python slow")
    frames = list(ase.io.iread(simulated_frames("CCO", 12), ":"))
    ase.io.write("mine.extxyz", frames)
    block = block.replace('"200"', '"3"').replace('"0.3"', '"1e-3"').replace("range(3)", "range(2)")
    block = block.replace('"--seeds", "4"', '"--seeds", "2", "--batch-size", "3"')
    exec(block, {})
    assert len(ase.io.read("mine.extxyz", ":")) > 12


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "egnn_jax").rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings_run(module):
    names = {"egnn": egnn, "jax": jax, "jnp": jax.numpy, "np": np, "optax": optax}
    found = doctest.testmod(importlib.import_module(module), extraglobs=names)
    assert found.attempted
    assert not found.failed


def templates():
    """The messages of all exceptions of the package, with … for what is put in."""
    for path in (ROOT / "egnn_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                message = node.exc.args[0]
                parts = message.values if isinstance(message, ast.JoinedStr) else [message]
                yield "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in parts)


def test_the_messages_of_the_errors_page_are_those_of_the_source():
    rows = re.findall(
        r"^\| `(.+?)` \| (.+) \| (.+) \|$", (ROOT / "docs/errors.md").read_text("utf-8"), re.M
    )
    assert len(rows) > 40
    assert {message for message, *_ in rows} <= set(templates())


TUTORIALS = {path.stem for path in (ROOT / "docs/tutorials").iterdir()}
QUICK = {"equivariance", "from-pytorch"}
"""The others take up to a minute."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=() if p in QUICK else pytest.mark.slow) for p in sorted(TUTORIALS)],
)
def test_the_tutorials_run(tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "tutorial", "Path": Path}
    found = blocks(f"docs/tutorials/{page}.md", "{code-cell}")
    assert found
    for cell in found:
        # Without the cell's options, and without IPython, which shows pictures.
        code = re.sub(r"^(:|from IPython).*\n", "", cell, flags=re.M).lstrip()
        code = re.sub(r"^Image\((.+?), .*", r"assert Path(\1).is_file()", code, flags=re.M)
        if code.startswith("!egnn "):
            command, *_ = re.split(r" 2?> ", code.removeprefix("!egnn "))
            main(shlex.split(command))
        elif ":tags: [raises-exception]" in cell:
            with pytest.raises((AssertionError, ValueError)):
                exec(code, names)
        else:
            exec(code, names)


def test_every_public_name_is_in_the_api_reference():
    listed = set()
    for page in (ROOT / "docs/api").glob("*.rst"):
        text = page.read_text(encoding="utf-8")
        if page.stem != "index":
            listed |= set(re.findall(r"^   ([A-Za-z][\w.]+)$", text, re.M))
        listed |= set(re.findall(r"^.. autofunction:: egnn_jax\.([\w.]+)$", text, re.M))
    modules = {"interop", "jax_md", "losses", "testing"}
    assert {name for name in listed if "." not in name} == set(egnn.__all__) - modules
    assert {name.partition(".")[0] for name in listed if "." in name} == modules
    for name in listed:
        assert attrgetter(name)(egnn).__doc__, name
