from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax.data.dataset import GraphSet, ends_within, trimmed
from egnn_jax.graph.build import complete_edges
from egnn_jax.graph.graph import Nodes

SIZES = np.array([3, 1, 5, 2, 4, 4])


@pytest.fixture
def graphs(rng):
    nodes = {"h": rng.standard_normal((SIZES.sum(), 2)), "x": rng.standard_normal((SIZES.sum(), 3))}
    return GraphSet(SIZES, nodes, rng.standard_normal((np.sum(SIZES * (SIZES - 1)), 1))), nodes


def single(graphs, nodes, k):
    rows = slice(SIZES[:k].sum(), SIZES[: k + 1].sum())
    first = np.sum(SIZES[:k] * (SIZES[:k] - 1))
    edges = graphs._edges[first : first + SIZES[k] * (SIZES[k] - 1)]
    return egnn.complete_graph(x=nodes["x"][rows], h=nodes["h"][rows], a=edges)


@pytest.mark.parametrize("rows", [[[0, 1, 2]], [[5, 4, 3], [2, 2, 2], [0, -1, 1], [-1, -1, -1]]])
def test_a_batch_is_jraphs(x64, graphs, rows):
    graphs, nodes = graphs
    rows = np.array(rows)
    packed = graphs.pack(rows)
    assert packed.senders.shape == (*rows.shape[:1], graphs.budgets(3)[-1].n_edge)
    for k, row in enumerate(rows):
        got = jax.tree.map(itemgetter(k), packed)
        got = got._replace(nodes=Nodes(**got.nodes))
        assert (np.diff(got.receivers) >= 0).all()
        assert int(got.n_node.sum()) == len(got.nodes.h)
        assert int(got.n_edge.sum()) == len(got.senders)
        kept = [number for number in row if number >= 0]
        if not kept:
            assert (got.senders == 0).all()
            continue
        budget = egnn.Budget(len(got.nodes.h), len(got.senders), len(kept) + 1)
        want = egnn.batch([single(graphs, nodes, number) for number in kept], budget)
        for a, b in zip(
            jax.tree.leaves(got._replace(n_node=0, n_edge=0)),
            jax.tree.leaves(want._replace(n_node=0, n_edge=0)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(got.n_node[:-1][row >= 0], want.n_node[:-1])
        np.testing.assert_array_equal(
            np.asarray(egnn.edge_mask(got)), np.asarray(egnn.edge_mask(want))
        )


def test_a_batch_too_large_for_the_budget_loses_nothing():
    sizes = np.array([2] * 400 + [30])
    graphs = GraphSet(sizes, np.arange(sizes.sum()))
    packed = graphs.pack(np.array([[400] * 40]))
    assert packed.n_node[0, :40].tolist() == [30] * 40
    assert packed.nodes.shape == (1, 40 * 30 + 1)
    assert graphs.budgets(40)[-1].n_node < 40 * 30


def test_one_large_graph_takes_the_memory_of_one():
    graphs = GraphSet(np.array([400]), np.arange(400))
    assert [len(ends) for ends in graphs._ends] == [400 * 399] * 2
    packed = graphs.pack(np.array([0]))
    np.testing.assert_array_equal(np.stack([packed.senders, packed.receivers]), complete_edges(400))


def test_leading_axes_are_kept(graphs):
    packed = graphs[0].pack(np.zeros((2, 3, 4), int))
    assert all(a.shape[:2] == (2, 3) for a in jax.tree.leaves(packed))


def test_what_graphs_carry_comes_along(rng):
    labels = rng.standard_normal((len(SIZES), 2))
    graphs = GraphSet(SIZES, np.arange(SIZES.sum()), globals_=labels)
    packed = graphs.pack(np.array([[4, 0], [-1, 2]]))
    np.testing.assert_array_equal(packed.globals[0], [labels[4], labels[0], [0, 0]])
    np.testing.assert_array_equal(packed.globals[1, 1:], [labels[2], [0, 0]])


def test_only_near_nodes_send_to_each_other(rng):
    x = rng.standard_normal((SIZES.sum(), 3))
    ends = ends_within(SIZES, x, cutoff=1.5, block=4)
    packed = GraphSet(SIZES, x, ends=ends).pack(np.array([2, 5, 1, 0]))
    real = int(packed.n_edge[:-1].sum())
    got = set(zip(packed.senders[:real].tolist(), packed.receivers[:real].tolist(), strict=True))
    graph = np.repeat(np.arange(5), packed.n_node)[:-1]
    places = packed.nodes[: len(graph)]
    near = np.linalg.norm(places[:, None] - places[None], axis=-1) <= 1.5
    assert got == {
        (j, i)
        for i, j in np.argwhere(near & (graph[:, None] == graph)).tolist()
        if i != j and graph[i] < 4
    }
    assert 0 < real < np.sum(SIZES[[2, 5, 1, 0]] * (SIZES[[2, 5, 1, 0]] - 1))
    assert (np.diff(packed.receivers) >= 0).all()


@pytest.mark.parametrize(
    ("steps", "batch", "groups"), [(20, 8, 1), (20, 8, 2), (10, 16, 4), (1, 7, 1), (160, 1, 1)]
)
def test_dealt_batches_hold_every_graph_once_and_fit_with_little_waste(rng, steps, batch, groups):
    sizes = rng.integers(3, 30, steps * batch + batch - 1)
    graphs = GraphSet(sizes, np.arange(sizes.sum()))
    epoch = rng.permutation(len(sizes))[: steps * batch]
    rows = graphs.deal(epoch, steps, groups, np.random.default_rng(1))
    assert rows.shape == (steps, groups, batch // groups)
    assert sorted(rows.ravel()) == sorted(epoch)
    edges = (sizes * (sizes - 1))[rows].sum(axis=-1)
    assert edges.max() <= graphs.budgets(batch // groups, groups)[-1].n_edge
    assert graphs.pack(rows).senders.shape[-1] == graphs.budgets(batch // groups, groups)[-1].n_edge
    if steps > 1 and batch > 1:
        plain = (sizes * (sizes - 1))[epoch.reshape(rows.shape)].sum(axis=-1)
        assert edges.std() < plain.std() / 2
    other = graphs.deal(epoch, steps, groups, np.random.default_rng(2))
    assert steps == 1 or (rows != other).any()


def test_trimmed_changes_neither_value_nor_gradient(x64, rng):
    sizes = rng.integers(2, 12, 200)
    graphs = GraphSet(
        sizes,
        rng.standard_normal((sizes.sum(), 1)),
        rng.standard_normal((np.sum(sizes * (sizes - 1)), 1)),
    )
    model = egnn.GNN(features=4, layers=1, coordinates=False)
    batches = graphs.pack(rng.integers(0, 200, (20, 1)))
    seen = set()

    def loss(params, batch, key):
        seen.add(batch.senders.shape[0])
        graph = batch._replace(nodes=Nodes(h=batch.nodes, x=jnp.zeros_like(batch.nodes)))
        return jnp.sum(
            jnp.where(egnn.node_mask(graph)[:, None], model.apply(params, graph).nodes.h ** 2, 0)
        ) * jax.random.normal(key)

    first = jax.tree.map(lambda a: a[0], batches)
    params = model.init(
        jax.random.key(0), first._replace(nodes=Nodes(h=first.nodes, x=jnp.zeros_like(first.nodes)))
    )
    key = jax.random.key(1)
    assert len(graphs.budgets(1)) > 1
    fast = jax.jit(jax.value_and_grad(trimmed(loss, graphs.budgets(1))))
    for k in range(20):
        batch = jax.tree.map(itemgetter(k), batches)
        want = jax.value_and_grad(loss)(params, batch, key)
        for a, b in zip(
            jax.tree.leaves(fast(params, batch, key)), jax.tree.leaves(want), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    assert seen == {budget.n_edge for budget in graphs.budgets(1)}
