"""One optimizer step and what surrounds it: losses, exact arithmetic, devices, schedules."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.optimizer import Optimizer
from egnn_jax.training import step
from egnn_jax.training.distributed import make_mesh
from egnn_jax.training.evaluation import Evaluation, metrics_of
from egnn_jax.training.loop import Plan, Training
from egnn_jax.training.state import init_state
from egnn_jax.training.step import make_step, make_train
from tests.helpers import first, tiny


def parts(config):
    """The network, optimizer, two batches (2, 100, …) and the first state of an experiment."""
    network = config.network()
    optimizer = config.optimizer.build(2, 8)
    batches = config.task.samples("train").pack(np.arange(200).reshape(2, 100))
    graph = config.task.graph(jax.tree.map(lambda a: a[0], batches))
    init, key = jax.random.split(jax.random.PRNGKey(0))
    params = network.init(init, graph)
    return network, optimizer, batches, init_state(params, optimizer, config.ema_decay > 0, key)


def value(task, apply, params, batch, key):
    return task.loss(apply)(params, batch, key)[0]


def test_the_loss_is_the_mean_square_or_hubers():
    network, _, batches, state = parts(tiny())
    batch = jax.tree.map(lambda a: a[0], batches)
    predicted = NBody().predict(network.apply, state.params, batch)
    error = np.abs(np.asarray(predicted) - batch.target)
    key = jax.random.key(0)
    np.testing.assert_allclose(
        value(NBody(), network.apply, state.params, batch, key), np.mean(error**2), rtol=1e-5
    )
    huber = np.where(error < 0.3, error**2 / 2, 0.3 * (error - 0.15))
    np.testing.assert_allclose(
        value(NBody(huber=0.3), network.apply, state.params, batch, key), huber.mean(), rtol=1e-5
    )


def test_augmentation_turns_inputs_and_targets_alike():
    network, _, batches, state = parts(tiny())  # equivariant, so that only a wrong turn would show
    batch, keys = jax.tree.map(lambda a: a[0], batches), jax.random.split(jax.random.key(0))
    plain = value(NBody(), network.apply, state.params, batch, keys[0])
    still = lambda params, graph: graph  # predicts the input
    straight = lambda params, graph: graph._replace(
        nodes=graph.nodes.replace(x=graph.nodes.x * jnp.array([1.0, 0.0, 0.0]))
    )
    turned = NBody(augment=True)
    for key in keys:
        got = value(turned, network.apply, state.params, batch, key)
        np.testing.assert_allclose(got, plain, rtol=1e-5)
        np.testing.assert_allclose(
            value(turned, still, None, batch, key),
            value(NBody(), still, None, batch, key),
            rtol=1e-5,
        )
    values = [float(value(turned, straight, None, batch, key)) for key in keys]
    assert len({*values, float(value(NBody(), straight, None, batch, keys[0]))}) == 3


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_one_step_equals_a_hand_written_one(x64, name):
    config = tiny(optimizer={"name": name, "learning_rate": 1e-2, "weight_decay": 0.1})
    network, optimizer, batches, state = parts(config)
    batch = jax.tree.map(lambda a: jnp.asarray(a[0], jnp.float64), batches)
    state = jax.tree.map(
        lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, state
    )
    loss = config.task.loss(network.apply)
    after, found = make_step(loss, optimizer, 0.9)(state, batch)

    @jax.jit
    @jax.value_and_grad
    def mse(params):
        predicted = network.apply(params, config.task.graph(batch)).nodes.x
        return jnp.mean((predicted - batch.target.reshape(-1, 3)) ** 2)

    value, gradient = mse(state.params)
    np.testing.assert_allclose(found, value, rtol=1e-12)

    def hand(p, g):
        decayed = g + 0.1 * p if name == "adam" else g
        move = decayed / (jnp.abs(decayed) + 1e-8)  # Adam's first step: m / sqrt(v), both unbiased
        return p - 1e-2 * (move if name == "adam" else move + 0.1 * p)

    expected = jax.tree.map(hand, state.params, gradient)
    # optax corrects its bias in float32
    chex.assert_trees_all_close(after.params, expected, rtol=1e-6, atol=1e-8)
    # The average starts with a memory of (1 + 0) / (10 + 0).
    mixed = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, state.params, expected)
    chex.assert_trees_all_close(after.average, mixed, rtol=1e-6, atol=1e-8)
    assert after.step == 1


def test_amsgrad_equals_that_of_pytorch(x64):
    """Whose maximum is over second moments without bias correction."""
    gradients = np.array([[8.0, -0.5], [0.1, 0.7], [-0.2, 0.3], [0.05, -0.01]])
    optimizer = Optimizer(name="amsgrad", learning_rate=0.1).build(10, 40)
    params = jnp.array([2.0, 1.0])
    state = optimizer.init(params)
    expected = np.array(params)
    m = v = largest = np.zeros(2)
    for t, g in enumerate(gradients, start=1):
        updates, state = optimizer.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        largest = np.maximum(largest, v)
        deviation = np.sqrt(largest) / np.sqrt(1 - 0.999**t) + 1e-8
        expected = expected - 0.1 * m / (1 - 0.9**t) / deviation
    # optax corrects the bias of m in float32
    np.testing.assert_allclose(params, expected, rtol=1e-6)


def test_any_optimizer_of_optax_that_takes_a_learning_rate_is_built():
    params = {"w": jnp.full((3,), 2.0)}
    gradient = {"w": jnp.array([1.0, -2.0, 0.5])}
    for name, expected in (("sgd", gradient["w"]), ("lion", jnp.sign(gradient["w"]))):
        optimizer = Optimizer(name=name, learning_rate=0.1).build(10, 40)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        np.testing.assert_allclose(updates["w"], -0.1 * expected, rtol=1e-6)


def over(groups, batches):
    """Batches (K, B, …) as (K, groups, B / groups, …)."""
    return jax.tree.map(lambda a: a.reshape(len(a), groups, -1, *a.shape[2:]), batches)


@pytest.mark.parametrize(
    ("micro", "large"),
    [(1, step.LARGE), (5, step.LARGE), (1, 4)],
    ids=["1", "5", "exchanged alone"],
)
def test_a_batch_spread_over_two_devices_is_the_same_step(micro, large, monkeypatch):
    monkeypatch.setattr(step, "LARGE", large)
    config = tiny(ema_decay=0.0)
    network, optimizer, batches, state = parts(config)
    loss = config.task.loss(network.apply)
    assert make_mesh(20).size == 2
    assert make_mesh(5).size == 1
    alone = make_step(loss, optimizer)
    together = make_train(make_step(loss, optimizer, 0.0, make_mesh(20), micro), 1, make_mesh(20))
    expected = jax.lax.scan(alone, state, batches)
    got = together(state, over(2 * micro, batches))
    chex.assert_trees_all_close(got[1], expected[1], rtol=1e-6)
    chex.assert_trees_all_close(got[0].params, expected[0].params, rtol=1e-4, atol=1e-6)


def test_the_state_is_donated_and_steps_compile_once():
    config = tiny()
    network, optimizer, batches, state = parts(config)
    step = make_step(config.task.loss(network.apply), optimizer, 0.9)
    train = make_train(chex.assert_max_traces(step, n=1), 1, make_mesh(5))
    for _ in range(3):
        before, (state, _) = state, train(state, over(1, batches))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))


@pytest.mark.parametrize("half_periods", [1, 3])
def test_schedules_count_steps_once(half_periods):
    schedule = {"schedule": "cosine", "half_periods": half_periods, "warmup_epochs": 1}
    optimizer = Optimizer(learning_rate=1.0, clip_norm=1.0, **schedule).build(10, 40)
    params = {"w": jnp.ones(())}
    state = optimizer.init(params)
    sizes = []
    for _ in range(40):
        updates, state = optimizer.update({"w": jnp.ones(())}, state, params)
        sizes.append(-float(updates["w"]))
    falling = 0.5 * (1 + np.cos(half_periods * np.pi * np.arange(30) / 30))
    np.testing.assert_allclose(sizes, [*np.arange(10) / 10, *falling], atol=1e-4)


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.55), ("exponential", 0.1**0.5)])
def test_schedules_end_at_a_share_of_the_first_rate(schedule, middle):
    optimizer = Optimizer(name="sgd", learning_rate=2.0, schedule=schedule, final=0.1).build(10, 40)
    params = {"w": jnp.ones(())}
    state = optimizer.init(params)
    sizes = []
    for _ in range(41):
        updates, state = optimizer.update({"w": jnp.ones(())}, state, params)
        sizes.append(-float(updates["w"]) / 2)
    np.testing.assert_allclose([sizes[0], sizes[20], sizes[40]], [1, middle, 0.1], rtol=1e-4)


def test_a_plateau_halves_the_rate():
    """Epochs of 2 steps with mean losses 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1: 2 and 1 are no better."""
    optimizer = Optimizer(
        name="sgd", learning_rate=1.0, schedule="plateau", plateau_epochs=2, final=0.2
    ).build(2, 22)
    params = {"w": jnp.ones(())}
    state, sizes = optimizer.init(params), []
    for loss in (3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1):
        for noise in (0.5, -0.5):
            updates, state = optimizer.update(
                {"w": jnp.ones(())}, state, params, value=jnp.float32(loss + noise)
            )
            sizes.append(-float(updates["w"]))
    np.testing.assert_allclose(sizes[:7], 1)  # the 8th step ends the second epoch without progress
    np.testing.assert_allclose(sizes[7:15], 0.5)  # so does the 16th
    np.testing.assert_allclose(sizes[15:19], 0.25)
    np.testing.assert_allclose(sizes[19:], 0.2)
    with pytest.raises(ValueError, match=r"optimizer.plateau_epochs is 0; expected at least 1"):
        Optimizer(schedule="plateau", plateau_epochs=0)
    with pytest.raises(ValueError, match=r"plateau_epochs is 3 where .* 'cosine', which does not"):
        Optimizer(schedule="cosine", plateau_epochs=3)


@pytest.mark.parametrize(("schedule", "final"), [("cosine", -0.1), ("exponential", 0.0)])
def test_a_last_rate_that_makes_no_sense_is_refused(schedule, final):
    with pytest.raises(ValueError, match=f"optimizer.final is {final}; expected .* to 1"):
        Optimizer(schedule=schedule, final=final)


def test_evaluation_counts_padding_rows_as_nothing():
    config = tiny(batch_size=130)  # 2,000 is no multiple of 130
    network, _, _, state = parts(tiny())
    loader = config.task.samples("test").loader(130)
    metrics = config.task.metrics(network.apply)
    whole = Evaluation(metrics, loader)(state.params)["mse"]
    batch = config.task.samples("test").pack(np.arange(2_000))
    predicted = np.asarray(config.task.predict(network.apply, state.params, batch))
    np.testing.assert_allclose(whole, np.mean((predicted - batch.target) ** 2), rtol=1e-5)


def test_each_epoch_sees_every_sample_once_in_another_order():
    config = tiny(task={"name": "nbody", "train_size": 200})
    network, optimizer, _, state = parts(config)
    samples = config.task.samples("train")
    loader = samples.loader(100, seed=0)
    plan = Plan(loader, None, epochs=4, eval_every=2, chunk_steps=4)
    loss = config.task.loss(network.apply)
    training = Training(plan, loss, state.params, optimizer, metrics_of(loss), None, ())
    epochs = np.asarray(training._pack(0).x).reshape(2, 200, -1)  # one chunk is two epochs here
    wanted = samples.arrays.x.reshape(200, -1)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(wanted, axis=0))
    assert (epochs[0] != epochs[1]).any()
    # Random access: batch 1 of epoch 1 alone, by another loader.
    alone = first(samples.loader(100, seed=0).batches(1, 1, 1))
    np.testing.assert_array_equal(alone.x.reshape(100, -1), epochs[1][100:])
