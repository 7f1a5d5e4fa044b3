"""Structures that are not what they seem: each gets a warning that says why."""

import numpy as np
import pytest

from egnn_jax.data.structures import Refused, outside, read

ase = pytest.importorskip("ase")
pytest.importorskip("rdkit")
from ase import Atoms  # noqa: E402
from ase.build import molecule  # noqa: E402


def written(tmp_path, *frames, comment=None):
    path = tmp_path / "mine.xyz"
    lines = []
    for atoms in frames:
        head = comment if comment is not None else ""
        lines += [str(len(atoms)), head]
        rows = zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)
        lines += [f"{symbol} {x:.6f} {y:.6f} {z:.6f}" for symbol, (x, y, z) in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def reasons(*arguments, **options):
    (found,) = read(written(*arguments, **options))
    if isinstance(found, Refused):
        return found.reason
    return "; ".join(reason for reason in outside(found) if "have fewer than" not in reason)


@pytest.mark.parametrize(
    "name", ["C6H6", "CH3CH2OH", "CH3COOH", "CH3NO2", "C3H4_C3v", "H2O", "CO2"]
)
def test_whole_neutral_molecules_are_inside(tmp_path, name):
    assert reasons(tmp_path, molecule(name)) == ""


@pytest.mark.parametrize("name", ["C6H6", "CH3CH2OH", "C2H6"])
def test_missing_hydrogens(tmp_path, name):
    atoms = molecule(name)
    heavy = atoms[[atom.index for atom in atoms if atom.symbol != "H"]]
    assert "hydrogens are missing" in reasons(tmp_path, heavy)
    assert "hydrogens are missing" in reasons(tmp_path, atoms[:-1])


@pytest.mark.parametrize("distance", [3.0, 50.0])
def test_two_molecules(tmp_path, distance):
    pair = molecule("H2O")
    other = molecule("H2O")
    other.translate([distance, 0, 0])
    assert "it is 2 molecules" in reasons(tmp_path, pair + other)


def test_a_flat_drawing(tmp_path):
    flat = molecule("CH4")
    flat.positions[1:] = [[1.09, 0, 0], [-1.09, 0, 0], [0, 1.09, 0], [0, -1.09, 0]]
    flat.positions[0] = 0
    assert "it is flat" in reasons(tmp_path, flat)
    assert "flat" not in reasons(tmp_path, molecule("C6H6"))


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("[CH2]CC[CH2]", "2 unpaired electrons"),
        ("[CH2]", "2 unpaired electrons"),
        ("C[CH2]", "1 unpaired electron;"),
        ("[2H]O[2H]", "isotopes"),
        ("[NH3+]CC[NH3+]", "its charge is +2"),
    ],
)
def test_smiles(smiles, reason):
    (found,) = read(smiles)
    assert reason in "; ".join(outside(found))


def test_a_dication_without_a_charge(tmp_path):
    (found,) = read("[NH3+]CC[NH3+]")
    atoms = Atoms(found.symbols, found.positions)
    assert "2 of its N and O have a bond too many" in reasons(tmp_path, atoms)


@pytest.mark.parametrize(
    ("comment", "charge"),
    [
        ("charge -1 multiplicity 1", -1),
        ("charge 0 multiplicity 1", 0),
        ("charge=1", 1),
        ("Charge=1", 1),
        ("total_charge=1", 1),
        ("charge=-2.0", -2),
        ("", 0),
        ("charge=0.9999999999", 1),
    ],
)
def test_charges_of_comments(tmp_path, comment, charge):
    (found,) = read(written(tmp_path, molecule("H2O"), comment=comment))
    assert found.charge == charge


@pytest.mark.parametrize(
    ("comment", "shown"),
    [("charge=0.9999", "0.9999"), ("charge=-0.5", "-0.5"), ("charge=inf", "inf"),
     ('charge="1 2"', "1"), ("charge=high", "high"), ("charge", "''")],
)  # fmt: skip
def test_charges_that_are_no_whole_numbers(tmp_path, comment, shown):
    reason = reasons(tmp_path, molecule("H2O"), comment=comment)
    assert "expected a whole number" in reason
    assert shown in reason


def test_a_column_of_charges(tmp_path):
    atoms = molecule("H2O")
    lines = ["3", "Properties=species:S:1:pos:R:3:charges:R:1"]
    for symbol, (x, y, z), q in zip("OHH", atoms.positions, (0.4, 0.3, 0.3), strict=True):
        lines.append(f"{symbol} {x} {y} {z} {q}")
    path = tmp_path / "mine.xyz"
    path.write_text("\n".join(lines) + "\n")
    (found,) = read(str(path))
    assert found.charge == 1


def test_multiplicity_isotopes_and_frames_without_atoms(tmp_path):
    assert "multiplicity is 3" in reasons(tmp_path, molecule("H2O"), comment="multiplicity=3")
    path = tmp_path / "heavy.xyz"
    text = "3\n\nO 0 0 0.119\nD 0 0.763 -0.477\nD 0 -0.763 -0.477\n"
    path.write_text(text + "0\n\n" + "3\n\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n")
    found = read(str(path))
    assert [type(one).__name__ for one in found] == ["Structure", "Refused", "Structure"]
    assert "deuterium" in "; ".join(outside(found[0]))
    assert found[1].reason == "it has no atoms"


def test_one_molecule_is_one_geometry_however_its_smiles_is_written():
    every = [read(smiles)[0] for smiles in ("OCCCO", "C(CO)CO", "C(CCO)O")]
    for one in every[1:]:
        assert one.symbols == every[0].symbols
        np.testing.assert_array_equal(one.positions, every[0].positions)
