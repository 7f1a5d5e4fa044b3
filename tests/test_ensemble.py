"""Ensembles of potentials: means, spreads, simulations that end, and runs of several seeds."""

import pickle

import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.cli import main
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.run import train

MODEL = egnn.EGNN(features=6, layers=2, cutoff=3.0, num_rbf=4, coordinate_aggregation="sum")
POTENTIAL = egnn.Potential(MODEL)


def members(graph, count=3):
    shapes = jax.eval_shape(POTENTIAL.init, jax.random.key(0), graph)
    return [testing.randomise_parameters(shapes, seed) for seed in range(count)]


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.fixture
def copper():
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    return atoms


def test_means_and_spreads_are_those_of_the_potentials_one_by_one(x64, copper):
    graph = egnn.from_ase(copper, cutoff=3.0)
    params = members(graph)
    outs = [POTENTIAL.clone(stress=True).apply(p, graph) for p in params]
    ensemble = egnn.Ensemble(POTENTIAL.clone(stress=True), stacked(params))
    mean, spread = jax.jit(ensemble)(graph)
    forces = np.stack([out.nodes.y for out in outs])
    energies = np.stack([out.globals.y[0, 0] for out in outs])
    np.testing.assert_allclose(mean.nodes.y, forces.mean(axis=0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(mean.globals.y[0, 0], energies.mean(), rtol=1e-10)
    stress = np.mean([out.globals.stress for out in outs], axis=0)
    np.testing.assert_allclose(mean.globals.stress, stress, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(spread.energy, [energies.std(ddof=1)], rtol=1e-8)
    apart = np.sqrt(np.sum(np.var(forces, axis=0, ddof=1), axis=-1))
    np.testing.assert_allclose(spread.forces, apart, rtol=1e-8)
    assert apart.min() > 1e-3


def test_the_calculator_gives_means_spreads_and_ends_where_they_are_large(x64, copper):
    graph = egnn.from_ase(copper, cutoff=3.0)
    params = members(graph)
    ensemble = egnn.Ensemble(POTENTIAL, stacked(params), references={"Cu": -1.5})
    copper.calc = egnn.ASECalculator(ensemble)
    mean, spread = egnn.Ensemble(POTENTIAL.clone(stress=True), stacked(params))(graph)
    np.testing.assert_allclose(copper.get_potential_energy(), mean.globals.y[0, 0] - 6, rtol=1e-10)
    np.testing.assert_allclose(copper.get_forces(), mean.nodes.y, rtol=1e-8, atol=1e-9)
    assert copper.calc.results["energy_spread"] == pytest.approx(float(spread.energy[0]))
    found = copper.calc.results["forces_spread"]
    np.testing.assert_allclose(found, spread.forces, rtol=1e-8)
    strict = egnn.ASECalculator(ensemble, max_spread=found.max() + 1e-6)
    copper.calc = pickle.loads(pickle.dumps(strict))
    copper.get_forces()
    copper.positions[int(found.argmax())] += 0.3
    message = rf"force on atom \d \(Cu\); expected at most {found.max():.2f}"
    with pytest.raises(egnn.Uncertain, match=message):
        VelocityVerlet(copper, 2 * units.fs).run(50)


def test_the_spread_of_equal_forces_has_a_gradient(x64):
    """An atom alone has no force in any potential."""
    graph = egnn.batch(
        [egnn.graph_from_edges([], [], x=np.zeros((1, 3)), h=np.array([29]))], (4, 6, 2)
    )
    potential = egnn.Potential(egnn.PaiNN(4, 1, 3, cutoff=3.0))
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.vmap(lambda key: potential.init(key, graph))(keys)

    def total(params, x):
        moved = graph._replace(nodes=graph.nodes.replace(x=x))
        _, spread = egnn.Ensemble(potential, params)(moved)
        return spread.forces.sum() + spread.energy.sum()

    for slope in jax.tree.leaves(jax.grad(total, (0, 1))(params, graph.nodes.x)):
        assert np.isfinite(slope).all()


def test_arguments_that_make_no_sense(copper):
    graph = egnn.from_ase(copper, cutoff=3.0)
    params = members(graph)
    with pytest.raises(ValueError, match=r"sizes \[1\]; expected one size"):
        egnn.Ensemble(POTENTIAL, stacked(params[:1]))
    with pytest.raises(ValueError, match="expected one size"):
        egnn.Ensemble(POTENTIAL, params[0])
    with pytest.raises(ValueError, match="the potential is a EGNN"):
        egnn.Ensemble(MODEL, stacked(params))
    ensemble = egnn.Ensemble(POTENTIAL, stacked(params))
    with pytest.raises(ValueError, match="max_spread is 0 with a Ensemble"):
        egnn.ASECalculator(ensemble, max_spread=0)
    with pytest.raises(ValueError, match=r"max_spread is 1\.0 with a Potential"):
        egnn.ASECalculator(POTENTIAL, params[0], max_spread=1.0)
    with pytest.raises(ValueError, match="params is given; expected it with a Potential"):
        egnn.ASECalculator(ensemble, params[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two seeds on copper that EMT labels, two epochs."""
    folder = tmp_path_factory.mktemp("ensemble")
    frames = []
    for seed in range(12):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    ase.io.write(folder / "mine.extxyz", frames)
    plain = {
        "task": {
            "name": "forces", "train": str(folder / "mine.extxyz"), "valid": "0.25",
            "test": "0.25", "cutoff": 3.0,
        },
        "model": {
            "name": "egnn", "features": 6, "layers": 2, "cutoff": 3.0, "num_rbf": 4,
            "coordinate_aggregation": "sum",
        },
        "optimizer": {"learning_rate": 1e-3},
        "epochs": 2, "batch_size": 2, "eval_every": 1, "seeds": 2,
    }  # fmt: skip
    train(configs.from_dict(plain), folder / "run")
    return folder


def test_the_seeds_of_a_run_are_an_ensemble(trained, copper):
    ensemble = egnn.Ensemble.load(trained / "run")
    files = [egnn.export(trained / "run", trained / f"{k}.safetensors", seed=k) for k in range(2)]
    apart = egnn.Ensemble.load(*files)
    singles = []
    for k, file in enumerate(files):
        copper.calc = egnn.ASECalculator(file)
        singles.append(copper.get_forces())
        copper.calc = egnn.ASECalculator(egnn.load_pretrained(trained / "run", seed=k))
        np.testing.assert_allclose(copper.get_forces(), singles[-1], atol=1e-5)
    for model in (ensemble, apart):
        copper.calc = egnn.ASECalculator(model)
        np.testing.assert_allclose(copper.get_forces(), np.mean(singles, axis=0), atol=1e-5)
    with pytest.raises(ValueError, match="hold 1 potentials; expected two or more"):
        egnn.Ensemble.load(files[0])
    with pytest.raises(ValueError, match=r"two potentials of .* have the same parameters"):
        egnn.Ensemble.load(trained / "run", files[1])
    for model in (files[0], ensemble):  # references replace those of the training
        copper.calc = egnn.ASECalculator(model, references={"Cu": 2.0})
        shifted = copper.get_potential_energy()
        copper.calc = egnn.ASECalculator(model, references={"Cu": 0.0})
        np.testing.assert_allclose(shifted - copper.get_potential_energy(), 2.0 * len(copper))
        copper.calc = egnn.ASECalculator(model, references={})
        with pytest.raises(ValueError, match="knows no Cu"):
            copper.get_potential_energy()
    with pytest.raises(ValueError, match="references has 'cu'; expected symbols of elements"):
        egnn.ASECalculator(files[0], references={"cu": 1.0})
    with pytest.raises(ValueError, match="expected runs of the task forces"):
        egnn.Ensemble.load("qm9", "qm9-smiles")
    with pytest.raises(ValueError, match=r"seed is 1 of .*; expected none, since a file holds one"):
        egnn.load_pretrained(files[0], seed=1)


def test_md_ends_where_the_potentials_differ(trained, copper, monkeypatch):
    monkeypatch.chdir(trained)
    ase.io.write("start.xyz", copper)
    options = ["start.xyz", "--model", "run", "--steps", "4", "--every", "2"]
    main(["md", *options, "--max-spread", "100", "--out", "calm"])
    assert len(ase.io.read("calm/trajectory.xyz", ":")) == 3
    with pytest.raises(SystemExit, match="differ by"):
        main(["md", *options, "--max-spread", "1e-6", "--out", "never"])
    (frame,) = ase.io.read("never/trajectory.xyz", ":")
    np.testing.assert_allclose(frame.positions, copper.positions, atol=1e-6)
    assert frame.calc is None
