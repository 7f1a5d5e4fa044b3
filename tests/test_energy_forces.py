"""Labels of ASE's structures, and the loss on energies, forces and stress."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import egnn_jax as egnn

REFERENCES = {"Cu": -2.5}


def copper(seed=0):
    """Copper atoms off their sites, in a strained cell, with energy, forces and stress."""
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell @ np.diag([1.02, 0.99, 1.0]), scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    results = {name: atoms.calc.get_property(name, atoms) for name in ("energy", "stress")}
    calc = SinglePointCalculator(atoms, forces=atoms.get_forces(), **results)
    atoms.calc = calc
    return atoms


def test_labels_where_ase_keeps_them():
    atoms = copper()
    names = {"energy": "energy", "forces": "forces", "stress": "stress"}
    graph = egnn.from_ase(atoms, 4.0, references=REFERENCES, **names)
    energy = atoms.get_potential_energy() + 4 * 2.5
    np.testing.assert_allclose(graph.globals.y, [[energy]], rtol=1e-6)
    np.testing.assert_allclose(graph.nodes.y, atoms.get_forces(), rtol=1e-6)
    stress = atoms.get_stress(voigt=False)
    np.testing.assert_allclose(graph.globals.stress, stress[None], rtol=1e-6)
    other = copper()
    other.calc = None
    other.info |= {"E": energy - 10, "virial-free": stress.ravel()}
    other.arrays["dft_forces"] = atoms.get_forces()
    again = egnn.from_ase(
        other, 4.0, energy="E", forces="dft_forces", stress="virial-free", references=REFERENCES
    )
    for mine, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(graph), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda a: None, {"energy": "Energy"}, "no label 'Energy'; found energy, forces, stress"),
        (lambda a: a.calc.results.update(energy=np.nan), {"energy": "energy"}, "is not finite"),
        (lambda a: None, {"forces": "stress"}, r"'stress' has shape \(6,\).*expected numbers of "
         r"shape \(4, 3\)"),
        (lambda a: None, {"stress": "forces"}, r"'forces' has shape \(4, 3\)"),
        (lambda a: None, {"energy": "energy", "y": [1.0]}, "both y and energy"),
        (lambda a: (a.info.update(E=1.0), a.set_chemical_symbols("Cu2NiAu")), {"energy": "E"},
         "no energy of Au, Ni"),
        (lambda a: a.set_pbc(False), {"stress": "stress"}, r"along \[\] .* cell of rank 3"),
        (lambda a: (a.set_cell([0, 9, 9]), a.set_pbc([False, True, True])), {"stress": "stress"},
         "and have a cell of rank 2"),
    ],
)  # fmt: skip
def test_labels_that_are_not_there(change, options, message):
    atoms = copper()
    change(atoms)
    references = REFERENCES if "energy" in options else None
    with pytest.raises(ValueError, match=message):
        egnn.from_ase(atoms, 4.0, references=references, **options)


class Known:
    """A network whose output is what the parameters say."""

    def apply(self, params, batch):
        energy, forces, stress = params
        return batch._replace(
            nodes=batch.nodes.replace(y=forces),
            globals=batch.globals.replace(y=energy, stress=stress),
        )


def test_results_of_a_calculator_for_other_atoms_are_refused():
    frames, calculator = [copper(seed) for seed in range(3)], EMT()
    for atoms in frames:
        atoms.calc = calculator
        atoms.get_forces()
    last = egnn.from_ase(frames[-1], 3.0, energy="energy", forces="forces")
    assert float(last.globals.y[0, 0]) == pytest.approx(frames[-1].get_potential_energy(), abs=1e-4)
    text = (
        r"'energy' is a result of the calculator for other atoms \(of other positions\); expected"
    )
    with pytest.raises(ValueError, match=text):
        egnn.from_ase(frames[0], 3.0, energy="energy")
    frames[-1].rattle(0.1)
    with pytest.raises(ValueError, match=text):
        egnn.from_ase(frames[-1], 3.0, energy="energy")
    frames[-1].info["mine"] = 1.5  # a label that is not the calculator's
    assert egnn.from_ase(frames[-1], 3.0, energy="mine").globals.y.tolist() == [[1.5]]


def test_the_loss_by_hand():
    labels = {"energy": "energy", "forces": "forces", "stress": "stress"}
    graphs = [egnn.from_ase(copper(k), 3.0, references=REFERENCES, **labels) for k in (0, 1)]
    batch = egnn.batch(graphs, egnn.Budget(20, 600, 4))
    loss = egnn.losses.energy_forces(Known(), energy=2.0, forces=3.0, stress=5.0)
    rng = np.random.default_rng(0)
    wrong = [rng.normal(size=n) for n in ((4, 1), (20, 3), (4, 3, 3))]
    labelled = (batch.globals.y, batch.nodes.y, batch.globals.stress)
    params = [jnp.asarray(a + w, jnp.float32) for a, w in zip(labelled, wrong, strict=True)]
    value, metrics = loss(params, batch, jax.random.key(0))
    energy, forces, stress = wrong[0][:2], wrong[1][:8], wrong[2][:2]
    expected = 2 * ((energy / 4) ** 2).mean() + 3 * (forces**2).mean() + 5 * (stress**2).mean()
    assert float(value) == pytest.approx(expected, rel=1e-5)
    for name, errors in (("energy", energy), ("forces", forces), ("stress", stress)):
        total, count = metrics[name]
        assert float(total / count) == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    unlabelled = egnn.from_ase(copper(), 3.0, energy="energy", references=REFERENCES)
    batch = egnn.batch([unlabelled], egnn.Budget(5, 300, 2))
    with pytest.raises(ValueError, match="labels of forces have shape None"):
        loss([params[0][:2], params[1][:5], params[2][:2]], batch, jax.random.key(0))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"energy": -1.0}, "energy is -1.0; expected a finite number of at least 0"),
        ({"forces": float("nan")}, "forces is nan; expected a finite number of at least 0"),
        ({"energy": 0.0, "forces": 0.0}, "are 0; expected one above 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights, message):
    potential = egnn.Potential(egnn.EGNN(features=4, layers=1))
    with pytest.raises(ValueError, match=message):
        egnn.losses.energy_forces(potential, **weights)
