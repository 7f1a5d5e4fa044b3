"""``.xyz`` files as people have them: each frame alone, every dialect with its numbers."""

import bz2
import gzip
import lzma
import time

import numpy as np
import pytest

from egnn_jax.data import frames
from egnn_jax.data.structures import Refused, Structure, differences_from_qm9, read

pytest.importorskip("ase")
pytest.importorskip("rdkit")

POSITIONS = [[0, 0, 0.1174], [0, 0.7572, -0.4696], [0, -0.7572, -0.4696]]
WATER = "3\nwater\nO 0 0 0.1174\nH 0 0.7572 -0.4696\nH 0 -0.7572 -0.4696\n"
METHANE_OF_QM9 = (
    "5\n"
    "gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t"
    "-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t\n"
    "C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689\n"
    "H\t 2.1504159*^-3\t-6.0313176*^-3\t 1.9761203*^-3\t 0.133921\n"
    "H\t 1.0117308433\t 1.4637511618\t 2.7657481*^-4\t 0.133922\n"
    "H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923\n"
    "H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923\n"
    "1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078\n"
    "C\tC\t\n"
    "InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4\n"
)


def found(tmp_path, text, name="w.xyz"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(str(path))


def is_water(molecule, atol=1e-12):
    assert isinstance(molecule, Structure), molecule
    assert molecule.symbols == ["O", "H", "H"]
    np.testing.assert_allclose(molecule.positions, POSITIONS, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "text",
    [
        "\n\n" + WATER,
        WATER.replace("water", ""),
        WATER.replace("\n", "\r\n"),
        WATER.replace("\n", "\r"),
        WATER.rstrip("\n"),
        WATER + "\n\n\n",
        WATER.replace("O ", "O1 ").replace("H ", "H_a "),
        WATER.replace("O ", "8 ").replace("H ", "1 "),
        WATER.replace("O ", "o ").replace("H ", "h2 "),
        WATER.replace("0.1174", "1.174D-01").replace("0.4696", "4.696d-1"),
        WATER.replace("0.1174", "1.174*^-1").replace("0.4696", ".4696E+00"),
        WATER.replace("0.", "0,"),
        WATER.replace(" 0", ", 0").replace(" -", ", -"),
        WATER.replace(" 0", ",0").replace(" -", ",-"),
        WATER.replace("\nO 0 0 0.1174", "\nO 0 0 0.1174 -0.8 7 x"),
        WATER.replace("water", "GAMESS CRYSTAL Program PWSCF"),
        WATER.replace("water", "= 5"),
        WATER.replace("water", "it's \"water"),
        WATER.replace("water", "Wasser, Temperatur größer").encode("latin-1"),
        b"\xef\xbb\xbf" + WATER.encode(),
        WATER.encode("utf-16"),
        WATER.encode("utf-16-le"),
        WATER.encode("utf-16-be"),
        WATER.encode("utf-32"),
        WATER.replace("water", "Properties=species:S:1:pos:R:3").replace("0.1174", "1.174D-1"),
        WATER.replace("water", "Properties=species:S:1:pos:R:3:id:I:1")
        .replace("0.1174\nH", "0,1174 1\nH2").replace("0.4696\n", "0.4696 2\n"),
        WATER.replace("water", "Properties=pos:R:3:species:S:1")
        .replace("O 0 0 0.1174", "0 0 0.1174 8").replace("H 0 0.7572 -0.4696", "0 .7572 -.4696 H1")
        .replace("H 0 -0.7572 -0.4696", "0 -.7572 -.4696 1"),
    ],
)  # fmt: skip
def test_every_way_to_write_water(tmp_path, text):
    (molecule,) = found(tmp_path, text)
    is_water(molecule)
    assert molecule.name == "w"


def test_a_plain_frame_is_read_as_by_ase(tmp_path, rng):
    import ase.io

    atoms = ase.Atoms("CHNOFClHe", rng.normal(scale=100, size=(7, 3)))
    ase.io.write(tmp_path / "plain.xyz", atoms, format="xyz", fmt="%.17g")
    (one,) = read(str(tmp_path / "plain.xyz"))
    assert isinstance(one, Structure)
    assert one.symbols == atoms.get_chemical_symbols()
    np.testing.assert_array_equal(one.positions, atoms.positions)


@pytest.mark.parametrize("name", ["w@home.xyz", "H2O@C60.xyz", "POSCAR.xyz", "a.EXTXYZ", "$ä.xyz"])
def test_names_of_files_mean_nothing(tmp_path, name):
    (tmp_path / "H2O").write_text("1\n\nN 0 0 0\n", encoding="utf-8")
    (tmp_path / "w").write_text("1\n\nN 0 0 0\n", encoding="utf-8")
    is_water(found(tmp_path, WATER, name)[0])


def test_files_of_qm9(tmp_path):
    first, second, water = found(tmp_path, METHANE_OF_QM9 * 2 + WATER)
    for methane in (first, second):
        assert methane.formula == "CH4"
        assert methane.charge == 0
        expected = [
            [-0.0126981359, 1.0858041578, 0.0080009958],
            [0.0021504159, -0.0060313176, 0.0019761203],
            [1.0117308433, 1.4637511618, 0.00027657481],
        ]
        np.testing.assert_array_equal(methane.positions[:3], expected)
    is_water(water)
    assert "InChI" not in "".join(differences_from_qm9(second))


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ("3\nx\nO 0 0 0\nQq 0 1 0\nH 1 0 0\n", "atom 2 is 'Qq'"),
        ("3\nx\nO 0 0 0\nH 0 one 0\nH 1 0 0\n", "atom 2 has the coordinate 'one'"),
        ("3\nx\nO 0 0 0\nH 0 1,234.5 0\nH 1 0 0\n", "atom 2 has the coordinate '1,234.5'"),
        ("3\nx\nO 0 0 0\nH 0 1_0 0\nH 1 0 0\n", "atom 2 has the coordinate '1_0'"),
        ("3\nx\nO 0 0 0\nH 0 ****** 0\nH 1 0 0\n", "has the coordinate"),
        ("3\nx\nO 0 0 0\nH 0 1\nH 1 0 0\n", "atom 2 is 'H 0 1'; expected an element and three"),
        ("3\nx\nO 0 0 0\nH 0 1 0\n", "its header says 3 atoms; 2 follow"),
        ("3\nx\nO 0 0 0\nH 0 1 0\n\n", "its header says 3 atoms; 2 follow"),
        ("3\n", "its header says 3 atoms;"),
        ("3\nx\n", "its header says 3 atoms; 0 follow"),
        ("2\nx\nO 0 0 0\nH 0 1 0\nH 1 0 0\n", "its header says 2 atoms; more follow"),
        ("1000000000\nx\nO 0 0 0\n", "its header says 1,000,000,000 atoms; 1 follow"),
        ("0\nx\n", "it has no atoms"),
        ("x\n", "is 'x'; expected a number of atoms"),
        ("-3\nx\n", "is '-3'; expected a number of atoms"),
        ("3\nx\nO 0 0 0\nO- 0 1 0\nH 1 0 0\n", "atom 2 is 'O-'"),
        ("3\nx\nX 0 0 0\nO 0 1 0\nH 1 0 0\n", "atom 1 is 'X'"),
        ("3\nx\n0 0 0 0\nO 0 1 0\nH 1 0 0\n", "atom 1 is '0'"),
        ("3\nx\nO 5 5 5\nH 5 5 5\nH 5 5 5\n", "all its atoms are at one place"),
        ("3\nx\nO 0 0 0\nH 0 1e999 0\nH 1 0 0\n", "not finite"),
        ('3\nLattice="1"\nO 0 0 0\nH 0 1 0\nH 1 0 0\n', "ASE cannot read it"),
        ("3\nx\nO 0 0 0\nH 0 1 0\nH 1 0 0\nVEC1 1 0 0\nVEC2 0 1 0\n", "more follow"),
    ],
)
@pytest.mark.parametrize("blank", ["", "\n"])
def test_a_frame_that_cannot_be_read_costs_no_other(tmp_path, middle, reason, blank):
    first, second, last = found(tmp_path, WATER + blank + middle + blank + WATER)
    is_water(first)
    is_water(last)
    assert isinstance(second, Refused)
    assert reason in second.reason
    assert [first.name, second.name, last.name] == ["w 1", "w 2", "w 3"]


def test_every_frame_of_a_file_is_read(tmp_path):
    parts = [WATER.replace("0.1174", f"0.{1200 + k}") for k in range(100)]
    text = "".join(part + "\n" * (k % 3) for k, part in enumerate(parts))
    molecules = found(tmp_path, text)
    assert [molecule.positions[0, 2] for molecule in molecules] == [
        float(f"0.{1200 + k}") for k in range(100)
    ]


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_file_that_is_being_written_gives_no_wrong_number(tmp_path, cut):
    rows = zip("OHH", POSITIONS, strict=True)
    whole = "".join(f"{s} {x:12.6f} {y:12.6f} {z:12.6f}\n" for s, (x, y, z) in rows)
    first, second = found(tmp_path, WATER + ("3\nwater\n" + whole)[:-cut])
    is_water(first)
    if cut == 1:  # the line end alone is missing
        is_water(second)
    else:
        assert isinstance(second, Refused)


@pytest.mark.parametrize("comment", ["x", "", "gdb 1 2 3"])
def test_a_file_that_was_cut_and_then_written_to_gives_no_wrong_number(tmp_path, comment):
    for cut in range(1, len(WATER)):
        after = WATER.replace("water", comment)
        molecules = found(tmp_path, WATER + WATER[:-cut] + after + after)
        is_water(molecules[0])
        is_water(molecules[-1])
        for one in molecules:
            if isinstance(one, Structure):
                is_water(one)


def test_a_file_of_qm9_that_is_cut(tmp_path):
    (whole,) = found(tmp_path, METHANE_OF_QM9)
    for cut in range(len(METHANE_OF_QM9) - METHANE_OF_QM9.index("C\t"), 0, -1):
        for one in found(tmp_path, METHANE_OF_QM9[:-cut]):
            if isinstance(one, Structure):
                np.testing.assert_array_equal(one.positions, whole.positions)


def test_labels_of_other_elements_are_those_elements(tmp_path):
    (molecule,) = found(tmp_path, "3\n\nCa 0 0 0\nCL1 0 0 2.4\ncl 0 2.4 0\n")
    assert molecule.symbols == ["Ca", "Cl", "Cl"]


@pytest.mark.parametrize("symbol", ["D", "T", "D2"])
def test_deuterium_and_tritium(tmp_path, symbol):
    (molecule,) = found(tmp_path, WATER.replace("H ", f"{symbol} "))
    is_water(molecule)
    assert (
        "it has deuterium or tritium, which the network takes for hydrogen"
        in differences_from_qm9(molecule)
    )


def test_compressed(tmp_path):
    packed = gzip.compress((WATER * 2).encode())
    for molecule in found(tmp_path, packed, "w.xyz.gz"):
        is_water(molecule)
    text = "".join(WATER.replace("0.1174", f"0.{k}") for k in range(10**4, 10**4 + 2_000))
    whole = found(tmp_path, gzip.compress(text.encode()), "w.xyz.gz")
    *some, cut, last = found(tmp_path, gzip.compress(text.encode())[:-2_000], "w.xyz.gz")
    assert len(whole) == 2_000
    assert last.reason.endswith("what follows is lost")
    assert 0 < len(some) < 2_000
    assert "follow" in cut.reason or isinstance(cut, Structure)
    for one, other in zip(some, whole, strict=False):
        np.testing.assert_array_equal(one.positions, other.positions)
    with pytest.raises(ValueError, match="cannot be decompressed"):
        found(tmp_path, b"no gzip", "w.xyz.gz")


def test_large_molecules_are_refused_before_work(tmp_path):
    rows = "".join(f"C 0 0 {k}\n" for k in range(100_000))
    start = time.perf_counter()
    large, water = found(tmp_path, f"100000\n\n{rows}{WATER}")
    assert "it has 100,000 atoms; expected at most 1,000" in large.reason
    is_water(water)
    (claim,) = found(tmp_path, "999999999999\n\nC 0 0 0\n")
    assert "says 999,999,999,999 atoms; 1 follow" in claim.reason
    assert time.perf_counter() - start < 5


def test_molecules_of_a_thousand_atoms_are_read_and_are_outside(tmp_path):
    rows = "".join(f"C 0 0 {1.4 * k}\n" for k in range(999)) + "C 0 0 1398.7\n"
    (molecule,) = found(tmp_path, f"1000\n\n{rows}")
    assert "it has 1000 atoms; QM9's have 3 to 29" in differences_from_qm9(molecule)
    assert "from its nearest" not in "".join(differences_from_qm9(molecule))
    positions = np.arange(100_000)[:, None] * np.array([0, 0, 2.0])
    large = Structure("made by hand", ["C"] * 100_000, positions)
    assert "an atom is 2.000 Å from its nearest; in QM9 it is 0.9 to 1.6 Å" in differences_from_qm9(
        large
    )


def test_frames_of_trainings_are_all_read(tmp_path):
    parts = [WATER.replace("0.1174", f"0.{1200 + k}") for k in range(10)]
    parts[3] = parts[3].replace("water", "GAMESS CRYSTAL Program PWSCF energy=-1.5")
    text = "\n" + "".join(part + "\n" * (k % 3) for k, part in enumerate(parts))
    (tmp_path / "POSCAR@1.xyz").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "POSCAR@1.xyz.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.xyz.bz2").write_bytes(bz2.compress(text.encode()))
    (tmp_path / "a.extxyz.XZ").write_bytes(lzma.compress(text.encode()))
    for name in ("POSCAR@1.xyz", "POSCAR@1.xyz.gz", "a.xyz.bz2", "a.extxyz.XZ"):
        every = list(frames.read(tmp_path / name))
        assert [atoms.positions[0, 2] for atoms in every] == [
            float(f"0.{1200 + k}") for k in range(10)
        ]
        assert every[3].get_potential_energy() == -1.5
    vec = WATER + "VEC1 5 0 0\nVEC2 0 5 0\nVEC3 0 0 5\n\n" + WATER
    (tmp_path / "vec.xyz").write_text(vec, encoding="utf-8")
    cell, bare = frames.read(tmp_path / "vec.xyz")
    assert (cell.pbc.all(), bare.pbc.any()) == (True, False)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("x\n", "frame 2 cannot be read .*a line is 'x'; expected a number of atoms"),
        ("1000000000\nx\nO 0 0 0\n", "frame 2 .*says 1,000,000,000 atoms; the file ends before"),
        ("3\nx\nO 0 0 0\nH 0 0\nH 0 1 0\n", "frame 2 cannot be read"),
        *[
            (
                "2\nProperties=species:S:1:pos:R:3:forces:R:3\nH 0 0 0 0.000000 0.000000 0.654321\n"
                + "H 0 0 0.74 0.000000 0.000000 0.123456"[:-cut],
                "frame 2 cannot be read .*the file ends within its last atom",
            )
            for cut in range(1, 9)
        ],
    ],
)
def test_trainings_refuse_a_file_with_a_frame_that_cannot_be_read(tmp_path, end, reason):
    (tmp_path / "a.xyz").write_text(WATER * 2 + end, encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        list(frames.read(tmp_path / "a.xyz"))


def test_simulations_start_from_the_file_that_is_named(tmp_path):
    from egnn_jax.experiments import dynamics

    (tmp_path / "H2O").write_text("1\n\nN 0 0 0\n", encoding="utf-8")
    path = tmp_path / "H2O@C60.xyz"
    last = WATER.replace("0.1174", "0.2").replace("water", "GAMESS")
    path.write_text(f"{WATER}\n{last}", encoding="utf-8")
    for structure, height in ((path, 0.1174), (f"{path}@-1", 0.2), (f"{path}@1", 0.2)):
        assert dynamics._read(str(structure)).positions[0, 2] == height
    for wrong, reason in ((2, "no such structure"), (-3, "out of range"), (":", "is 2 structures")):
        with pytest.raises(ValueError, match=reason):
            dynamics._read(f"{path}@{wrong}")
    with pytest.raises(ValueError, match=r"no\.xyz is not a file"):
        dynamics._read(str(tmp_path / "no.xyz@-1"))
