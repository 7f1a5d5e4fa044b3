"""Predictions for molecules of a user's own: files of them, many at once, and one of them bad."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from ase.data import atomic_masses
from rdkit import Chem

import egnn_jax as egnn
from egnn_jax.data import _embedding, qm9, structures
from egnn_jax.experiments.predict import predict
from egnn_jax.experiments.pretrained import Pretrained
from egnn_jax.experiments.task import Task

WATER = "3\n{}\nO 0 0 0.1174\nH 0 0.7572 -0.4696\nH 0 -0.7572 -0.4696\n"
SOURCES = ["w.xyz", "c1ccccc1", "a.smi", "[CH3]"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A water, a frame that is cut, two SMILES of which one is bad, and names that do harm."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.xyz").write_text(WATER.format("") + "3\ncut\nO 0 0 0\n", encoding="utf-8")
    text = "CCO =1+1|\x1b[31m\nwatr -bad\n[NH3+]CC(=O)[O-] glycine\nCS thiol\n"
    (tmp_path / "a.smi").write_text(text, encoding="utf-8")
    return tmp_path


def test_json_holds_every_molecule(folder, capsys):
    with pytest.raises(
        ValueError, match=r"3 of 9 molecules cannot be used: .* 1 follow"
    ) as refusal:
        predict([*SOURCES, "CO"], out=folder / "all.json")
    assert "thiol: it has S; QM9 has H" in str(refusal.value)
    found = json.loads((folder / "all.json").read_text(encoding="utf-8"))
    assert found["units"] == {name: qm9.UNITS[name] for name in qm9.TARGETS}
    names = ["w 1", "w 2", "c1ccccc1", "=1+1| [31m", "-bad", "glycine", "thiol", "[CH3]", "CO"]
    assert [one["molecule"] for one in found["molecules"]] == names
    water, cut, benzene, ethanol, bad, glycine, thiol, radical, methanol = found["molecules"]
    assert (water["formula"], water["geometry"], water["charge"]) == ("H2O", "as given", 0)
    for one in (cut, bad):
        assert one["properties"] is None
        assert one["refused"]
    assert benzene["refused"] is None
    assert benzene["outside"] == []
    assert benzene["properties"]["homo"] == pytest.approx(-6698, abs=250)  # B3LYP, QM9's
    assert benzene["half_widths"].keys() == benzene["properties"].keys()
    assert thiol["properties"] is None
    assert thiol["refused"].startswith("it has S; QM9 has H")
    assert "it has S" in thiol["outside"][0]
    assert radical["half_widths"] is None
    assert "1 unpaired electron" in "".join(radical["outside"])
    assert glycine["conformers"] == len(structures.read("[NH3+]CC(=O)[O-]")[0].conformers)
    assert methanol["remark"].startswith("CO is read as a SMILES, methanol (CH4O)")
    assert "read as a SMILES" not in "".join(methanol["outside"])
    printed = capsys.readouterr().out
    assert printed.count("note: CO is read as a SMILES, methanol (CH4O)") == 1
    assert "\x1b" not in printed
    assert ethanol["properties"].keys() == set(qm9.TARGETS)


def test_csv_has_numbers_and_harmless_names(folder):
    with pytest.raises(ValueError, match="cannot be used"):
        predict([*SOURCES, "CO"], out=folder / "all.csv")
    with (folder / "all.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["molecule"] for row in rows][3:5] == ["'=1+1| [31m", "'-bad"]
    assert [bool(row["homo (meV)"]) for row in rows] == [
        True, False, True, True, False, True, False, True, True
    ]  # fmt: skip
    assert float(rows[2]["homo ± (meV)"]) > 0
    with pytest.raises(ValueError, match="cannot be used"):
        predict([*SOURCES, "CO"], out=folder / "all.json")
    exact = json.loads((folder / "all.json").read_text("utf-8"))["molecules"][2]["properties"]
    assert float(rows[2]["homo (meV)"]) == pytest.approx(exact["homo"], rel=1e-7, abs=0)
    assert rows[-1]["remark"].startswith("CO is read as a SMILES")
    assert {row["remark"] for row in rows[:-1]} == {""}


def test_sdf_has_geometries_bonds_and_properties(folder):
    with pytest.raises(ValueError, match="cannot be used"):
        predict(SOURCES, out=folder / "all.sdf")
    records = list(Chem.SDMolSupplier(str(folder / "all.sdf"), removeHs=False))
    assert [r.GetProp("_Name") for r in records] == [
        "w 1", "c1ccccc1", "=1+1| [31m", "glycine", "thiol", "[CH3]"
    ]  # fmt: skip
    smiles = [Chem.MolToSmiles(Chem.RemoveHs(r)) for r in records]
    assert smiles == ["O", "c1ccccc1", "CCO", "[NH3+]CC(=O)[O-]", "CS", "[CH3]"]
    water = np.array([[0, 0, 0.1174], [0, 0.7572, -0.4696], [0, -0.7572, -0.4696]])
    np.testing.assert_allclose(records[0].GetConformer().GetPositions(), water, atol=1e-4)
    (benzene,) = structures.read("c1ccccc1")
    positions = records[1].GetConformer().GetPositions()
    np.testing.assert_allclose(positions, benzene.positions, atol=1e-4)
    assert float(records[1].GetProp("homo (meV)")) == pytest.approx(-6698, abs=250)
    assert not records[4].HasProp("homo (meV)")
    again = structures.read(str(folder / "all.sdf"))
    assert [one.formula for one in again] == ["H2O", "C6H6", "C2H6O", "C2H5NO2", "CH4S", "CH3"]


def test_a_name_that_is_the_end_of_a_record(folder):
    (folder / "n.smi").write_text("CCO $$$$a\nO water\n", encoding="utf-8")
    predict(["n.smi"], out=folder / "n.sdf")
    assert [one.name for one in structures.read(str(folder / "n.sdf"))] == ["'$$$$a", "water"]


def test_a_radical_with_coordinates_has_no_bonds_in_sdf(folder):
    (folder / "r.xyz").write_text("2\n\nO 0 0 0\nH 0 0 0.97\n", encoding="utf-8")
    predict(["r.xyz"], out=folder / "r.sdf")
    (record,) = Chem.SDMolSupplier(str(folder / "r.sdf"), removeHs=False)
    assert [atom.GetSymbol() for atom in record.GetAtoms()] == ["O", "H"]


def test_geometries_of_another_kind_than_those_of_the_training_are_outside(folder):
    predict(["CCO"], "qm9", out=folder / "e.json")
    (one,) = json.loads((folder / "e.json").read_text(encoding="utf-8"))["molecules"]
    assert one["outside"] == ["its geometry is by MMFF94, not QM9's, by B3LYP"]
    assert one["half_widths"] is None
    assert one["properties"]


def test_molecules_one_after_the_other_need_few_compilations():
    model, traced = egnn.load_pretrained("qm9"), []

    def apply(params, graph):
        traced.append((graph.nodes.x.shape, graph.receivers.shape))
        return model.network.apply(params, graph)

    vars(model)["_apply"] = apply
    molecules = [structures.read("C" * length)[0] for length in range(1, 7)] * 2
    alone = [model(molecule)["alpha"][0] for molecule in molecules]
    assert len(traced) == len(set(traced)) == 5
    many = model(molecules)["alpha"]  # more than a batch holds
    assert len(traced) == len(set(traced)) == 6
    np.testing.assert_allclose(many, alone, rtol=1e-5)


def test_places_do_not_matter():
    (ethanol,) = structures.read("CCO")
    model = egnn.load_pretrained("qm9")
    near, far = (
        model(dataclasses.replace(ethanol, positions=ethanol.positions + d, conformers=None))
        for d in (0, 1e7)
    )
    assert near["U0"] == pytest.approx(far["U0"], abs=0.1)
    assert near["homo"] == pytest.approx(far["homo"], abs=0.1)


@pytest.mark.parametrize("name", ["all.txt", "all", "all.sdf.gz", "all.xlsx"])
def test_an_unknown_kind_of_file_is_refused_before_any_work(folder, monkeypatch, name):
    monkeypatch.setattr(structures, "entries", None)
    with pytest.raises(ValueError, match=r"is of no known kind; expected \.csv, \.json, \.sdf"):
        predict(["O"], out=folder / name)


def test_few_molecules_start_no_processes(folder, monkeypatch):
    monkeypatch.setattr(_embedding, "workers", None)
    lines = "\n".join("O" for _ in range(structures.PARALLEL_THRESHOLD - 1))
    (folder / "few.smi").write_text(lines, encoding="utf-8")
    predict(["few.smi"])
    (folder / "more.smi").write_text(f"{lines}\nO", encoding="utf-8")
    monkeypatch.setattr(_embedding, "number_of_cores", lambda: 2)
    with pytest.raises(TypeError, match="NoneType"):
        predict(["more.smi"])


def test_many_molecules_in_several_processes(folder, monkeypatch):
    bars = []
    shown = lambda each, **bar: bars.append(bar) or each
    for module in ("predict", "task"):
        monkeypatch.setattr(f"egnn_jax.experiments.{module}.progress_bar", shown)
    monkeypatch.setattr("egnn_jax.experiments.task.PROGRESS_BAR_THRESHOLD", 48)
    monkeypatch.setattr(_embedding, "number_of_cores", lambda: 2)
    texts = ["CCO", "O", "c1cccc1", "CC#N", "watr", "C1CC1"] * 12
    lines = "\n".join(f"{text} m{k}" for k, text in enumerate(texts))
    (folder / "many.smi").write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match="24 of 72 molecules cannot be used: m2: ") as error:
        predict(["many.smi"], out=folder / "many.json")
    assert len(str(error.value)) <= 500
    assert bars == [
        {"total": 72, "unit": "molecule", "desc": "geometries"},
        {"unit": "batch", "desc": "predictions"},
    ]
    molecules = json.loads((folder / "many.json").read_text(encoding="utf-8"))["molecules"]
    assert [one["molecule"] for one in molecules] == [f"m{k}" for k in range(72)]
    alone = {}
    for k, (one, text) in enumerate(zip(molecules, texts, strict=True)):
        if text in ("c1cccc1", "watr"):
            assert f"line {k + 1}: '{text}' is no" in one["refused"]
        else:
            alone.setdefault(text, one["properties"])
            for name, value in one["properties"].items():
                assert value == pytest.approx(alone[text][name], rel=1e-5, abs=1e-2)
    assert len({properties["alpha"] for properties in alone.values()}) == 4


def test_sources_that_cannot_be_read_cost_no_other_and_messages_are_short(folder):
    bad = [f"no{k}\x1b[31m{'x' * 200}.xyz" for k in range(20)]
    with pytest.raises(ValueError, match="20 of 21 molecules or files cannot be used") as error:
        predict([*bad, "c1ccccc1"], out=folder / "one.csv")
    assert len(str(error.value)) <= 500
    assert str(error.value).isprintable()
    assert "c1ccccc1,C6H6" in (folder / "one.csv").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="20 of 21 molecules or files"):
        predict(["c1ccccc1", *bad], out=folder / "all.json")
    found = json.loads((folder / "all.json").read_text(encoding="utf-8"))["molecules"]
    assert found[0]["refused"] is None
    assert all(one["refused"].endswith(".xyz is not a file") for one in found[1:])
    with pytest.raises(ValueError, match=r"no0 .*is not a file") as error:
        predict(bad)
    assert len(str(error.value)) <= 500
    assert str(error.value).isprintable()


def test_what_is_read_is_not_overwritten(folder):
    table = folder / "mine.csv"
    table.write_text("smiles,kept\nCCO,1\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"mine\.csv is one of the files to read; expected another"
    ):
        predict([str(table)], out=table)
    assert table.read_text(encoding="utf-8") == "smiles,kept\nCCO,1\n"


def test_a_prediction_that_is_no_number_is_none(folder, capsys):
    far = folder / "far.xyz"
    far.write_text("3\n\nO 0 0 0\nH 0.0757 0.0586 0\nH -0.0757 0.0586 0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"1 of 1 molecules cannot .* not a finite number"):
        predict([str(far)], out=folder / "far.sdf")
    assert "nan" not in capsys.readouterr().out
    (record,) = Chem.SDMolSupplier(str(folder / "far.sdf"), sanitize=False)
    assert not record.HasProp("homo (meV)")
    assert "not a finite number" in record.GetProp("outside QM9")


class Weight(Task):
    """A task of a user's own: what a molecule weighs, which no network is needed for."""

    columns, units, elements = ("weight",), {"weight": "u"}, ("H", "C", "O")  # pyright: ignore

    def properties(self, apply, params, n_atoms, atomic_numbers, positions):
        starts = np.cumsum(n_atoms) - n_atoms
        return np.add.reduceat(atomic_masses[atomic_numbers], starts)[:, None]


def test_a_molecule_that_the_network_refuses_costs_no_other(capsys, monkeypatch):
    class Heavy(Weight):
        def properties(self, apply, params, n_atoms, atomic_numbers, positions):
            found = super().properties(apply, params, n_atoms, atomic_numbers, positions)
            if (found < 17).any():
                raise ValueError("its bonds cannot be found")
            return found

    model = Pretrained(egnn.EGNN(), {}, SimpleNamespace(task=Heavy(), model=None), {})  # pyright: ignore
    monkeypatch.setattr("egnn_jax.experiments.predict.load_pretrained", lambda name: model)
    with pytest.raises(ValueError, match=r"1 of 4 molecules .*: C: its bonds cannot be"):
        predict(["CCO", "O", "C", "CO"], "own")
    assert "| O | H2O | MMFF94 (mean of 5) | 18.015 | no |" in capsys.readouterr().out


def test_a_task_of_ones_own_predicts(capsys, monkeypatch):
    model = Pretrained(egnn.EGNN(), {}, SimpleNamespace(task=Weight(), model=None), {})  # pyright: ignore
    monkeypatch.setattr("egnn_jax.experiments.predict.load_pretrained", lambda name: model)
    with pytest.raises(ValueError, match="1 of 3 molecules cannot be used: N: it has N; training"):
        predict(["CCO", "N", "[OH-]"], "own")
    printed = capsys.readouterr().out
    assert "| weight (u) | outside training |" in printed
    assert "| CCO | C2H6O | MMFF94 (mean of 5) | 46.069 | no |" in printed
    assert "| its charge is -1 |" in printed
    assert "| N | H3N | MMFF94 (mean of 5) | – | it has N; training has H, C, O |" in printed
