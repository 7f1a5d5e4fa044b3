"""What the benchmark compares, counts and writes; its networks in PyTorch are in test_peers.py."""

import argparse
import ast
import dataclasses
import graphlib
import json
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import contenders, costs, inputs, measure, race, tables, textbook
from benchmarks import run as benchmark

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.data import nbody
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.nbody import Batch, NBody
from egnn_jax.experiments.optimizer import Optimizer
from egnn_jax.nn.heads import Autoencoder, Readout
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.distributed import make_mesh
from egnn_jax.training.state import init_state
from egnn_jax.training.step import make_step, make_train

AUTOENCODER = Autoencoder(egnn.EGNN(features=5, layers=2, embed=False, shrinkage=1e-3))
READOUT = Readout(egnn.EGNN(features=5, layers=2, infer_edges=True, update_coordinates=False))


@pytest.mark.parametrize(
    ("model", "options", "shrinkage"),
    [
        (egnn.EGNN(features=5, layers=2), {"features": 1, "attributes": 2}, 0.0),
        (AUTOENCODER, {"features": 1, "attributes": 1, "velocity": False}, 1e-3),
        (READOUT, {"velocity": False, "attributes": 0}, 0.0),
    ],
    ids=["nbody", "autoencoder", "qm9"],
)
def test_the_textbook_egnn_is_ours(x64, model, options, shrinkage):
    graph = testing.random_graph(**options)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    ours, theirs = model.apply(params, graph), textbook.egnn(params, graph, shrinkage)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(other, mine, rtol=1e-10, atol=1e-10 * max(1, np.abs(mine).max()))


def test_the_literal_loop_is_our_simulation():
    made, ours = textbook.trajectories("small", "train", 1), nbody._generate("small", "train", 1)
    for name in ("x", "target"):
        np.testing.assert_array_equal(made[name], ours[name])


def test_products_are_counted():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert costs.flops(lambda a, b: a @ b, a, b) == 2 * 3 * 4 * 5
    assert (
        costs.flops(lambda a, b: (a @ b)[:, :0].sum() + a.sum(), a, b) == 120
    )  # used, if for nothing
    assert costs.flops(lambda a, b: (a @ b, a)[1], a, b) == 0
    assert (
        costs.flops(
            jax.jit(lambda a, b: jax.lax.scan(lambda c, _: (c @ b @ b.T, None), a, length=7)[0]),
            a,
            b,
        )
        == 7 * 240
    )
    assert (
        costs.flops(
            lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b @ b.T @ b), a, b
        )
        == 120
    )
    assert costs.flops(jax.grad(lambda a, b: jnp.sum((a @ b) ** 2)), a, b) == 240


def train(seeds=1):
    task, mesh = NBody(), make_mesh(4)
    batch = Batch(
        *(
            np.zeros((3, mesh.size, 4 // mesh.size, *shape), np.float32)
            for shape in ((5, 3), (5, 3), (5, 3), (5,), ())
        )
    )
    optimizer = Optimizer().build(10, 10)
    model = egnn.EGNN(features=8, layers=1)
    graph = task.graph(jax.tree.map(lambda a: a[0, 0], batch))
    key = jax.random.PRNGKey(0)
    state = init_state(model.init(key, graph), optimizer, False, key)
    step = make_step(task.loss(model.apply), optimizer, 0.0, mesh)
    return make_train(step, seeds, mesh), state, batch


def test_the_scan_over_steps_never_reaches_for_the_host_and_donates_its_state():
    function, state, batches = train()
    found = costs.compiled(function.lower(state, batches).compile().as_text())
    assert found == {"host_transfers": [], "donated": len(jax.tree.leaves(state))}


def test_reaching_for_the_host_is_seen():
    def step(x):
        jax.debug.callback(lambda x: None, x)
        return x + 1

    assert costs.compiled(jax.jit(step).lower(1.0).compile().as_text())["host_transfers"]
    assert costs.compiled(jax.jit(lambda x: x + 1).lower(1.0).compile().as_text()) == {
        "host_transfers": [],
        "donated": 0,
    }
    for line in (
        "%x = (f32[2]{0}, token[]) infeed(token[] %t)",
        "%s = (f32[], u32[], token[]) send(f32[] %x)",
        "f32[8]{0:S(5)} copy(%x)",
    ):
        assert costs.compiled(line)["host_transfers"]


def test_neighbours_do_not_get_fewer_in_small_clouds():
    x = np.random.default_rng(0).uniform(size=(1_000, 3))
    near = ((x[:, None] - x) ** 2).sum(-1) < costs.relative_cutoff(50 / 999) ** 2
    assert near.sum() / 1_000 - 1 == pytest.approx(50, rel=0.05)


def test_ratios_are_formed_in_each_repeat():
    rounds = [
        {"ours": ours, "matmul": 0.01, "torch_eager": theirs}
        for ours, theirs in ((1.0, 3.0), (2.0, 4.0), (1.0, 5.0))
    ]
    found = measure.summary(rounds)
    assert found["ours_ms"] == 1e3
    assert found["matmul_gflops"] == pytest.approx(100)
    assert [found[f"ratio_vs_torch_eager{which}"] for which in ("", "_min", "_max")] == [3, 2, 5]
    assert measure.exponents((10, 100, 1_000), (1.0, 10.0, 1_000.0)) == pytest.approx([1, 2])


def test_different_maths_is_refused():
    ours = np.ones((2, 3)), 0.5
    measure.require_agreement("theirs", ours, (ours[0] + 1e-5, 0.5), "cpu (cpu)")
    for theirs in (
        (ours[0] + 1e-2, 0.5),
        (ours[0], 0.51),
        (ours[0] * np.nan, 0.5),
        (np.ones((3, 2)), 0.5),
    ):
        with pytest.raises(ValueError, match=r"theirs.*; expected"):
            measure.require_agreement("theirs", ours, theirs, "cpu (cpu)")


RATIO = {
    "ratio_vs_torch_eager": 3.25,
    "ratio_vs_torch_eager_min": 3.0,
    "ratio_vs_torch_eager_max": 3.5,
}
HERE = {
    "machine": "2 cores",
    "date": "2026-11-25",
    "python": "3.11.7",
    "jax": "0.10.1",
    "flax": "0.12.8",
}
SIZE = {
    "nodes": [10, 100],
    "peak_gib": 2.5,
    **{
        f"{part}_{name}": value
        for part in ("forward", "gradient")
        for name, value in {
            "edges": [500, 5_000],
            "s": [0.1, 1.0],
            "floor_s": [0.05, 0.5],
            "peak_gib": [0.5, 2.5],
            "exponents": [1.0],
        }.items()
    },
}


FOUR_SEEDS = {
    "metrics": {"test": {"mse": 0.0065}},
    "std": {"test": {"mse": 0.0002}},
    "best_epoch": [1] * 4,
    "seconds": 40.0,
}


def test_results_of_other_cases_stay(tmp_path):
    out = tmp_path / "runs" / "benchmark.json"
    benchmark.write(out, "nbody_train_step", {"ours_ms": 1.0})
    benchmark.write(out, "qm9_train_step", {"ours_ms": 2.0})
    benchmark.write(out, "nbody_train_step", {"ours_ms": 3.0})
    assert {name: result["ours_ms"] for name, result in json.loads(out.read_text()).items()} == {
        "nbody_train_step": 3.0,
        "qm9_train_step": 2.0,
    }
    for damaged in ("[1]", '{"nbody": 1}', "{"):
        out.write_text(damaged)
        with pytest.raises(ValueError, match=r"benchmark\.json .*expected results"):
            benchmark.read(out)


def test_tables_and_plot(tmp_path):
    results = {
        "nbody_train_step": {
            "ours_ms": 8.5,
            "floor_ms": 4.0,
            "left_out": {"torch_compiled": "there is no compiler"},
        }
        | RATIO
        | HERE,
        "data_small": {"ours_ms": 2.5, "small_ours_s": 18.0, "small_numpy_loop_s": 1_860.0} | HERE,
        "size": SIZE | HERE,
        "qm9_forward": {"ours_ms": 9.9} | HERE | {"machine": "another"},
        "nbody_4_seeds": FOUR_SEEDS | HERE,
    }
    text = tables.text(results, "2 cores")
    assert "| nbody_train_step | 8.5 | 4 | 3.25 × (3.00 to 3.50) | 2026-11-25 |" in text
    assert "| data_small | 2.5 | – | – | 2026-11-25 |" in text
    assert "- nbody_train_step without torch_compiled: there is no compiler\n" in text
    assert "| 100 | 5,000 | 1 | 0.5 | 2.50 | 1 | 0.5 | 2.50 |" in text
    assert "18 s, and 31 minutes" in text
    assert "10 s a seed, test MSE 0.00650 ± 0.00020" in text
    assert "qm9" not in text
    assert (
        tables.draw(results, "2 cores", tmp_path / "benchmark.png")
        .read_bytes()
        .startswith(b"\x89PNG")
    )


def small_setting(folder, layers):
    """Two batches of four graphs, which two devices share."""
    config = configs.load("autoencoder/egnn")
    task = dataclasses.replace(config.task, dataset="overfit")
    config = dataclasses.replace(config, task=task, model=config.model.clone(layers=layers))
    recipe = folder / "small.yaml"
    recipe.write_text(configs.dump(config))
    return inputs.Setting(str(recipe), batch_size=4, batches=2, scans=2)


@pytest.mark.slow
def test_contenders_in_jax_agree_and_are_timed(monkeypatch, tmp_path):
    monkeypatch.setitem(inputs.SETTINGS, "small", small_setting(tmp_path, layers=1))
    ours, theirs = (contenders.first_output("small", name) for name in ("ours", "textbook_jax"))
    measure.require_agreement("textbook_jax", ours, theirs, "cpu (cpu)")
    for part in ("forward", "train_step"):
        for name in ("ours", "textbook_jax"):
            assert contenders.seconds_per_step("small", part, name) > 0
    forward, training = (
        contenders.program_costs("small", part) for part in ("forward", "train_step")
    )
    assert 2 * forward["flops"] < training["flops"] < 4 * forward["flops"]
    assert training["host_transfers"] == []
    assert training["donated"] == training["leaves"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--cases", "nbody", "molecules"],
            r"--cases has \['molecules'\]; expected some of nbody, autoencoder, qm9, data, size",
        ),
        (["--repeats", "0"], "--repeats is 0"),
        (["--gpu-campaign", "--seconds", "nan"], "--seconds nan"),
        (["--reference", "nowhere"], "--reference is nowhere; expected the folder"),
        (
            ["--cases", "data", "qm9"],
            r"torch and egnn_pytorch not found; expected what pip install -e '\.\[bench\]' brings",
        ),
    ],
)
def test_mistakes_are_reported(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        benchmark.main()


def test_the_campaign_stops_in_time_and_goes_on(monkeypatch, tmp_path):
    done = []

    def train(config, folder):
        done.append((config.task, config.seeds, config.epochs))
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
        if len(done) < 3:
            signal.raise_signal(signal.SIGALRM)
        return FOUR_SEEDS

    def measure_cases(arguments, again):
        done.append(again)
        return HERE

    def table3(options, targets, together):
        done.append((targets, options.epochs, together))

    monkeypatch.setattr(benchmark, "measure_cases", measure_cases)
    monkeypatch.setattr(benchmark, "use_all_cores", lambda: None)
    monkeypatch.setattr(benchmark, "train", train)
    monkeypatch.setattr(benchmark.reproduce, "table3", table3)
    out = tmp_path / "benchmark.json"
    arguments = argparse.Namespace(seconds=500, out=out, targets=["homo"], qm9_epochs=3)
    try:
        with pytest.raises(KeyboardInterrupt):
            benchmark.campaign(arguments)
        benchmark.campaign(arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    nbody = (NBody(), 4, 10_000)
    assert done == [False, nbody, False, nbody, (["homo"], 3, True)]
    assert benchmark.read(out)["nbody_4_seeds"]["seconds"] == 40
    assert "10 s a seed" in (tmp_path / "benchmark.md").read_text()


def test_every_case_has_a_setting():
    names = {name for group in benchmark.CASES.values() for name in group}
    assert names - {"data", "size"} == set(inputs.SETTINGS)
    assert {setting.recipe for setting in inputs.SETTINGS.values()} <= set(configs.recipes())


def test_modules_do_not_import_in_a_circle():
    """Imports inside of functions count too."""
    imports = {}
    for file in Path(benchmark.__file__).parent.glob("*.py"):
        nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)]
        modules = {n.module.partition(".")[2] for n in nodes if n.module.startswith("benchmarks.")}
        names = {a.name for n in nodes if n.module == "benchmarks" for a in n.names}
        imports[file.stem] = modules | names
    assert imports["torch_contenders"] == {"inputs", "torch_cases"}
    assert "run" in list(graphlib.TopologicalSorter(imports).static_order())
    assert not [name for name, own in imports.items() if "run" in own]


def test_a_row_of_the_race_has_the_unit_of_its_target():
    errors = {"valid": {"mu": 0.0312, "U0": 70.26}, "test": {"mu": 0.0304, "U0": 71.04}}
    result = {"config": {"batch_size": 32}, "parameters": 1_000, "metrics": errors}
    measurements = {"seconds_a_step": 0.1, "devices": "2 cpu", "epochs": 2, "train_size": 50}
    row = race.row("tfn", result, measurements, "mu")
    assert row["mu, valid (D)"] == "0.031"
    assert row["mu, test (D)"] == "0.030"
    assert row["the paper (D)"] == "0.064"
    row = race.row("tfn", result, measurements, "U0")
    assert row["U0, test (meV)"] == "71.0"
    assert row["the paper (meV)"] == "–"


def test_the_race_has_the_rows_of_all_its_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/race/30-minutes-homo")
    folder.mkdir(parents=True)
    for name in ("egnn", "tfn"):
        (folder / f"{name}.json").write_text('{"seconds_a_step": 100.0, "devices": "2 cpu"}')

    def train(config, path):
        run = RunFolder(path)
        errors = {split: {"homo": 50.0 + len(path.name)} for split in ("valid", "test")}
        plain = {"batch_size": config.batch_size}
        run.finish({"config": plain, "parameters": 1, "metrics": errors})
        run.log({"step": 1, "epoch": 1, "valid": errors["valid"]})

    monkeypatch.setattr(race, "train", train)
    for name in ("egnn", "tfn"):
        monkeypatch.setattr(sys, "argv", ["race", name])
        race.main()
    rows = [line.split(" | ")[0] for line in (folder / "race.md").read_text().splitlines()]
    assert rows[2:] == ["| tfn", "| egnn"]
