"""The commands a user types, run as a user runs them, on a run made short."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from egnn_jax import cli
from egnn_jax.cli import default_folder
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import plots
from egnn_jax.experiments.run import train
from tests.helpers import ROOT, script

SHORT = [
    "--epochs",
    "2",
    "--eval-every",
    "1",
    "--task.train-size",
    "200",
    "--model.features",
    "8",
    "--batch-size",
    "50",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    config = ROOT / "configs/nbody/egnn.yaml"
    out = script("train.py", config, *SHORT, "--seeds", "2", "--run", "runs/nbody/egnn", cwd=folder)
    assert "test mse" in out
    assert "± " in out
    assert "runs/nbody/egnn/result.json" in out
    script("train.py", "nbody/linear", "--epochs", "5", cwd=folder)  # a recipe, in its own folder
    (folder / "runs/nbody/linear,epochs=5").rename(folder / "runs/nbody/linear")
    return folder


def test_evaluate_prints_what_training_found(place):
    printed = json.loads(script("evaluate.py", "runs/nbody/egnn", cwd=place))
    found = json.loads((place / "runs/nbody/egnn/result.json").read_text())
    for part in ("metrics", "std"):
        for split in ("valid", "test"):
            assert printed[part][split] == pytest.approx(found[part][split])


def test_report_draws_and_tabulates(place):
    out = script("report.py", "runs/nbody/egnn", "runs/nbody/linear", cwd=place)
    assert "| egnn |" in out
    assert "| 0.0819 |" in out
    for name in ("loss.png", "table.png", "egnn-predictions.png", "linear-predictions.png"):
        assert (place / "runs/report" / name).stat().st_size > 10_000
        assert (place / "runs/report" / name).read_bytes().startswith(b"\x89PNG")
    assert (place / "runs/report/table.md").read_text() in out


def test_negative_losses_are_drawn_too(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    history = [
        {"epoch": k + 1, "train": {"loss": loss}, "valid": {"mae": 2.0 - k, "worse": -1.0}}
        for k, loss in enumerate((0.5, -1.5))
    ]
    plots.loss_curves({"run": history}, {"run": "mae"}, tmp_path / "loss.png")
    metric, losses = drawn[0].axes
    assert losses.get_yscale() == "linear"
    assert metric.get_yscale() == losses.get_xscale() == "log"
    assert losses.lines[0].get_ydata().tolist() == [0.5, -1.5]
    assert metric.lines[0].get_ydata().tolist() == [2.0, 1.0]
    plots.loss_curves({"run": history}, {"run": "worse"}, tmp_path / "loss.png")
    assert drawn[1].axes[0].get_yscale() == "linear"


@pytest.fixture(scope="module")
def qm9_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qm9") / "run"
    config = configs.load("qm9/egnn")
    task = dataclasses.replace(config.task, targets=("homo", "U0"), train_size=96)
    model = config.model.clone(features=4, layers=1)
    train(dataclasses.replace(config, task=task, model=model, epochs=1), folder)
    return folder


def test_evaluate_prints_units_and_errors_by_the_size_of_molecules(qm9_run, tmp_path):
    printed = json.loads(script("evaluate.py", qm9_run, cwd=tmp_path))
    assert printed["units"] == {"homo": "meV", "U0": "meV"}
    assert set(printed["by_atoms"]) == {"valid", "test"}
    assert printed["by_atoms"]["test"]["18 to 20"]["homo"] > 0


def test_predict_tells_the_properties_of_your_own_molecules(qm9_run, tmp_path, capsys):
    (tmp_path / "two.smi").write_text("CCCS with sulfur\nCCC propane\n")
    table = str(tmp_path / "table.csv")
    with pytest.raises(SystemExit, match="1 of 3 molecules cannot be used: with sulfur: it has S"):
        cli.main(
            ["predict", str(tmp_path / "two.smi"), "O", "--model", str(qm9_run), "--out", table]
        )
    out = capsys.readouterr().out
    head, _, sulfur, propane, water, _, *errors = [
        line.strip("| ").split(" | ") for line in out.splitlines()
    ]
    assert head == ["molecule", "formula", "geometry", "homo (meV)", "U0 (meV)", "outside QM9"]
    made, other = "MMFF94 (mean of 5)", "its geometry is by MMFF94, not QM9's, by B3LYP"
    reasons = f"it has S; QM9 has H, C, N, O, F; {other}"
    assert sulfur == ["with sulfur", "C3H8S", made, "–", "–", reasons]
    assert propane[:3] + propane[5:] == ["propane", "C3H8", made, other]
    assert -3.4e6 < float(propane[4].split()[0]) < -3.1e6  # -119.1 hartree
    assert water[:2] == ["O", "H2O"]
    found = json.loads((qm9_run / "result.json").read_text())["metrics"]["test"]
    assert errors == [
        [
            f"mean absolute error on QM9's test molecules: homo {found['homo']:.4g} meV, U0 "
            f"{found['U0']:.4g} meV"
        ],
    ]
    assert (
        (tmp_path / "table.csv")
        .read_text(encoding="utf-8")
        .splitlines()[2]
        .startswith("propane,C3H8,MMFF94 (mean of 5),")
    )
    assert "is a run of" not in out
    (tmp_path / "three.smi").write_text("O\nwatr\nC\n")
    errors = script(
        "predict.py", "three.smi", "--model", qm9_run, "--out", "rest.csv", cwd=tmp_path, ok=False
    )
    assert "1 of 3 molecules cannot be used" in errors
    lines = (tmp_path / "rest.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["O", "watr", "C"]
    assert "line 2: 'watr' is no SMILES" in lines[2]


def test_predict_needs_no_run_and_takes_the_network_of_each_geometry(tmp_path):
    import ase.build

    ase.build.molecule("C6H6").write(tmp_path / "benzene.xyz")
    out = script("predict.py", "benzene.xyz", "c1ccccc1", "--out", "all.csv", cwd=tmp_path)
    assert "test molecules (qm9):" in out
    assert "test molecules (qm9-smiles):" in out
    lines = (tmp_path / "all.csv").read_text(encoding="utf-8").splitlines()
    given, embedded = csv.DictReader(lines)
    assert (given["geometry"], embedded["geometry"]) == ("as given", "MMFF94 (mean of 5)")
    for row in (given, embedded):
        assert float(row["homo (meV)"]) == pytest.approx(-6698, abs=250)  # B3LYP, QM9's
        assert float(row["mu (D)"]) < 0.3
        assert float(row["gap (meV)"]) == pytest.approx(
            float(row["lumo (meV)"]) - float(row["homo (meV)"]), abs=0.3
        )
        assert float(row["U0 ± (meV)"]) > 0
        assert row["outside QM9"] == "no"
    assert float(given["homo ± (meV)"]) < float(embedded["homo ± (meV)"])


def test_a_molecule_outside_qm9_has_numbers_without_intervals(tmp_path):
    out = tmp_path / "table.csv"
    cli.main(["predict", "c1ccc2ccccc2c1", "CCCCCCO", "--out", str(out)])
    naphthalene, hexanol = csv.DictReader(out.read_text(encoding="utf-8").splitlines())
    assert "it has 10 atoms other than H" in naphthalene["outside QM9"]
    assert float(naphthalene["homo (meV)"]) < 0
    assert naphthalene["homo ± (meV)"] == ""
    assert float(hexanol["homo ± (meV)"]) > 0


def test_benchmark_runs_the_script_of_the_clone(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: calls.append(arguments))
    cli.main(["benchmark", "--cases", "nbody"])
    assert calls[0][1:] == [str(ROOT / "scripts" / "benchmark.py"), "--cases", "nbody"]
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "egnn_jax" / "cli.py"))
    with pytest.raises(SystemExit, match="expected a clone of the repository"):
        cli.main(["benchmark"])


@pytest.mark.slow
def test_report_puts_runs_of_different_targets_together(qm9_run, tmp_path):
    config = configs.load(qm9_run / "config.yaml")
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, targets=("mu",)))
    other = tmp_path / "elsewhere" / qm9_run.name
    train(config, other)
    out = script("report.py", qm9_run, other, cwd=tmp_path).splitlines()
    head, _, first, second = [
        line.strip("| ").split(" | ") for line in out if line.startswith("| ")
    ][:4]
    assert len({first[0], second[0]}) == 2
    assert {"test homo (meV)", "test U0 (meV)", "test mu (D)"} < set(head)
    assert [first[head.index("test mu (D)")], second[head.index("test homo (meV)")]] == ["–", "–"]
    assert {"| model | homo (meV) | mu (D) | U0 (meV) |", "| egnn | 29 | 0.029 | 11 |"} < set(out)
    assert len(list((tmp_path / "runs/report").glob("*-predictions.png"))) == 2


def test_training_again_reads_the_result(place):
    stored = (place / "runs/nbody/linear/result.json").read_bytes()
    arguments = ("nbody/linear", "--epochs", "5", "--run", "runs/nbody/linear")
    assert "test mse" in script("train.py", *arguments, cwd=place)
    assert (place / "runs/nbody/linear/result.json").read_bytes() == stored


def test_a_config_of_the_parent_folder_has_a_folder_in_runs(tmp_path, monkeypatch):
    (tmp_path / "project" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "sub")
    assert default_folder(Path("../mine.yaml"), {}) == Path("runs/project/mine")
    assert default_folder(Path("mine.yaml"), {}) == Path("runs/mine")


def test_a_recipe_has_its_whole_name():
    assert configs.find("nbody/egnn") == configs.find("nbody/egnn.yaml")
    for name in ("nbody/egnn.v2", "nbody/egnn.yml", "nbody/egnn_best.old"):
        with pytest.raises(ValueError, match="expected a config, before any options, or a recipe"):
            configs.find(name)


def test_overrides_choose_the_default_folder():
    path = configs.find("qm9/egnn")
    recipe = configs.load(path)

    def folder(*flags):
        changed = configs.override(recipe, flags, "x", "")
        return str(default_folder(path, configs.differences(recipe, changed)))

    assert folder() == "runs/qm9/egnn"
    assert folder("--epochs", "1000") == "runs/qm9/egnn"  # what the recipe has
    rate = ("--optimizer.learning-rate", "5e-4")
    assert folder(*rate) == "runs/qm9/egnn,optimizer.learning_rate=0.0005"
    both = "runs/qm9/egnn,task.targets=mu+U0,optimizer.learning_rate=0.0005"
    assert folder(*rate, "--task.targets", "mu", "U0") == both
    assert folder("--task.targets", "mu", "U0", *rate) == both
    names = [folder("--task.cutoff", "2"), folder("--model.edge-block", "2"), folder("--seed", "1")]
    assert len({*names, folder("--seeds", "1"), folder("--seeds", "2")}) == 5
    long = {"task.train": "/a" * 100, "task.test": "/b"}
    names = [default_folder(path, long).name, default_folder(path, long | {"seed": 1}).name]
    assert [len(name) for name in names] == [200, 200]
    assert names[0][:190] == names[1][:190]
    assert names[0] != names[1]
    # SchNet and QM9 both have a cutoff.
    assert default_folder(path, {"task.cutoff": 2.0}) != default_folder(path, {"model.cutoff": 2.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py", "no.yaml"], "no.yaml is not a file"),
        (
            ["train.py", "nbody/linear", "--epochs", "4", "--run", "runs/nbody/linear"],
            "holds a run of 5 epochs and the config has 4; expected as many or more",
        ),
        (
            ["train.py", "nbody/linear", "--epochs", "-1", "--run", "x"],
            "epochs is -1; expected at least 1",
        ),
        (["evaluate.py", "runs"], "runs is not a run"),
        (
            ["predict.py", "O", "--model", "runs/nbody/linear"],
            "a run of NBody, which predicts no properties",
        ),
        (["predict.py", "no.xyz"], "no.xyz is not a file"),
        (["report.py", "runs/none"], "runs/none is not a run"),
        (
            ["reproduce.py", "table2", "--only", "transformer"],
            "--only got transformer; expected some of",
        ),
    ],
    ids=lambda v: " ".join(str(a).split("/")[-1] for a in v) if isinstance(v, list) else "",
)
def test_mistakes_are_one_clear_line(place, arguments, message):
    errors = script(*arguments, cwd=place, ok=False)
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (place / "x").exists()


@pytest.mark.parametrize(
    "name", ["train.py", "evaluate.py", "report.py", "reproduce.py", "predict.py"]
)
def test_help(name, tmp_path):
    assert "usage" in script(name, "--help", cwd=tmp_path).lower()


def test_train_options_shows_options_with_their_defaults(tmp_path):
    out = script("train.py", "nbody/egnn", "--options", cwd=tmp_path)
    for text in (
        "--seeds",
        "(default: 10000)",
        "--optimizer.learning-rate",
        "(default: 0.0005)",
        "--model.infer-edges",
    ):
        assert text in out
    out = script("train.py", "--help", cwd=tmp_path)
    assert "--run" in out
    assert "--options" in out


def test_options_are_explained_without_markup(capsys):
    from egnn_jax.cli import main

    with pytest.raises(SystemExit):
        main(["train", "qm9/painn", "--options"])
    shown = capsys.readouterr().out
    assert "train on the first molecules of the training split" in shown  # inherited from its base
    assert "`" not in shown


def test_a_warning_is_one_sentence(tmp_path, capsys):
    usual = warnings.formatwarning
    plugin = tmp_path / "warns.py"
    plugin.write_text(
        "import warnings\nprint(warnings.formatwarning('a row', UserWarning, 'f', 1))"
    )
    with pytest.raises(SystemExit, match="nowhere"):
        cli.main(["--plugin", str(plugin), "report", str(tmp_path / "nowhere")])
    assert capsys.readouterr().out == "egnn: warning: a row\n\n"
    assert warnings.formatwarning is usual


def test_a_reader_that_goes_away_is_no_error(qm9_run, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, ROOT / "scripts" / "report.py", qm9_run, "--out", tmp_path]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert "Error" not in done.stderr
    assert "Exception" not in done.stderr
