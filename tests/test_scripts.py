"""The commands a user types, run as a user runs them, on a run made short."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHORT = ["--epochs", "2", "--eval-every", "1", "--task.train-size", "200", "--model.features", "8", "--batch-size", "50"]


def script(name, *arguments, cwd, ok=True):
    environment = os.environ | {"MPLCONFIGDIR": os.environ["EGNN_JAX_DATA"]}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
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
    out = script("reproduce.py", "table2", "--only", "linear", "radial_field", "--epochs", "5", "--runs", "runs/t2", cwd=place)
    rows = [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")]
    assert rows[:2] == ["| run", "| ---"]
    assert set(rows[2:]) == {"| linear", "| radial_field"}
    assert (place / "runs/report/table2.png").exists()


def test_reproduce_figure5(place):
    out = script("reproduce.py", "figure5", "--only", "baseline", "radial_field_best", "--epochs", "1", cwd=place)
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows if row[0] != "| ---"] == ["| encoder", "| baseline", "| radial_field_best"] * 2
    baseline, radial = rows[2], rows[3]
    assert baseline[2:4] == ["31.788", "0.0000"]
    assert radial[8:11] == ["9.22", "1.19", "0.981"]
    for name in ("community", "erdos_renyi"):
        assert (place / f"runs/report/figure5-{name}.png").exists()


def test_reproduce_figure5_overfit(place):
    out = script("reproduce.py", "figure5-overfit", "--quick", "--epochs", "1", cwd=place)
    assert [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| 0")] == ["| 0.1", "| 0.5", "| 0.9"]
    assert (place / "runs/report/figure5-overfit.png").read_bytes().startswith(b"\x89PNG")
    out = script("report.py", *(f"runs/autoencoder/overfit/gnn-{p}-1-epochs" for p in ("0.1", "0.9")), "--out", "again", cwd=place)
    assert "again/figure5-overfit.png" in out.splitlines()


def test_reproduce_table3_puts_ours_beside_the_papers_rows(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "scripts/reproduce.py")
    reproduce = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reproduce)
    trained = []

    def fit(task, model, config, run):  # an epoch of QM9 takes minutes
        trained.append((task.targets, config.epochs, run.name))
        return {"metrics": {"test": {task.targets[0]: 12.3456}}}

    monkeypatch.setattr(reproduce, "fit", fit)
    reproduce.table3(argparse.Namespace(targets=["homo", "U0"], epochs=25, seeds=None, runs=tmp_path, out=tmp_path))
    assert trained == [(("homo",), 25, "homo-25-epochs"), (("U0",), 25, "U0-25-epochs")]
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "| method | homo (meV) | U0 (meV) |"
    assert "| egnn | 29 | 11 |" in rows
    assert "| tfn | 40 | – |" in rows
    assert "| ours | 12.35 | 12.35 |" in rows


def test_report_draws_graphs_beside_their_reconstructions(place):
    script("reproduce.py", "figure5", "--only", "baseline", "--epochs", "1", cwd=place)
    out = script("report.py", "runs/autoencoder/community_baseline", cwd=place)
    assert "| community_baseline |" in out
    picture = place / "runs/autoencoder/community_baseline/report/community_baseline-predictions.png"
    assert picture.stat().st_size > 10_000


def test_training_again_reads_the_result(place):
    out = script("train.py", ROOT / "configs/nbody/linear.yaml", "--epochs", "5", cwd=place)
    assert "test mse" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py", "no.yaml"], "no.yaml is no file"),
        (["train.py", ROOT / "configs/nbody/linear.yaml", "--epochs", "6"], "epochs 5 -> 6"),
        (["train.py", ROOT / "configs/nbody/linear.yaml", "--epochs", "-1", "--run", "x"], "epochs is -1; expected at least 1"),
        (["evaluate.py", "runs"], "runs is no run"),
        (["report.py", "runs/none"], "runs/none has no result.json"),
        (["reproduce.py", "table2", "--only", "transformer"], "names no config"),
    ],
    ids=lambda v: " ".join(str(a).split("/")[-1] for a in v) if isinstance(v, list) else "",
)
def test_mistakes_are_one_clear_line(place, arguments, message):
    errors = script(*arguments, cwd=place, ok=False)
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (place / "x").exists()


@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "report.py", "reproduce.py"])
def test_help(name, tmp_path):
    assert "usage" in script(name, "--help", cwd=tmp_path).lower()


def test_train_help_shows_every_option_with_its_default(tmp_path):
    out = script("train.py", ROOT / "configs/nbody/egnn.yaml", "--help", cwd=tmp_path)
    for text in ("--run", "--seeds", "(default: 10000)", "--optimizer.learning-rate", "(default: 0.0005)", "--model.infer-edges"):
        assert text in out
