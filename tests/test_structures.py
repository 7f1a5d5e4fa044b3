"""Molecules of a user's own: every kind of file, what is outside QM9, and what is no molecule."""

import importlib.util
import re
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom

from egnn_jax.data import _embedding, qm9, xtb
from egnn_jax.data import structures as molecules
from egnn_jax.data.structures import (
    MIN_COMMON_ATOMS,
    Refused,
    Structure,
    checked,
    differences_from_qm9,
    read,
)

WATER = "3\n\nO 0 0 0.1174\nH 0 0.7572 -0.4696\nH 0 -0.7572 -0.4696\n"


def block(smiles, name="", flat=False, hydrogens=True):
    """A molecule as the text of a .mol file, in space or as drawn on paper."""
    molecule = Chem.MolFromSmiles(smiles) if flat else Chem.AddHs(Chem.MolFromSmiles(smiles))
    if flat:
        rdDepictor.Compute2DCoords(molecule)
    else:
        assert rdDistGeom.EmbedMolecule(molecule, randomSeed=1) == 0
    molecule.SetProp("_Name", name)
    return Chem.MolToMolBlock(molecule if hydrogens else Chem.RemoveHs(molecule))


def test_xyz(tmp_path):
    (tmp_path / "two.xyz").write_text(WATER + WATER.replace("0.1174", "0.2"))
    (tmp_path / "water.xyz").write_text(WATER)
    (water,) = read(str(tmp_path / "water.xyz"))
    assert (water.name, water.symbols, water.formula, water.charge, water.geometry) == (
        "water",
        ["O", "H", "H"],
        "H2O",
        0,
        "as given",
    )
    np.testing.assert_allclose(
        water.positions, [[0, 0, 0.1174], [0, 0.7572, -0.4696], [0, -0.7572, -0.4696]]
    )
    first, second = read(str(tmp_path / "two.xyz"))
    assert (first.name, second.name) == ("two 1", "two 2")
    assert second.positions[0, 2] == 0.2


def test_sdf_with_and_without_coordinates_in_space(tmp_path):
    (tmp_path / "m.sdf").write_text(
        "$$$$\n".join([block("CCO", "ethanol"), block("C#N"), block("CCO", "drawn", flat=True), ""])
    )
    ethanol, second, drawn = read(str(tmp_path / "m.sdf"))
    assert (ethanol.name, ethanol.geometry, second.name, second.formula) == (
        "ethanol",
        "as given",
        "m 2",
        "CHN",
    )
    given = Chem.MolFromMolBlock(block("CCO"), removeHs=False).GetConformer().GetPositions()
    np.testing.assert_allclose(ethanol.positions, given, atol=1e-4)
    assert (drawn.name, drawn.geometry, drawn.formula) == ("drawn", "MMFF94", "C2H6O")
    (tmp_path / "one.mol").write_text(block("C"))
    assert read(str(tmp_path / "one.mol"))[0].formula == "CH4"


def test_smiles_and_files_of_them(tmp_path):
    (tmp_path / "some.smi").write_text("C/C=C/C trans-2-butene\n\nO\n")
    butene, water = read(str(tmp_path / "some.smi"))
    assert (butene.name, butene.formula, water.name) == ("trans-2-butene", "C4H8", "O")
    (again,) = read("C/C=C/C")
    np.testing.assert_array_equal(again.positions, butene.positions)
    lengths = np.linalg.norm(water.positions[1:] - water.positions[0], axis=1)
    np.testing.assert_allclose(lengths, 0.97, atol=0.02)
    assert read("C[Pt]")[0].geometry == "ETKDG"  # MMFF94 does not know it


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("CS", "it has S; QM9 has H, C, N, O, F"),
        ("[NH4+]", "its charge is +1"),
        ("[CH3]", "electrons is odd"),
        ("[H][H]", "it has 2 atoms; QM9's have 3 to 29"),
        ("CCCCCCCCCC", "it has 32 atoms"),
        ("c1ccc2ccccc2c1", "it has 10 atoms other than H"),
    ],
)
def test_what_is_outside_qm9(smiles, reason):
    assert reason in "; ".join(differences_from_qm9(read(smiles)[0]))


def test_what_is_inside_qm9():
    for smiles in ("CCO", "c1ccccc1", "CCCCCCCCC", "[NH3+]CC(=O)[O-]"):
        assert differences_from_qm9(read(smiles)[0]) == []
    data = qm9.load()
    starts = np.cumsum(data.n_atoms) - data.n_atoms
    symbol = {number: symbol for symbol, number in qm9.ELEMENTS.items()}
    wrong = []
    for row in np.random.default_rng(0).choice(len(data.index), 400, replace=False):
        atoms = slice(starts[row], starts[row] + data.n_atoms[row])
        symbols = [symbol[z] for z in data.atomic_numbers[atoms].tolist()]
        molecule = checked(Structure("", symbols, data.positions[atoms]))
        wrong += differences_from_qm9(molecule) if len(symbols) >= MIN_COMMON_ATOMS else []
    assert len(wrong) <= 2  # a few have unusual bonds
    assert np.sum(data.n_atoms < MIN_COMMON_ATOMS) == 108


def test_coordinates_in_another_unit_are_outside(tmp_path):
    (tmp_path / "bohr.xyz").write_text(
        "3\n\nO 0 0 0.2219\nH 0 1.4309 -0.8874\nH 0 -1.4309 -0.8874\n"
    )
    assert (
        "an atom is 1.811 Å from its nearest"
        in differences_from_qm9(read(str(tmp_path / "bohr.xyz"))[0])[0]
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xyz", "", "a.xyz holds no molecules"),
        ("a.xyz", "three\n\nO 0 0 0\n", "cannot be read as .xyz"),
        ("a.sdf", "", "a.sdf holds no molecules"),
        ("a.smi", "\n", "holds no molecules"),
        ("a.cif", "data_\n", "a.cif is a file of an unknown kind"),
    ],
)
def test_what_is_no_file_of_molecules_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "text", "refused", "reason", "others"),
    [
        ("a.xyz", WATER + WATER.replace("0.1174", "nan"), "a 2", "not finite", ["a 1"]),
        (
            "a.xyz",
            WATER.replace(
                "3\n\n", '3\nLattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3\n'
            ),
            "a",
            "it is periodic",
            [],
        ),
        (
            "a.sdf",
            "nonsense\n" * 5 + "$$$$\n" + block("C", "methane"),
            "a 1",
            "molecule 1 cannot be read",
            ["methane"],
        ),
        ("a.sdf", block("CCO", "ethanol", hydrogens=False), "ethanol", "it lacks 6 hydrogens", []),
        (
            "a.smi",
            "watr name\nCCO ethanol\n",
            "name",
            r"a\.smi, line 1: 'watr' is no SMILES",
            ["ethanol"],
        ),
        ("a.smi", "C\n[Na+].[Cl-] salt\nO\n", "salt", "line 2: it is 2 molecules", ["C", "O"]),
    ],
)
def test_a_molecule_that_cannot_be_used_is_refused_and_no_other(
    tmp_path, name, text, refused, reason, others
):
    (tmp_path / name).write_text(text)
    found = read(str(tmp_path / name))
    (one,) = (molecule for molecule in found if isinstance(molecule, Refused))
    assert one.name == refused
    assert re.search(reason, one.reason)
    assert [molecule.name for molecule in found if isinstance(molecule, Structure)] == others


def test_a_smiles_may_be_longer_than_a_file_name():
    assert "it is 201 molecules" in read("O." * 200 + "O")[0].reason


def test_two_molecules_of_one_smiles_are_refused_as_their_places_are_not_known():
    (one,) = read("O.O")
    assert one == Refused(
        "O.O",
        "it is 2 molecules, whose relative positions are unknown; give each alone, or all with "
        "coordinates",
    )


def test_missing_files_smiles_and_packages(monkeypatch):
    with pytest.raises(ValueError, match=r"no\.sdf is not a file"):
        read("no.sdf")
    with pytest.raises(ValueError, match="'water' is no SMILES, nor a file"):
        read("water")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"expected what pip install 'egnn-jax\[chem\]' brings"):
        molecules.read("O")


def test_simulated_frames_of_each_molecule_are_in_their_own_file(tmp_path, monkeypatch):
    """Also of molecules whose SMILES differ only in punctuation."""
    pytest.importorskip("tblite")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(xtb, "_WARM_UP", 0)
    files = [
        xtb.simulated_frames(smiles, num_frames=1, folder="~/own") for smiles in ("C=C", "C#C")
    ]
    assert [file.read_text().split("\n")[0] for file in files] == ["6", "4"]
    assert {file.parent for file in files} == {tmp_path / "own"}


def test_a_table_may_have_a_long_header(tmp_path):
    columns = ";".join(f"descriptor_{k:05d}" for k in range(12_000))
    (tmp_path / "wide.csv").write_text(f"SMILES;{columns}\nC;{'1;' * 11_999}1\n", "utf-8")
    (found,) = molecules.entries(str(tmp_path / "wide.csv"))
    assert (found.text, found.values["descriptor_11999"]) == ("C", "1")


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.xyz").write_text(WATER, "utf-8")
    assert [molecule.formula for molecule in read("~/mine.xyz")] == ["H2O"]


def test_structures_among_smiles_need_no_process(tmp_path, monkeypatch):
    (tmp_path / "w.xyz").write_text(WATER, "utf-8")
    (water,) = read(str(tmp_path / "w.xyz"))

    def lost(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(_embedding, "_in_processes", lost)
    found = list(
        _embedding.generate_geometries([water, molecules.Smiles("C", "C", "")], processes=2)
    )
    assert found[0] is water
    assert "ended the process" in found[1].reason
