"""Structures from files, and the task that trains potentials on them."""

import dataclasses
import functools
import json
import shutil
import warnings
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase import units
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from tblite.ase import TBLite

import egnn_jax as egnn
from egnn_jax.cli import main
from egnn_jax.data import frames, labelled, xtb
from egnn_jax.data._splits import draw_splits
from egnn_jax.data.frames import Labels
from egnn_jax.data.storage import sha256
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import force_errors
from egnn_jax.experiments.forces import Forces
from egnn_jax.experiments.run import load, train
from egnn_jax.experiments.start import Start
from egnn_jax.training.checkpoint import RunFolder


def copper(seed, element="Cu", stress=True):
    """Four atoms off their sites in a strained cell, labelled by ASE's EMT."""
    rng = np.random.default_rng(seed)
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.symbols[0] = element
    atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if stress:
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("frames") / "mine@home.extxyz"
    made = [copper(k, "Ni" if k % 3 == 0 else "Cu") for k in range(40)]
    for k, atoms in enumerate(made):
        atoms.info["config_type"] = "warm" if k % 2 else "hot"
    ase.io.write(path, made, format="extxyz")
    return path


MODEL = {"name": "egnn", "features": 16, "layers": 2, "cutoff": 4.0, "num_rbf": 6,
         "coordinate_aggregation": "sum"}  # fmt: skip


def small(file, **task):
    return configs.from_dict(
        {
            "task": {"name": "forces", "train": str(file), "cutoff": 4.0, "stress": "stress",
                     "valid": "0.2", "test": "0.2"} | task,
            "model": MODEL,
            "optimizer": {"learning_rate": 5e-3},
            "epochs": 30,
            "eval_every": 10,
            "batch_size": 4,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, train(small(file), folder)


@pytest.mark.parametrize("suffix", ["extxyz", "extxyz.gz", "traj", "db"])
def test_whatever_ase_writes_is_read(tmp_path, suffix):
    path = tmp_path / f"some.{suffix}"
    written = [copper(k) for k in range(3)]
    ase.io.write(path, written)
    read = list(frames.read(path))
    assert len(read) == 3
    for atoms, expected in zip(read, written, strict=True):
        found = Labels(stress="stress").in_ev(atoms)
        np.testing.assert_allclose(found.get_positions(), expected.get_positions(), atol=1e-7)
        for name, value in found.calc.results.items():
            wanted = expected.calc.results[name]
            if name == "stress":
                wanted = expected.get_stress(voigt=False)
            np.testing.assert_allclose(value, wanted, atol=1e-7)


def test_rmd17s_arrays_are_read(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 3, 3))
    np.savez(tmp_path / "rmd17_water.npz", nuclear_charges=[8, 1, 1], coords=x,
             energies=[-100.0, -101.0], forces=2 * x)  # fmt: skip
    first, second = frames.read(tmp_path / "rmd17_water.npz")
    assert first.get_chemical_formula() == "H2O"
    unit = 0.0433641  # eV of a kcal/mol
    assert second.get_potential_energy() == pytest.approx(-101 * unit, rel=1e-6)
    np.testing.assert_allclose(first.get_forces(), 2 * x[0] * unit, rtol=1e-6)
    np.savez(tmp_path / "other.npz", coords=x)
    with pytest.raises(ValueError, match=r"other\.npz: frame 0 .*no array 'nuclear_charges'"):
        list(frames.read(tmp_path / "other.npz"))
    labels = Labels(energy_unit="kcal/mol")  # would be converted a second time
    with pytest.raises(ValueError, match=r"given as kcal/mol and Å; expected none for an \.npz"):
        list(frames.named(tmp_path / "rmd17_water.npz", labels))


def test_units_and_the_virial():
    """One structure written in Hartree and Bohr, with a virial, is the same in eV and Å."""
    atoms = copper(0)
    volume = atoms.get_volume()
    other = atoms.copy()
    other.set_cell(atoms.cell / units.Bohr, scale_atoms=True)
    other.info |= {
        "E": atoms.get_potential_energy() / units.Hartree,
        "W": -atoms.get_stress(voigt=False) * volume / units.Hartree,
    }
    other.arrays["F"] = atoms.get_forces() / units.Hartree * units.Bohr
    other.set_constraint(FixAtoms([0, 1]))
    labels = Labels("E", "F", virial="W", energy_unit="Hartree", length_unit="Bohr")
    found = labels.in_ev(other)
    np.testing.assert_allclose(found.get_positions(), atoms.get_positions())
    np.testing.assert_allclose(found.cell, atoms.cell)
    assert found.calc.results["energy"] == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(found.calc.results["forces"], atoms.get_forces())
    np.testing.assert_allclose(found.calc.results["stress"], atoms.get_stress(voigt=False))


def test_energies_an_atom_of_structures_of_different_sizes(tmp_path):
    """By predictions that are off by 1 eV each, whatever the size."""
    molecules = [ase.build.molecule(name) for name in ("H2O", "CH4", "H2", "CO2")]
    for atoms in molecules:
        atoms.calc = SinglePointCalculator(atoms, energy=2.0, forces=np.zeros((len(atoms), 3)))
    ase.io.write(tmp_path / "some.traj", molecules)
    structures = labelled.read(str(tmp_path / "some.traj"), Labels(), 5.0)

    def predict(batch):
        return batch._replace(globals=batch.globals.replace(y=batch.globals.y + 1))

    errors = force_errors.errors(predict, structures.samples(dict.fromkeys("HCO", 0.0)))
    assert errors["energy"].shape == (4, 1)
    found = force_errors.details(errors, structures)["rmse"]
    assert found["energy"] == pytest.approx(1e3)
    each = np.sqrt(np.mean(np.square([1e3 / len(atoms) for atoms in molecules])))
    assert found["energy_per_atom"] == pytest.approx(each)


@pytest.mark.parametrize("block", [1, 2, 10])
def test_energies_of_free_atoms_by_least_squares(tmp_path, monkeypatch, block):
    monkeypatch.setattr(labelled, "BLOCK", block)
    made = []
    for formula in ("CuNi", "Cu2", "CuNi3", "Cu4"):
        atoms = ase.Atoms(formula, np.zeros((len(ase.Atoms(formula)), 3)))
        energy = {"Cu": -2.0, "Ni": -5.0}
        atoms.calc = SinglePointCalculator(atoms, energy=sum(energy[s] for s in atoms.symbols))
        made.append(atoms)
    ase.io.write(tmp_path / "some.traj", made)
    structures = labelled.read(str(tmp_path / "some.traj"), Labels(forces=""), 5.0)
    found, determined = structures.fit_e0s()
    assert found == pytest.approx({"Cu": -2.0, "Ni": -5.0})
    assert determined
    found, determined = structures[[0, 0, 0]].fit_e0s()
    assert sum(found.values()) == pytest.approx(-7.0)
    assert not determined


def _missing(atoms):
    del atoms.calc.results["forces"]


def _nan(atoms):
    atoms.calc.results["energy"] = np.nan


def _molecule(atoms):
    results = atoms.calc.results
    atoms.pbc = False
    atoms.calc = SinglePointCalculator(atoms, **results)  # ASE drops results of other atoms


def _dummy(atoms):
    results = atoms.calc.results
    atoms.symbols[1] = "X"
    atoms.calc = SinglePointCalculator(atoms, **results)


def _gold(atoms):
    results = atoms.calc.results
    atoms.symbols[1] = "Au"
    atoms.calc = SinglePointCalculator(atoms, **results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_missing, r"frame 2 of .*bad\.traj: there is no label 'forces'; found energy, stress"),
        (_nan, r"frame 2 of .*bad\.traj: the label 'energy' has a value that is not finite"),
        (_molecule, r"frame 2 of .*bad\.traj is not periodic, unlike frame 0"),
        (_dummy, r"frame 2 of .*bad\.traj: atom 1 is X; expected a chemical element"),
        (_gold, r"frame 2 of .*bad\.traj has Au; expected elements that are trained on .*, Cu"),
    ],
)
def test_faults_are_named_with_file_and_frame(tmp_path, file, change, message):
    bad = [copper(k) for k in range(4)]
    change(bad[2])
    ase.io.write(tmp_path / "bad.traj", bad)
    with pytest.raises(ValueError, match=message):
        train(small(file, test=str(tmp_path / "bad.traj")), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_crystals_are_not_tested_on_molecules(tmp_path, file):
    bad = [copper(k) for k in range(4)]
    for atoms in bad:
        _molecule(atoms)
    ase.io.write(tmp_path / "bad.traj", bad)
    with pytest.raises(ValueError, match=r"frame 0 of .*bad\.traj is not periodic, unlike frame"):
        train(small(file, test=str(tmp_path / "bad.traj"), stress=""), tmp_path / "run")


def test_a_file_cut_short_names_the_frame(tmp_path, file):
    path = tmp_path / "cut.extxyz"
    lines = file.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[: 6 * 7 + 4]) + "\n")
    with pytest.raises(ValueError, match=r"cut\.extxyz: frame 7 cannot be read"):
        list(frames.read(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nuclear_charges": np.array([1.5, 8.0])}, "nuclear_charges are .*; expected atomic"),
        ({"energies": np.zeros(2)}, "coords, energies and forces have 3, 2 and 3 rows"),
        (None, "it is no .npz"),
    ],
)
def test_archives_that_make_no_sense_are_refused(tmp_path, changes, message):
    arrays = {
        "nuclear_charges": np.array([1, 8]), "coords": np.eye(2, 3)[None].repeat(3, 0),
        "energies": np.zeros(3), "forces": np.zeros((3, 2, 3)),
    }  # fmt: skip
    if changes is None:
        (tmp_path / "mine.npz").write_text("x")
    else:
        np.savez(tmp_path / "mine.npz", **(arrays | changes))
    with pytest.raises(ValueError, match=message):
        list(frames.read(tmp_path / "mine.npz"))


def test_errors_are_not_of_a_file_that_has_changed(tmp_path, file, monkeypatch):
    path = tmp_path / "mine.extxyz"
    shutil.copy(file, path)
    short = dataclasses.replace(small(path), epochs=1, eval_every=1)
    train(short, tmp_path / "run")
    egnn.export(tmp_path / "run", tmp_path / "it.safetensors")
    with path.open("a", encoding="utf-8") as end:
        end.write(file.read_text(encoding="utf-8"))
    for command in (
        ["evaluate", "run"],
        ["evaluate", "it.safetensors"],
        ["report", "run", "--out", "report"],
    ):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match=r"mine\.extxyz has changed since .* was trained"):
            main(command)
    assert not (tmp_path / "report").exists()


def test_more_epochs_without_the_data_keep_the_result(tmp_path, file):
    path = tmp_path / "mine.extxyz"
    shutil.copy(file, path)
    of = lambda epochs: dataclasses.replace(small(path), epochs=epochs, eval_every=1)
    result = train(of(1), tmp_path / "run")
    path.unlink()
    with pytest.raises(ValueError, match=r"mine\.extxyz is not a file"):
        train(of(2), tmp_path / "run")
    assert train(of(1), tmp_path / "run") == result


def test_a_run_is_not_resumed_with_simulated_frames_or_from_them(tmp_path, file, monkeypatch):
    path = tmp_path / "mine.extxyz"
    options = {"simulate": f"{path}=O", "stress": ""}
    of = lambda epochs: dataclasses.replace(small(path, **options), epochs=epochs, eval_every=1)
    monkeypatch.setattr(xtb, "simulated_frames", lambda smiles: file)
    with pytest.warns(UserWarning, match="O is simulated and labelled by GFN2-xTB"):
        train(of(1), tmp_path / "simulated")
    shutil.copy(file, path)
    with pytest.raises(ValueError, match=r"on xtb-O-2000-0.extxyz, and \S+mine.extxyz would be"):
        train(of(2), tmp_path / "simulated")
    train(of(1), tmp_path / "read")
    path.unlink()
    with pytest.raises(ValueError, match=r"on \S+mine.extxyz, and xtb-O-2000-0.extxyz would be"):
        train(of(2), tmp_path / "read")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": ""}, "task.train is empty"),
        (
            {"train": "none.xyz"},
            "none.xyz is not a file; expected one of structures, looked for in",
        ),
        ({"valid": "0.6", "test": "0.5"}, "expected shares between 0 and 1 with a sum below 1"),
        ({"valid": "0"}, "expected shares between 0 and 1"),
        ({"valid": "0.001"}, "valid is 0.001 of 40 samples"),
        ({"cutoff": 3.0}, "model.cutoff is 4.0 and task.cutoff 3.0"),
        ({"e0s": ["Cu"]}, "task.e0s has 'Cu'; expected an entry such as H=-13.57"),
        ({"e0s": ["Cu=nan"]}, "task.e0s has 'Cu=nan'; expected an entry such as"),
        ({"e0s": ["Cu=1", "Cu=2"]}, "has 'Cu=2'; expected an entry .* for each element"),
        ({"forces_weight": 0, "energy_weight": 0, "stress_weight": 0}, "all weights .* are 0"),
        ({"virial": "W"}, "stress is 'stress' and virial 'W'"),
        ({"forces_weight": -1.0}, "task.forces_weight is -1.0"),
        ({"energy_unit": "cal"}, "energy_unit"),
    ],
)  # fmt: skip
def test_choices_that_make_no_sense_are_refused(file, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(small(file, **options), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_it_learns_and_says_how_well(file, run):
    _, result = run
    labels = [copper(k, "Ni" if k % 3 == 0 else "Cu") for k in range(40)]
    forces = np.concatenate([atoms.get_forces() for atoms in labels])
    assert result["metrics"]["test"]["forces"] < 0.6e3 * np.abs(forces).mean()
    details = result["details"]
    assert details["determined"]
    task = small(file).task
    valid = [task.samples("valid")[k] for k in range(8)]
    energies, forces, stresses = (
        np.mean([np.square(value).mean() for value in values])
        for values in (
            [graph.globals.y / 4 - details["shift"] for graph in valid],
            [graph.nodes.y for graph in valid],
            [graph.globals.stress for graph in valid],
        )
    )
    alone = task.energy_weight * energies + task.forces_weight * forces
    alone += task.stress_weight * stresses
    assert result["trivial"]["loss"] == pytest.approx(alone, rel=1e-4)
    assert details["test"]["structures"] == 8
    assert details["test"]["rmse"]["forces"] > result["metrics"]["test"]["forces"]
    by_element = details["test"]["by_element"]
    assert set(by_element) == {"Cu", "Ni"}
    numbers = np.concatenate([a.numbers for _, a in _test_structures(file)])
    share = np.mean(numbers == 28)
    of_all = share * by_element["Ni"]["forces"]["mae"]
    of_all += (1 - share) * by_element["Cu"]["forces"]["mae"]
    assert of_all == pytest.approx(result["metrics"]["test"]["forces"], rel=1e-4)
    kinds = details["test"]["by_config_type"]
    assert set(kinds) == {"hot", "warm"}


def _test_structures(file):
    every = list(frames.named(file, Labels(stress="stress")))
    return [every[k] for k in draw_splits(len(every), "0.2", "0.2", 0)["test"]]


def test_metrics_are_those_of_the_network_by_hand(file, run):
    folder, result = run
    config, network, params = load(folder)
    free = config.task.references
    errors = {"energy": [], "forces": [], "stress": []}
    for _, atoms in _test_structures(file):
        out = network.apply(params, egnn.from_ase(atoms, 4.0))
        energy = float(out.globals.y[0, 0]) + sum(free[s] for s in atoms.symbols)
        errors["energy"].append(1e3 * (energy - atoms.calc.results["energy"]))
        errors["forces"].append(1e3 * (out.nodes.y - atoms.calc.results["forces"]))
        errors["stress"].append(160.21766 * (out.globals.stress[0] - atoms.calc.results["stress"]))
    for name, values in errors.items():
        found = result["metrics"]["test"][name]
        assert np.abs(values).mean() == pytest.approx(found, rel=2e-3), name
        rmse = result["details"]["test"]["rmse"][name]
        assert np.sqrt(np.square(values).mean()) == pytest.approx(rmse, rel=2e-3), name


def test_the_commands_take_it(run, tmp_path, monkeypatch):
    folder, _ = run
    monkeypatch.chdir(tmp_path)
    main(["report", str(folder), "--out", "report"])
    assert [p.name for p in Path("report").glob("*predictions.png")]
    main(["export", str(folder), "mine.safetensors"])
    model = egnn.load_pretrained("mine.safetensors")
    assert model.card["elements"] == ["Cu", "Ni"]
    assert model.card["cutoff"] == 4.0
    assert json.dumps(model.card["details"]["e0s"])
    forces = model(egnn.from_ase(copper(0), 4.0)).nodes.y
    assert np.abs(np.asarray(forces).sum(axis=0)).max() < 1e-3


def test_energies_alone_and_structures_without_neighbors(tmp_path):
    made = []
    for k in range(10):
        atoms = ase.Atoms(
            "Cu" * (1 + k % 3), positions=np.arange(1 + k % 3)[:, None] * [20.0, 0, 0]
        )
        atoms.calc = SinglePointCalculator(atoms, energy=-2.0 * len(atoms))
        made.append(atoms)
    ase.io.write(tmp_path / "free.traj", made)
    config = small(tmp_path / "free.traj", forces="", stress="")
    result = train(config, tmp_path / "run")
    assert "forces" not in result["metrics"]["test"]
    assert result["details"]["e0s"] == pytest.approx({"Cu": -2.0})
    assert result["metrics"]["test"]["energy"] < 1000


def test_the_default_takes_no_data():
    assert Forces().units == {"energy": "meV", "energy_per_atom": "meV/atom", "forces": "meV/Å"}


def test_frames_are_simulated_where_there_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("EGNN_JAX_DATA", str(tmp_path))
    make = functools.partial(xtb.simulated_frames, num_frames=40)
    monkeypatch.setattr(xtb, "simulated_frames", make)
    name = xtb.name_of
    monkeypatch.setattr(
        xtb, "name_of", lambda smiles, num_frames=40, seed=0: name(smiles, num_frames, seed)
    )
    task = Forces(train="nothing.xyz", test="neither.xyz", simulate="nothing.xyz=O", cutoff=3.0)
    with pytest.warns(UserWarning, match=r"nothing.xyz is not a file.* O is simulated .* GFN2-xTB"):
        found = {split: task.samples(split) for split in ("train", "valid", "test")}
    assert [len(samples) for samples in found.values()] == [19, 1, 20]
    frames = ase.io.read(make("O"), ":")
    assert len(frames) == 40
    Path(make("O")).unlink()
    config = configs.from_dict({"model": {"name": "egnn", "cutoff": 3.0}} | {
        "task": {"name": "forces", "train": "nothing.xyz", "simulate": "nothing.xyz=O",
                 "cutoff": 3.0}
    })  # fmt: skip
    with pytest.warns(UserWarning, match="is simulated"):
        settings = Start(config, RunFolder(tmp_path / "run"), None).settings
    assert settings["data_files"] == {xtb.name_of("O"): sha256(make("O"))}
    # The forces are the derivatives of the energy that stands beside them.
    moved, energies = frames[0].copy(), []
    for step in (1e-3, -1e-3):
        moved.positions = frames[0].positions
        moved.positions[0, 0] += step
        moved.calc = TBLite(method="GFN2-xTB", verbosity=0)
        energies.append(moved.get_potential_energy())
    force = (energies[1] - energies[0]) / 2e-3
    assert force == pytest.approx(frames[0].get_forces()[0, 0], abs=1e-3)
    with pytest.raises(ValueError, match=r"nothing\.xyz is not a file"):
        Forces(train="nothing.xyz").samples("train")


@pytest.mark.parametrize("given", [[], ["--task.test", "0.1"]])
def test_a_test_on_the_molecule_of_the_recipe_is_warned_of(tmp_path, monkeypatch, given):
    """Where the file to train on is one's own; the recipe's file may be missing too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "egnn_jax.experiments.run.train",
        lambda *_: {"metrics": {}, "best_epoch": 1, "seconds": 1.0},
    )
    arguments = ["train", "forces/ethanol", "--task.train", "mine.xyz", *given]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(arguments)
    texts = [str(warning.message) for warning in caught if "--task" in str(warning.message)]
    assert len(texts) == (0 if given else 1)
    assert all("--task.test still is, rmd17_ethanol_test.xyz.gz; expected" in t for t in texts)
