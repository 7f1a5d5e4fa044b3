"""How graphs share batches: near edges, little padding, and no loss from trimming it."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax.data._packing import edges_within, trimmed

SIZES = np.array([3, 1, 5, 2, 4, 4])


def of_kinds(sizes):
    nodes = egnn.Nodes(h=np.arange(np.sum(sizes)), x=None)
    return egnn.GraphDataset.from_arrays(np.asarray(sizes), nodes)


def test_only_near_nodes_send_to_each_other(rng):
    x = rng.standard_normal((SIZES.sum(), 3))
    lists = edges_within(SIZES, x, cutoff=1.5, block=40)
    whole = edges_within(SIZES, x, cutoff=1.5)
    jax.tree.map(np.testing.assert_array_equal, lists, whole)
    graphs = egnn.GraphDataset.from_arrays(SIZES, egnn.Nodes(h=None, x=x), edge_lists=lists)
    packed = graphs.pack(np.array([2, 5, 1, 0]))
    real = int(packed.n_edge[:-1].sum())
    got = set(zip(packed.senders[:real].tolist(), packed.receivers[:real].tolist(), strict=True))
    graph = np.repeat(np.arange(5), packed.n_node)[:-1]
    places = packed.nodes.x[: len(graph)]
    near = np.linalg.norm(places[:, None] - places[None], axis=-1) <= 1.5
    assert got == {
        (j, i)
        for i, j in np.argwhere(near & (graph[:, None] == graph)).tolist()
        if i != j and graph[i] < 4
    }
    assert 0 < real < np.sum(SIZES[[2, 5, 1, 0]] * (SIZES[[2, 5, 1, 0]] - 1))
    assert (np.diff(packed.receivers) >= 0).all()
    assert lists[1].dtype == np.uint8
    assert graphs[2].senders.dtype == np.int32


@pytest.mark.parametrize(
    ("steps", "batch", "shards"), [(20, 8, 1), (20, 8, 2), (10, 16, 4), (1, 7, 1), (160, 1, 1)]
)
def test_batches_hold_every_graph_once_and_fit_with_little_waste(rng, steps, batch, shards):
    sizes = rng.integers(3, 30, steps * batch + batch - 1)
    graphs = of_kinds(sizes)
    epoch = rng.permutation(len(sizes))[: steps * batch]
    rows = graphs.arrange(epoch, steps, shards, np.random.default_rng(1))
    assert rows.shape == (steps, shards, batch // shards)
    assert sorted(rows.ravel()) == sorted(epoch)
    edges = (sizes * (sizes - 1))[rows].sum(axis=-1)
    budget = graphs.budgets(batch // shards, shards)[-1]
    assert edges.max() <= budget.n_edge
    assert graphs.pack(rows).senders.shape[-1] == budget.n_edge
    if steps > 1 and batch > 1:
        plain = (sizes * (sizes - 1))[epoch.reshape(rows.shape)].sum(axis=-1)
        assert edges.std() < plain.std() / 2
    other = graphs.arrange(epoch, steps, shards, np.random.default_rng(2))
    assert steps == 1 or (rows != other).any()


@pytest.mark.parametrize("shards", [1, 3])
def test_graphs_with_as_many_edges_and_other_numbers_of_nodes_fit(shards):
    """Which of them are in one batch, chance says."""
    data = egnn.GraphDataset(
        [egnn.radius_graph(10.0 * np.eye(n, 40), 1.0) for n in [40] * 3 + [1] * 33]
    )
    (budget,) = data.budgets(3, shards)
    loader = data.loader(3 * shards)
    for epoch in (None, *range(50)):
        assert loader.batches(epoch, 0, 4, shards).nodes.x.shape[2] == budget.n_node


def test_all_shards_have_one_shape_where_a_batch_does_not_fit():
    """Whichever a process packs of them."""
    graphs = [egnn.complete_graph(x=np.zeros((n, 3))) for n in [2] * 30 + [9] * 2]
    data = egnn.GraphDataset(graphs)
    rows = np.array([[[0, 1], [30, 31]]])
    whole = data.pack(rows)
    assert whole.nodes.x.shape[2] > data.budgets(2, 2)[-1].n_node
    for k in range(2):
        part = data.pack(rows, slice(k, k + 1))
        jax.tree.map(
            lambda a, b, k=k: np.testing.assert_array_equal(a, b[:, k : k + 1]), part, whole
        )


def test_a_loader_is_random_access_and_reaches_every_graph(rng):
    sizes = rng.integers(2, 9, 37)
    loader = of_kinds(sizes).loader(8, seed=5)
    assert (loader.num_batches(0), loader.num_batches(None)) == (4, 5)
    whole = loader.batches(2, 0, 4, shards=2)
    alone = of_kinds(sizes).loader(8, seed=5).batches(2, 3, 1, shards=2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3], b[0]), whole, alone)
    other = loader.rows(3), of_kinds(sizes).loader(8, seed=6).rows(2)
    assert all((rows != loader.rows(2)).any() for rows in other)
    every = loader.batches(None, 0, 5)
    mask = jax.vmap(jax.vmap(egnn.node_mask))
    every = every._replace(nodes=every.nodes.replace(x=np.float32(every.nodes.h[..., None])))
    assert sorted(every.nodes.h[np.asarray(mask(every))]) == list(range(sizes.sum()))


def test_trimmed_changes_neither_value_nor_gradient(x64, rng):
    sizes = rng.integers(2, 12, 200)
    graphs = egnn.GraphDataset.from_arrays(
        sizes,
        egnn.Nodes(h=rng.standard_normal((sizes.sum(), 1)), x=np.zeros((sizes.sum(), 1))),
        egnn.Edges(a=rng.standard_normal((np.sum(sizes * (sizes - 1)), 1))),
    )
    model = egnn.GNN(features=4, layers=1, coordinates=False)
    batches = graphs.pack(rng.integers(0, 200, (20, 1)))
    seen = set()

    def loss(params, batch, key):
        seen.add(batch.senders.shape[0])
        squares = model.apply(params, batch).nodes.h ** 2
        total = jnp.sum(jnp.where(egnn.node_mask(batch)[:, None], squares, 0))
        return total * jax.random.normal(key)

    params = model.init(jax.random.key(0), jax.tree.map(itemgetter(0), batches))
    key = jax.random.key(1)
    assert len(graphs.budgets(1)) > 1
    fast = jax.jit(jax.value_and_grad(trimmed(loss, graphs.budgets(1))))
    plain = jax.jit(jax.value_and_grad(loss))
    for k in range(20):
        batch = jax.tree.map(itemgetter(k), batches)
        want = plain(params, batch, key)
        for a, b in zip(
            jax.tree.leaves(fast(params, batch, key)), jax.tree.leaves(want), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    assert seen == {budget.n_edge for budget in graphs.budgets(1)}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64])
def test_narrow_edge_ends_are_counted_on_in_a_batch(dtype):
    """Their sums with the first node of a graph are larger than their type holds."""
    sizes = np.full(20_000, 2)
    ends = np.tile(np.array([0, 1], dtype), len(sizes))
    lists = np.full(len(sizes), 2), ends[::-1], ends
    nodes = egnn.Nodes(h=None, x=np.zeros((40_000, 3)))
    graphs = egnn.GraphDataset.from_arrays(sizes, nodes, edge_lists=lists)
    for number in (100, len(sizes)):
        packed = graphs.pack(np.arange(number))
        assert packed.receivers.dtype == packed.senders.dtype == np.promote_types(dtype, np.int32)
        np.testing.assert_array_equal(packed.receivers, np.arange(2 * number))
        np.testing.assert_array_equal(packed.senders, np.arange(2 * number) ^ 1)


@pytest.mark.parametrize("dtype", [float, bool])
def test_edge_ends_that_are_no_whole_numbers_are_refused(dtype):
    ends = np.array([0, 1], dtype)
    nodes = egnn.Nodes(h=None, x=np.zeros((2, 3)))
    with pytest.raises(
        ValueError, match=r"senders are (float64|bool) of shape \(2,\); expected wh"
    ):
        egnn.GraphDataset.from_arrays(np.array([2]), nodes, edge_lists=(np.array([2]), ends, ends))
