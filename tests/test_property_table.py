"""Tables of molecules of one's own: files, labels, splits, training, and the exported network."""

import csv
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import Crippen, rdDistGeom

import egnn_jax as egnn
from egnn_jax.cli import main
from egnn_jax.data import _embedding, property_table, structures
from egnn_jax.data.chemistry import SOURCES
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import predict
from egnn_jax.experiments._columns import Classes, Numbers
from egnn_jax.experiments._trained import Trained
from egnn_jax.experiments.pretrained import Pretrained
from egnn_jax.experiments.property_table import Table
from egnn_jax.experiments.run import train

# A list would take a line for each of the 30.
SMILES = """
C CC CCC CO CCO CCCO CN CCN CNC COC C=O CC=O C#C CC#C C=C CC=C C1CC1 OCCO NCCN FC FCF OC=O NC=O
FCCF CCl CCCl ClCCCl OO NN C#N
""".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name="mine.csv", **columns):
    """A table of SMILES and logP, and other columns."""
    columns = {
        "SMILES": SMILES,
        "logP": [f"{Crippen.MolLogP(Chem.MolFromSmiles(s)):.4f}" for s in SMILES],
    } | columns
    rows = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
    with open(name, "w", encoding="utf-8") as file:
        file.write("\n".join(rows))
    return name


def small(task, epochs=30):
    """The recipe with a network that trains in seconds, from new parameters."""
    config = configs.load("molecules/table")
    model = dataclasses.replace(config.model, features=8, layers=1, num_rbf=4)
    return dataclasses.replace(
        config, task=task, model=model, epochs=epochs, batch_size=6, eval_every=10,
        init=None, init_skip=(),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=0.01),
    )  # fmt: skip


def test_a_table_is_learnt_and_its_export_predicts(tmp_path):
    task = Table(train=write(), targets=("logP",), valid="0.2", test="0.2")
    result = train(small(task), tmp_path / "run")
    found = result["details"]["test"]["logP"]
    assert found["known"] == 6
    assert found["mae"] == pytest.approx(result["metrics"]["test"]["logP"], rel=1e-5)
    assert result["details"]["molecules"] == {"train": 18, "valid": 6, "test": 6}
    assert (
        result["details"]["valid"]["logP"]["mae"]
        < result["details"]["valid"]["logP"]["mae_of_mean"]
    )
    model = egnn.load_pretrained(egnn.export(tmp_path / "run", tmp_path / "logp.safetensors"))
    assert model.card["elements"] == ["H", "C", "N", "O", "F", "Cl"]
    table = property_table.read(task.train, ["logP"])
    ends = np.cumsum(table.n_atoms)[:-1]
    molecules = [
        ase_atoms(*parts)
        for parts in zip(
            np.split(table.atomic_numbers, ends), np.split(table.positions, ends), strict=True
        )
    ]
    predicted = model(molecules)["logP"]
    rows = task._tables["test"][1]
    error = np.abs(predicted - table.values["logP"].astype(float))[rows].mean()
    assert error == pytest.approx(found["mae"], rel=1e-4)
    with pytest.raises(ValueError, match="atoms of Si; expected of H, C"):
        model(ase_atoms([14, 1], [[0, 0, 0], [0, 0, 1.5]]))
    refuses_a_changed_file(tmp_path / "run", small(task), result)


def refuses_a_changed_file(run, config, result):
    """Also with more epochs, which would delete the result, and not where the file is gone."""
    path, settings = Path(config.task.train), (run / "config.yaml").read_text()
    assert f"data_files:\n  {path}: " in settings
    assert train(config, run) == result
    path.write_text(path.read_text(encoding="utf-8") + "\nCCCCC,100", encoding="utf-8")
    for epochs in (config.epochs, config.epochs + 1):
        with pytest.raises(ValueError, match=r"^mine\.csv has changed since .*run was trained"):
            train(dataclasses.replace(config, epochs=epochs), run)
    (run / "config.yaml").write_text(settings[: settings.index("data_files:")])  # an older version
    assert train(config, run) == result
    (run / "config.yaml").write_text(settings)
    path.unlink()
    assert train(config, run) == result


def ase_atoms(numbers, positions):
    from ase import Atoms

    return Atoms(numbers=numbers, positions=positions)


def test_classes_and_missing_values(tmp_path):
    alcohol = ["yes" if "O" in s and "=" not in s else "no" for s in SMILES]
    alcohol[3] = ""
    halogens = [str(int("F" in s or "Cl" in s)) for s in SMILES]
    task = Table(
        train=write(alcohol=alcohol, halogens=halogens), targets=("alcohol", "halogens"),
        kind="classification", valid="0.2", test="0.2",
    )  # fmt: skip
    result = train(small(task, epochs=40), tmp_path / "run")
    assert task.columns == ("alcohol = no", "alcohol = yes", "halogens = 0", "halogens = 1")
    known = sum(result["details"][s]["alcohol"]["known"] for s in ("valid", "test"))
    known += int(np.isfinite(task._labels["train"][:, 0]).sum())
    assert known == len(SMILES) - 1
    found = result["details"]["valid"]["halogens"]
    assert found["accuracy"] == pytest.approx(1 - result["metrics"]["valid"]["halogens"])
    model = egnn.load_pretrained(tmp_path / "run")
    probabilities = model(ase_atoms([8, 1, 1], [[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]]))
    total = probabilities["alcohol = no"] + probabilities["alcohol = yes"]
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_a_value_that_is_missing_changes_no_gradient():
    import jax

    known = write("known.csv")
    values = [f"{k}" for k in range(len(SMILES))]
    values[7] = "NA"
    options = {"targets": ("logP", "other"), "valid": known, "test": known}
    task = Table(train=write(other=values), **options | {"valid": "0.1", "test": "0.1"})
    network = task.network(egnn.PaiNN(features=4, layers=1, num_rbf=3))
    batch = jax.tree.map(lambda a: a[0, 0], task.samples("train").loader(8).batches(None, 0, 1))
    params = egnn.testing.randomise_parameters(
        jax.eval_shape(network.init, jax.random.key(0), task.graph(batch))
    )
    loss = jax.grad(lambda p, b: task.loss(network.apply)(p, b, jax.random.key(0))[0])
    y = np.array(batch.globals.y)
    first = np.flatnonzero(y[:, 3] > 0)[0]
    y[first, 3] = 0
    without = batch._replace(globals=batch.globals.replace(y=y.copy()))
    y[first, 1] = 1e3
    other = batch._replace(globals=batch.globals.replace(y=y))
    for a, b in zip(
        jax.tree.leaves(loss(params, without)), jax.tree.leaves(loss(params, other)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_numbers_and_classes():
    column = Numbers.of("y", np.array(["1", " 3 ", "", "NaN", "2e0"]), np.array([*"abcde"]))
    assert (column.mean, column.scale) == (2.0, pytest.approx((2 / 3) ** 0.5))
    np.testing.assert_allclose(
        column.labels(np.array(["2", "?"]), np.array([*"ab"])), [0, np.nan], atol=1e-12
    )
    out = (np.array([[1.0], [5.0], [2.0]]) - column.mean) / column.scale
    labels = column.labels(np.array(["2", "3", "-"]), np.array([*"abc"]))
    found = column.scores(labels, out)
    assert found["known"] == 2
    assert found["mae"] == pytest.approx(1.5)
    assert found["rmse"] == pytest.approx(2.5**0.5)
    assert found["mae_of_mean"] == pytest.approx(0.5)
    assert found["r2"] == pytest.approx(1 - 2.5 / 0.25)
    np.testing.assert_allclose(column.predicted(out)[:, 0], [1, 5, 2])
    classes = Classes.of("c", np.array(["10", "9", "n/a", "10.0"]), np.array([*"abcd"]))
    assert classes.classes == ("9", "10")
    np.testing.assert_array_equal(
        classes.labels(np.array(["1e1", "09"]), np.array([*"ab"])), [1, 0]
    )
    older = Classes("c", ("0", "1.0"))
    np.testing.assert_array_equal(older.labels(np.array(["1.0", "0"]), np.array([*"ab"])), [1, 0])
    logits = np.log([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    labels = np.array([0.0, 1.0, 1.0, np.nan])
    found = classes.scores(labels, logits)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy_of_most_common"] == pytest.approx(2 / 3)
    assert found["roc_auc"] == 1.0
    assert classes.scores(np.array([1.0, 0.0, 1.0, 0.0]), logits)["roc_auc"] == 0
    np.testing.assert_allclose(classes.predicted(logits)[1], [0.4, 0.6])


def test_structures_with_values_and_a_column_of_splits():
    splits = ["train", "Valid", "test"]
    with Chem.SDWriter("mine.sdf") as writer:
        for k, smiles in enumerate(SMILES[:9]):
            molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
            rdDistGeom.EmbedMolecule(molecule, randomSeed=0)
            molecule.SetProp("heavy atoms", str(molecule.GetNumHeavyAtoms()))
            molecule.SetProp("set", splits[k % 3])
            writer.write(molecule)
    task = Table(train="mine.sdf", targets=("heavy atoms",), split="set")
    assert [len(task.samples(split)) for split in ("train", "valid", "test")] == [3, 3, 3]
    assert task._tables["valid"][1].tolist() == [1, 4, 7]
    table = property_table.read("mine.sdf", ["heavy atoms"])
    np.testing.assert_array_equal(table.values["heavy atoms"].astype(int)[:3], [1, 2, 3])
    np.testing.assert_allclose(table.positions[:5], Chem.SDMolSupplier(
        "mine.sdf", removeHs=False)[0].GetConformer().GetPositions(), atol=1e-3)  # fmt: skip


def test_geometries_are_made_once_and_lost_molecules_are_named(monkeypatch):
    file = write(SMILES=[*SMILES[:-1], "C1CC"])
    with pytest.warns(UserWarning, match=r"1 of 30 molecules of mine.csv cannot be used"):
        first = property_table.read(file, ["logP"])
    assert len(first) == 29
    monkeypatch.setattr(property_table.structures, "generate_geometries", None)
    with pytest.warns(UserWarning, match=r"1 of 30 .* left out: C1CC: mine.csv, line 31"):
        again = property_table.read(file, ["logP"])
    np.testing.assert_array_equal(again.positions, first.positions)
    np.testing.assert_array_equal(again.values["logP"], first.values["logP"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"targets": ("logS",)}, "has no 'logS', or several; expected one of SMILES, large, logP"),
     ({"targets": ()}, "task.targets is empty; expected names of columns"),
     ({"train": ""}, "task.train is empty; expected a file"),
     ({"train": "none.csv"}, "none.csv is not a file"),
     ({"targets": ("words",)}, r"mine.csv, line \d+: words is 'w\d+'; expected a number up to"),
     ({"targets": ("large",)}, r"line \d+: large is '1e300'; expected a number up to 1e\+30"),
     ({"kind": "classification", "targets": ("same",)}, r"'same' has 1 classes \(1\)"),
     ({"targets": ("loss",)}, "task.targets has 'loss', the name of the metric"),
     ({"targets": ("logP", "logP")}, "expected each column once"),
     ({"kind": "other"}, "task.kind is 'other'"),
     ({"cutoff": 0.0}, "task.cutoff is 0.0"),
     ({"valid": "1.5"}, "valid is 1.5"),
     ({"split": "same"}, "mine.csv, line 2: same is '1'; expected train, valid or test"),
     ({"split": "set"}, "the column 'set' of mine.csv has no 'valid'"),
     ({"split": "set", "test": "mine.csv"}, "the column 'set' of splits is given with valid 0.1"),
     ({"kind": "classification"}, "'logP' has numbers such as .*; expected words or whole numb"),
     ({"targets": ("rare",)}, "no (valid|test) molecule has a value of rare")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(options, message):
    task = Table(train="mine.csv", targets=("logP",))
    rest = [""] * (len(SMILES) - 1)
    write()
    one = task._tables["train"][1][0]  # a molecule of the training
    write(
        words=[f"w{k}" for k in range(len(SMILES))],
        same=["1"] * len(SMILES),
        large=["1e300"] * len(SMILES),
        set=["train", *rest],
        rare=[*rest[:one], "1", *rest[one:]],
    )
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(task, **options).samples("train")


def test_molecules_without_a_split_are_left_out():
    sets = ["train", " Valid", "TEST", "", *["train"] * (len(SMILES) - 4)]
    task = Table(train=write(set=sets), targets=("logP",), split="set")
    assert [len(task.samples(split)) for split in ("train", "valid", "test")] == [27, 1, 1]


def test_molecules_in_two_splits_are_said():
    smiles, numbers = ["OCC", "C(C)O", "CCN", "CN", "CC", "CCC"], list("123456")
    write(SMILES=smiles, logP=numbers, set=["train", "valid", "test"] * 2)
    task = Table(train="mine.csv", targets=("logP",), split="set")
    with pytest.warns(UserWarning, match=r"1 of 2 valid .*mine\.csv, line 3\) are also in"):
        task.samples("train")
    lines = "2\ny={}\nH 0 0 0\nH 0 0 {}\n"
    given = "".join(lines.format(k, 0.7 + 0.01 * (k % 9)) for k in range(10))
    Path("mine.xyz").write_text(given, encoding="utf-8")
    task = Table(train="mine.xyz", targets=("y",), valid="mine.xyz", test="0.1")
    with pytest.warns(UserWarning, match=r"9 of 10 valid molecules .* are also in training"):
        task.samples("train")


def test_elements_that_are_not_in_training_are_said():
    sets = ["train"] * 28 + ["valid", "test"]
    task = Table(train=write(SMILES=[*SMILES[:28], "CBr", "NN"], set=sets), targets=("logP",))
    task = dataclasses.replace(task, split="set")
    with pytest.warns(UserWarning, match=r"1 of 1 valid .*line 30\) have elements"):
        task.samples("train")


def test_geometries_of_another_kind_are_outside():
    known = Table(train=write(), targets=("logP",))._trained
    made = structures.from_smiles("CCO", "")
    assert known.outside(made) == []
    given = dataclasses.replace(made, geometry="as given")
    assert known.outside(given) == ["its geometry is as given; training had MMFF94"]


def test_a_column_that_stands_twice_is_none():
    lines = ["SMILES,y,z,y", *(f"{smiles},{k},{k},{-k}" for k, smiles in enumerate(SMILES))]
    Path("mine.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match="has no 'y', or several; expected one of SMILES, z"):
        property_table.read("mine.csv", ["y"])


def test_intervals_of_some_columns():
    card = {"details": {"intervals": {"by_atoms": {"3 to 9": {"logP": 0.2, "tox": None}}}}}
    task = Table(targets=("logP", "tox"))
    vars(task)["_trained"] = Trained(("C",), (3, 9), (Numbers("logP", 0, 1), Numbers("tox", 0, 1)))
    model = SimpleNamespace(card=card, config=SimpleNamespace(task=task))
    found = predict._widths(model, structures.from_smiles("CC", ""))  # pyright: ignore
    assert found == {"logP": 0.2}
    given = ([], np.ones(2), found)
    row = predict._row(structures.from_smiles("CC", ""), task, given)  # pyright: ignore
    assert {name: row.get(name) for name in ("logP", "logP ±", "tox", "tox ±")} == {
        "logP": "1", "logP ±": "0.2", "tox": "1", "tox ±": None,
    }  # fmt: skip


def test_conformers_of_one_molecule_in_two_splits_are_said():
    molecule = Chem.AddHs(Chem.MolFromSmiles("CCCCO"))
    rdDistGeom.EmbedMultipleConfs(molecule, 6, randomSeed=1)
    with Chem.SDWriter("mine.sdf") as file:
        for k in range(6):
            molecule.SetProp("y", str(k))
            file.write(molecule, confId=k)
    task = Table(train="mine.sdf", targets=("y",), valid="0.3", test="0.2")
    with (
        pytest.warns(UserWarning, match=r"2 of 2 valid molecules .* are also in training"),
        pytest.warns(UserWarning, match=r"1 of 1 test molecules .* are also in training"),
    ):
        task.samples("train")


def test_none_and_minus_are_classes_but_no_numbers():
    texts, places = np.array(["none", "-", "high", "NA", "", "null", "?"]), np.array([""] * 7)
    column = Classes.of("y", texts, places)
    assert column.classes == ("-", "high", "none")
    binary = Classes.of("y", np.array(["0", "1", "-", "1.0", "none", "0"]), places)
    assert binary.classes == ("0", "1")
    assert np.isnan(binary.labels(np.array(["0", "-", "None"]), places)).tolist() == [0, 1, 1]
    assert np.isnan(column.labels(texts, places)).tolist() == [False] * 3 + [True] * 4
    numbers = np.array(["none", "-", "1", "NA", "", "null", "?"])
    assert (
        np.isnan(Numbers("y", 0, 1).labels(numbers, places)).tolist()
        == [True, True, False] + [True] * 4
    )


@pytest.mark.parametrize(("known", "width"), [(8, None), (9, 8.0)])
def test_an_interval_needs_nine_molecules(known, width):
    labels = np.full(20, np.nan)
    labels[:known] = np.arange(known)
    assert Numbers("y", 0.0, 1.0).width(labels, np.zeros((20, 1))) == width


def test_the_command_predicts_by_a_network_of_a_table(tmp_path, capsys):
    task = Table(train=write(), targets=("logP",), valid="0.3", test="0.2")
    train(small(task, epochs=2), tmp_path / "run")
    out = tmp_path / "out.csv"
    sources = ["CCCO", "CCCCCCCCCCCO", "CCBr", "CC", "[NH4+]", "[CH2]CC[CH2]"]
    with pytest.raises(SystemExit, match="1 of 6 molecules cannot be used: CCBr: it has Br"):
        main(["predict", *sources, "--model", str(tmp_path / "run"), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "mean absolute error on the test molecules: logP" in printed
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["logP"]) for row in rows] == [True, True, False, True, True, True]
    assert [bool(row["logP ±"]) for row in rows] == [True, False, False, True, False, False]
    found = [row["outside training"] for row in rows]
    assert (found[0], found[3]) == ("no", "no")
    assert found[1] == "it has 36 atoms; training had 4 to 12"
    assert found[2].startswith("it has Br; training had H, C")
    assert found[4:] == ["its charge is +1; training had +0", "it has 2 unpaired electrons"]


def test_one_radical_in_training_does_not_let_others_in():
    known = Table(train=write(SMILES=[*SMILES[:-1], "[CH2]C"]), targets=("logP",))._trained
    assert known.outside(structures.from_smiles("[CH3]", "")) == ["it has 1 unpaired electron"]


def test_charges_and_radicals_are_inside_where_training_had_some():
    smiles = [*SMILES[:-4], "[NH4+]", "[CH2]C", "[CH2]CC", "[CH2]O"]
    task = Table(train=write(SMILES=smiles), targets=("logP",), valid="0.1", test="0.1")
    vars(task)["_tables"] = {"train": (task._tables["train"][0], np.arange(len(smiles)))}
    known, constants = task._trained, task.constants()
    assert Table(targets=("logP",)).with_constants(constants).constants() == constants
    older = {name: constants[name] for name in ("elements", "atoms", "columns")}
    for text, inside in (("[NH4+]", True), ("[CH3]", True), ("[O-]CC", False), ("CCO", True)):
        molecule = structures.from_smiles(text, "")
        assert (not known.outside(molecule)) == inside
        before = Table(targets=("logP",)).with_constants(older).outside(molecule)
        assert bool(before) == (text != "CCO")


@pytest.mark.parametrize("texts", [["0.1"] * 90, ["0.3", "0.30000000000000004"] * 45])
def test_a_column_of_equal_values_has_scale_one(texts):
    column = Numbers.of("y", np.array(texts), np.array([""] * 90))
    assert column.scale == 1
    assert np.abs(column.labels(np.array(texts), np.array([""] * 90))).max() < 1e-15


def test_a_geometry_that_took_too_long_can_be_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file, embedded = write(SMILES=[*SMILES[:-1], "C1CC"]), _embedding._embed_molecule

    def slow(molecule, name, conformers):
        if name == "CO":
            raise structures.OutOfTimeError("no geometry was found in 30 s")
        return embedded(molecule, name, conformers)

    with monkeypatch.context() as patch:
        patch.setattr(_embedding, "_embed_molecule", slow)
        for _ in range(2):
            with pytest.warns(UserWarning, match=r"2 of 30 .*\(to try 1 of them again, d") as said:
                assert len(property_table.read(file, ["logP"], folder="~/own")) == 28
    (kept,) = (tmp_path / "own" / "tables").glob("*.npz")
    assert f"delete {kept})" in str(said[0].message)
    kept.unlink()
    with pytest.warns(UserWarning, match="1 of 30 molecules of mine.csv cannot be used") as said:
        assert len(property_table.read(file, ["logP"], folder="~/own")) == 29
    assert "again" not in str(said[0].message)


def test_a_network_of_a_table_reads_bonds(tmp_path):
    """From SMILES: in training and in the exported network, also where positions tell nothing."""
    ions = ["CC(=O)[O-]", "C[NH3+]", "[CH3]"]  # RDKit finds no bonds of a radical by itself
    smiles = [*SMILES[:27], *ions]
    task = Table(
        train=write(SMILES=smiles, logP=[str(len(s)) for s in smiles]), targets=("logP",),
        valid="0.2", test="0.2", cutoff=None, features="chemistry", bonds="attributes",
    )  # fmt: skip
    config = dataclasses.replace(small(task, epochs=1), eval_every=1)
    model = egnn.EGNN(8, 1, update_coordinates=False)
    train(dataclasses.replace(config, model=model), tmp_path / "run")
    network = egnn.load_pretrained(egnn.export(tmp_path / "run", tmp_path / "one.safetensors"))
    table = property_table.read(task.train, ["logP"], bonds=True)
    assert table.bonds.numbers(np.arange(30)) == {"reordered": [], "by positions": [], "none": []}
    inputs = table.n_atoms, table.atomic_numbers, table.positions, table.bonds
    expected = network.config.task.properties(network._apply, network.params, *inputs)[:, 0]
    ends = np.cumsum(table.n_atoms)
    for k in (27, 29):
        atoms = slice(ends[k] - table.n_atoms[k], ends[k])
        molecule = dataclasses.replace(
            structures.from_smiles(smiles[k], "a", 1),
            positions=table.positions[atoms], conformers=None,
        )  # fmt: skip
        assert network(molecule)["logP"] == pytest.approx(expected[k], rel=1e-5)
    # The kinds of bonds matter.
    other = table.bonds._replace(bond_types=table.bonds.bond_types % 4 + 1)
    changed = network.config.task.properties(network._apply, network.params, *inputs[:3], other)
    assert np.abs(changed[:, 0] - expected).max() > 1e-3
    hydroxyl = ase_atoms([8, 1], [[0, 0, 0], [0, 0, 0.96]])  # a radical
    with pytest.raises(ValueError, match="structure 1: its "):
        network([ase_atoms([1, 1], [[0, 0, 0], [0, 0, 0.74]]), hydroxyl])


def test_a_molecule_too_large_for_the_network_is_named(tmp_path):
    """In training as in prediction, where the network itself, compiled, could not."""
    task = Table(train=write(), targets=("logP",), valid="0.2", test="0.2", features="elements")
    config = dataclasses.replace(small(task, epochs=1), model=egnn.NMP(16, 1, 8, 1, max_nodes=8))
    with pytest.raises(
        ValueError, match=r"graph \d+ of train has 1\d nodes; .* model.max_nodes, 8$"
    ):
        train(config, tmp_path / "small")
    assert not (tmp_path / "small" / "result.json").exists()
    network = Pretrained(config.network(), {}, config, {})
    with (
        pytest.warns(UserWarning, match="it has 32 atoms"),
        pytest.raises(ValueError, match=r"structure 1 has 32 nodes; .* model.max_nodes, 8$"),
    ):
        network(["C", "C" * 10])


@pytest.mark.parametrize(("suffix", "source"), [("sdf", "in order"), ("xyz", "by positions")])
def test_bonds_of_a_file_with_positions(tmp_path, monkeypatch, suffix, source):
    """Of an SDF those that it states; of an XYZ those of positions and charges."""
    smiles = ["CC(=O)[O-]", "C=CCl", "c1ccccc1", "C#N"]
    blocks = []
    with Chem.SDWriter("mine.sdf") as writer:
        for k, text in enumerate(smiles):
            molecule = Chem.AddHs(Chem.MolFromSmiles(text))
            rdDistGeom.EmbedMolecule(molecule, randomSeed=0)
            molecule.SetProp("y", str(k))
            writer.write(molecule)
            charge = Chem.GetFormalCharge(molecule)
            lines = Chem.MolToXYZBlock(molecule).split("\n")
            blocks.append("\n".join([lines[0], f"y={k} charge={charge}", *lines[2:]]))
    Path("mine.xyz").write_text("".join(blocks), encoding="utf-8")
    task = Table(
        train=f"mine.{suffix}", valid=f"mine.{suffix}", test=f"mine.{suffix}", targets=("y",),
        cutoff=None, features="chemistry", bonds="only",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="are also in training"):
        table, rows = task._tables["train"]
    assert [SOURCES[k] for k in table.bonds.source] == [source] * 4
    numbers = [1, 6, 7, 8, 17]
    for k, text in enumerate(smiles):
        molecule = Chem.AddHs(Chem.MolFromSmiles(text))
        graph = task.graph(task.samples("train").pack(np.flatnonzero(rows == k)))
        real, nodes = slice(int(graph.n_edge[0])), slice(int(graph.n_node[0]))
        orders = Chem.GetAdjacencyMatrix(molecule, useBO=True)
        kinds = np.select([orders == 1.5, orders > 0], [4, orders], 0).astype(int)
        got = np.zeros_like(kinds)
        a = np.asarray(graph.edges.a)[real]
        got[graph.receivers[real], graph.senders[real]] = a.argmax(axis=1) + 1
        np.testing.assert_array_equal(got, kinds)
        z = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
        h = np.asarray(graph.nodes.h)[nodes]
        np.testing.assert_array_equal(h[:, :6], np.column_stack([z[:, None] == numbers, z]))
        hydrogens = [atom.GetTotalNumHs(includeNeighbors=True) for atom in molecule.GetAtoms()]
        np.testing.assert_array_equal(h[:, -1], hydrogens)
    monkeypatch.setattr(property_table.bonds_of, "of_molecules", None)  # read from the cache
    again = property_table.read(f"mine.{suffix}", ["y"], bonds=True)
    for found, first in zip(again.bonds, table.bonds, strict=True):
        np.testing.assert_array_equal(found, first)


def test_molecules_without_bonds_are_named():
    water = "3\ny=1\nO 0 0 0\nH 0 0.76 0.59\nH 0 -0.76 0.59\n"
    radical = "2\ny=2\nO 0 0 0\nH 0 0 0.96\n"
    Path("mine.xyz").write_text(water + radical + water + radical, encoding="utf-8")
    with pytest.raises(
        ValueError,
        match=r"2 of 4 molecules have no bonds: mine.xyz, .*2: its .*; mine.xyz, .*4: its ",
    ):
        property_table.read("mine.xyz", ["y"], bonds=True)
    assert len(property_table.read("mine.xyz", ["y"])) == 4
    with pytest.raises(ValueError, match=r"task.cutoff is 5.0 where task.bonds is 'only'"):
        Table(train="mine.xyz", targets=("y",), bonds="only")
