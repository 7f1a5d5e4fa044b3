"""``fit`` on functions: anyone's loss, loader, optimizer and callbacks, without a config."""

import datetime
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import egnn_jax as egnn
from egnn_jax.training import distributed, evaluation, loop
from egnn_jax.training._records import digest_of_arrays
from egnn_jax.training.checkpoint import RunFolder
from tests.helpers import labelled_graphs


class Regression:
    """y = x·w + b of 12 samples; a loader of one's own: no class of the library."""

    batch_size = 4
    w, b = np.array([1.0, -2.0, 0.5], np.float32), np.float32(0.25)

    def __init__(self, seed=0):
        self.x = np.random.default_rng(seed).standard_normal((12, 3)).astype(np.float32)
        self.y = self.x @ self.w + self.b
        self.asked = []

    def num_batches(self, epoch):
        return 3

    def batches(self, epoch, start, count, shards=1):
        self.asked.append((epoch, start, count))
        order = np.arange(12)
        if epoch is not None:
            order = np.random.default_rng(epoch).permutation(12)
        rows = order.reshape(3, shards, -1)[start : start + count]
        return {"x": self.x[rows], "y": self.y[rows]}


def loss(params, batch, key):
    error = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return jnp.mean(error**2), {"bias": params["b"]}


def zeros():
    return {"w": jnp.zeros(3), "b": jnp.zeros(())}


def fit(params=None, valid="train", optimizer=None, **options):
    data = Regression()
    options = {"epochs": 3, "callbacks": ()} | options
    return egnn.fit(
        options.pop("loss", loss),
        zeros() if params is None else params,
        options.pop("train", data),
        data if valid == "train" else valid,
        optimizer or optax.sgd(0.1),
        **options,
    )


def by_hand(params, optimizer, epochs, ema_decay=0.0):
    """The parameters (and their average) after some epochs of :func:`fit`, step by step."""
    data, state, average = Regression(), optimizer.init(params), params
    for epoch in range(epochs):
        for k in range(3):
            batch = jax.tree.map(lambda a: a[0, 0], data.batches(epoch, k, 1))
            gradient = jax.grad(lambda p, batch=batch: loss(p, batch, None)[0])(params)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            step = 3 * epoch + k
            decay = min(ema_decay, (1 + step) / (10 + step))
            average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, params)
    return params, average


def test_the_loss_loader_and_optimizer_are_the_callers():
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.05))
    result = fit(optimizer=optimizer, epochs=3)
    chex.assert_trees_all_close(result.params, by_hand(zeros(), optimizer, 3)[0], rtol=1e-5)
    assert result.best_epoch == 3
    batches = [Regression().batches(None, k, 1) for k in range(3)]
    values = [loss(result.params, jax.tree.map(lambda a: a[0, 0], b), None)[0] for b in batches]
    value = np.mean(values)
    np.testing.assert_allclose(result.best_value, value, rtol=1e-5)
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert [entry["step"] for entry in result.history] == [3, 6, 9]
    np.testing.assert_allclose(result.history[-1]["valid"]["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(result.history[-1]["valid"]["bias"], result.params["b"], rtol=1e-5)
    assert result.history[0]["train"]["loss"] > result.history[-1]["train"]["loss"]
    assert result.notes == ()
    assert result.seconds > 0


def test_an_average_is_what_is_returned():
    result = fit(ema_decay=0.5)
    last, average = by_hand(zeros(), optax.sgd(0.1), 3, ema_decay=0.5)
    chex.assert_trees_all_close(result.params, average, rtol=1e-5)
    assert np.abs(result.params["w"] - last["w"]).max() > 1e-3


def test_it_starts_from_given_parameters_and_leaves_them_usable():
    start = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(0.25)}
    result = fit(start, epochs=1)
    chex.assert_trees_all_close(result.params, start, atol=1e-6)  # they were right
    other = {"w": jnp.array([3.0, 0.0, 0.0]), "b": jnp.array(1.0)}
    fit(other, epochs=1)
    chex.assert_trees_all_equal(other, {"w": np.array([3.0, 0, 0]), "b": np.array(1.0)})
    again = fit(fit(epochs=1).params, epochs=1)  # what is returned is a start too
    hand = by_hand(by_hand(zeros(), optax.sgd(0.1), 1)[0], optax.sgd(0.1), 1)[0]
    chex.assert_trees_all_close(again.params, hand, rtol=1e-5)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(callbacks=None)
    assert list(tmp_path.iterdir()) == []


def test_without_validation_the_last_parameters_are_returned():
    result = fit(valid=None, optimizer=optax.sgd(3.0))  # too large: the last ones are the worst
    hand, _ = by_hand(zeros(), optax.sgd(3.0), 3)
    chex.assert_trees_all_close(result.params, hand, rtol=1e-4)
    assert result.best_epoch == 3
    assert result.history[-1]["valid"] == {}
    assert fit(optimizer=optax.sgd(3.0)).best_epoch == 1
    with pytest.raises(ValueError, match="valid is None with EarlyStopping"):
        fit(valid=None, callbacks=[egnn.EarlyStopping(patience=4)])


def test_several_seeds_are_single_ones():
    def noisy(params, batch, key):
        value, metrics = loss(params, batch, key)
        return value + jnp.dot(jax.random.normal(key, (3,)), params["w"]), metrics

    starts = [zeros(), {"w": jnp.ones(3), "b": jnp.ones(())}]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    options = {"loss": noisy, "epochs": 2, "eval_every": 2}
    together = fit(both, seeds=2, seed=5, **options)
    for k, start in enumerate(starts):
        alone = fit(start, seed=5 + k, **options)
        own = jax.tree.map(lambda a, k=k: a[k], together.params)
        chex.assert_trees_all_close(own, alone.params, rtol=1e-5, atol=1e-6)
        train = [result.history[0]["train"]["loss"] for result in (together, alone)]
        np.testing.assert_allclose(train[0][k], train[1], rtol=1e-5)
    assert np.abs(together.params["w"][0] - together.params["w"][1]).max() > 1e-2
    assert together.best_epoch.tolist() == [2, 2]


def test_only_the_chunks_that_are_needed_are_asked_for():
    data = Regression()
    fit(train=data, epochs=4, eval_every=2, chunk_steps=6, valid=None)
    assert data.asked[-4:] == [(0, 0, 3), (1, 0, 3), (2, 0, 3), (3, 0, 3)]


def test_more_samples_in_a_batch_than_there_are():
    few = egnn.ArrayDataset({"x": np.ones((3, 3), np.float32), "y": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="batch_size is 4; expected at most"):
        fit(train=few.loader(4))


class Recorder(egnn.Callback):
    def __init__(self, stop_at=None):
        self.calls, self.stop_at = [], stop_at

    def started(self, progress):
        self.calls.append(("started", progress.step))

    def stepped(self, progress):
        self.calls.append(("stepped", progress.step))

    def evaluated(self, progress):
        self.calls.append(("evaluated", progress.step, float(progress.metrics["loss"])))
        return progress.epoch == self.stop_at

    def ended(self, progress):
        self.calls.append(("ended", progress.step))


def test_callbacks_are_called_in_turn_and_may_stop():
    recorder = Recorder(stop_at=2)
    result = fit(epochs=5, chunk_steps=3, callbacks=[recorder])
    values = [entry["valid"]["loss"] for entry in result.history]
    assert len(values) == 2
    assert recorder.calls == [
        ("started", 0),
        ("stepped", 3),
        ("evaluated", 3, values[0]),
        ("stepped", 6),
        ("evaluated", 6, values[1]),
        ("ended", 6),
    ]


def test_a_callback_may_return_numpy_booleans():
    class Stop(egnn.Callback):
        def evaluated(self, progress):
            return progress.metrics["loss"] < 1e9

    assert len(fit(epochs=5, callbacks=[Stop()]).history) == 1


def test_runs_in_float64_go_on(x64, tmp_path):
    whole = fit(epochs=4)
    half = fit(epochs=2, folder=tmp_path / "run")
    assert fit(epochs=2, folder=tmp_path / "run").best_value == half.best_value
    found = fit(epochs=4, folder=tmp_path / "run")
    assert found.params["w"].dtype == np.float64
    jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)
    assert found.best_value == whole.best_value == whole.history[-1]["valid"]["loss"]


def test_a_loader_needs_no_defaults(tmp_path):
    class Own(Regression):
        def batches(self, epoch, start, count, shards):
            return super().batches(epoch, start, count, shards)

    found = fit(train=Own(), valid=Own(), folder=tmp_path / "run")
    assert found.best_value == fit().best_value


def test_ended_is_called_where_training_fails():
    class Failing(Recorder):
        def stepped(self, progress):
            raise RuntimeError("mine")

    recorder = Failing()
    with pytest.raises(RuntimeError, match="mine"):
        fit(callbacks=[recorder])
    assert recorder.calls == [("started", 0), ("ended", 3)]


def test_early_stopping():
    diverging = {"epochs": 50, "optimizer": optax.sgd(3.0), "eval_every": 2}
    result = fit(callbacks=[egnn.EarlyStopping(patience=4)], **diverging)
    assert (result.best_epoch, result.history[-1]["epoch"]) == (2, 6)
    with pytest.raises(ValueError, match="patience is 0; expected a number of epochs above 0"):
        egnn.EarlyStopping(patience=0)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_callback_stops_with_any_kind_of_true(seeds):
    params = zeros() if seeds == 1 else jax.tree.map(lambda a: jnp.stack([a, a]), zeros())
    mixed = np.array([True, False])
    answers = [(jnp.array(True), 1), (np.ones(2, bool), 1), (mixed, 3), ("yes", 3), (1, 3)]
    for answer, epochs in answers:

        class Stop(egnn.Callback):
            def evaluated(self, progress):
                return answer  # noqa: B023 (called before the next one)

        assert len(fit(params, seeds=seeds, callbacks=[Stop()]).history) == epochs


def test_an_extended_run_goes_on_where_its_former_end_stopped_it(tmp_path):
    class AtOddEpochs(egnn.Callback):
        def evaluated(self, progress):
            return progress.epoch % 2 == 1

    options = {"eval_every": 2, "folder": tmp_path, "callbacks": [AtOddEpochs()]}
    fit(epochs=3, **options)
    extended = fit(epochs=6, **options)
    assert [entry["epoch"] for entry in extended.history] == [2, 3, 4, 6]


def test_one_number_is_monitored():
    def several(params, batch, key):
        return loss(params, batch, key)[0], {"w": params["w"], "pair": (params["w"], 1)}

    for name in ("w", "pair"):
        with pytest.raises(ValueError, match=rf"'{name}' has the shape \(3,\); expected a single"):
            fit(loss=several, monitor=name)


def test_what_is_not_finite_is_null_in_json(tmp_path):
    run = RunFolder(tmp_path)
    metrics = {"test": {"b": np.nan, "seeds": [1.0, np.inf]}}
    run.finish({"metrics": metrics, "config": {"init": None}})
    run.log({"step": 1, "valid": {"mse": np.nan}})
    for file in (run.result_file, run.metrics_file):
        plain = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert plain == {"step": 1, "valid": {"mse": None}}
    found = run.result()
    assert found["config"] == {"init": None}
    np.testing.assert_equal(found["metrics"]["test"], {"b": np.nan, "seeds": [1.0, np.nan]})
    np.testing.assert_equal(run.history(), [{"step": 1, "valid": {"mse": np.nan}}])


def test_settings_that_are_not_plain_are_refused_before_training(tmp_path):
    for settings, message in (
        ({"a": {"day": datetime.date(2026, 1, 1)}}, r"settings\.a\.day is a date; expected text"),
        ({"a": [b"x"]}, r"settings\.a\.0 is a bytes; expected"),
        ({"a": np.float64(1)}, r"settings\.a is a float64; expected text, a number"),
        ({"a": {0: "x"}}, r"settings\.a has the key 0; expected text"),
        ([1], "settings is a list; expected values by name"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(folder=tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a[x]", "[v2] run/a", "a\\b"])
def test_paths_whose_checkpoints_could_not_be_read_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"has a . in its path; expected a folder without"):
        fit(folder=tmp_path / name)
    assert not (tmp_path / name).exists()


def test_loaders_without_samples_or_with_too_few_batches(tmp_path):
    class Empty(Regression):
        def num_batches(self, epoch):
            return 0 if epoch is None else 3

    with pytest.raises(ValueError, match="the loader has no batches to evaluate"):
        egnn.evaluate(loss, zeros(), Empty())
    with pytest.raises(ValueError, match="the loader has no batches to evaluate"):
        fit(valid=Empty(), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()

    class Short(Regression):
        def batches(self, epoch, start, count, shards=1):
            found = super().batches(epoch, start, count, shards)
            return jax.tree.map(lambda a: a[: max(count - 1, 1)], found)

    with pytest.raises(ValueError, match=r"leading axis \(2,\) for .* 0 to 3 of epoch 0; expected"):
        fit(train=Short(), valid=None)
    for options in ({"monitor": "bias"}, {"metrics": lambda params, batch, key: {}}):
        with pytest.raises(ValueError, match="valid is None with monitor or metrics"):
            fit(valid=None, **options)


def test_another_optimizer_is_not_a_damaged_checkpoint(tmp_path):
    fit(folder=tmp_path, settings={})
    with pytest.raises(ValueError, match="expected the optimizer and network of this run"):
        fit(folder=tmp_path, settings={}, optimizer=optax.adam(0.1))


def test_the_progress_bar_says_compiling_until_the_first_steps():
    bar, notes = egnn.ProgressBar(), []

    class Reader(egnn.Callback):
        def started(self, progress):
            notes.append(bar._bar.postfix)

        stepped = evaluated = started

    fit(epochs=2, callbacks=[bar, Reader()])
    assert notes[:2] == ["compiling", ""]
    assert notes[2].startswith("epoch=1/2, loss=")
    assert notes[3] == notes[2]


def test_metrics_go_to_a_log(tmp_path):
    result = fit(folder=tmp_path, callbacks=[egnn.MetricsLog()])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert RunFolder(tmp_path).history() == result.history
    with pytest.raises(ValueError, match="MetricsLog writes to the folder of a run"):
        fit(callbacks=[egnn.MetricsLog()])


def test_tensorboard_gets_scalars(tmp_path):
    from tensorboardX.proto import event_pb2

    result = fit(folder=tmp_path, callbacks=[egnn.TensorBoard()])
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, scalars, place = file.read_bytes(), {}, 0
    while place < len(content):  # a record: its length, a checksum, the event, a checksum
        size = int.from_bytes(content[place : place + 8], "little")
        event = event_pb2.Event.FromString(content[place + 12 : place + 12 + size])
        for value in event.summary.value:
            scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
        place += size + 16
    assert set(scalars) == {"train/loss", "valid/loss", "valid/bias"}
    for tag, part, name in (
        ("train/loss", "train", "loss"),
        ("valid/loss", "valid", "loss"),
        ("valid/bias", "valid", "bias"),
    ):
        expected = [(entry["step"], entry[part][name]) for entry in result.history]
        np.testing.assert_allclose(scalars[tag], expected, rtol=1e-6)


def test_ones_own_graphs_are_fitted_and_evaluated():
    """The README's shape: graphs, a split, a loss of the library."""
    train, valid = egnn.GraphDataset(labelled_graphs(40)).split(0.8, seed=0)
    model = egnn.Readout(egnn.EGNN(features=8, layers=1), **train.target_statistics())
    params = model.init(jax.random.key(0), train[0])
    loss = egnn.losses.mean_absolute_error(model)
    result = egnn.fit(
        loss, params, train.loader(8), valid.loader(8), optax.adam(1e-2),
        epochs=30, eval_every=10, callbacks=(),
    )  # fmt: skip
    assert result.best_value < 0.25
    found = egnn.evaluate(loss, result.params, valid.loader(3))
    errors = [
        abs(float(model.apply(result.params, valid[k]).globals.y[0, 0]) - valid.y[k, 0])
        for k in range(len(valid))
    ]
    np.testing.assert_allclose(found["mae"], np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(found["mae"], result.best_value, rtol=1e-4)
    wide = egnn.Readout(egnn.EGNN(features=8, layers=1), outputs=2)
    loss = egnn.losses.mean_squared_error(wide)
    params = wide.init(jax.random.key(0), train[0])
    with pytest.raises(ValueError, match=r"the targets have shape .* and the predictions"):
        egnn.evaluate(loss, params, valid.loader(3))


@pytest.mark.parametrize(("size", "batch_size"), [(5, 4), (3, 4), (8, 4), (7, 1)])
def test_samples_of_one_size_are_each_counted_once(size, batch_size):
    """Batches of arrays are not padded, so that a mean over a batch is one over real samples."""
    values = np.arange(size, dtype=np.float32)[:, None] + 1
    loader = egnn.ArrayDataset({"a": values}).loader(batch_size)

    def loss(params, batch, key):
        a = batch["a"]
        return jnp.mean(a), {"mean": jnp.mean(a), "sum": (jnp.sum(a), a.shape[0])}

    found = egnn.evaluate(loss, {}, loader)
    for name in ("loss", "mean", "sum"):
        assert found[name] == pytest.approx((size + 1) / 2)


def test_the_history_of_a_resumed_run_is_whole(tmp_path):
    loader = egnn.ArrayDataset({"a": np.ones((6, 1), np.float32)}).loader(2)

    def loss(params, batch, key):
        return jnp.sum(params["w"] ** 2) + 0 * jnp.sum(batch["a"]), {}

    class Stop(egnn.Callback):
        def evaluated(self, progress):
            if progress.epoch == 2:
                raise RuntimeError

    def fit(callbacks):
        return egnn.fit(
            loss, {"w": jnp.ones(2)}, loader, loader, optax.sgd(0.1), epochs=4, folder=tmp_path,
            checkpoint_seconds=0.0, callbacks=callbacks,
        )  # fmt: skip

    with pytest.raises(RuntimeError):
        fit([Stop()])
    assert [entry["epoch"] for entry in fit([egnn.Callback()]).history] == [1, 2, 3, 4]


def test_more_epochs_equal_those_in_one_go_where_nothing_else_differs(tmp_path):
    loader = egnn.ArrayDataset({"a": np.arange(6, dtype=np.float32)[:, None]}).loader(2)

    def loss(params, batch, key):
        return jnp.mean((params["w"] - batch["a"]) ** 2), {}

    def fit(optimizer, epochs, folder):
        return egnn.fit(
            loss, {"w": jnp.ones(1)}, loader, loader, optimizer, epochs=epochs, folder=folder
        )

    adam = optax.adam(0.1)
    for epochs in (2, 3, 5):
        extended = fit(adam, epochs, tmp_path / "extended")
    straight = fit(adam, 5, tmp_path / "straight")
    assert extended.params["w"] == straight.params["w"]
    assert [entry["epoch"] for entry in extended.history] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="a run of 5 epochs; expected as many or more, not 4"):
        fit(adam, 4, tmp_path / "extended")
    fit(adam, np.int64(7), tmp_path / "extended")
    fit(optax.adam(optax.cosine_decay_schedule(0.1, 6)), 2, tmp_path / "cosine")
    with pytest.raises(ValueError, match="other settings"):  # its learning rates would be others
        fit(optax.adam(optax.cosine_decay_schedule(0.1, 9)), 3, tmp_path / "cosine")


def test_the_loss_of_an_extended_run_is_the_mean_since_the_last_evaluation(tmp_path):
    loader = egnn.ArrayDataset({"a": np.ones((6, 1), np.float32)}).loader(2)

    def loss(params, batch, key):
        return 2.0 + 0 * jnp.sum(params["w"] * batch["a"]), {}

    for epochs in (5, 6):
        result = egnn.fit(
            loss, {"w": jnp.ones(1)}, loader, loader, optax.sgd(0.1),
            epochs=epochs, eval_every=2, folder=tmp_path,
        )  # fmt: skip
    assert [(entry["epoch"], entry["train"]["loss"]) for entry in result.history] == [
        (2, 2.0), (4, 2.0), (5, 2.0), (6, 2.0),
    ]  # fmt: skip


def test_running_statistics_must_be_returned():
    loader = egnn.ArrayDataset({"a": np.ones((6, 1), np.float32)}).loader(2)
    moved = {"batch_stats": {"mean": jnp.full(1, 3.0)}}

    def fit(metrics):
        def loss(params, batch, key):
            return jnp.sum(params["params"]["w"] * batch["a"]) ** 2, metrics

        params = {"params": {"w": jnp.ones(1)}, "batch_stats": {"mean": jnp.zeros(1)}}
        return egnn.fit(loss, params, loader, None, optax.sgd(0.01), epochs=1)

    with pytest.raises(ValueError, match="does not return the running statistics 'batch_stats'"):
        fit({})
    assert fit({"statistics": moved}).params["batch_stats"]["mean"] == 3.0


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"train": 5}, "train"), ({"valid": 5}, "valid"), ({"valid": None}, "valid"),
        ({"monitor": "half"}, "monitor"), ({"ema_decay": 0.5}, "ema_decay"),
        ({"eval_every": 2}, "eval_every"), ({"micro_batches": 2}, "micro_batches"),
        ({"metrics": lambda params, batch, key: {"loss": params["w"][0]}}, "compiled.metrics"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_a_run_goes_on_only_with_what_it_was_started_with(tmp_path, changes, name):
    def loss(params, batch, key):
        error = jnp.mean((params["w"] - batch["a"]) ** 2)
        return error, {"half": error / 2}

    def fit(epochs, train=0, valid=0, **options):
        sets = []
        for changed in (train, valid):
            samples = np.arange(8, dtype=np.float32)[:, None]
            samples[6] += changed or 0  # not in the first batch of either
            sets.append(egnn.ArrayDataset({"a": samples}).loader(2, seed=3))
        sets[1] = None if valid is None else sets[1]
        return egnn.fit(
            loss, {"w": jnp.ones(1)}, *sets, optax.sgd(0.1), epochs=epochs, folder=tmp_path,
            callbacks=(), **options,
        )  # fmt: skip

    before = fit(2)
    for epochs in (2, 4):
        with pytest.raises(ValueError, match=rf"holds a run of other settings .*{name} "):
            fit(epochs, **changes)
    assert fit(2).params["w"] == before.params["w"]


def custom_vjp(scale):
    function = jax.custom_vjp(lambda w: w)
    function.defvjp(lambda w: (w, None), lambda _, t: (scale * t,))
    return function


def custom_jvp(scale):
    function = jax.custom_jvp(lambda w: w)
    function.defjvp(lambda w, t: (w[0], scale * t[0]))
    return function


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda c: {"optimizer": optax.inject_hyperparams(optax.sgd)(c)}, "initial_optimizer"),
        (lambda c: {"of": jax.jit(lambda w: w * np.float32([c, c]).sum())}, "loss"),
        (lambda c: {"of": jax.jit(lambda w: w * jnp.array([c, c]).sum())}, "loss"),
        (lambda c: {"of": jax.checkpoint(jax.jit(lambda w: w * np.full(3, c).mean()))}, "loss"),
        (lambda c: {"of": custom_vjp(c)}, "loss"),
        (lambda c: {"of": custom_jvp(c)}, "loss"),
        (lambda c: {"callbacks": [egnn.EarlyStopping(10 * c)]}, "patience"),
    ],
)
def test_what_hides_in_functions_counts_too(tmp_path, make, name):
    loader = egnn.ArrayDataset({"a": np.arange(4, dtype=np.float32)[:, None]}).loader(2)
    key = jax.random.key(3)

    def fit(c, **options):
        given = make(c)
        of = given.pop("of", lambda w: w)

        def loss(params, batch, _):
            noise = jax.jit(lambda: jax.random.normal(key))()
            return jnp.mean((of(params["w"]) - batch["a"]) ** 2) + noise, {}

        options = {"optimizer": optax.sgd(0.1), "callbacks": ()} | given | options
        return egnn.fit(
            loss, {"w": jnp.ones(3)}, loader, loader, epochs=1, folder=tmp_path, **options
        )

    fit(0.5)
    fit(0.5, chunk_steps=1)
    with pytest.raises(ValueError, match=rf"other settings \(compiled\.{name} "):
        fit(0.25)


def test_an_evaluation_in_parts_has_the_keys_and_samples_of_the_whole(monkeypatch):
    data = egnn.GraphDataset(labelled_graphs(26))

    def loss(params, batch, key):
        real = egnn.graph_mask(batch)
        noise = jax.random.uniform(key, real.shape)
        total = jnp.sum(jnp.where(real, batch.globals.y[:, 0] * noise, 0))
        return total, {"noisy": (total, jnp.sum(real)), "largest": (noise.max(), 1)}

    whole = egnn.evaluate(loss, {}, data.loader(4), seed=1)
    monkeypatch.setattr(evaluation, "MAX_CHUNK_BYTES", 3_000)
    parts = evaluation.Evaluation(evaluation.metrics_of(loss), data.loader(4), seed=1)
    assert 1 < parts._chunk_size < 7, "of seven batches, some at once, and a rest"
    assert {k: float(v) for k, v in parts({}).items()} == pytest.approx(whole, rel=1e-6)
    monkeypatch.setattr(evaluation, "MAX_CHUNK_BYTES", 1)
    assert egnn.evaluate(loss, {}, data.loader(4), seed=1) == pytest.approx(whole, rel=1e-6)


def test_memory_is_freed_after_each_compilation_of_a_training(monkeypatch):
    freed = []
    monkeypatch.setattr(distributed, "free_heaps", lambda: freed.append(True))
    fit(valid=None)
    assert freed
    freed.clear()
    jax.jit(lambda x: x + 1).lower(1.0).compile()
    assert not freed


def test_a_device_without_samples_does_not_count():
    """One graph on two devices, with a loss that divides 0 by 0 on the other."""
    graph = egnn.complete_graph(np.eye(3), y=np.array([2.0]))
    data = egnn.GraphDataset([graph])

    def loss(params, batch, key):
        real = egnn.graph_mask(batch)[:, None]
        total = jnp.sum(jnp.where(real, params["w"] * batch.globals.y, 0))
        return total / jnp.sum(real), {"total": (total, jnp.sum(real))}

    found = egnn.evaluate(loss, {"w": jnp.array(3.0)}, data.loader(4))
    assert found == {"loss": 6.0, "total": 6.0}


def test_large_batches_are_packed_in_short_chunks_with_the_same_numbers(monkeypatch):
    whole = fit()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(Regression().batches(0, 0, 1)))
    asked: list[int] = []

    class Counting(Regression):
        def batches(self, epoch, start, count, shards=1):
            asked.append(count)
            return super().batches(epoch, start, count, shards)

    monkeypatch.setattr(loop, "MAX_CHUNK_BYTES", 2 * size)
    short = fit(train=Counting())
    assert max(asked) <= 2
    np.testing.assert_array_equal(short.params["w"], whole.params["w"])


def test_names_do_not_run_together_in_a_checksum():
    leaves = [np.zeros(2) for _ in range(10)]
    trees = [{"w": [*leaves, np.full(2, value)], "w1": [np.ones(2)]} for value in (3.0, 4.0)]
    assert digest_of_arrays(trees[0]) != digest_of_arrays(trees[1])
