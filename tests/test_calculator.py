"""The calculator for ASE: against the potential on graphs, its neighbor list, threads and files."""

import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor

import ase
import ase.build
import ase.io
import jax
import numpy as np
import pytest
from ase import units
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.md.nptberendsen import NPTBerendsen
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.phonons import Phonons
from ase.stress import full_3x3_to_voigt_6_stress

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.experiments.dynamics import Dynamics, simulate
from egnn_jax.potentials import calculator
from egnn_jax.potentials.ensemble import require_finite

MODEL = egnn.EGNN(features=6, layers=2, cutoff=3.0, num_rbf=4, coordinate_aggregation="sum")


def potential(atoms, model=MODEL):
    graph = egnn.from_ase(atoms, cutoff=3.0)
    network = egnn.Potential(model)
    shapes = jax.eval_shape(network.init, jax.random.key(0), graph)
    return network, testing.randomise_parameters(shapes)


def copper(seed=0, pbc=True):
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=seed)
    atoms.pbc = pbc
    return atoms


@pytest.fixture
def water():
    return ase.build.molecule("H2O")


@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
def test_it_gives_what_the_potential_gives(x64, pbc):
    atoms = copper(pbc=pbc)
    network, params = potential(atoms)
    atoms.calc = egnn.ASECalculator(network, params, references={"Cu": -1.5})
    stress = any(np.broadcast_to(pbc, 3))
    out = network.clone(stress=stress).apply(params, egnn.from_ase(atoms, cutoff=3.0))
    np.testing.assert_allclose(atoms.get_potential_energy(), out.globals.y[0, 0] - 6.0, rtol=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), out.nodes.y, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(atoms.get_potential_energies().sum(), atoms.get_potential_energy())
    if stress:
        expected = full_3x3_to_voigt_6_stress(np.asarray(out.globals.stress[0]))
        np.testing.assert_allclose(atoms.get_stress(), expected, rtol=1e-8, atol=1e-10)


def test_energies_do_not_depend_on_the_skin_or_on_cells_passed(x64):
    atoms = copper()
    network, params = potential(atoms)
    fresh = egnn.ASECalculator(network, params, skin=0.0)
    kept = egnn.ASECalculator(network, params, skin=1.0)
    rng = np.random.default_rng(0)
    for k in range(30):
        atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
        if k % 10 == 5:
            atoms.positions[k % 4] += 3 * atoms.cell[0] - atoms.cell[2]
        if k % 10 == 7:
            atoms.set_cell(atoms.cell * 1.02, scale_atoms=True)
        found = [(c.get_potential_energy(atoms), c.get_forces(atoms)) for c in (fresh, kept)]
        np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-10)
        np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-9)


def test_random_cells_have_the_neighbors_of_ase():
    """The pairs of the list, against ASE's, in cells of any shape, periodic in any directions."""
    rng = np.random.default_rng(0)
    for seed in range(200):
        cell = rng.normal(size=(3, 3)) + 2 * np.eye(3) * rng.uniform(0.5, 3)
        numbers = rng.choice([1, 6, 29], rng.integers(1, 9))
        scaled = rng.uniform(-1, 2, (len(numbers), 3))
        atoms = ase.Atoms(numbers, scaled_positions=scaled, cell=cell, pbc=rng.random(3) < 0.5)
        if atoms.cell.volume < 1.0:
            continue
        calc = egnn.ASECalculator(egnn.Potential(MODEL), {}, skin=0.0)
        listed = calc._neighbors(atoms)
        x = atoms.positions - listed.origin
        r_ij = x[listed.receivers] - x[listed.senders]
        r_ij -= 0 if listed.shift is None else listed.shift
        i, j, d = neighbor_list("ijD", atoms, 3.0)
        found = np.column_stack([listed.receivers, listed.senders, r_ij])
        expected = np.column_stack([i, j, -d])
        assert len(found) == len(expected), seed
        for one in (found, expected):
            one[:] = one[np.lexsort(np.round(one.T, 6))]
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_phonons_optimizers_and_constant_pressure_run(tmp_path, x64):
    """What ASE does with cells that change and with copies of a crystal."""
    atoms = copper()
    network, params = potential(atoms)
    atoms.calc = egnn.ASECalculator(network.clone(scale=0.1), params)
    before = np.abs(atoms.get_stress()).max()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=100)
    assert np.abs(atoms.get_stress()).max() < 0.2 * before
    atoms.set_momenta(np.random.default_rng(0).normal(size=(4, 3)))
    dynamics = NPTBerendsen(
        atoms, timestep=units.fs, temperature_K=10, pressure_au=0.0, compressibility_au=1e-3
    )
    volume = atoms.get_volume()
    dynamics.run(5)
    assert atoms.get_volume() != volume
    phonons = Phonons(
        atoms, atoms.calc, supercell=(1, 1, 1), delta=0.01, name=str(tmp_path / "phonons")
    )
    phonons.run()
    phonons.read(acoustic=True)
    matrix = phonons.get_force_constant()[0]
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-8)
    assert np.abs(matrix).max() > 1e-3


def test_a_list_is_kept_until_an_atom_moves_by_half_the_skin(water):
    network, params = potential(water)
    calc = egnn.ASECalculator(network, params, skin=0.4)
    calc.get_potential_energy(water)
    first = calc._neighbor_list
    water.positions[0, 0] += 0.19
    calc.get_potential_energy(water)
    assert calc._neighbor_list is first
    water.positions[0, 0] += 0.02
    calc.get_potential_energy(water)
    assert calc._neighbor_list is not first


def test_geometries_of_one_system_compile_once():
    atoms = copper()
    network, params = potential(atoms)
    calc = egnn.ASECalculator(network, params)
    calc.get_potential_energy(atoms)
    before = calculator._evaluate._cache_size()
    for seed in range(20):
        calc.get_forces(copper(seed))
    assert calculator._evaluate._cache_size() == before


def test_threads_and_pickles(water):
    network, params = potential(water)
    calc = pickle.loads(pickle.dumps(egnn.ASECalculator(network, params)))
    several = [water.copy() for _ in range(8)]
    for k, atoms in enumerate(several):
        atoms.positions[1] *= 1 + 0.02 * k
    alone = [calc.get_forces(atoms) for atoms in several]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(calc.get_forces, several))
    np.testing.assert_array_equal(alone, together)


def test_what_makes_no_sense_is_refused(water):
    network, params = potential(water)
    calc = egnn.ASECalculator(network, params, references={"H": -13.0})
    with pytest.raises(ValueError, match="knows no O; expected atoms of H"):
        calc.get_potential_energy(water)
    with pytest.raises(ValueError, match="there are no atoms"):
        calc.get_potential_energy(ase.Atoms())
    with pytest.raises(ValueError, match=r"atom 0 is at .*nan"):
        calc.get_potential_energy(ase.Atoms("H", [[np.nan, 0, 0]]))
    with pytest.raises(ValueError, match="periodic"):
        calc.get_potential_energy(ase.Atoms("H", pbc=[True, False, False]))
    with pytest.raises(ValueError, match="params is None"):
        egnn.ASECalculator(network)
    with pytest.raises(ValueError, match="EGNN has no cutoff"):
        egnn.ASECalculator(egnn.Potential(egnn.EGNN(features=4)), params)
    with pytest.raises(ValueError, match="skin is -1"):
        egnn.ASECalculator(network, params, skin=-1)
    with pytest.raises(ValueError, match="skin is a; expected a finite number"):
        egnn.ASECalculator(network, params, skin="a")
    with pytest.raises(ValueError, match="references has nan for 'H'; expected an energy in eV"):
        egnn.ASECalculator(network, params, references={"H": np.nan})
    with pytest.raises(ValueError, match="the model is a MolecularReadout; expected a Potential"):
        egnn.ASECalculator("qm9")


def test_a_cell_that_has_collapsed_leaves_the_calculator_as_it_was(water):
    calc = egnn.ASECalculator(*potential(water))
    before = calc.get_potential_energy(water)
    bad = water.copy()
    bad.set_cell([1e-3, 1, 1])
    bad.pbc = True
    with pytest.raises(ValueError, match=r"a volume of 0.001 Å³ for 3 atoms, of which each has"):
        calc.get_potential_energy(bad)
    calc.reset()
    assert calc.get_potential_energy(water) == before
    assert len(calc._capacities) == 1


def test_one_atom_alone(x64):
    atom = ase.Atoms("Cu", [[1.0, 2.0, 3.0]])
    network, params = potential(copper())
    atom.calc = egnn.ASECalculator(network, params)
    np.testing.assert_allclose(atom.get_forces(), 0, atol=1e-12)
    assert np.isfinite(atom.get_potential_energy())


def test_dynamics_write_what_ase_reads_and_can_be_continued(tmp_path, water, monkeypatch):
    network, params = potential(water)
    water.info["REF_energy"] = -14.0
    water.write(tmp_path / "water.xyz")
    with pytest.raises(ValueError, match=r"water.xyz@: is 1 structures; expected one"):
        simulate(f"{tmp_path / 'water.xyz'}@:", "", tmp_path / "none", Dynamics())

    with pytest.raises(ValueError, match=r"water.xyz@x ends with 'x'; expected a number"):
        simulate(f"{tmp_path / 'water.xyz'}@x", "", tmp_path / "none", Dynamics())
    for name, values in (("momenta", np.full((3, 3), np.nan)), ("masses", np.zeros(3))):
        bad = water.copy()
        bad.set_array(name, values)
        bad.write(tmp_path / "bad.extxyz")
        with pytest.raises(ValueError, match=r"atom 0 of .*bad\.extxyz has the m(omentum|ass)"):
            simulate(str(tmp_path / "bad.extxyz"), "", tmp_path / "none", Dynamics())

    def given(model):
        return egnn.ASECalculator(network.clone(scale=1e-3), params)

    monkeypatch.setattr("egnn_jax.experiments.dynamics.ASECalculator", given)
    options = {"steps": 25, "every": 10, "timestep": 0.25}
    first = tmp_path / "first"
    found = simulate(str(tmp_path / "water.xyz"), None, first, Dynamics(**options))
    assert "REF_energy" not in (first / "trajectory.xyz").read_text()
    frames = ase.io.read(first / "trajectory.xyz", ":")
    assert len(frames) == 4
    lines = (first / "dynamics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "0", "10", "20", "25"]
    assert (first / "dynamics.png").stat().st_size > 1000
    assert found["temperature"] > 0
    np.testing.assert_allclose(frames[0].get_momenta().sum(axis=0), 0, atol=1e-6)
    kept = frames[-1].get_forces(), frames[-1].get_potential_energy()
    frames[-1].calc = given(None)
    np.testing.assert_allclose(kept[0], frames[-1].get_forces(), atol=1e-5)
    assert kept[1] == pytest.approx(frames[-1].get_potential_energy(), abs=1e-5)
    with pytest.raises(ValueError, match="is not empty; expected a new folder"):
        simulate(str(tmp_path / "water.xyz"), None, first, Dynamics(**options))
    nve = Dynamics(**options | {"ensemble": "nve"})
    simulate(f"{first}/trajectory.xyz@-1", None, tmp_path / "second", nve)
    start, *_, end = ase.io.read(tmp_path / "second" / "trajectory.xyz", ":")
    np.testing.assert_allclose(start.get_momenta(), frames[-1].get_momenta(), atol=1e-6)
    at_once = dataclasses.replace(nve, every=25)
    simulate(f"{first}/trajectory.xyz@-1", None, tmp_path / "third", at_once)
    same = ase.io.read(tmp_path / "third" / "trajectory.xyz", -1)
    np.testing.assert_allclose(end.positions, same.positions, atol=1e-6)
    assert np.abs(end.positions - start.positions).max() > 1e-3


def test_a_continued_trajectory_keeps_masses_tags_and_fixed_atoms(tmp_path, water, monkeypatch):
    network, params = potential(water)
    given = lambda model: egnn.ASECalculator(network.clone(scale=1e-3), params)
    monkeypatch.setattr("egnn_jax.experiments.dynamics.ASECalculator", given)
    water.set_masses([18.0, 2.014, 1.008])
    water.set_tags([1, 0, 2])
    water.set_constraint(FixAtoms([0]))
    water.write(tmp_path / "water.traj")
    options = {"steps": 4, "every": 2, "timestep": 0.25}
    start = str(tmp_path / "water.traj")
    for name in ("first", "second"):
        simulate(start, None, tmp_path / name, Dynamics(**options))
        start = f"{tmp_path / name}/trajectory.xyz@-1"
        end = ase.io.read(tmp_path / name / "trajectory.xyz", -1)
        assert end.get_masses().tolist() == [18.0, 2.014, 1.008]
        assert end.get_tags().tolist() == [1, 0, 2]
        assert end.constraints[0].index.tolist() == [0]
        np.testing.assert_allclose(end.positions[0], water.positions[0], atol=1e-7)


@pytest.mark.parametrize("scale", [1e13, np.inf])
def test_an_explosion_is_told_and_its_frames_are_kept(tmp_path, water, monkeypatch, scale):
    """Too hot, or forces that are not finite, between two frames."""
    network, params = potential(water)
    water.write(tmp_path / "water.xyz")

    class Calculator(egnn.ASECalculator):
        def __init__(self, model):
            super().__init__(network, params)
            self.calls = 0

        def _compute(self, atoms):
            self.calls += 1
            results = super()._compute(atoms)
            if self.calls > 15:
                results["forces"] = scale * (results["forces"] + 1)
                require_finite(results)
            return results

    monkeypatch.setattr("egnn_jax.experiments.dynamics.ASECalculator", Calculator)
    folder = tmp_path / "run"
    with pytest.raises(FloatingPointError, match=r"the simulation explodes: .* frames so far are"):
        simulate(str(tmp_path / "water.xyz"), None, folder, Dynamics(steps=100, every=10))
    assert 2 <= len(ase.io.read(folder / "trajectory.xyz", ":")) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"timestep": 0.0}, "timestep is 0.0; expected a number above 0"),
     ({"temperature": -1.0}, "temperature is -1.0; expected 0 or above"),
     ({"steps": 0}, "steps is 0; expected at least 1"),
     ({"ensemble": "npt"}, "ensemble is 'npt'; expected 'nvt' or 'nve'")],
)  # fmt: skip
def test_dynamics_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Dynamics(**options)


def test_ten_thousand_atoms_and_atoms_at_one_place():
    atoms = ase.build.bulk("Cu", cubic=True)
    network, params = potential(atoms, egnn.EGNN(features=4, layers=1, cutoff=3.0, num_rbf=3,
                                                 update_coordinates=False))  # fmt: skip
    calc = egnn.ASECalculator(network, params)
    one, many = atoms.copy(), atoms.repeat(14)
    one.calc = many.calc = calc
    assert len(many) == 10_976
    np.testing.assert_allclose(
        many.get_potential_energy() / len(many), one.get_potential_energy() / len(one), rtol=1e-4
    )
    np.testing.assert_allclose(many.get_forces(), 0, atol=1e-4)
    both = ase.Atoms("Cu2", [[0, 0, 0], [0, 0, 0]], calculator=calc)
    assert np.isfinite(both.get_potential_energy())
    np.testing.assert_allclose(both.get_forces(), 0, atol=1e-6)


def test_a_failed_calculation_leaves_no_results(water):
    network, params = potential(water)
    calculator = egnn.ASECalculator(network, params, references={"H": -13.0, "O": -2000.0})
    water.calc = calculator
    water.get_forces()
    other = ase.Atoms("NHH", water.positions, calculator=calculator)
    for call in (lambda: calculator.calculate(other), other.get_forces):
        with pytest.raises(ValueError, match="the potential knows no N"):
            call()


def test_a_slab_far_from_the_origin_has_the_same_forces():
    slab = ase.build.fcc111("Cu", (2, 2, 2))
    slab.rattle(0.1, seed=0)
    network, params = potential(slab)
    slab.calc = egnn.ASECalculator(network, params)
    near = slab.get_forces()
    slab.positions[:, 2] += 1e4
    np.testing.assert_allclose(slab.get_forces(), near, rtol=1e-4, atol=1e-4 * abs(near).max())
