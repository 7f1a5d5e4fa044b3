"""Both sources of QM9, on all of it and on small files written here in the formats of the
originals.
"""

import io
import sys
import tarfile

import numpy as np
import pytest

from egnn_jax.data import qm9, qm9_bonds, qm9_sources
from egnn_jax.data.bonds import Bonds

METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t\
0.044749\t-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 1.9761204*^-3\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 2.765748*^-4\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""
WATER = """3
gdb 3\t799.58812\t437.90386\t282.94545\t1.8511\t6.31\t-0.2928\t0.0687\t0.3615\t19.0002\t\
0.021375\t-76.404702\t-76.401867\t-76.400922\t-76.422349\t6.002\t
O\t-0.0343604951\t 0.9775395708\t 0.0076015923\t-0.589706
H\t 0.0647664923\t 0.0205721989\t 0.0015346341\t 0.294853
H\t 0.8717903737\t 1.3007924048\t 0.0006931336\t 0.294853
1671.4222\t3803.6305\t3907.698
O\tO\t
InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2
"""
UNCHARACTERIZED = """    Index  Smiles(GDB-17)  Smiles(input)
===== header
      2  N  N  0.0
     21  C  C  0.0
"""
HEAD = (
    "XYZ_file,Index,SMILES,InChi,N_atoms,Stoichiometry,Elements,XYZ_Ang,Mulliken_pop,Harmonic_Freq_cmi,RotA_GHz,RotB_GHz,RotC_GHz,"
    "Dipole_debye,Polarizability_bohr3,HOMO_au,LUMO_au,HOMO_LUMO_gap_au,R2_bohr2,ZPVE_au,InternalEnergy_0K_au,InternalEnergy_298K_au,"
    "Enthalphy_298K_au,GibbsFreeEnergy_298K_au,Heatcapacity_Cv_cal_mol_K"
)


def archive(folder, files, uncharacterized=UNCHARACTERIZED):
    with tarfile.open(folder / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    (folder / "uncharacterized.txt").write_text(uncharacterized)
    return folder / "dsgdb9nsd.xyz.tar.bz2", folder / "uncharacterized.txt"


def line(text):
    """A molecule of the archive as a line of qm9pack's table."""
    rows = text.replace("*^", "e").splitlines()
    count, head = int(rows[0]), rows[1].split()
    atoms = [row.split() for row in rows[2 : 2 + count]]
    elements = "[" + ",".join(f"'{atom[0]}'" for atom in atoms) + "]"
    places = "[" + ",".join(f"[{','.join(atom[1:4])}]" for atom in atoms) + "]"
    columns = f'"x.xyz",{head[1]},"C","InChI",{count},"[]","{elements}","{places}","[]","[]"'
    return f"{columns},{','.join(head[2:])}"


@pytest.fixture(scope="module")
def whole(data_folder):
    return qm9.load()


def test_all_of_it(whole):
    assert (len(whole.index), len(whole.atomic_numbers), whole.positions.shape) == (
        130_831,
        2_359_210,
        (2_359_210, 3),
    )
    assert (whole.n_atoms.min(), whole.n_atoms.max()) == (3, 29)
    assert (np.diff(whole.index) > 0).all()
    # Methane, as Ramakrishnan et al. published it.
    assert whole.index[0] == 1
    assert whole.atomic_numbers[:5].tolist() == [6, 1, 1, 1, 1]
    np.testing.assert_allclose(
        whole.positions[0], [-0.0126981359, 1.0858041578, 0.0080009958], rtol=1e-6
    )
    assert {name: whole.targets[name][0] for name in ("alpha", "Cv", "mu", "r2")} == {
        "alpha": 13.21,
        "Cv": 6.469,
        "mu": 0,
        "r2": 35.3641,
    }
    assert whole.targets["homo"][0] == pytest.approx(-0.3877 * 27211.4, rel=1e-12)
    assert whole.targets["U0"][0] == pytest.approx(-40.47893 * 27211.4, rel=1e-12)
    assert list(whole.targets) == list(qm9.TARGETS)


def test_the_cache_gives_the_same(whole):
    again = qm9.load()
    np.testing.assert_array_equal(again.positions, whole.positions)
    np.testing.assert_array_equal(again.targets["U0"], whole.targets["U0"])


def test_the_split_is_anderson_et_als(whole):
    assert {split: len(rows) for split, rows in whole.splits.items()} == {
        "train": 100_000,
        "valid": 17_748,
        "test": 13_083,
    }
    np.random.seed(0)
    order = np.random.permutation(130_831)
    np.testing.assert_array_equal(
        np.concatenate([whole.splits[split] for split in ("train", "valid", "test")]), order
    )


def test_thermochemistry_free_atoms(whole):
    methane = slice(0, 1), slice(0, 5)
    of_atoms = lambda name: qm9.atomic_references(
        name, whole.n_atoms[methane[0]], whole.atomic_numbers[methane[1]]
    )[0]
    assert whole.targets["U0"][0] - of_atoms("U0") == pytest.approx(
        (-40.47893 + 37.846772 + 4 * 0.500273) * 27211.4
    )
    assert of_atoms("Cv") == pytest.approx(5 * 2.981)
    assert of_atoms("zpve") == 0
    assert of_atoms("homo") == 0
    every = qm9.atomic_references("U0", whole.n_atoms, whole.atomic_numbers)
    last = whole.atomic_numbers[-whole.n_atoms[-1] :]
    assert every[-1] == pytest.approx(
        sum(qm9.REFERENCES["U0"][symbol] * (last == z).sum() for symbol, z in qm9.ELEMENTS.items())
    )


def test_both_sources_give_the_same(tmp_path, whole):
    """Molecules of the whole data set, written as the archive has them, come back bit for bit."""
    chosen, starts = [0, 2, 5_000, 130_830], np.cumsum(whole.n_atoms) - whole.n_atoms
    files = {"dsgdb9nsd_000002.xyz": WATER.replace("gdb 3", "gdb 2")}
    package = {
        molecule.index: molecule
        for molecule in qm9_sources.from_package()
        if molecule.index in whole.index[chosen]
    }
    for index, molecule in reversed(package.items()):
        atoms = [
            f"{symbol}\t"
            + "\t".join(f"{value:.17g}".replace("e", "*^") for value in place)
            + "\t0.1"
            for symbol, place in zip(molecule.symbols, molecule.positions, strict=True)
        ]
        head = "\t".join(
            [
                "gdb " + str(index),
                "1.0",
                "1.0",
                "1.0",
                *(f"{value:.17g}" for value in molecule.properties),
            ]
        )
        files[f"dsgdb9nsd_{index:06}.xyz"] = "\n".join(
            [str(len(atoms)), head, *atoms, "1.0", "C\tC", "InChI\tInChI"]
        )
    got = qm9_sources.flat_arrays(qm9_sources.from_archive(*archive(tmp_path, files)))
    np.testing.assert_array_equal(got["index"], whole.index[chosen])
    rows = np.concatenate([np.arange(starts[k], starts[k] + whole.n_atoms[k]) for k in chosen])
    np.testing.assert_array_equal(got["positions"], whole.positions[rows])
    np.testing.assert_array_equal(got["atomic_numbers"], whole.atomic_numbers[rows])
    for name in qm9.TARGETS:
        np.testing.assert_array_equal(got[f"targets/{name}"], whole.targets[name][chosen])


def test_the_formats_of_the_originals(tmp_path):
    (tmp_path / "part.csv").write_text("\n".join([HEAD, line(METHANE), line(WATER)]))
    table = qm9_sources.flat_arrays(qm9_sources.from_csv(tmp_path / "part.csv"))
    files = {
        "dsgdb9nsd_000003.xyz": WATER,
        "dsgdb9nsd_000001.xyz": METHANE,
        "dsgdb9nsd_000002.xyz": WATER.replace("gdb 3", "gdb 2"),
    }
    tar = qm9_sources.flat_arrays(qm9_sources.from_archive(*archive(tmp_path, files)))
    assert tar["index"].tolist() == [1, 3]
    for name, array in table.items():
        np.testing.assert_array_equal(tar[name], array)
    assert tar["positions"][1, 2] == np.float32(1.9761204e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("O\t", "Si\t"), "dsgdb9nsd_000003.xyz: molecule 3 has the element 'Si'; expected one of"),
        (
            ("3\ngdb", "4\ngdb"),
            "dsgdb9nsd_000003.xyz: molecule 3 has 8 lines; expected 9, since its count is 4",
        ),
        (
            ("3\ngdb", "2\ngdb"),
            "dsgdb9nsd_000003.xyz: molecule 3 has 8 lines; expected 7, since its count is 2",
        ),
        (("6.002", "nan"), "molecule 3 has a property or position that is missing or not finite"),
        (("\t6.002", ""), "molecule 3 has a property or position that is missing or not finite"),
        (("0.0076015923", "x"), "dsgdb9nsd_000003.xyz: could not convert"),
        (("gdb 3", "gdb 1"), "molecule 1 comes twice"),
    ],
)
def test_damaged_molecules_are_named(tmp_path, change, message):
    files = {"dsgdb9nsd_000001.xyz": METHANE, "dsgdb9nsd_000003.xyz": WATER.replace(*change, 1)}
    with pytest.raises(ValueError, match=message):
        qm9_sources.flat_arrays(qm9_sources.from_archive(*archive(tmp_path, files)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("'O'", "'Si'"), "molecule 3 has the element 'Si'"),
        ((",3,", ",4,"), "its count says 4"),
        (("6.002", ""), "is damaged"),
    ],
)
def test_damaged_tables_are_named(tmp_path, change, message):
    (tmp_path / "part.csv").write_text(
        "\n".join([HEAD, line(METHANE), line(WATER).replace(*change)])
    )
    with pytest.raises(ValueError, match=message):
        list(qm9_sources.from_csv(tmp_path / "part.csv"))


@pytest.mark.parametrize("text", ["", "Index,N_atoms\n", line(METHANE)])
def test_tables_without_their_head_are_named(tmp_path, text):
    (tmp_path / "part.csv").write_text(text)
    with pytest.raises(ValueError, match=r"part.csv has no column Dipole_debye"):
        list(qm9_sources.from_csv(tmp_path / "part.csv"))


def test_damaged_and_missing_archives(tmp_path):
    path, listed = archive(tmp_path, {"dsgdb9nsd_000001.xyz": METHANE})
    with pytest.raises(ValueError, match=r"not all of QM9: its molecules is 1; expected 130831"):
        qm9.load(path, folder=tmp_path)
    assert not (tmp_path / "qm9").exists()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"tar.bz2 is damaged"):
        list(qm9_sources.from_archive(path, listed))
    listed.write_text("nothing\n")
    with pytest.raises(ValueError, match="lists no molecules"):
        list(qm9_sources.from_archive(path, listed))
    with pytest.raises(ValueError, match="is not a file; expected dsgdb9nsd"):
        list(qm9_sources.from_archive(tmp_path / "none.tar.bz2", listed))
    path, listed = archive(tmp_path, {"readme.txt": "none"})
    with pytest.raises(ValueError, match="holds no molecules"):
        qm9_sources.flat_arrays(qm9_sources.from_archive(path, listed))


def test_what_to_install_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "qm9pack", None)
    with pytest.raises(ValueError, match=r"expected what pip install 'egnn-jax\[qm9\]' brings"):
        list(qm9_sources.from_package())
    with pytest.raises(ValueError, match=r"uncharacterized is list\.txt without an archive"):
        qm9.load(uncharacterized="list.txt")


def test_another_data_set_is_refused(whole):
    found = {f"targets/{name}": values for name, values in whole.targets.items()}
    found |= {
        "index": whole.index,
        "n_atoms": whole.n_atoms,
        "atomic_numbers": whole.atomic_numbers,
    }
    assert qm9_sources.check_complete(found) is found
    with pytest.raises(ValueError, match="its mean alpha is"):
        qm9_sources.check_complete(found | {"targets/alpha": whole.targets["alpha"] + 1e-3})
    numbers = whole.atomic_numbers.copy()
    numbers[7] = 9
    with pytest.raises(ValueError, match="its atomic_numbers is"):
        qm9_sources.check_complete(found | {"atomic_numbers": numbers})


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    archive(tmp_path, {"dsgdb9nsd_000001.xyz": METHANE})
    for listed in (None, "~/uncharacterized.txt"):
        with pytest.raises(ValueError, match="not all of QM9: its molecules is 1;"):
            qm9.load("~/dsgdb9nsd.xyz.tar.bz2", listed, folder=tmp_path)
    found = dict.fromkeys(Bonds._fields, np.zeros(0))
    monkeypatch.setattr(qm9_bonds, "_all_bonds", lambda _: found)
    monkeypatch.chdir(tmp_path)
    qm9_bonds.load(None, "~/cache")
    assert (tmp_path / "cache" / "qm9" / "qm9-rdkit-bonds.npz").is_file()
