"""Files of molecules other than ``.xyz``: every kind, each molecule alone, short messages."""

import gzip
import time

import ase.io
import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from egnn_jax.data import _embedding, structures
from egnn_jax.data.structures import Refused, Structure, differences_from_qm9, read

ETHANOL = "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3"


def block(smiles, name="", scale=1.0):
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(molecule, randomSeed=1) == 0
    molecule.GetConformer().SetPositions(scale * molecule.GetConformer().GetPositions())
    molecule.SetProp("_Name", name)
    return Chem.MolToMolBlock(molecule)


def found(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read(str(path))


def named(molecules):
    """Names and formulas; the formula of what is refused is None."""
    return [(m.name, m.formula if isinstance(m, Structure) else None) for m in molecules]


BOTH = [("ethanol", "C2H6O"), ("water", "H2O")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.smi", "CCO ethanol\nO water\n"),
        ("a.smi", "CCO\tethanol\r\nO\twater"),
        ("a.smi", "smiles name\nCCO ethanol\nO water\n"),
        ("a.smi", "#SMILES\tID\nCCO\tethanol\nO\twater\n"),
        ("a.smi", "# made by hand\nCCO,ethanol\n// and\n\nO , water\n"),
        ("a.smi", "SMILES,Name\nCCO,ethanol\nO,water\n"),
        ("a.smi", '"CCO","ethanol"\n"O" "water"\n'),
        ("a.smi", "CCO # ethanol\nO ; water\n"),
        ("a.smi", "name smiles\nethanol CCO\nwater O\n"),
        ("a.smi", f"{ETHANOL} ethanol\nO water\n"),
        ("a.smi", "CCO |$_R1;;$| ethanol\nO water\n"),
        ("a.smi", "\ufeffCCO ethanol\nO water\n"),
        ("a.csv", "name,SMILES\nethanol,CCO\nwater,O\n"),
        ("a.csv", "id;canonical_smiles;x\nethanol;CCO;1,5\nwater;O;2,5\n"),
        ("a.csv", 'SMILES,note,Name\n"CCO","a, ""b""\nc",ethanol\nO,,water\n'),
        ("a.csv", "# comment\n\nmolecule\tSmiles\nethanol\tCCO\n\nwater\tO\n"),
        ("a.csv", f'name,inchi\nethanol,"{ETHANOL}"\nwater,InChI=1S/H2O/h1H2\n'),
        ("a.csv", f'InChI,smiles,title\n"{ETHANOL}",CCO,ethanol\nx,O,water\n'),
        ("a.tsv", "smiles\tname\nCCO\tethanol\nO\twater\n"),
        ("a.tsv", "smiles name\nCCO ethanol\nO water\n"),
        ("a.csv", "name|mol_smiles\nethanol|CCO\nwater|O\n"),
    ],
)
def test_every_table_of_smiles(tmp_path, name, text):
    assert named(found(tmp_path, name, text)) == BOTH
    assert named(found(tmp_path, f"{name}.gz", gzip.compress(text.encode()))) == BOTH
    assert named(found(tmp_path, f"u{name}", text.lstrip("\ufeff"), "utf-16")) == BOTH


def test_a_row_that_is_no_molecule_costs_no_other(tmp_path):
    text = "SMILES,name\nCCO,ethanol\n,empty\nc1cccc1,odd\nwatr\nO,water\n"
    ethanol, empty, odd, watr, water = found(tmp_path, "a.csv", text)
    assert named([ethanol, water]) == BOTH
    assert [one.name for one in (empty, odd, watr)] == ["empty", "odd", "watr"]
    assert "a.csv, line 3: the column 'smiles' is empty" in empty.reason
    assert "a.csv, line 4: 'c1cccc1' is not a possible molecule" in odd.reason
    assert "Can't kekulize mol. Unkekulized atoms: 0 1 2 3 4" in odd.reason
    assert "a.csv, line 5: 'watr' is no SMILES" in watr.reason


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.csv", "name,formula\nethanol,C2H6O\n", "has no column of SMILES in its first line"),
        ("a.csv", "reactant_smiles,product_smiles\nC,O\n", "has several columns of SMILES"),
        ("a.csv", "", "holds no molecules"),
        ("a.csv", "smiles,name\n", "holds no molecules"),
        ("a.smi", "# nothing\n", "holds no molecules"),
        ("a.mol2", "water\n", "cannot be read as .mol2"),
        ("a.pdb", "REMARK\n", "holds no molecules"),
        ("a.smi", b"C\0\0\1\2\3\0", "is not text"),
        ("a.sdf", b"\x89PNG\r\n\0\0\0\0", "is not text"),
    ],
)
def test_files_without_molecules(tmp_path, name, text, reason):
    with pytest.raises(ValueError, match=reason):
        found(tmp_path, name, text)


def test_sdf_each_record_alone(tmp_path):
    flat = "\n".join(
        line[:30].replace(line[:30], f"{0:10.4f}" * 3) + line[30:] if len(line) > 60 else line
        for line in block("CCO", "nowhere").split("\n")
    )
    texts = [
        block("CCO", "ethanol"),
        block("O", "cut")[:200],
        flat,
        block("C", "five").replace("M  END", "  1  2  1  0\nM  END").replace("  5  4", "  5  5"),
        "",
        block("O", "water"),
    ]
    text = "\n$$$$\n".join([*texts, "\n\n"])
    ethanol, cut, nowhere, five, empty, water = found(tmp_path, "a.sdf", text)
    assert named([ethanol, water]) == BOTH
    assert "molecule 2 cannot be read" in cut.reason
    assert nowhere.name == "nowhere"
    assert "all its atoms are at one place" in nowhere.reason
    assert isinstance(five, Refused)
    assert isinstance(empty, Refused)
    again = found(tmp_path, "a.sdf.gz", gzip.compress(text.replace("\n", "\r\n").encode()))
    assert named(again) == named([ethanol, cut, nowhere, five, empty, water])


def test_sdf_without_delimiters(tmp_path):
    records = [block("CCO", "ethanol"), block("O", "water")]
    (one,) = found(tmp_path, "a.sdf", "".join(records))
    assert "several molecules; expected a line $$$$" in one.reason
    assert named(found(tmp_path, "a.sdf", " $$$$\n".join(records))) == BOTH


@pytest.mark.parametrize(
    "bad", ["0,7632", "0.7.632", "7.6D-1", "7.6*^-1", "******", "0.763x", "0x1"]
)
@pytest.mark.parametrize("kind", ["V2000", "V3000", "mol2"])
def test_coordinates_that_are_no_numbers(tmp_path, kind, bad):
    if kind == "mol2":
        (one,) = found(tmp_path, "a.mol2", MOL2.replace(" 0.667", f" {bad}"))
    else:
        water = Chem.MolFromMolBlock(block("O"), removeHs=False)
        text = Chem.MolToMolBlock(water, forceV3000=kind == "V3000")
        cell = text.split("\n")[5][:10] if kind == "V2000" else text.split("\n")[8].split()[4]
        assert named(found(tmp_path, "a.sdf", text)) == [("a 1", "H2O")]
        (one,) = found(tmp_path, "a.sdf", text.replace(cell, bad.rjust(len(cell)), 1))
    assert isinstance(one, Refused)
    assert "coordinates of atom" in one.reason or "cannot be read" in one.reason


def test_a_table_with_a_quote_that_is_not_closed(tmp_path):
    first, bad, last = found(tmp_path, "a.csv", 'smiles,name\nCC,ethane\nCCO,"a\nO,water\n')
    assert named([first, last]) == [("ethane", "C2H6"), ("water", "H2O")]
    assert "line 3: unexpected end of data" in bad.reason


def test_rows_that_do_not_fit_the_first_line_cost_no_other(tmp_path):
    """An open quote, cells that are not quoted, and a line break in a cell, which is no error."""
    lines = ["sep=,", "smiles,name,mw,logP", "CC,ethane,30.1,1.8", 'C,"methane,16.0,1.1']
    lines += ["CCO,ethanol,46,07,-0.3", 'CN,"a', 'b",31.1,-0.7', "O,water,18.0", 'N,"c,17', 'S,"d']
    one, open_quote, wide, two, three, *last = found(tmp_path, "a.csv", "\n".join(lines))
    assert [m.values.get("logP") for m in (one, two, three)] == ["1.8", "-0.7", None]
    assert two.values["name"] == "a\nb"
    assert "line 4: ',' expected after" in open_quote.reason
    assert "line 5: it has 5 cells, and the first line 4; expected quotes" in wide.reason
    open_quotes = [refused.reason.split("a.csv, ")[1] for refused in last]
    assert open_quotes == ["line 9: ',' expected after '\"'", "line 10: unexpected end of data"]
    lines = ["smiles,x,y", 'C,"1', '2"', "N,3,4"]
    refused, *_, last = found(tmp_path, "a.csv", "\n".join(lines))
    assert "line 2: a quote is not closed" in refused.reason
    assert last.values == {"smiles": "N", "x": "3", "y": "4"}
    with pytest.raises(ValueError, match=r"a\.csv, line 1: unexpected end of data"):
        found(tmp_path, "a.csv", '"smiles,x\nC,1\n')


@pytest.mark.parametrize(("name", "text"), [("a.smi", "*CCO one\n"), ("a.smi", "[R1]CC one\n")])
def test_atoms_of_no_element_are_refused(tmp_path, name, text):
    (refused,) = found(tmp_path, name, text)
    assert "it has an atom of no element (*)" in refused.reason or "is no SMILES" in refused.reason


def test_records_with_atoms_of_no_element_are_refused(tmp_path):
    drawing = Chem.MolToMolBlock(Chem.MolFromSmiles("*CCO"))
    (refused,) = found(tmp_path, "a.sdf", drawing)
    assert "it has an atom of no element (*)" in refused.reason
    whole = Chem.AddHs(Chem.MolFromSmiles("FCCO"))
    rdDistGeom.EmbedMolecule(whole, randomSeed=0)
    block = Chem.MolToMolBlock(whole)
    (refused,) = found(tmp_path, "a.sdf", block.replace(" F  ", " R  ", 1))
    assert "it has an atom of no element (" in refused.reason


@pytest.mark.parametrize("name", ["smiles", "SMI", "inchi"])
def test_a_first_molecule_that_is_called_smiles(tmp_path, name):
    molecules = found(tmp_path, "a.smi", f"CCO {name}\nO water\n")
    assert named(molecules) == [(name, "C2H6O"), ("water", "H2O")]


def test_two_molecules_of_an_sdf_all_of_whose_atoms_are_at_one_place(tmp_path):
    text = f"{block('CCO', 'a', scale=0.0)}$$$$\n{block('O', 'b', scale=0.0)}$$$$\n"
    for one in found(tmp_path, "a.sdf", text) + found(tmp_path, "b.sdf", text.replace("3D", "2D")):
        assert isinstance(one, Refused)
        assert "all its atoms are at one place" in one.reason


def test_an_impossible_record_has_rdkits_reason(tmp_path):
    five = Chem.MolFromSmiles("C(C)(C)(C)(C)C", sanitize=False)
    (one,) = found(tmp_path, "a.sdf", Chem.MolToMolBlock(five, kekulize=False))
    assert "molecule 1 cannot be read (Explicit valence for atom # 0 C, 5" in one.reason


MOL2 = """# by hand
@<TRIPOS>MOLECULE
ethene
6 5 0 0 0
SMALL
NO_CHARGES

@<TRIPOS>ATOM
1 C1 -0.667 0 0 C.2
2 C2 0.667 0 0 C.2
3 H1 -1.23 0.92 0 H
4 H2 -1.23 -0.92 0 H
5 H3 1.23 0.92 0 H
6 H4 1.23 -0.92 0 H
@<TRIPOS>BOND
1 1 2 2
2 1 3 1
3 1 4 1
4 2 5 1
5 2 6 1
"""


def test_mol2(tmp_path):
    first, odd, cut, last = found(
        tmp_path, "a.mol2", MOL2 + MOL2.replace("C.2", "Q.q") + MOL2[: MOL2.index("4 2 5")] + MOL2
    )
    for one in (first, last):
        assert named([one]) == [("ethene", "C2H4")]
        np.testing.assert_array_equal(one.positions[2], [-1.23, 0.92, 0])
        assert not [note for note in differences_from_qm9(one) if "fewer than" not in note]
    assert "molecule 2 cannot be read" in odd.reason
    assert "molecule 3 cannot be read" in cut.reason
    assert named(found(tmp_path, "a.mol2", MOL2.rstrip())) == [("ethene", "C2H4")]
    (bare,) = found(tmp_path, "a.mol2", MOL2.replace("6 5", "4 3")
                    .replace("5 H3 1.23 0.92 0 H\n6 H4 1.23 -0.92 0 H\n", "")
                    .replace("4 2 5 1\n5 2 6 1\n", ""))  # fmt: skip
    assert "hydrogens are missing" in "".join(differences_from_qm9(bare))


PDB = """MODEL        1
HETATM    1  O   HOH A   1       0.000   0.000   0.117  1.00  0.00           O
HETATM    2  H1  HOH A   1       0.000   0.757  -0.470  1.00  0.00           H
HETATM    3  H2  HOH A   1       0.000  -0.757  -0.470  1.00  0.00           H
ENDMDL
"""


def test_pdb(tmp_path):
    (water,) = found(tmp_path, "water.pdb", PDB)
    assert named([water]) == [("water", "H2O")]
    np.testing.assert_array_equal(
        water.positions, [[0, 0, 0.117], [0, 0.757, -0.47], [0, -0.757, -0.47]]
    )
    assert water.notes == ()
    texts = [
        PDB,
        PDB.replace("           H\n", "           D\n"),
        PDB.replace(" -0.470  1.00  0.00           H\nEND", " -0.4\nEND"),
        PDB.replace("           O\n", "           Qq\n"),
        PDB.replace("           O\n", "           O1-\n"),
        PDB.replace("  H1  HOH", "  H1 BHOH"),
        PDB.replace("           O\n", "\n").replace("           H\n", "\n"),
    ]
    first, heavy, cut, odd, charged, doubled, bare = found(tmp_path, "a.pdb", "".join(texts))
    assert [first.name, first.symbols, bare.symbols] == ["a 1", water.symbols, water.symbols]
    assert "isotopes" in "".join(differences_from_qm9(heavy))
    assert "are not in their columns" in cut.reason
    assert isinstance(odd, Refused)
    assert charged.charge == -1
    assert "alternate locations" in doubled.reason
    whole, part = found(tmp_path, "f.pdb", PDB + PDB.replace("ENDMDL\n", ""))
    assert whole.formula == "H2O"
    assert "the file ends within it" in part.reason
    cell = "CRYST1   10.000   10.000   10.000  90.00  90.00  90.00 P 1           1\n"
    with pytest.raises(ValueError, match="is of a crystal"):
        found(tmp_path, "c.pdb", cell + PDB)
    assert found(tmp_path, "d.pdb", cell.replace("10.0", " 1.0") + PDB)[0].formula == "H2O"
    ase.io.write(tmp_path / "e.pdb", ase.Atoms("OHH", water.positions))
    np.testing.assert_array_equal(read(str(tmp_path / "e.pdb"))[0].positions, water.positions)


def test_inchi():
    (ethanol,) = read(ETHANOL)
    np.testing.assert_array_equal(ethanol.positions, read("CCO")[0].positions)
    with pytest.raises(ValueError, match="'InChI=1S/x' is no InChI, nor a file"):
        read("InChI=1S/x")


@pytest.mark.parametrize(
    ("smiles", "words"),
    [
        ("CO", ["methanol (CH4O)", "carbon monoxide is [C-]#[O+]"]),
        ("NO", ["hydroxylamine (H3NO)", "nitric oxide is [N]=O"]),
        ("CN", ["methylamine (CH5N)", "the cyano radical is [C]#N"]),
        ("OF", ["HFO"]),
        ("ClC", ["CH3Cl"]),
    ],
)
def test_a_smiles_that_may_be_meant_as_a_formula(tmp_path, smiles, words):
    (one,) = read(smiles)
    assert f"{smiles} is read as a SMILES" in one.remark
    assert "not as a formula" in one.remark
    assert all(word in one.remark for word in words)
    assert one.remark not in "".join(differences_from_qm9(one))
    assert found(tmp_path, "a.smi", f"{smiles}\n")[0].remark == ""  # a file of SMILES is clear
    assert [read(clear)[0].remark for clear in ("CCO", "O", "C", "[C-]#[O+]", "C#N")] == [""] * 5


def test_bonds_of_no_known_order_are_refused():
    for text in ("C~C", "CC~N", "O~C~O"):
        (one,) = read(text)
        assert "has a bond of no known order" in one.reason


def test_rdkits_reason_for_an_impossible_molecule():
    (one,) = read("c1cccc1")
    assert one.reason == (
        "'c1cccc1' is not a possible molecule: Can't kekulize mol. Unkekulized atoms: 0 1 2 3 4"
    )
    (one,) = read("CF(C)C")
    assert (
        "is not a possible molecule: Explicit valence for atom # 1 F, 3, is greater" in one.reason
    )


def test_sizes_are_refused_before_work(tmp_path):
    start = time.perf_counter()
    text = f"{'C' * 300} C300\n{'C' * 20_000} chain\nO water\n{'C' * 100_000}\n"
    large, chain, water, last = found(tmp_path, "a.smi", text)
    assert large.reason.endswith(
        "it has 902 atoms; expected at most 100 where a geometry is to be made"
    )
    assert "has 20,000 characters; expected a SMILES of at most 2,000" in chain.reason
    assert water.formula == "H2O"
    assert "100,000 characters" in last.reason
    (typed,) = read("C" * 300)
    assert "it has 902 atoms" in typed.reason
    drawn = Chem.MolToMolBlock(Chem.MolFromSmiles("C" * 300))
    (drawn,) = found(
        tmp_path,
        "a.mol",
        drawn.replace("0.0000    0.0000    0.0000", "1.0000    0.0000    0.0000", 1),
    )
    assert isinstance(drawn, Refused)
    assert time.perf_counter() - start < 5


def test_a_molecule_larger_than_those_of_qm9_gets_one_geometry():
    (decane,) = read("CCCCCCCCCC")
    assert len(decane.conformers) == 1
    assert len(read("CCCCCCCCC")[0].conformers) == 5


def test_geometries_are_sought_for_a_limited_time(monkeypatch):
    monkeypatch.setattr(_embedding, "TIMEOUT_SECONDS", 1)
    start = time.perf_counter()
    (one,) = read("c1cc2cc(c1)Cc1cccc(c1)C2")  # 23 s without a limit
    assert one.reason == "no geometry was found in 1 s; give one as .xyz or .sdf"
    assert time.perf_counter() - start < 5


ESCAPE = "\x1b]0;owned\x07\x1b[31m\u202e"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (f"{ESCAPE}.xyz", f"x{ESCAPE}{'y' * 9_999}\n"),
        ("a.xyz", f"3\n{ESCAPE}\nO{ESCAPE} 0 0 0\nH 0 0 {'9' * 9_999}x\nH 1 0 0\n"),
        ("a.xyz", f"3{'9' * 9_999}\n{ESCAPE}\nO 0 0 0\n"),
        ("a.xyz", f"1\ncharge={ESCAPE}{'z' * 9_999}\nO 0 0 0\n"),
        ("a.smi", f"watr{ESCAPE}{'x' * 9_999} {ESCAPE}{'y' * 9_999}\n"),
        ("a.smi", f"watr {ESCAPE}{'y' * 9_999}\nO {ESCAPE}{'y' * 9_999}\n"),
        ("a.csv", f"{ESCAPE}{'y' * 9_999},b\nC,O\n"),
        ("a.csv", f"smiles,name\n{ESCAPE}{'y' * 999},{ESCAPE}\n{'C' * 200_000},x\nO,{ESCAPE}\n"),
        ("a.sdf", f"{ESCAPE}{'y' * 9_999}\n\n\nnonsense\n"),
        ("a.sdf", block("C", f"{ESCAPE}name{'y' * 150}")),
        ("a.mol2", f"@<TRIPOS>MOLECULE\n{ESCAPE}{'y' * 9_999}\n"),
        ("a.pdb", f"ATOM{ESCAPE}{'y' * 9_999}\n"),
        (f"a.{ESCAPE}", "x"),
    ],
)
def test_messages_are_short_and_harmless(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    try:
        shown = [x for m in read(str(path)) for x in (m.name, getattr(m, "reason", ""))]
    except ValueError as error:
        shown = [str(error)]
    for message in shown:
        assert len(message) <= 500
        assert message.isprintable()
    assert max(map(len, shown)) > 5


@pytest.mark.parametrize("source", [f"watr{ESCAPE}", "x" * 10**6, f"no{ESCAPE}{'y' * 9_999}.xyz"])
def test_messages_about_what_was_typed_are_short_and_harmless(source):
    try:
        message = read(source)[0].reason
    except ValueError as error:
        message = str(error)
    assert len(message) <= 500
    assert message.isprintable()


def test_folders_and_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match="is a folder; expected a file of molecules"):
        read(str(tmp_path))
    (tmp_path / "a.smi").write_text("O\n", encoding="utf-8")
    (tmp_path / "b.smi").write_bytes(b"O caf\xe9\n")
    assert read(str(tmp_path / "b.smi"))[0].name == "café"


def test_a_molecule_that_ends_its_process_is_refused():
    texts = ["C", "CC", "CCC", "CCO", "CO", "CN"]
    entries = [structures.Smiles(text, text) for text in texts]
    alone = list(structures.generate_geometries(entries))
    together = list(structures.generate_geometries(entries * 5, processes=2))
    assert [one.name for one in together] == texts * 5
    for one, other in zip(together, alone * 5, strict=True):
        np.testing.assert_array_equal(one.conformers, other.conformers)
    entries[2] = Deadly("", "deadly")
    found = list(structures.generate_geometries(entries * 3, processes=2))
    assert [one.name for one in found] == [entry.name for entry in entries] * 3
    assert [one.name for one in found if isinstance(one, Refused)] == ["deadly"] * 3
    assert "ended the process" in found[2].reason


class Deadly(structures.Smiles):
    """Its text cannot be had: the process ends, as where RDKit fails badly."""

    def __getattribute__(self, name):
        if name == "text":
            import os

            os._exit(3)
        return super().__getattribute__(name)
