"""Structures that are not what they seem: each gets a warning that says why."""

import dataclasses
import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from scipy.sparse.csgraph import connected_components

from egnn_jax.data import _perception, structures
from egnn_jax.data.structures import Refused, differences_from_qm9, read


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
    return "; ".join(
        reason for reason in differences_from_qm9(found) if "have fewer than" not in reason
    )


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


def test_fragments_are_counted_as_scipy_counts_them(rng):
    for size, bonds in itertools.product((2, 3, 8, 9, 29), (0, 0.5, 1, 1.5)):
        bonded = rng.random((size, size)) < bonds / size
        bonded |= bonded.T
        assert _perception._fragments(bonded) == connected_components(bonded)[0]
    chain = np.eye(29, k=1, dtype=bool)
    assert _perception._fragments(chain | chain.T) == 1


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
        ("C[CH2]", "1 unpaired electron"),
        ("InChI=1S/C4H8/c1-3-4-2/h1-4H2", "positive carbon"),
        ("[2H]O[2H]", "isotopes"),
        ("[NH3+]CC[NH3+]", "its charge is +2"),
    ],
)
def test_smiles(smiles, reason):
    (found,) = read(smiles)
    assert reason in "; ".join(differences_from_qm9(found))


@pytest.mark.parametrize(
    "smiles",
    ["[NH3+]CC[NH3+]", "[NH3+]CC(=O)C[NH3+]", "[O-]C(=O)CC(=O)[O-]", "[O-]CCC[O-]", "[CH2]CC[CH2]"],
)
def test_ions_and_radicals_without_a_charge(tmp_path, smiles):
    (found,) = read(smiles)
    atoms = Atoms(found.symbols, found.positions)
    assert "is a radical or charged" in reasons(tmp_path, atoms)


@pytest.mark.parametrize("smiles", ["[NH3+]CC(=O)[O-]", "CN=[N+]=[N-]"])
def test_separated_charges_are_inside(tmp_path, smiles):
    (found,) = read(smiles)
    assert reasons(tmp_path, Atoms(found.symbols, found.positions)) == ""


@pytest.mark.parametrize("places", [(0, 1), (0, 2), (0, 3)])
def test_hydrogens_too_many(tmp_path, places):
    benzene = molecule("C6H6")
    for place, side in zip(places, (1, -1), strict=True):
        x = benzene.positions[place]
        benzene += Atoms(
            "H", [x + 1.09 * (np.array([0, 0, 0.8 * side]) + 0.6 * x / np.linalg.norm(x))]
        )
    assert "too many atoms" in reasons(tmp_path, benzene)
    short = molecule("C6H6")
    short.positions *= 0.9
    assert "too short bonds" in reasons(tmp_path, short)


@pytest.mark.parametrize(
    ("comment", "charge"),
    [
        ("charge -1 multiplicity 1", -1),
        ("charge 0 multiplicity 1", 0),
        ("charge=1", 1),
        ("Charge=1", 1),
        *[
            (f"{name}=1", 1)
            for name in (
                "total_charge",
                "tot_charge",
                "charge_total",
                "chrg",
                "chg",
                "formal_charge",
                "molecular_charge",
                "q",
            )
        ],
        ("charge: -1", -1),
        ("Charge:1", 1),
        ("charge 1 multiplicity 1", 1),
        ("charge -1 multiplicity -1", -1),
        ("= charge = 2", 2),
        ("net_charge +1, relaxed", 1),
        ("charge,1", 1),
        ("charge(1)", 1),
        ("-1 2", -1),
        ("nuclear repulsion 5.1, charge: -1", -1),
        ("charge=1 total_charge=1", 1),
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
    [("charge=0.9999", "0.9999"), ("charge=1_0", "1_0"), ("charges=1", "states 'charges'"),
     ("mulliken_charge=1", "states 'mulliken_charge'"), ("uncharged", "states 'uncharged'"),
     ("charge=1 total_charge=0", "[0, 1] (charge, total_charge)"),
     ("charge=-1 charge=1", "[-1, 1] (charge)"),
     ("charge=-0.5", "-0.5"), ("charge=inf", "inf"),
     ('charge="1 2"', "1"), ("charge=high", "high"), ("charge", "''")],
)  # fmt: skip
def test_charges_that_are_no_whole_numbers(tmp_path, comment, shown):
    reason = reasons(tmp_path, molecule("H2O"), comment=comment)
    assert "expected" in reason
    assert shown in reason


def water(tmp_path, name, charges, comment=""):
    lines = ["3", f"Properties=species:S:1:pos:R:3:{name}:R:1 {comment}"]
    for symbol, (x, y, z), q in zip("OHH", molecule("H2O").positions, charges, strict=True):
        lines.append(f"{symbol} {x} {y} {z} {q}")
    path = tmp_path / "mine.xyz"
    path.write_text("\n".join(lines) + "\n")
    return read(str(path))[0]


@pytest.mark.parametrize(
    "name",
    ["charge", "charges", "initial_charges", "Charge", "CHARGES", "formal_charges", "q",
     "mulliken_charges"],
)  # fmt: skip
def test_columns_of_charges(tmp_path, name):
    assert water(tmp_path, name, (0.4, 0.3, 0.3)).charge == 1


def test_columns_that_are_no_charge_of_the_molecule(tmp_path):
    assert water(tmp_path, "nuclear_charges", (8, 1, 1)).charge == 0
    assert "add up to inf; expected" in water(tmp_path, "charges", (0, "inf", 0)).reason
    assert "add up to 0.5; expected" in water(tmp_path, "charges", (0, 0.5, 0)).reason
    reason = water(tmp_path, "charges", (0.4, 0.3, 0.3), "charge=-1").reason
    assert reason == "its charge is given as [-1, 1] (charge, sum of charges); expected one"


def test_multiplicity_isotopes_and_frames_without_atoms(tmp_path):
    assert reasons(tmp_path, molecule("H2O"), comment="mult-ref energy=-1") == ""
    for comment in ("multiplicity=3", "charge=0 mult=3", "spin_mult: 3"):
        assert "multiplicity is 3" in reasons(tmp_path, molecule("H2O"), comment=comment)
    path = tmp_path / "heavy.xyz"
    text = "3\n\nO 0 0 0.119\nD 0 0.763 -0.477\nD 0 -0.763 -0.477\n"
    path.write_text(text + "0\n\n" + "3\n\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n")
    found = read(str(path))
    assert [type(one).__name__ for one in found] == ["Structure", "Refused", "Structure"]
    assert "deuterium" in "; ".join(differences_from_qm9(found[0]))
    assert found[1].reason == "it has no atoms"


def test_the_search_for_whole_bonds_agrees_with_the_integer_program(monkeypatch, rng):
    """On molecules with some hydrogens taken away, many of which have no whole bonds."""
    cases = []
    for name in sorted(g2.names):
        atoms = molecule(name)
        if not set(atoms.symbols) <= set("HCNOF"):
            continue
        for lost in range(min(3, len(atoms))):
            hydrogens = np.flatnonzero(atoms.numbers == 1)
            kept = atoms.copy()
            del kept[rng.permutation(hydrogens)[:lost]]
            cases.append((kept.numbers, kept.positions))
    found = [_perception.of_geometry(*case, 0) for case in cases]
    monkeypatch.setattr(_perception, "_search_bond_orders", lambda *_: False)
    assert found == [_perception.of_geometry(*case, 0) for case in cases]
    assert 20 < sum(not reasons for reasons in found) < len(cases) - 20


@pytest.mark.parametrize(
    "smiles", ["CSC", "c1ccsc1", "CS(=O)(=O)C", "IC", "C[Si](C)(C)C", "CC(C)Cc1ccccc1", "BrCCBr"]
)
def test_missing_hydrogens_of_other_elements_and_larger_molecules(smiles):
    made = structures.from_smiles(smiles, "", 1)
    given = structures.Structure("", made.symbols, made.positions)
    assert structures.checked(given).notes == ()
    heavy = [k for k, symbol in enumerate(made.symbols) if symbol != "H"]
    bare = structures.Structure("", [made.symbols[k] for k in heavy], made.positions[heavy])
    (note,) = structures.checked(bare).notes
    assert "hydrogens are missing" in note


def test_molecules_without_hydrogens_of_their_own_lack_none():
    for smiles in ("ClC(Cl)(Cl)Cl", "FC(F)(F)C(F)(F)I", "ClC(=O)Cl"):
        made = structures.from_smiles(smiles, "", 1)
        assert structures.checked(dataclasses.replace(made, geometry="as given")).notes == ()
