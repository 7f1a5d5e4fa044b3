"""LieConv: sums in both ways, running statistics in training, and random turns."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from scipy.spatial.transform import Rotation

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.experiments.qm9 import QM9
from egnn_jax.models import lieconv
from egnn_jax.nn import products
from egnn_jax.nn.batch_norm import BatchNorm
from egnn_jax.nn.dense import dense_layout
from egnn_jax.training.state import init_state
from egnn_jax.training.step import make_step

TASK = QM9(train_size=500)


def loops(graph, w, t):
    sums = np.zeros((len(t), w.shape[1], t.shape[1]))
    for edge, (i, j) in enumerate(zip(graph.receivers, graph.senders, strict=True)):
        sums[i] += np.outer(w[edge], t[j])
    return sums + w[len(graph.senders) :, :, None] * t[:, None]


@pytest.mark.parametrize("sizes", [(5, 1, 7), (40, 3)], ids=["small", "large"])
def test_sums_by_matrices_and_by_edges_are_the_same(x64, sizes):
    graph = testing.random_graph(sizes=sizes)  # padded
    rng = np.random.default_rng(0)
    number = len(graph.nodes.h)
    w, t = rng.normal(size=(len(graph.senders) + number, 3)), rng.normal(size=(number, 4))
    wanted = loops(graph, w, t)
    real = slice(sum(sizes))
    got = jax.jit(products.sum_of_products)(graph, jnp.asarray(w), jnp.asarray(t))
    np.testing.assert_allclose(got[real], wanted[real], atol=1e-12)
    if max(sizes) <= products.MAX_DENSE_NODES:
        by_matrices = partial(
            products._by_matrices, graph, dense_layout(graph, products.MAX_DENSE_NODES)
        )
        for way in (by_matrices, partial(products._by_edges, graph)):
            found = way(jnp.asarray(w), jnp.asarray(t))
            np.testing.assert_allclose(found[real], wanted[real], atol=1e-12)
    t[: sizes[0]] = np.nan  # stays in its graph
    others = slice(sizes[0], sum(sizes))
    got = jax.jit(products.sum_of_products)(graph, jnp.asarray(w), jnp.asarray(t))
    np.testing.assert_allclose(got[others], wanted[others], atol=1e-12)


def test_a_batch_is_normalised_by_its_real_rows(x64):
    x = np.random.default_rng(0).normal(3, 2, size=(20, 4))
    real = np.arange(20) < 13
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    np.testing.assert_allclose(norm.apply(variables, x), x, rtol=1e-12)  # mean 0, variance 1
    y, moved = norm.apply(variables, jnp.asarray(x), real, mutable=["batch_stats"])
    kept = x[real]
    np.testing.assert_allclose(y, (x - kept.mean(0)) / kept.std(0), rtol=1e-10)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.1 * kept.mean(0))
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 + 0.1 * kept.var(0, ddof=1))


def test_rotations_are_those_of_float32_in_float64_too(x64):
    model = egnn.LieConv(features=4, layers=1, kernel_features=4, lifts=2).bind({})
    found = model._orientations(jnp.zeros((3, 3)))
    with jax.enable_x64(False):
        in_float32 = model._orientations(jnp.zeros((3, 3)))
    assert (found.dtype, in_float32.dtype) == (jnp.float64, jnp.float32)
    np.testing.assert_allclose(found, in_float32, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-15)


def built(independent=False, **options):
    task = dataclasses.replace(TASK, independent=independent, **options)
    network = task.network(egnn.LieConv(features=16, layers=1, kernel_features=8))
    batch = task.samples("train").pack(np.arange(6).reshape(2, 3))
    first = jax.tree.map(lambda a: a[0], batch)
    variables = network.init(jax.random.key(0), task.graph(first))
    return task, network, batch, variables


@pytest.mark.slow
@pytest.mark.parametrize("independent", [False, True])
def test_a_step_moves_the_statistics_as_its_micro_batches_do(independent):
    task, network, batch, variables = built(independent)
    optimizer = optax.adam(1e-2)
    state = init_state(variables, optimizer, False, jax.random.PRNGKey(0))
    step = make_step(task.loss(network.apply), optimizer, micro_batches=2)
    after, _ = step(state, batch)
    each = []
    for k in range(2):
        graph = task.graph(jax.tree.map(lambda a, k=k: a[k], batch))
        each.append(network.apply(variables, graph, mutable=["batch_stats"])[1]["batch_stats"])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *each)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        after.params["batch_stats"],
        mean,
    )
    change = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), variables["params"], after.params["params"]
    )
    assert max(jax.tree.leaves(change)) > 1e-3
    predicted = task.predict(network.apply, after.params, jax.tree.map(lambda a: a[0], batch))
    alone = task.samples("train").pack(np.array([1, -1, -1]))
    np.testing.assert_allclose(
        task.predict(network.apply, after.params, alone)[0], predicted[1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_turning_molecules_changes_the_loss_of_what_is_not_equivariant():
    turned = dataclasses.replace(TASK, augment=True)
    for model, changes in (
        (egnn.LieConv(features=16, layers=1), True),
        (egnn.EGNN(8, 1, update_coordinates=False), False),
    ):
        network = TASK.network(model)
        batch = TASK.samples("train").pack(np.arange(4))
        variables = testing.randomise_parameters(
            jax.eval_shape(network.init, jax.random.key(0), TASK.graph(batch))
        )
        losses = [
            float(task.loss(network.apply)(variables, batch, jax.random.key(k))[0])
            for task in (TASK, turned)
            for k in (0, 1)
        ]
        assert losses[0] == losses[1]
        assert (abs(losses[2] - losses[0]) > 1e-4 * losses[0]) == changes
        assert (abs(losses[3] - losses[2]) > 1e-4 * losses[0]) == changes


def test_half_of_the_molecules_are_reflected():
    """A network that reads a chirality sees both signs, and only with ``reflect``."""

    def chirality(params, graph):
        first = graph.nodes.x[jnp.cumsum(graph.n_node)[:-1, None] - jnp.arange(1, 4)]
        y = jnp.sign(jnp.linalg.det(first))
        return graph._replace(globals=graph.globals.replace(y=jnp.append(y, 0.0)[:, None]))

    batch = TASK.samples("train").pack(np.arange(4))
    x = np.random.default_rng(0).normal(size=batch.nodes.x.shape).astype(np.float32)
    batch = batch._replace(nodes=batch.nodes.replace(x=x))
    batch = batch._replace(globals=batch.globals.replace(y=np.full((5, 1), 2.0, np.float32)))
    plain = float(TASK.loss(chirality)({}, batch, jax.random.key(0))[0])
    values = {True: set(), False: set()}
    for reflect, found in values.items():
        loss = jax.jit(dataclasses.replace(TASK, augment=True, reflect=reflect).loss(chirality))
        for k in range(100):
            found.add(round(float(loss({}, batch, jax.random.key(k))[0]), 4))
    assert values[False] == {round(plain, 4)}
    assert values[True] == {1.0, 1.5, 2.0, 2.5, 3.0}  # 4, 3, 2, 1 and 0 of one sign
    with pytest.raises(ValueError, match=r"task.reflect is true and task.augment false"):
        dataclasses.replace(TASK, reflect=True)


def of_frames(rotation):
    """A rotation (3, 3) as a quaternion."""
    x, y, z, s = Rotation.from_matrix(rotation).as_quat()
    return jnp.asarray([s, x, y, z])


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 0.59, 0.61, 3.0, np.pi - 1e-9])
def test_logarithms_of_pairs_are_those_of_matrices(x64, angle):
    rng = np.random.default_rng(0)
    first = Rotation.random(random_state=1)
    axis = rng.normal(size=3)
    second = first * Rotation.from_rotvec(angle * axis / np.linalg.norm(axis))
    x = rng.normal(size=(2, 3))
    elements = []
    for rotation, position in zip((first, second), x, strict=True):
        elements.append(np.eye(4))
        elements[-1][:3, :3], elements[-1][:3, 3] = rotation.as_matrix(), position
    of = [of_frames(rotation.as_matrix())[None, None] for rotation in (first, second)]
    got = lieconv._logarithms(of[1], of[0], jnp.asarray(x[1] - x[0])[None])[0, 0, 0]
    omega, v = np.asarray(got[:3]), got[3:]
    algebra = np.zeros((4, 4))
    algebra[:3, :3], algebra[:3, 3] = np.cross(np.eye(3), omega), v
    wanted = np.linalg.inv(elements[0]) @ elements[1]
    np.testing.assert_allclose(scipy.linalg.expm(algebra), wanted, atol=1e-12)
    assert np.linalg.norm(omega) <= np.pi + 1e-12


def test_rotations_are_the_same_in_each_call_or_of_a_key():
    graph = testing.random_graph(n=3)
    model = egnn.LieConv(features=32, layers=1, lifts=2)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    h = lambda rngs: model.apply(params, graph, rngs=rngs).nodes.h
    first, again, other = (h({"orientations": jax.random.key(k)}) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(h(None), h(None))


@pytest.mark.parametrize(
    ("options", "n", "message"),
    [
        ({"features": 3}, 3, "features is 3; expected at least 4"),
        ({"lifts": -1}, 3, "lifts is -1; expected at least 0"),
        ({"lifts": 2}, 2, r"x has 2 coordinates; expected 3 with lifts to SE\(3\)"),
    ],
)
def test_what_makes_no_sense_is_refused(options, n, message):
    with pytest.raises(ValueError, match=message):
        egnn.LieConv(**options).init(jax.random.key(0), testing.random_graph(n=n))
