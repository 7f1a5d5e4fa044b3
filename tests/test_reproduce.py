"""The paper's tables and figures, reproduced by the command a user types, on runs made short."""

import pytest

from egnn_jax.experiments import config as configs
from egnn_jax.experiments import reproduce
from tests.helpers import script


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    trained = []

    def train(config, folder):  # an epoch of QM9 takes minutes
        task = config.task
        trained.append((task.targets, config.epochs, folder.name))
        assert task.independent == (len(task.targets) > 1)
        return {
            "metrics": {"test": dict.fromkeys(task.targets, 12.3456)},
            "config": configs.to_dict(config),
        }

    monkeypatch.setattr(reproduce, "train", train)
    options = reproduce.Options(tmp_path, tmp_path, epochs=25)
    table3 = lambda **given: reproduce.table3(options, **given)
    table3(targets=["homo"], together=False, half_periods=3)
    assert trained.pop() == (("homo",), 25, "homo-25-epochs-3-half-periods")
    assert (
        "| ours: egnn, 25 epochs, 3 half-periods | 12.3 |" in capsys.readouterr().out.splitlines()
    )
    table3(targets=["homo", "U0"], together=False)
    assert trained == [(("homo",), 25, "homo-25-epochs"), (("U0",), 25, "U0-25-epochs")]
    with pytest.raises(ValueError, match="model is 'painn'; expected one of nmp, schnet"):
        table3(model="painn")
    with pytest.raises(ValueError, match=r"half_periods is 3 where .* 'exponential'"):
        table3(model="nmp", half_periods=3)
    with pytest.raises(ValueError, match="steps is 0"):
        reproduce.figure2(options, steps=0)
    systems, rows = capsys.readouterr().out.split("table3-systems.png\n")
    assert systems.startswith("| model | recipe |")
    assert "| qm9/dimenetpp |" in systems
    rows = rows.splitlines()
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
    trained.clear()
    table3(targets=["alpha", "homo"], model="nmp", together=True)  # has one learning rate
    assert trained == [(("alpha", "homo"), 25, "nmp_alpha-homo-25-epochs")]


@pytest.mark.slow
def test_report_draws_graphs_beside_their_reconstructions(place):
    script("reproduce.py", "figure5", "--only", "baseline", "--epochs", "1", cwd=place)
    out = script("report.py", "runs/autoencoder/community_baseline", cwd=place)
    assert "| community_baseline |" in out
    picture = (
        place / "runs/autoencoder/community_baseline/report/community_baseline-predictions.png"
    )
    assert picture.stat().st_size > 10_000
