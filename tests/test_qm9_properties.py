"""All twelve properties by one network: labels, physics, symmetry, a short training, its file."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.data import qm9
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.qm9_properties import (
    OUTPUTS,
    MolecularReadout,
    QM9Properties,
    composition,
)
from egnn_jax.experiments.run import load, train
from egnn_jax.training.step import STATISTICS

TASK = QM9Properties(train_size=500)
place = qm9.TARGETS.index


def small():
    model = TASK.network(egnn.PaiNN(features=8, layers=2, num_rbf=4))
    batch = jax.tree.map(jnp.asarray, TASK.samples("train").pack(np.arange(5)))
    return model, batch, model.init(jax.random.key(0), TASK.graph(batch))


def test_composition_counts_elements_and_their_extent():
    x = np.array([[0.0, 0, 0], [0, 0, 1.2], [0, 0, 1.0], [3.0, 0, 0]])
    features = composition(np.array([2, 2]), np.array([6, 8, 1, 1]), x)
    np.testing.assert_array_equal(features[:, :6], [[1, 0, 1, 0, 1, 0], [1, 2, 0, 0, 0, 0]])
    c = 1.2 * 8 / 14
    np.testing.assert_allclose(features[0, 6:], [0, c**2, 0, (1.2 - c) ** 2, 0])
    np.testing.assert_allclose(features[1, 6:], [(1 + 9) / 2, 0, 0, 0, 0])


def test_what_physics_knows_holds_whatever_the_network_says():
    model, batch, params = small()
    y = np.asarray(TASK.predict(model.apply, params, batch), float)[:5] * TASK.deviation
    data, rows = TASK.molecules, TASK.molecules.splits["train"][:5]
    starts = np.cumsum(data.n_atoms) - data.n_atoms
    atoms = np.concatenate([np.arange(starts[r], starts[r] + data.n_atoms[r]) for r in rows])
    given = data.n_atoms[rows], data.atomic_numbers[atoms], data.positions[atoms]
    y = y + TASK.baseline(*given) + TASK.references(*given[:2])
    # The means of QM9's rounded energies differ by 0.1 meV.
    np.testing.assert_allclose(
        y[:, place("gap")], y[:, place("lumo")] - y[:, place("homo")], atol=0.2
    )
    # H - U = k T at 298.15 K, in meV; QM9's six decimals of hartree are 0.03 meV.
    np.testing.assert_allclose(y[:, place("H")] - y[:, place("U")], 25.69, atol=0.1)
    assert (y[:, place("mu")] >= 0).all()


def test_the_outputs_of_a_perfect_network_are_the_labels():
    """Standardised outputs made of the labels give the labels back."""
    batch = TASK.samples("train").pack(np.arange(20))
    y = batch.globals.y[:20] * TASK.deviation
    column = lambda name: y[:, place(name)]
    outputs = [
        column(a) - column(b) if b else column(a)
        for a, _, b in (name.partition(" - ") for name in OUTPUTS)
    ]
    outputs = np.stack(outputs, axis=1) / TASK.statistics.output_deviation
    outputs = outputs.astype(np.float32)
    apply = lambda params, graph: graph._replace(globals=egnn.Globals(y=jnp.asarray(outputs)))
    predicted = TASK.predict(apply, None, batch)
    # Orbital energies are rounded to 2.7 meV, and so are their differences.
    np.testing.assert_allclose(predicted, batch.globals.y[:20], atol=3e-3)


def test_the_loss_weighs_relative_errors():
    model, batch, params = small()
    loss = TASK.loss(model.apply)
    value = float(loss(params, batch, jax.random.key(0))[0])
    alone = TASK.samples("train").pack(np.array([0, 1, 2, 3, 4, -1, -1]))
    assert float(loss(params, alone, jax.random.key(0))[0]) == pytest.approx(value, rel=1e-4)

    def closer(outputs):
        """Predictions whose errors are half as large."""
        return (jnp.asarray(batch.globals.y) + TASK._targets(outputs)) / 2

    half = QM9Properties(train_size=500)
    vars(half)["statistics"] = TASK.statistics
    vars(half)["_targets"] = closer
    lower = float(half.loss(model.apply)(params, batch, jax.random.key(0))[0])
    assert lower == pytest.approx(value - np.log(2), abs=2e-3)


def test_lieconv_returns_its_running_statistics():
    network = TASK.network(egnn.LieConv(features=8, layers=1, kernel_features=4))
    batch = TASK.samples("train").pack(np.arange(3))
    variables = network.init(jax.random.key(0), TASK.graph(batch))
    _, metrics = TASK.loss(network.apply)(variables, batch, jax.random.key(0))
    moved = metrics[STATISTICS]["batch_stats"]
    chex.assert_trees_all_equal_shapes(moved, variables["batch_stats"])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(moved))


@pytest.mark.parametrize("encoder", [egnn.PaiNN(8, 2, 4), egnn.SchNet(8, 2, 8)])
def test_the_readout_is_invariant(x64, encoder):
    graph = testing.random_graph(features=1, velocity=False, attributes=0)
    kinds = jnp.asarray(np.arange(len(graph.nodes.x)) % 9 + 1)
    graph = graph._replace(nodes=graph.nodes.replace(h=kinds))
    model = MolecularReadout(encoder)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    energies = jax.jit(lambda g: model.apply(params, g).globals.y)
    assert energies(graph).shape == (len(graph.n_node), len(OUTPUTS))
    testing.assert_equivariant(energies, graph)
    testing.assert_permutation_equivariant(energies, graph)


@pytest.mark.slow
def test_a_short_training_learns_and_its_file_predicts_without_the_data(tmp_path, monkeypatch):
    config = dataclasses.replace(
        configs.load("qm9/painn"),
        task=QM9Properties(train_size=640, cutoff=5.0),
        model=egnn.PaiNN(features=16, layers=2, num_rbf=8),
        optimizer=dataclasses.replace(configs.load("qm9/painn").optimizer, learning_rate=4e-3),
        epochs=10,
        batch_size=32,
        micro_batches=1,
        ema_decay=0.9,
    )
    result = train(config, tmp_path / "run")
    assert result["metrics"]["test"]["relative"] < 0.85
    assert set(result["metrics"]["test"]) == {*qm9.TARGETS, "relative"}
    path = egnn.export(tmp_path / "run", tmp_path / "all.safetensors")
    data, row = config.task.molecules, config.task.molecules.splits["test"][0]
    atoms = slice(data.n_atoms[:row].sum(), data.n_atoms[: row + 1].sum())

    class Molecule:
        numbers, positions = data.atomic_numbers[atoms], data.positions[atoms]

    _, network, params = load(tmp_path / "run")
    molecule = data.n_atoms[[row]], Molecule.numbers, Molecule.positions
    (expected,) = config.task.properties(jax.jit(network.apply), params, *molecule)
    monkeypatch.setattr(qm9, "load", lambda: pytest.fail("the data were read"))
    predicted = egnn.load_pretrained(path)(Molecule)
    for name, value in zip(config.task.columns, expected, strict=True):
        assert predicted[name][0] == pytest.approx(value, rel=1e-5, abs=1e-4)
    assert predicted["gap"] == pytest.approx(predicted["lumo"] - predicted["homo"], rel=1e-4)


def test_constants_of_something_else_are_refused():
    constants = json.loads(json.dumps(TASK.constants()))
    task = QM9Properties().with_constants(constants)
    for ours, theirs in zip(task.statistics, TASK.statistics, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for wrong in ({}, {"coefficients": 1}, constants | {"deviation": [1.0]},
                  constants | {"output_deviation": [float("nan")] * 10}):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            QM9Properties().with_constants(wrong)


def test_the_weights_that_come_with_the_library_have_the_errors_of_their_card():
    model = egnn.load_pretrained("qm9")
    task, data = model.config.task, TASK.molecules
    rows = data.splits["test"][:400]
    starts = np.cumsum(data.n_atoms) - data.n_atoms
    atoms = np.concatenate([np.arange(starts[r], starts[r] + data.n_atoms[r]) for r in rows])
    predicted = task.properties(
        model.network.apply, model.params,
        data.n_atoms[rows], data.atomic_numbers[atoms], data.positions[atoms],
    )  # fmt: skip
    card = model.card["metrics"]["test"]
    assert card["homo"] < 32
    assert card["U0"] < 9
    for k, name in enumerate(qm9.TARGETS):
        error = np.abs(predicted[:, k] - data.targets[name][rows]).mean()
        assert error == pytest.approx(card[name], rel=0.3), name
    covered = model.card["details"]["intervals"]["covered"]
    assert all(0.88 <= share <= 0.92 for share in covered.values())


@pytest.mark.slow
def test_the_weights_for_smiles_have_the_errors_of_their_card():
    from egnn_jax.data import structures
    from egnn_jax.data.qm9_sources import smiles_of_package

    model, data, smiles = egnn.load_pretrained("qm9-smiles"), TASK.molecules, smiles_of_package()
    rows, molecules = [], []
    for row in data.splits["test"][:300]:
        found = structures.read(smiles[int(data.index[row])])[0]
        if getattr(found, "geometry", "") == "MMFF94":
            rows.append(row)
            molecules.append(found)
    predicted = model(molecules)
    for name in ("homo", "U0", "alpha"):
        error = np.abs(predicted[name] - data.targets[name][rows]).mean()
        assert error == pytest.approx(model.card["metrics"]["test"][name], rel=0.3)
