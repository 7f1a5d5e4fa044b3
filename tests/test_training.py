"""The loop on the real data, made short: exact steps, exact resume, one compilation, clean
stops.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egnn_jax.experiments import config as configs
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.optimizer import Optimizer
from egnn_jax.training import loop
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.evaluation import Evaluation
from egnn_jax.training.fit import fit, load
from egnn_jax.training.state import init_state, optimiser
from egnn_jax.training.step import make_mesh, make_step, make_train

ROOT = Path(__file__).parent.parent


def tiny(**changes) -> Config:
    plain = {
        "task": {"name": "nbody", "train_size": 210},
        "model": {"name": "egnn", "features": 8, "layers": 2},
        "optimizer": {"learning_rate": 1e-2, "average": 0.9},
        "epochs": 4,
        "batch_size": 100,
        "eval_every": 1,
        "checkpoint_seconds": 0.0,
    }
    return configs.from_dict(plain | changes)


def run(config: Config, folder: Path):
    return fit(config.task, build_model(config), config, folder)


def parts(config: Config):
    model = build_model(config)
    transform = optimiser(config.optimizer, 2, 8)
    batches = config.task.pack("train", np.arange(200).reshape(2, 100))
    graph = config.task.graph(jax.tree.map(lambda a: a[0], batches))
    return (
        model,
        transform,
        batches,
        init_state(model, graph, transform, config.optimizer.average > 0, 0),
    )


def test_the_loss_is_the_mean_square_or_hubers():
    model, _, batches, state = parts(tiny())
    batch = jax.tree.map(lambda a: a[0], batches)
    error = np.abs(np.asarray(NBody().predict(model.apply, state.params, batch)) - batch.target)
    key = jax.random.key(0)
    np.testing.assert_allclose(
        NBody().loss(model.apply, state.params, batch, key), np.mean(error**2), rtol=1e-5
    )
    huber = np.where(error < 0.3, error**2 / 2, 0.3 * (error - 0.15))
    np.testing.assert_allclose(
        NBody(huber=0.3).loss(model.apply, state.params, batch, key), huber.mean(), rtol=1e-5
    )


def test_augmentation_turns_inputs_and_targets_alike():
    model, _, batches, state = parts(tiny())  # equivariant, so that only a wrong turn would show
    batch, keys = jax.tree.map(lambda a: a[0], batches), jax.random.split(jax.random.key(0))
    plain = NBody().loss(model.apply, state.params, batch, keys[0])
    still = lambda params, graph: graph  # predicts the input
    straight = lambda params, graph: graph._replace(
        nodes=graph.nodes.replace(x=graph.nodes.x * jnp.array([1.0, 0.0, 0.0]))
    )
    for key in keys:
        np.testing.assert_allclose(
            NBody(augment=True).loss(model.apply, state.params, batch, key), plain, rtol=1e-5
        )
        np.testing.assert_allclose(
            NBody(augment=True).loss(still, None, batch, key),
            NBody().loss(still, None, batch, key),
            rtol=1e-5,
        )
    turned = [float(NBody(augment=True).loss(straight, None, batch, key)) for key in keys]
    assert len({*turned, float(NBody().loss(straight, None, batch, keys[0]))}) == 3


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_one_step_equals_a_hand_written_one(x64, name):
    config = tiny(
        optimizer={"name": name, "learning_rate": 1e-2, "weight_decay": 0.1, "average": 0.9}
    )
    model, transform, batches, state = parts(config)
    batch = jax.tree.map(lambda a: jnp.asarray(a[0], jnp.float64), batches)
    state = jax.tree.map(
        lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, state
    )
    after, loss = make_step(config.task, model.apply, transform, 0.9)(state, batch)

    def mse(params):
        return jnp.mean(
            (model.apply(params, config.task.graph(batch)).nodes.x - batch.target.reshape(-1, 3))
            ** 2
        )

    np.testing.assert_allclose(loss, mse(state.params), rtol=1e-12)

    def hand(p, g):
        decayed = g + 0.1 * p if name == "adam" else g
        move = decayed / (jnp.abs(decayed) + 1e-8)  # Adam's first step: m / sqrt(v), both unbiased
        return p - 1e-2 * (move if name == "adam" else move + 0.1 * p)

    expected = jax.tree.map(hand, state.params, jax.grad(mse)(state.params))
    chex.assert_trees_all_close(
        after.params, expected, rtol=1e-6, atol=1e-8
    )  # optax corrects its bias in float32
    # The average starts with a memory of (1 + 0) / (10 + 0).
    mixed = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, state.params, expected)
    chex.assert_trees_all_close(after.average, mixed, rtol=1e-6, atol=1e-8)
    assert after.step == 1


def over(groups, batches):
    """Batches (K, B, …) as (K, groups, B / groups, …)."""
    return jax.tree.map(lambda a: a.reshape(len(a), groups, -1, *a.shape[2:]), batches)


@pytest.mark.parametrize("micro", [1, 5])
def test_a_batch_spread_over_two_devices_is_the_same_step(micro):
    config = tiny(optimizer={})
    model, transform, batches, state = parts(config)
    assert make_mesh(20).size == 2
    assert make_mesh(5).size == 1
    alone = make_step(config.task, model.apply, transform, 0.0)
    together = make_train(
        make_step(config.task, model.apply, transform, 0.0, make_mesh(20), micro), 1, make_mesh(20)
    )
    expected = jax.lax.scan(alone, state, batches)
    got = together(state, over(2 * micro, batches))
    chex.assert_trees_all_close(got[1], expected[1], rtol=1e-6)
    chex.assert_trees_all_close(got[0].params, expected[0].params, rtol=1e-4, atol=1e-6)


def test_the_state_is_donated_and_steps_compile_once():
    config = tiny()
    model, transform, batches, state = parts(config)
    step = chex.assert_max_traces(make_step(config.task, model.apply, transform, 0.9), n=1)
    train = make_train(step, 1, make_mesh(5))
    for _ in range(3):
        before, (state, _) = state, train(state, over(1, batches))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))


def test_a_whole_run_compiles_training_and_evaluation_once(tmp_path, monkeypatch):
    traces = []
    make = loop.make_step

    def counted(*arguments):
        step = make(*arguments)
        return lambda *inputs: (traces.append(1), step(*inputs))[1]

    monkeypatch.setattr(loop, "make_step", counted)
    run(tiny(epochs=6), tmp_path)
    assert len(traces) == 1


@pytest.mark.parametrize("seeds", [1, 2])
def test_micro_batches_change_nothing_but_rounding(tmp_path, seeds):
    whole, parts = (
        run(tiny(seeds=seeds, micro_batches=micro), tmp_path / str(micro)) for micro in (1, 5)
    )
    for split in ("valid", "test"):
        np.testing.assert_allclose(
            parts["metrics"][split]["mse"], whole["metrics"][split]["mse"], rtol=1e-4
        )


def equal_runs(one: Path, other: Path):
    results = [RunFolder(p).result() for p in (one, other)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["best_epoch"] == results[1]["best_epoch"]
    histories = [[{**e, "seconds": 0} for e in RunFolder(p).history()] for p in (one, other)]
    assert histories[0] == histories[1]
    chex.assert_trees_all_equal(load(one)[2], load(other)[2])


@pytest.mark.parametrize(
    ("eval_every", "stopped"),
    [(1, 4), (2, 3), (3, 1)],
    ids=["at an evaluation", "in mid-epoch", "before any"],
)
def test_stop_and_resume_equals_straight_bit_for_bit(tmp_path, monkeypatch, eval_every, stopped):
    config = tiny(eval_every=eval_every, chunk_steps=1, seeds=2)
    run(config, tmp_path / "straight")
    save = loop._Loop._save

    def save_then_stop(self, step):
        save(self, step)
        if step == stopped:
            self.run.wait()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_save", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "resumed")
    assert not (tmp_path / "resumed" / "result.json").exists()
    assert RunFolder(tmp_path / "resumed").latest("last") == stopped
    run(config, tmp_path / "resumed")
    equal_runs(tmp_path / "straight", tmp_path / "resumed")


CHILD = """
import jax, sys
from egnn_jax.experiments import config as configs
from egnn_jax.training.fit import fit, Interrupted
config = configs.load(sys.argv[1])
try:
    fit(config.task, configs.build_model(config), config, sys.argv[2])
except Interrupted as stop:
    sys.exit(str(stop))
"""


def test_ctrl_c_saves_and_the_same_call_continues(tmp_path):
    config = tiny(epochs=3_000_000, eval_every=10, chunk_steps=4, checkpoint_seconds=1e6)
    assert NBody().size("train") == 3_000  # so that the child finds the data made
    (tmp_path / "config.yaml").write_text(configs.dump(config))
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(tmp_path / "config.yaml"),
        str(tmp_path / "stopped"),
    ]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "stopped" / "metrics.jsonl"
        while process.poll() is None and not (
            metrics.exists() and metrics.read_text().count("\n") >= 3
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the same command continues from there" in errors
    assert "Traceback" not in errors
    saved = RunFolder(tmp_path / "stopped").latest("last")
    assert saved is not None
    assert saved >= RunFolder(tmp_path / "stopped").history()[-1]["step"]


def test_metrics_cut_short_by_a_kill_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (2, 4, 6):
        folder.log({"step": step})
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 8, "val')
    assert [e["step"] for e in folder.rewind(4)] == [2, 4]
    assert [e["step"] for e in folder.history()] == [2, 4]


def test_result_says_what_the_issue_asks(tmp_path):
    config = tiny(epochs=2)
    result = run(config, tmp_path)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert {"metrics", "best_epoch", "seconds", "config", "versions"} <= set(result)
    assert set(result["metrics"]) == {"valid", "test"}
    assert configs.from_dict(result["config"]) == config
    assert result["versions"]["jax"] == jax.__version__
    config, model, params = load(tmp_path)
    value = Evaluation(config.task, model, config)(params, "test")["mse"]
    batch = config.task.pack("test", np.arange(2_000))
    predicted = config.task.predict(model.apply, params, batch)
    np.testing.assert_allclose(
        value, np.mean((np.asarray(predicted) - batch.target) ** 2), rtol=1e-5
    )
    np.testing.assert_allclose(result["metrics"]["test"]["mse"], value, rtol=1e-6)


def test_best_is_the_epoch_with_the_smallest_validation_error(tmp_path):
    result = run(tiny(epochs=12, optimizer={"learning_rate": 0.1}), tmp_path)
    values = [entry["valid"]["mse"] for entry in RunFolder(tmp_path).history()]
    assert result["best_epoch"] == 1 + int(np.argmin(values))
    np.testing.assert_allclose(result["metrics"]["valid"]["mse"], min(values), rtol=1e-6)


def test_patience_stops_early(tmp_path):
    result = run(tiny(epochs=300, patience=2, optimizer={"learning_rate": 0.3}), tmp_path)
    assert RunFolder(tmp_path).history()[-1]["epoch"] == result["best_epoch"] + 2


def test_seeds_are_one_vmapped_state(tmp_path):
    config = tiny(seeds=3, epochs=2, optimizer={"learning_rate": 1e-3})
    result = run(config, tmp_path / "three")
    ones = [run(dataclasses.replace(config, seeds=1), tmp_path / "one")]
    values = result["seeds"]["test"]["mse"]
    assert len(set(values)) == 3
    np.testing.assert_allclose(values[0], ones[0]["metrics"]["test"]["mse"], rtol=1e-4)
    np.testing.assert_allclose(result["metrics"]["test"]["mse"], np.mean(values), rtol=1e-6)
    np.testing.assert_allclose(result["std"]["test"]["mse"], np.std(values, ddof=1), rtol=1e-6)
    assert len(result["best_epoch"]) == 3


def test_nan_stops_the_run_and_names_step_batch_and_checkpoint(tmp_path):
    class Poisoned(NBody):
        def pack(self, split, rows):
            batch = super().pack(split, rows)
            if split == "train" and len(rows) and self.poisoned(rows):
                batch.x[1, 0, 0, 0] = np.nan
            return batch

        calls = 0

        def poisoned(self, rows):
            type(self).calls += 1
            return type(self).calls == 3

    config = tiny(epochs=8)
    task = Poisoned(train_size=210)
    with pytest.raises(
        FloatingPointError,
        match=r"step 5 \(epoch 3, batch 2 of 2\); the last good checkpoint is "
        r".*/checkpoints/last/4",
    ):
        fit(task, build_model(config), config, tmp_path)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_validation_value_that_never_is_finite_is_no_result(tmp_path, seeds):
    class Blind(NBody):
        def metrics(self, apply, params, batch, key):
            total, number = super().metrics(apply, params, batch, key)["mse"]
            return {"mse": (total * jnp.nan, number)}

    config = tiny(seeds=seeds)
    with pytest.raises(FloatingPointError, match="mse on the validation split was never finite"):
        fit(Blind(train_size=210), build_model(config), config, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_parameters_that_are_not_finite_are_no_checkpoint(tmp_path):
    class Flat(NBody):
        def loss(self, apply, params, batch, key):  # finite, but with no gradient in the third step
            value = super().loss(apply, params, batch, key)
            return value + jnp.sqrt(jnp.where(batch.x[0, 0, 0] == 7.0, 0.0 * value, 1.0))

        def pack(self, split, rows):
            batch = super().pack(split, rows)
            Flat.calls += split == "train"
            if split == "train" and Flat.calls == 3:
                batch.x[..., 0, 0, 0] = 7.0
            return batch

        calls = 0

    config = tiny(chunk_steps=1)
    with pytest.raises(
        FloatingPointError,
        match=r"parameters are not finite after step 3; the last good checkpoint is .*/last/2",
    ):
        fit(Flat(train_size=210), build_model(config), config, tmp_path)


def test_reading_a_run_leaves_alone_what_is_being_written(tmp_path):
    run(tiny(epochs=1), tmp_path)
    unfinished = tmp_path / "checkpoints" / "best" / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    load(tmp_path)
    assert unfinished.exists()


def test_another_config_in_the_same_folder_is_refused(tmp_path):
    run(tiny(epochs=1), tmp_path)
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate 0\.01 -> 0\.5"):
        run(tiny(epochs=1, optimizer={"learning_rate": 0.5, "average": 0.9}), tmp_path)
    assert RunFolder(tmp_path).config() == tiny(epochs=1)


def test_a_finished_run_is_not_trained_again(tmp_path):
    result = run(tiny(epochs=1), tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert run(tiny(epochs=1), tmp_path) == result
    assert (tmp_path / "metrics.jsonl").read_text() == lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 211}, "batch_size is 211; expected at most 210"),
        (
            {"task": {"name": "nbody", "train_size": 3_001}},
            "train_size is 3001; expected 1 to 3000",
        ),
        ({"task": {"name": "nbody", "train_size": 0}}, "train_size is 0"),
        ({"model": {"name": "egnn", "layers": 0}}, "layers is 0"),
    ],
)
def test_nonsense_sizes_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nan_in_the_data_is_found_before_training(tmp_path, monkeypatch):
    from egnn_jax.data import nbody

    real = nbody.load

    def poisoned(name, split):
        data = real(name, split)
        if split == "valid":
            data.v[7, 0, 0] = np.nan
        return data

    monkeypatch.setattr(nbody, "load", poisoned)
    with pytest.raises(ValueError, match="v of trajectory 7 of the valid split is not finite"):
        run(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no run"):
        load(tmp_path)
    RunFolder(tmp_path).start(tiny())
    with pytest.raises(ValueError, match="no checkpoint 'best'"):
        load(tmp_path)
    with pytest.raises(ValueError, match="not complete"):
        RunFolder(tmp_path).result()


def test_each_epoch_sees_every_sample_once_in_another_order(tmp_path):
    config = tiny(task={"name": "nbody", "train_size": 200}, chunk_steps=4, eval_every=2)
    folder = RunFolder(tmp_path)
    looped = loop._Loop(config.task, build_model(config), config, folder)
    charges_and_x = np.asarray(looped._pack(0).x).reshape(2, 200, -1)
    wanted = config.task.splits["train"].x.reshape(200, -1)
    for epoch in charges_and_x:
        np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(wanted, axis=0))
    assert (charges_and_x[0] != charges_and_x[1]).any()
    folder.close()


@pytest.mark.parametrize("half_periods", [1, 3])
def test_schedules_count_steps_once(half_periods):
    schedule = {"schedule": "cosine", "half_periods": half_periods, "warmup_epochs": 1}
    transform = optimiser(Optimizer(learning_rate=1.0, clip_norm=1.0, **schedule), 10, 40)
    params = {"w": jnp.ones(())}
    state = transform.init(params)
    sizes = []
    for _ in range(40):
        updates, state = transform.update({"w": jnp.ones(())}, state, params)
        sizes.append(-float(updates["w"]))
    expected = [
        *np.arange(10) / 10,
        *(0.5 * (1 + np.cos(half_periods * np.pi * np.arange(30) / 30))),
    ]
    np.testing.assert_allclose(sizes, expected, atol=1e-4)


def test_evaluation_counts_padding_rows_as_nothing(tmp_path):
    config = tiny(batch_size=130)  # 2,000 is no multiple of 130
    model, _, _, state = parts(tiny())
    whole = Evaluation(config.task, model, config)(state.params, "test")["mse"]
    batch = config.task.pack("test", np.arange(2_000))
    expected = np.mean(
        (np.asarray(config.task.predict(model.apply, state.params, batch)) - batch.target) ** 2
    )
    np.testing.assert_allclose(whole, expected, rtol=1e-5)
