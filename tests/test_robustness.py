"""Inputs and surroundings that users have, and that once gave wrong numbers or stack traces."""

import dataclasses
import pickle
import signal
import subprocess
import sys

import ase.build
import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.cli import main
from egnn_jax.data import random_graphs
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import run as experiments
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.nbody import NBody
from egnn_jax.graph import _memory
from egnn_jax.nn.precision import MixedPrecision
from egnn_jax.training.callbacks import Progress
from tests.helpers import environment, labelled_graphs, tiny

PLAIN = jraph.GraphsTuple(
    nodes=np.ones((3, 2)), edges=None, senders=np.array([0]), receivers=np.array([1]),
    n_node=np.array([3]), n_edge=np.array([1]), globals=None,
)  # fmt: skip


@pytest.mark.parametrize(
    "function",
    [
        egnn.unbatch, egnn.to_ase, lambda g: egnn.batch([g]), lambda g: egnn.GraphDataset([g]),
        lambda g: egnn.sum_nodes(g, np.ones((3, 1))), lambda g: egnn.transform(g, np.eye(2)),
        lambda g: egnn.sum_at_receivers(g, np.ones((1, 1))),
        lambda g: egnn.edge_vectors(g, g.nodes),
        lambda g: egnn.Potential(egnn.EGNN()).init(jax.random.key(0), g),
        *[lambda g, m=m: egnn.MODELS[m]().init(jax.random.key(0), g) for m in sorted(egnn.MODELS)],
    ],
)  # fmt: skip
def test_a_graph_of_plain_arrays_is_refused(function):
    with pytest.raises(ValueError, match=r"nodes are of type ndarray.* expected egnn\.Nodes"):
        function(PLAIN)


def test_atoms_are_taken_where_graphs_are_built():
    crystal = ase.build.bulk("Si", cubic=True)
    chex.assert_trees_all_equal(egnn.radius_graph(crystal, 3.0), egnn.from_ase(crystal, 3.0))
    molecule = ase.build.molecule("CH3OH")
    chex.assert_trees_all_equal(egnn.complete_graph(molecule), egnn.from_ase(molecule))
    near = egnn.knn_graph(crystal, 4)
    assert near.nodes.h.tolist() == [14] * 8
    lengths = np.linalg.norm(egnn.edge_vectors(near, near.nodes.x), axis=1)
    np.testing.assert_allclose(lengths, 5.43 * 3**0.5 / 4, rtol=1e-5)
    for build in (lambda: egnn.complete_graph(crystal), lambda: egnn.from_ase(crystal)):
        with pytest.raises(ValueError, match="periodic; expected a cutoff"):
            build()
    with pytest.raises(ValueError, match="expected that of the atoms alone"):
        egnn.radius_graph(crystal, 3.0, cell=np.eye(3))


@pytest.mark.parametrize(
    ("x", "length", "slope"),
    [
        (np.array([100, 100], np.int8), 141.42136, None),
        (np.array([3e25, 4e25], np.float32), 5e25, [0.6, 0.8]),
        (np.array([3e-25, 4e-25], np.float32), 5e-25, [0.6, 0.8]),
        (np.array([3e4, 4e4], np.float16), 5e4, [0.6, 0.8]),
        (np.array([0.0, 0.0], np.float32), 0.0, [0.0, 0.0]),
    ],
)
def test_norms_of_all_lengths(x, length, slope):
    np.testing.assert_allclose(egnn.safe_norm(x), length, rtol=1e-3 if x.dtype == "f2" else 1e-6)
    if slope is not None:
        got = jax.grad(lambda x: egnn.safe_norm(x).astype(float))(jnp.asarray(x))
        np.testing.assert_allclose(got, slope, rtol=1e-3)


def test_readouts_of_narrow_numbers():
    graph = egnn.complete_graph(np.eye(3))
    narrow = jnp.array([[100], [100], [101]], jnp.int8)
    assert egnn.sum_nodes(graph, narrow).tolist() == [[301]]
    np.testing.assert_allclose(egnn.mean_nodes(graph, narrow), [[301 / 3]], rtol=1e-6)
    assert egnn.sum_at_receivers(graph, jnp.full((6, 1), 100, jnp.int8)).tolist() == [[200]] * 3
    half = egnn.mean_nodes(graph, jnp.full((3, 1), 60_000, jnp.float16))
    assert (half.dtype, half.tolist()) == (jnp.float16, [[60_000.0]])


def test_masked_and_ragged_values_are_refused():
    x = np.ma.masked_array(np.eye(3), mask=np.eye(3, dtype=bool))
    with pytest.raises(ValueError, match="x has 3 masked entries; expected a value for each"):
        egnn.complete_graph(x)
    np.testing.assert_array_equal(
        egnn.complete_graph(np.ma.masked_array(np.eye(3))).nodes.x, np.eye(3)
    )
    with pytest.raises(ValueError, match="h is a list that is not an array"):
        egnn.complete_graph(np.eye(2), h=[[1.0], [1.0, 2.0]])


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_blocks_of_edges_are_no_larger_than_the_edges(size):
    graph = egnn.complete_graph(np.random.default_rng(0).standard_normal((size, 3)))
    whole, blocks = egnn.EGNN(4, 2), egnn.EGNN(4, 2, edge_block=10**7)
    params = testing.randomise_parameters(jax.eval_shape(blocks.init, jax.random.key(0), graph))
    chex.assert_trees_all_close(
        blocks.apply(params, graph), whole.apply(params, graph), rtol=1e-5, atol=1e-5
    )
    if size:
        text = str(jax.make_jaxpr(blocks.apply)(params, graph))
        assert "10000000" not in text


def test_nearest_of_points_far_from_the_origin(rng):
    x = rng.standard_normal((6, 3))
    near, far = egnn.knn_graph(x, 2), egnn.knn_graph(x * 1e20, 2)
    np.testing.assert_array_equal(near.senders, far.senders)


def test_sets_of_nearly_equal_probabilities_have_caches_of_their_own(tmp_path):
    for probability in (0.2, 0.2000001):
        random_graphs.load("overfit", "train", probability, tmp_path)
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_memory_of_a_complete_graph_is_said_before_it_is_taken(monkeypatch):
    with pytest.raises(
        ValueError, match=r"of 1,000,000 nodes .* takes 3\.3e\+04 GB of memory; exp"
    ):
        egnn.complete_graph(np.zeros((1_000_000, 3)))
    monkeypatch.setattr(_memory, "_WARNING_SIZE", 1_000)
    with pytest.warns(UserWarning, match="complete graph of 50 nodes with 2,450 edges"):
        egnn.complete_graph(np.zeros((50, 3)))
    assert _memory.total_memory() > 1e8


@pytest.mark.parametrize("name", sorted(egnn.MODELS))
def test_a_graph_of_numpy_arrays_may_be_a_constant_of_a_program(name):
    graph = jax.tree.map(np.asarray, testing.random_graph(n=3, velocity=True))
    model = egnn.MODELS[name]()
    models = [model, model.clone(edge_block=4)] if name == "egnn" else [model]
    for model in models:
        made = jax.eval_shape(lambda m=model: m.init_with_output(jax.random.key(0), graph)[0])
        assert made.nodes.x.shape == graph.nodes.x.shape


MODELS = [name for name in sorted(egnn.MODELS) if name != "gnn"]


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("egnn", "schnet") else pytest.param(name, marks=pytest.mark.slow)
        for name in MODELS
    ],
)
def test_models_form_differences_before_they_round(name, rng):
    """On a grid of 1/256 differences are exact, wherever the graph is."""
    x = rng.integers(-256, 256, (6, 3)).astype(np.float32) / 256
    v = rng.standard_normal((6, 3)).astype(np.float32)
    model = egnn.MODELS[name]()
    if getattr(model, "layers", 1) > 1:
        model = model.clone(layers=1)  # later layers see x after it was rounded
    graph = egnn.complete_graph(x, v=v)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    here = model.apply(params, graph)
    moved = graph._replace(nodes=graph.nodes.replace(x=graph.nodes.x + 4096))
    there = model.apply(params, moved)
    np.testing.assert_allclose(there.nodes.h, here.nodes.h, rtol=1e-5, atol=1e-5)
    spacing = 4096 * float(jnp.finfo(jnp.float32).eps)
    largest = float(jnp.abs(here.nodes.x).max())
    np.testing.assert_allclose(there.nodes.x - 4096, here.nodes.x, atol=spacing + 1e-4 * largest)


@pytest.mark.parametrize(
    "value",
    [
        configs.load("nbody/egnn"), configs.load("forces/ethanol"), configs.load("qm9/painn"),
        egnn.GraphDataset(labelled_graphs(4)), egnn.Budget(1, 2, 3), egnn.complete_graph(np.eye(3)),
        MixedPrecision(egnn.EGNN()), egnn.EarlyStopping(3),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_sent_to_processes_is_pickled(value):
    again = pickle.loads(pickle.dumps(value))
    assert type(again) is type(value)
    if isinstance(value, Config):
        assert again == value


def test_loaders_and_used_networks_are_pickled():
    loader = egnn.GraphDataset(labelled_graphs(8)).loader(4, seed=3)
    first = loader.batches(1, 0, 2)
    again = pickle.loads(pickle.dumps(loader)).batches(1, 0, 2)
    chex.assert_trees_all_equal(first, again)
    network, water = egnn.load_pretrained("qm9"), ase.build.molecule("H2O")
    found = network(water)
    again = pickle.loads(pickle.dumps(network))(water)
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in again.items()}


def child(code: str, timeout: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip


def test_a_worker_forked_after_jax_has_run_is_told_so():
    code = """
import os, warnings, numpy as np, jax, egnn_jax as egnn, egnn_jax.experiments.run
warnings.simplefilter("ignore")
import ase, pickle
graph = egnn.complete_graph(np.eye(3))
potential = egnn.Potential(egnn.PaiNN(features=4, layers=1, cutoff=3.0))
atoms = ase.Atoms("H2", np.eye(2, 3))
params = potential.init(jax.random.key(0), egnn.from_ase(atoms, 3.0))
atoms.calc = egnn.ASECalculator(potential, params)
network = egnn_jax.experiments.pretrained.Pretrained(potential, params, None, {})
sent = pickle.dumps(network)
key = jax.random.key(0)
if not os.fork():
    for build in (
        lambda: egnn.complete_graph(np.eye(3)), lambda: egnn.radius_graph(np.eye(3), 1.0),
        lambda: egnn.knn_graph(np.eye(3), 1), lambda: egnn.batch([graph]),
        lambda: egnn.unbatch(graph), lambda: network(graph),
        lambda: pickle.loads(sent)(atoms), lambda: egnn.load_pretrained("qm9"),
        lambda: egnn.experiments.run.load("run"), atoms.get_potential_energy,
        lambda: egnn.transform(graph, np.eye(3)), lambda: egnn.random_orthogonal(key, 3),
        lambda: egnn.safe_norm(np.eye(3)),
    ):
        try:
            build()
            os._exit(1)
        except RuntimeError as error:
            assert "expected a new process: multiprocessing.get_context('spawn')" in str(error)
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert child(code).returncode == 0
    before = "import os; import egnn_jax as egnn; import numpy as np; pid = os.fork();"
    fine = "egnn.complete_graph(np.eye(3)); pid and exit(os.waitstatus_to_exitcode(os.wait()[1]))"
    assert child(before + fine).returncode == 0


def test_workers_end_with_the_process_that_started_them():
    """Otherwise they would keep its output open, and this test would wait."""
    code = """
import os, signal, sys
from egnn_jax.data import _embedding
print(next(_embedding._in_processes(str, [[1], [2], [3]], 2)), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""
    ended = child(code, timeout=30)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "['1']\n")


def test_two_trainings_in_two_threads_end():
    code = """
import threading, numpy as np, jax, jax.numpy as jnp, optax, egnn_jax as egnn
jax.config.update("jax_num_cpu_devices", 4)
x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
data = egnn.ArrayDataset({"x": x, "y": x.sum(axis=1)})
loss = lambda p, b, key: (jnp.mean((b["x"] @ p["w"] - b["y"]) ** 2), {})
found = {}
def train(name):
    found[name] = egnn.fit(
        loss, {"w": jnp.zeros(3)}, data.loader(16), data.loader(16), optax.sgd(0.1), epochs=60,
        chunk_steps=2, callbacks=(),
    ).params["w"]
threads = [threading.Thread(target=train, args=(k,)) for k in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
train("alone")
assert all((np.asarray(found[k]) == np.asarray(found["alone"])).all() for k in range(3))
"""
    done = child(code, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("ase", "pip install 'egnn-jax[chem]'"), ("rdkit", "pip install 'egnn-jax[chem]'"),
        ("tensorboardX", "pip install 'egnn-jax[tensorboard]'"),
        ("qm9pack", "pip install 'egnn-jax[qm9]'"), ("tyro", "pip install egnn-jax"),
        ("networkx", "pip install egnn-jax"), ("tqdm_loggable", "pip install egnn-jax"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_with_what_brings_it(monkeypatch, tmp_path, package, command):
    (tmp_path / "plugin.py").write_text(f"import {package}.something\n")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stop:
        main(["--plugin", str(tmp_path / "plugin.py"), "train", "nbody/egnn"])
    also = "" if "[" in command else ", or a module beside the plugin"
    wanted = f"{package} is not installed; expected what {command} brings{also}"
    assert str(stop.value).endswith(wanted)


def test_functions_that_need_a_package_name_it(monkeypatch):
    graph = egnn.complete_graph(np.eye(3), h=[1, 6, 8])
    for package in ("ase", "tensorboardX", "tqdm_loggable", "tyro"):
        monkeypatch.setitem(sys.modules, package, None)
    for call in (
        lambda: egnn.to_ase(graph),
        lambda: egnn.TensorBoard("x").started(None),
        lambda: egnn.ProgressBar().started(Progress()),
        lambda: configs.override(tiny(), [], "egnn", ""),
    ):
        with pytest.raises(ImportError, match=r"is not installed; expected what pip install"):
            call()


class NoDataclass(egnn.Task):
    """Its options are unknown."""


@dataclasses.dataclass(frozen=True)
class NoLoss(egnn.Task):
    def samples(self, split):
        return [1, 2, 3]


@dataclasses.dataclass(frozen=True)
class NoLoader(NBody):
    def samples(self, split):
        return [1, 2, 3]


class NoCall(nn.Module):
    features: int = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": NoDataclass()},
            "NoDataclass is not a dataclass; expected @dataclasses.dataclass",
        ),
        ({"task": NoLoss()}, r"NoLoss has no method loss; expected loss\(apply\)"),
        ({"task": NoLoader()}, r"NoLoader\.samples\('train'\) is a list; expected what has loader"),
        ({"model": NoCall()}, r"model is a NoCall without __call__\(graph\); expected a flax mod"),
        (
            {"task": configs.load("qm9/painn").task, "model": egnn.SchNet(cutoff=10.0)},
            r"model\.cutoff is 10\.0 and task\.cutoff 5\.0.* expected a model\.cutoff of at most",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, monkeypatch, changes, message):
    for cls in (NoDataclass, NoLoss, NoLoader):
        monkeypatch.setitem(egnn.TASKS._classes, cls.__name__, cls)
    monkeypatch.setitem(egnn.MODELS._classes, "no_call", NoCall)
    parts = {"task": NBody(), "model": egnn.EGNN()} | changes
    with pytest.raises(ValueError, match=message):
        experiments.train(Config(**parts), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="no longer than float64 here")
def test_numbers_that_jax_does_not_have():
    graph = egnn.complete_graph(np.zeros((3, 3)))
    for readout in (egnn.sum_nodes, egnn.mean_nodes):
        assert readout(graph, np.ones((3, 2))).dtype == np.float32  # without a warning
        with pytest.raises(ValueError, match=r"values is \w+ of shape \(3, 2\); expected an array"):
            readout(graph, np.ones((3, 2), np.longdouble))
    atoms = ase.build.molecule("H2O")
    atoms.info["label"] = np.full((3, 3), 1e39)
    with pytest.raises(ValueError, match="the label 'label' has a value that is not finite as flo"):
        egnn.from_ase(atoms, forces="label")


def test_what_is_no_state_dict_or_list_of_sizes_is_refused():
    with pytest.raises(ValueError, match="the state dict is a range; expected arrays by name"):
        egnn.interop.from_torch_state_dict(range(3), egnn.EGNN())
    with pytest.raises(ValueError, match="sizes are array\\(3\\); expected a list"):
        testing.random_graph(sizes=np.array(3))


@pytest.mark.parametrize("budget", [(10, 2**70, 3), (2**40, 20, 3), (10, 20, 2**33)])
def test_a_batch_larger_than_the_memory_is_refused(budget):
    graph = egnn.complete_graph(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"a batch of \(.* GB of memory; expected at most"):
        egnn.batch([graph], egnn.Budget(*budget))


def test_a_script_without_a_guard_generates_all_geometries(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from egnn_jax.data import structures\n"
        "entries = [structures.Smiles('C' * (k % 3 + 1), str(k)) for k in range(60)]\n"
        "found = list(structures.generate_geometries(entries, processes=2, conformers=1))\n"
        "print([one.formula for one in found[:3]], len(found))\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "['CH4', 'C2H6', 'C3H8'] 60\n"
    assert 'under if __name__ == "__main__", or memory does not suffice;' in done.stderr
