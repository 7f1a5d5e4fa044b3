"""The task on the real molecules: labels, padding, several targets in both ways, the cutoff, and a
short training.
"""

import dataclasses
from operator import itemgetter

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.data import qm9
from egnn_jax.data.molecular_graphs import atom_features
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import reproduce
from egnn_jax.experiments.paper import QM9_RATES_OF, TABLE3, TABLE3_SYSTEMS, TABLE3_TARGETS
from egnn_jax.experiments.qm9 import QM9
from egnn_jax.experiments.run import load, train
from egnn_jax.nn.heads import Readout

TWO = QM9(targets=("homo", "U0"), train_size=500)


def small(task, **options):
    model = task.network(egnn.EGNN(8, 2, update_coordinates=False, **options))
    batch = task.samples("train").pack(np.arange(5))
    return model, batch, model.init(jax.random.key(0), task.graph(batch))


def test_atom_features_are_the_papers():
    got = np.asarray(atom_features(jnp.array([1, 6, 7, 8, 9, 0], jnp.int8)))
    for row, (place, number) in enumerate(enumerate((1, 6, 7, 8, 9))):
        expected = np.zeros((5, 3))
        expected[place] = [1, number / 9, (number / 9) ** 2]
        np.testing.assert_allclose(got[row], expected.ravel(), rtol=1e-6)
    assert (got[5] == 0).all()


def test_labels_are_standardised_by_the_molecules_trained_on():
    rows = TWO.molecules.splits["train"][:500]
    homo, u0 = (
        TWO.molecules.targets["homo"],
        TWO.molecules.targets["U0"]
        - qm9.atomic_references("U0", TWO.molecules.n_atoms, TWO.molecules.atomic_numbers),
    )
    for k, values in enumerate((homo, u0)):
        mean = values[rows].mean()
        deviation = np.abs(values[rows] - mean).mean()
        batch = TWO.samples("train").pack(np.array([3, 7]))
        np.testing.assert_allclose(
            batch.globals.y[:2, k], (values[rows[[3, 7]]] - mean) / deviation, rtol=1e-5
        )
        np.testing.assert_allclose(TWO.statistics.mean[k], mean)


def test_a_batch_holds_whole_molecules():
    batch = TWO.samples("test").pack(np.array([0, 11]))
    data, starts = TWO.molecules, np.cumsum(TWO.molecules.n_atoms) - TWO.molecules.n_atoms
    place = 0
    for row in data.splits["test"][[0, 11]]:
        count = data.n_atoms[row]
        atoms = slice(starts[row], starts[row] + count)
        np.testing.assert_array_equal(batch.nodes.x[place : place + count], data.positions[atoms])
        np.testing.assert_array_equal(
            batch.nodes.h[place : place + count], data.atomic_numbers[atoms]
        )
        place += count
    assert batch.n_edge[:2].tolist() == [n * (n - 1) for n in batch.n_node[:2].tolist()]


@pytest.mark.parametrize("independent", [False, True])
def test_padding_and_the_other_molecules_do_not_matter(independent):
    task = dataclasses.replace(TWO, independent=independent)
    model, batch, params = small(task)
    predicted = task.predict(jax.jit(model.apply), params, batch)
    alone = task.predict(
        jax.jit(model.apply), params, task.samples("train").pack(np.array([3, -1, -1]))
    )
    np.testing.assert_allclose(alone[0], predicted[3], rtol=1e-4, atol=1e-5)
    key = jax.random.key(0)
    error = np.abs(np.asarray(predicted - batch.globals.y))[:5]
    sums = task.metrics(jax.jit(model.apply))(params, batch, key)
    for k, name in enumerate(task.targets):
        assert float(sums[name][0] / sums[name][1]) == pytest.approx(
            error[:, k].mean() * task.statistics.deviation[k], rel=1e-5
        )
    assert float(sums["relative"][0] / sums["relative"][1]) == pytest.approx(error.mean(), rel=1e-5)
    assert float(task.loss(jax.jit(model.apply))(params, batch, key)[0]) == pytest.approx(
        error.mean() * (2 if independent else 1), rel=1e-5
    )


def test_independent_networks_are_the_networks_of_single_targets():
    task = dataclasses.replace(TWO, independent=True)
    model, batch, params = small(task)
    key = jax.random.key(0)
    gradient = jax.grad(lambda params: task.loss(jax.jit(model.apply))(params, batch, key)[0])(
        params
    )
    for k, target in enumerate(task.targets):
        single = QM9(targets=(target,), train_size=500)
        alone, one = (
            single.network(egnn.EGNN(8, 2, update_coordinates=False)),
            single.samples("train").pack(np.arange(5)),
        )
        own = jax.tree.map(itemgetter(k), params)
        np.testing.assert_allclose(
            single.predict(alone.apply, own, one)[:, 0],
            task.predict(jax.jit(model.apply), params, batch)[:, k],
            rtol=1e-5,
        )
        expected, _ = jax.grad(single.loss(alone.apply), has_aux=True)(own, one, key)
        for a, b in zip(
            jax.tree.leaves(jax.tree.map(itemgetter(k), gradient)),
            jax.tree.leaves(expected),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_readout_is_invariant(x64):
    graph = testing.random_graph(velocity=False)
    model = Readout(egnn.EGNN(5, 2), outputs=3)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    testing.assert_equivariant(lambda g: model.apply(params, g), graph)
    testing.assert_permutation_equivariant(lambda g: model.apply(params, g), graph)
    assert model.apply(params, graph).globals.y.shape == (len(graph.n_node), 3)
    with pytest.raises(ValueError, match="outputs is 0"):
        Readout(egnn.EGNN(5, 2), outputs=0).init(jax.random.key(0), graph)


def test_the_objective_is_the_mean_absolute_or_squared_error():
    """Of the standardized labels of the real molecules, for one and for several targets."""
    for targets in (("homo",), ("homo", "mu", "alpha")):
        task = QM9(train_size=16, targets=targets)
        batch = task.samples("train").pack(np.array([0, 3, 5, -1]))
        network = task.network(egnn.EGNN(4, 1, update_coordinates=False))
        params = testing.randomise_parameters(
            jax.eval_shape(network.init, jax.random.key(0), task.graph(batch))
        )
        error = np.asarray(task.predict(network.apply, params, batch) - batch.globals.y)[:3]
        for objective, expected in (("mae", np.abs(error)), ("mse", error**2)):
            loss = dataclasses.replace(task, objective=objective).loss(network.apply)
            value = loss(params, batch, jax.random.key(1))[0]
            np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
        metrics = task.metrics(network.apply)(params, batch, jax.random.key(1))
        np.testing.assert_allclose(
            metrics["homo"][0], np.abs(error[:, 0]).sum() * task.deviation[0], rtol=1e-5
        )


def test_a_cutoff_leaves_out_far_atoms():
    near = dataclasses.replace(TWO, train_size=50, cutoff=2.0)
    batch, whole = (task.samples("train").pack(np.arange(5)) for task in (near, TWO))
    x = batch.nodes.x
    real = int(batch.n_edge[:-1].sum())
    assert 0 < real < int(whole.n_edge[:-1].sum())
    assert np.linalg.norm(x[batch.receivers[:real]] - x[batch.senders[:real]], axis=1).max() <= 2
    all_of_it = dataclasses.replace(near, cutoff=1e3).samples("train").pack(np.arange(5))
    assert all_of_it.n_edge[:5].tolist() == whole.n_edge[:5].tolist()


@pytest.mark.slow
def test_a_short_training_learns_resumes_and_draws(tmp_path):
    config = configs.load("qm9/egnn")
    config = dataclasses.replace(
        config,
        task=QM9(targets=("homo", "Cv"), train_size=960),
        model=config.model.clone(features=16, layers=2),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=5e-3),
        epochs=6,
        eval_every=3,
        batch_size=96,
        chunk_steps=5,
    )
    result = train(config, tmp_path)
    assert result["metrics"]["test"]["Cv"] < 0.6 * float(config.task.statistics.deviation[1])
    mean, deviation = config.task.statistics
    valid = config.task.labels[config.task.molecules.splits["valid"]]
    alone = np.mean(np.abs(valid - mean) / deviation)
    assert result["trivial"]["relative"] == pytest.approx(alone, rel=1e-4)
    _, model, params = load(tmp_path)
    predicted = config.task.predictions(jax.jit(model.apply), params, "test")
    for k, name in enumerate(config.task.targets):
        error = np.abs(predicted - config.task.labels[config.task.molecules.splits["test"]])[
            :, k
        ].mean()
        assert error == pytest.approx(result["metrics"]["test"][name], rel=1e-4)
    picture = config.task.plot(jax.jit(model.apply), params, tmp_path / "parity.png")
    assert picture.read_bytes().startswith(b"\x89PNG")

    details = config.task.details(jax.jit(model.apply), params)
    assert details["units"] == {"homo": "meV", "Cv": "cal/(mol K)"}
    for split, classes in details["by_atoms"].items():
        assert sum(c["molecules"] for c in classes.values()) == len(config.task.samples(split))
        for name in config.task.targets:
            total = sum(c["molecules"] * c.get(name, 0.0) for c in classes.values())
            assert total / len(config.task.samples(split)) == pytest.approx(
                result["metrics"][split][name], rel=1e-4
            )

    data, rows = config.task.molecules, config.task.molecules.splits["test"][:3]
    starts = np.cumsum(data.n_atoms) - data.n_atoms
    atoms = np.concatenate(
        [np.arange(starts[row], starts[row] + data.n_atoms[row]) for row in rows]
    )
    own = config.task.properties(
        model.apply, params, data.n_atoms[rows], data.atomic_numbers[atoms], data.positions[atoms]
    )
    atomic = [[0, qm9.REFERENCES["Cv"]["C"] * n] for n in data.n_atoms[rows]]
    np.testing.assert_allclose(own, predicted[:3] + atomic, rtol=1e-4)
    with pytest.raises(
        ValueError, match=r"atomic_numbers has \[16\]; expected of \[1, 6, 7, 8, 9\]"
    ):
        config.task.properties(
            jax.jit(model.apply), params, np.array([1]), np.array([16]), np.zeros((1, 3))
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ()}, "one or more"),
        ({"targets": ("homo", "homo")}, "each once"),
        ({"train_size": 0}, "expected 1 to 100000"),
        ({"cutoff": 0.0}, "distance above 0"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        QM9(**options)


def test_ours_stand_beside_the_papers_rows(tmp_path):
    def result(target, error, epochs=25):
        config = configs.load("qm9/egnn")
        config = dataclasses.replace(config, task=QM9(targets=(target,)))
        return {
            "metrics": {"test": {target: error}},
            "config": configs.to_dict(dataclasses.replace(config, epochs=epochs)),
        }

    results = {
        "a": result("homo", 12.345),
        "b": result("U0", 6.789),
        "c": result("homo", 30.0),
        "d": result("homo", 9.0, 1_000),
    }
    table, picture = QM9().compare(results, tmp_path)
    rows = table.read_text().splitlines()
    assert rows[0] == "| model | homo (meV) | U0 (meV) |"
    assert "| egnn | 29 | 11 |" in rows
    assert "| tfn | 40 | – |" in rows
    assert rows[-3:] == [
        "| ours: egnn, 25 epochs | 12.3 | 6.79 |",
        "| ours: egnn, 25 epochs (c) | 30 | – |",
        "| ours: egnn, 1,000 epochs | 9 | – |",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["egnn", "schnet"])
def test_every_column_of_table_3_has_a_config(tmp_path, monkeypatch, name):
    trained = {}

    def train(config, folder):
        trained[config.task.targets] = config
        errors = dict.fromkeys(config.task.targets, 1.0)
        return {"metrics": {"test": errors}, "config": configs.to_dict(config)}

    monkeypatch.setattr(reproduce, "train", train)
    reproduce.table3(reproduce.Options(tmp_path, tmp_path), model=name)
    assert TABLE3_TARGETS == qm9.TARGETS
    assert set(trained) == {(target,) for target in qm9.TARGETS}
    for (target,), config in trained.items():
        assert config.task.paper["egnn"] == TABLE3["egnn"][qm9.TARGETS.index(target)]
        assert config.optimizer.learning_rate == (
            1e-3 if target in ("gap", "homo", "lumo") else 5e-4
        )
        model = config.network().encoder
        if name == "schnet":
            assert isinstance(model, egnn.SchNet)
            continue
        options = (model.features, model.layers, model.infer_edges, model.update_coordinates)
        assert options == (128, 7, True, False)
    egnn_recipe, recipe = configs.load("qm9/egnn"), configs.load(f"qm9/{name}")
    assert (recipe.task, recipe.optimizer, recipe.epochs) == (
        egnn_recipe.task,
        egnn_recipe.optimizer,
        egnn_recipe.epochs,
    )


def test_a_run_is_read_without_the_data_set(tmp_path, monkeypatch):
    """Means and deviations of the labels are in the run."""
    config = configs.load("qm9/egnn")
    config = dataclasses.replace(
        config,
        task=QM9(targets=("mu",), train_size=96),
        model=config.model.clone(features=4, layers=1),
        epochs=1,
    )
    train(config, tmp_path)
    molecule = (np.array([3]), np.array([8, 1, 1]), np.eye(3))
    loaded, model, params = load(tmp_path)
    expected = config.task.properties(jax.jit(model.apply), params, *molecule)
    monkeypatch.setattr(qm9, "load", lambda: pytest.fail("the data were read"))
    loaded, model, params = load(tmp_path)
    np.testing.assert_array_equal(
        loaded.task.properties(jax.jit(model.apply), params, *molecule), expected
    )
    (tmp_path / "constants.json").write_text('{"mean": [1.0, 2.0]}')
    with pytest.raises(ValueError, match=r"expected those of \('mu',\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("egnn", 745_224), ("schnet", 486_401), ("nmp", 359_206), ("cormorant", 299_808),
        ("l1net", 5_661_312 + (119 - 10) * 128), ("lieconv", 21_315_553),
        pytest.param("dimenetpp", 1_885_830 + (119 - 95) * 128, marks=pytest.mark.slow),
        pytest.param("tfn", 8_164_289, marks=pytest.mark.slow),
        ("se3_transformer", 9_828_193),
    ],
)  # fmt: skip
def test_recipes_of_the_rows_of_table_3(tmp_path, monkeypatch, name, parameters):
    """The authors' networks; ours embed 119 atom types, theirs 95 and 10."""
    trained = []

    def train(config, folder):
        trained.append(config)
        return {"metrics": {"test": {"mu": 1.0}}, "config": configs.to_dict(config)}

    monkeypatch.setattr(reproduce, "train", train)
    reproduce.table3(reproduce.Options(tmp_path, tmp_path), ["mu"], model=name)
    (config,) = trained
    if name not in QM9_RATES_OF:
        assert config.optimizer == configs.load(f"qm9/{name}").optimizer
    assert config.task.paper[egnn.MODELS.name_of(type(config.model))] == TABLE3[name][4]
    water = ase.build.molecule("H2O")
    graphs = config.task._graphs(np.array([3]), water.numbers.astype(np.int32), water.positions)
    graph = config.task.graph(graphs.pack(np.arange(1)))
    made = jax.eval_shape(config.network().init, jax.random.key(0), graph)
    assert sum(leaf.size for leaf in jax.tree.leaves(made["params"])) == parameters
    assert TABLE3_SYSTEMS[name].parameters == parameters
    written = (tmp_path / "table3-systems.md").read_text()
    (line,) = [line for line in written.splitlines() if line.startswith(f"| {name} |")]
    system, network = TABLE3_SYSTEMS[name], type(config.model)
    assert line.strip("| ").split(" | ") == [
        name, f"qm9/{name}", f"{TABLE3[name][2]}", *map(str, system.raced),
        system.raced_size or "as in the recipe", f"{parameters:,}", f"{system.step}",
        network.symmetry, system.inputs, system.differs,
    ]  # fmt: skip
