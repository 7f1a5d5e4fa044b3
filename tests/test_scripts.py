"""The commands a user types, run as a user runs them, on a run made short."""

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from egnn_jax.experiments import config as configs
from egnn_jax.training.fit import fit

ROOT = Path(__file__).parent.parent
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


def script(name, *arguments, cwd, ok=True):
    environment = os.environ | {"MPLCONFIGDIR": os.environ["EGNN_JAX_DATA"]}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == ok, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout if ok else done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    out = script("train.py", ROOT / "configs/nbody/egnn.yaml", *SHORT, "--seeds", "2", cwd=folder)
    assert "test mse" in out
    assert "± " in out
    script("train.py", ROOT / "configs/nbody/linear.yaml", "--epochs", "5", cwd=folder)
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


def test_reproduce_table2(place):
    out = script(
        "reproduce.py",
        "table2",
        "--only",
        "linear",
        "radial_field",
        "--epochs",
        "5",
        "--runs",
        "runs/t2",
        cwd=place,
    )
    rows = [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")]
    assert rows[:2] == ["| run", "| ---"]
    assert set(rows[2:]) == {"| linear", "| radial_field"}
    assert (place / "runs/report/table2.png").exists()


def test_reproduce_figure5(place):
    out = script(
        "reproduce.py",
        "figure5",
        "--only",
        "baseline",
        "radial_field_best",
        "--epochs",
        "1",
        cwd=place,
    )
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows if row[0] != "| ---"] == [
        "| encoder",
        "| baseline",
        "| radial_field_best",
    ] * 2
    baseline, radial = rows[2], rows[3]
    assert baseline[2:4] == ["31.788", "0.0000"]
    assert radial[8:11] == ["9.22", "1.19", "0.981"]
    for name in ("community", "erdos_renyi"):
        assert (place / f"runs/report/figure5-{name}.png").exists()


def test_reproduce_figure5_overfit(place):
    out = script("reproduce.py", "figure5-overfit", "--quick", "--epochs", "1", cwd=place)
    assert [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| 0")] == [
        "| 0.1",
        "| 0.5",
        "| 0.9",
    ]
    assert (place / "runs/report/figure5-overfit.png").read_bytes().startswith(b"\x89PNG")
    out = script(
        "report.py",
        *(f"runs/autoencoder/overfit/gnn-{p}-1-epochs" for p in ("0.1", "0.9")),
        "--out",
        "again",
        cwd=place,
    )
    assert "again/figure5-overfit.png" in out.splitlines()


def test_reproduce_table3_puts_ours_beside_the_papers_rows(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location(
        "reproduce", ROOT / "egnn_jax/experiments/reproduce.py"
    )
    reproduce = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reproduce)
    trained = []

    def fit(task, model, config, run):  # an epoch of QM9 takes minutes
        trained.append((task.targets, config.epochs, run.name))
        assert task.independent == (len(task.targets) > 1)
        return {
            "metrics": {"test": dict.fromkeys(task.targets, 12.3456)},
            "config": configs.to_dict(config),
        }

    monkeypatch.setattr(reproduce, "fit", fit)
    table3 = lambda **options: reproduce.table3(
        argparse.Namespace(
            epochs=25, seeds=None, runs=tmp_path, out=tmp_path, model="egnn", **options
        )
    )
    table3(targets=["homo"], together=False, half_periods=3)
    assert trained.pop() == (("homo",), 25, "homo-25-epochs-3-half-periods")
    assert (
        "| ours: egnn, 25 epochs, 3 half-periods | 12.3 |" in capsys.readouterr().out.splitlines()
    )
    table3(targets=["homo", "U0"], together=False)
    assert trained == [(("homo",), 25, "homo-25-epochs"), (("U0",), 25, "U0-25-epochs")]
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "| model | homo (meV) | U0 (meV) |"
    assert "| egnn | 29 | 11 |" in rows
    assert "| ours: egnn, 25 epochs | 12.3 | 12.3 |" in rows
    trained.clear()
    table3(targets=["alpha", "homo", "lumo", "U0"], together=True)
    assert trained == [
        (("alpha", "U0"), 25, "alpha-U0-25-epochs"),
        (("homo", "lumo"), 25, "homo-lumo-25-epochs"),
    ]
    assert (
        "| ours: egnn, 25 epochs | 12.3 | 12.3 | 12.3 | 12.3 |"
        in capsys.readouterr().out.splitlines()
    )


@pytest.fixture(scope="module")
def qm9_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qm9") / "run"
    config = configs.load(ROOT / "configs/qm9/homo.yaml")
    task = dataclasses.replace(config.task, targets=("homo", "U0"), train_size=96)
    config = dataclasses.replace(
        config, task=task, model=dataclasses.replace(config.model, features=4, layers=1), epochs=1
    )
    fit(config.task, configs.build_model(config), config, folder)
    return folder


def test_evaluate_tells_units_and_errors_by_the_size_of_molecules(qm9_run, tmp_path):
    told = json.loads(script("evaluate.py", qm9_run, cwd=tmp_path))
    assert told["units"] == {"homo": "meV", "U0": "meV"}
    assert set(told["by_atoms"]) == {"valid", "test"}
    assert told["by_atoms"]["test"]["18 to 20"]["homo"] > 0


def test_predict_tells_the_properties_of_your_own_molecules(qm9_run, tmp_path):
    (tmp_path / "two.smi").write_text("C[S] with sulfur\nCC ethane\n")
    out = script("predict.py", qm9_run, "two.smi", "O", "--out", "table.csv", cwd=tmp_path)
    head, _, sulfur, ethane, water, _, *errors = [
        line.strip("| ").split(" | ") for line in out.splitlines()
    ]
    assert head == ["molecule", "formula", "geometry", "homo (meV)", "U0 (meV)", "outside QM9"]
    assert sulfur == ["with sulfur", "CH3S", "MMFF94", "–", "–", "it has S; QM9 has H, C, N, O, F"]
    assert ethane[:3] + ethane[5:] == ["ethane", "C2H6", "MMFF94", "no"]
    assert -2.3e6 < float(ethane[4]) < -2.1e6  # two carbons and six hydrogens, -79.8 hartree
    assert water[:2] == ["O", "H2O"]
    found = json.loads((qm9_run / "result.json").read_text())["metrics"]["test"]
    assert errors == [
        [
            f"mean absolute error on QM9's test molecules: homo {found['homo']:.4g} meV, U0 "
            f"{found['U0']:.4g} meV"
        ]
    ]
    assert (
        (tmp_path / "table.csv")
        .read_text(encoding="utf-8")
        .splitlines()[2]
        .startswith("ethane,C2H6,MMFF94,")
    )
    assert "is a run of" not in out
    (tmp_path / "three.smi").write_text("O\nwatr\nC\n")
    errors = script("predict.py", qm9_run, "three.smi", "--out", "rest.csv", cwd=tmp_path, ok=False)
    assert "1 of 3 molecules cannot be used" in errors
    lines = (tmp_path / "rest.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["O", "watr", "C"]
    assert "line 2: 'watr' is no SMILES" in lines[2]


def test_report_puts_runs_of_different_targets_together(qm9_run, tmp_path):
    config = configs.load(qm9_run / "config.yaml")
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, targets=("mu",)))
    other = tmp_path / "elsewhere" / qm9_run.name
    fit(config.task, configs.build_model(config), config, other)
    out = script("report.py", qm9_run, other, cwd=tmp_path).splitlines()
    head, _, first, second = [
        line.strip("| ").split(" | ") for line in out if line.startswith("| ")
    ][:4]
    assert len({first[0], second[0]}) == 2
    assert {"test homo (meV)", "test U0 (meV)", "test mu (D)"} < set(head)
    assert [first[head.index("test mu (D)")], second[head.index("test homo (meV)")]] == ["–", "–"]
    assert {"| model | homo (meV) | mu (D) | U0 (meV) |", "| egnn | 29 | 0.029 | 11 |"} < set(out)
    assert len(list((tmp_path / "runs/report").glob("*-predictions.png"))) == 2


def test_report_draws_graphs_beside_their_reconstructions(place):
    script("reproduce.py", "figure5", "--only", "baseline", "--epochs", "1", cwd=place)
    out = script("report.py", "runs/autoencoder/community_baseline", cwd=place)
    assert "| community_baseline |" in out
    picture = (
        place / "runs/autoencoder/community_baseline/report/community_baseline-predictions.png"
    )
    assert picture.stat().st_size > 10_000


def test_training_again_reads_the_result(place):
    out = script("train.py", ROOT / "configs/nbody/linear.yaml", "--epochs", "5", cwd=place)
    assert "test mse" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py", "no.yaml"], "no.yaml is no file"),
        (["train.py", ROOT / "configs/nbody/linear.yaml", "--epochs", "6"], "epochs 5 -> 6"),
        (
            ["train.py", ROOT / "configs/nbody/linear.yaml", "--epochs", "-1", "--run", "x"],
            "epochs is -1; expected at least 1",
        ),
        (["evaluate.py", "runs"], "runs is no run"),
        (["predict.py", "runs/nbody/linear", "O"], "is a run of NBody; expected one on QM9"),
        (["predict.py", "runs/nbody/linear", "no.xyz"], "no.xyz is no file"),
        (["report.py", "runs/none"], "runs/none is no run"),
        (["reproduce.py", "table2", "--only", "transformer"], "names no config"),
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


def test_train_help_shows_every_option_with_its_default(tmp_path):
    out = script("train.py", ROOT / "configs/nbody/egnn.yaml", "--help", cwd=tmp_path)
    for text in (
        "--run",
        "--seeds",
        "(default: 10000)",
        "--optimizer.learning-rate",
        "(default: 0.0005)",
        "--model.infer-edges",
    ):
        assert text in out
