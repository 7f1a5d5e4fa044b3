"""Molecules in several geometries: from SMILES, in the data set, in predictions."""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax.data import qm9, qm9_mmff94, structures
from egnn_jax.data.qm9_properties import ELEMENTS
from egnn_jax.experiments.qm9_properties import QM9Properties


def test_a_molecule_has_one_set_of_conformers_however_it_is_written():
    first, *others = (
        structures.from_smiles(smiles, "")
        for smiles in ("OCCCO", "C(CO)CO", "C(CCO)O", "[OH:9][CH2:1][CH2:4][CH2:3][OH:2]")
    )
    assert first.conformers.shape == (structures.CONFORMERS, 13, 3)
    np.testing.assert_array_equal(first.positions, first.conformers[0])
    assert len(np.unique(first.conformers, axis=0)) == structures.CONFORMERS
    for other in others:
        assert other.symbols == first.symbols
        np.testing.assert_array_equal(other.conformers, first.conformers)
    butane = structures.from_smiles("CCCC", "")
    assert butane.symbols[:4] == ["C"] * 4
    length = np.linalg.norm(butane.conformers[:, 0] - butane.conformers[:, 3], axis=1)
    # trans-butane, with 3.87 Å between its ends, is below gauche-butane.
    np.testing.assert_allclose(length[[0, -1]], [3.87, 3.13], atol=0.02)


def few(numbers):
    """Some molecules of QM9 as a data set."""
    data = qm9.load()
    rows = np.searchsorted(data.index, numbers)
    ends = np.cumsum(data.n_atoms)
    atoms = np.concatenate([np.arange(ends[r] - data.n_atoms[r], ends[r]) for r in rows])
    return qm9.QM9(
        data.index[rows],
        data.n_atoms[rows],
        data.atomic_numbers[atoms],
        data.positions[atoms],
        {name: values[rows] for name, values in data.targets.items()},
        {"train": np.array([2, 0]), "valid": np.array([1]), "test": np.array([3])},
    )


@pytest.mark.slow
def test_qm9_in_mmff94_geometries(tmp_path, monkeypatch):
    data = few([3, 8, 3_548, 5_000])
    smiles = qm9_mmff94.smiles_of_package() | {3_548: "C"}  # of another formula
    monkeypatch.setattr(qm9_mmff94, "smiles_of_package", lambda: smiles)
    made = qm9_mmff94.replace(data, 3, tmp_path)
    count = [3, 3, 1, 3]
    np.testing.assert_array_equal(made.index, np.repeat(data.index, count))
    np.testing.assert_array_equal(made.targets["homo"], np.repeat(data.targets["homo"], count))
    assert {split: rows.tolist() for split, rows in made.splits.items()} == {
        "train": [0],
        "valid": [3],
        "test": [7],
    }
    methanol = structures.from_smiles("CO", "", 3)
    start = made.n_atoms[:3].sum()
    for k, conformer in enumerate(methanol.conformers):
        atoms = slice(start + 6 * k, start + 6 * (k + 1))
        np.testing.assert_array_equal(made.positions[atoms], conformer.astype(np.float32))
        assert made.atomic_numbers[atoms].tolist() == [ELEMENTS[s] for s in methanol.symbols]
    monkeypatch.setattr(structures, "from_smiles", None)  # kept on disk
    again = qm9_mmff94.replace(data, 3, tmp_path)
    np.testing.assert_array_equal(again.positions, made.positions)


def test_text_is_read_as_by_the_command():
    model = egnn.load_pretrained("qm9-smiles")
    with pytest.warns(UserWarning, match=r"training: C \(it has 5 atoms; only 108 .*9\)$") as told:
        found = model(["CCO", "C"])["homo"]
    assert [w.filename for w in told] == [__file__]
    expected = model([structures.read(text)[0] for text in ("CCO", "C")])["homo"]
    np.testing.assert_array_equal(found, expected)
    message = r"training: CCO and 1 more \(its geometry .* B3LYP\); C\[NH3\+\] \(its charge is \+1;"
    with pytest.warns(UserWarning, match=message):
        egnn.load_pretrained("qm9")(["CCO", "C[NH3+]"])
    message = r"training: C \(it has 5 .*\); CCCCCCCCCC \(it has 32 atoms; QM9's have 3 to 29\)"
    with pytest.warns(UserWarning, match=message):
        model(["C", "CCCCCCCCCC"])
    with pytest.raises(ValueError, match=r"17"):
        model("CCCl")
    with pytest.raises(ValueError, match=r"structure 0, CCO\.CCO: .* 2 molecules"):
        model("CCO.CCO")


@pytest.mark.slow
def test_trained_on_all_conformers_and_averaged_over_them(tmp_path):
    data = few([3, 8, 21, 5_000, 5_001, 5_002])
    data = dataclasses.replace(data, splits={s: np.arange(6) for s in qm9.SPLITS})
    made = qm9_mmff94.replace(data, 2, tmp_path)
    shipped = egnn.load_pretrained("qm9-smiles")
    task = QM9Properties(geometry="mmff94", conformers=2, cutoff=5.0)
    task = task.with_constants(shipped.config.task.constants())
    vars(task)["molecules"] = made
    assert len(task.samples("train")) == len(made.index) == 12
    assert len(task.samples("test")) == 6
    found = task.predictions(shipped.network.apply, shipped.params, "test")
    found += task.references(made.n_atoms[::2], np.concatenate(
        [made.atomic_numbers[e - n : e] for e, n in
         zip(np.cumsum(made.n_atoms)[::2], made.n_atoms[::2], strict=True)]
    ))  # fmt: skip
    molecule = structures.from_smiles("CO", "", 2)
    means = shipped(molecule)
    each = [
        shipped(dataclasses.replace(molecule, positions=x, conformers=None))
        for x in molecule.conformers
    ]
    for k, name in enumerate(qm9.TARGETS):
        mean = np.mean([one[name][0] for one in each])
        assert means[name][0] == pytest.approx(mean, rel=1e-6, abs=1e-4)
        assert found[1, k] == pytest.approx(mean, rel=1e-5, abs=2e-3)
    np.testing.assert_array_equal(
        task.details(shipped.network.apply, shipped.params)["errors"]["test"]["homo"],
        np.abs(found[:, qm9.TARGETS.index("homo")] - data.targets["homo"]).mean(),
    )


@pytest.mark.parametrize(("geometry", "conformers"), [("dft", 2), ("mmff94", 0)])
def test_impossible_numbers_of_conformers_are_refused(geometry, conformers):
    with pytest.raises(ValueError, match=f"task.conformers is {conformers}"):
        QM9Properties(geometry=geometry, conformers=conformers)


def test_no_conformers_are_no_structure():
    molecule = structures.from_smiles("C", "", 1)
    empty = dataclasses.replace(molecule, conformers=np.zeros((0, 5, 3)))
    with pytest.raises(ValueError, match="structure 0 has no conformers"):
        egnn.load_pretrained("qm9-smiles")(empty)


def test_a_geometry_of_qm9_that_took_too_long_can_be_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(qm9_mmff94, "workers", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(qm9_mmff94, "smiles_of_package", lambda: {1: "C", 2: "O", 3: "no SMILES"})
    data = qm9.QM9(
        np.array([1, 2, 3]), np.array([5, 3, 3]), np.array([6, 1, 1, 1, 1, 8, 1, 1, 8, 1, 1]),
        np.zeros((11, 3), np.float32), {"homo": np.arange(3.0)}, {"train": np.arange(3)},
    )  # fmt: skip

    def slow(smiles, name, conformers):
        if smiles == "O":
            raise structures.OutOfTimeError("no geometry was found in 30 s")
        return find(smiles, name, conformers)

    find = structures.from_smiles
    with monkeypatch.context() as patch:
        patch.setattr(structures, "from_smiles", slow)
        with pytest.warns(UserWarning, match=r"1 of QM9's .*, delete .*mmff94-1\.npz and") as told:
            made = qm9_mmff94.replace(data, 1, tmp_path)
        assert made.splits["train"].tolist() == [0]
    with pytest.warns(UserWarning, match="1 of QM9's molecules are left out"):  # the same samples
        assert qm9_mmff94.replace(data, 1, tmp_path).splits["train"].tolist() == [0]
    file, folder = str(told[0].message).split("delete ")[1].split(" and ")
    Path(file).unlink()
    shutil.rmtree(folder)
    assert qm9_mmff94.replace(data, 1, tmp_path).splits["train"].tolist() == [0, 1]
