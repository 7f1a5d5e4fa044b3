import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing


def test_complete_graph_has_every_ordered_pair_once_sorted_by_receiver():
    graph = egnn.complete_graph(x=np.zeros((4, 2)))
    pairs = list(zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True))
    assert pairs == [(i, j) for i in range(4) for j in range(4) if i != j]
    assert graph.n_node.tolist() == [4]
    assert graph.n_edge.tolist() == [12]
    np.testing.assert_array_equal(graph.nodes.h, np.ones((4, 1)))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(graph))


def test_adjacency_rows_receive():
    graph = egnn.graph_from_adjacency([[0, 1, 0], [0, 0, 0], [1, 1, 0]], x=np.zeros((3, 3)))
    assert graph.receivers.tolist() == [0, 2, 2]
    assert graph.senders.tolist() == [1, 0, 1]


def test_edges_and_their_attributes_are_sorted_together():
    graph = egnn.graph_from_edges(
        [0, 1, 2, 0], [2, 0, 1, 1], x=np.zeros((3, 1)), a=[[20], [1], [12], [10]]
    )
    assert graph.receivers.tolist() == [0, 1, 1, 2]
    assert (10 * graph.receivers + graph.senders).tolist() == [1, 12, 10, 20]
    assert graph.edges.a[:, 0].tolist() == [1, 12, 10, 20]


def test_batch_and_unbatch_are_inverse_and_padding_is_masked():
    graphs = [testing.random_graph(n, sizes=(n,), padding=False) for n in (3, 1, 5)]
    edges = sum(g.senders.shape[0] for g in graphs)
    padded = egnn.batch(graphs, egnn.Budget(12, edges + 4, 6))
    assert padded.nodes.x.shape == (12, 3)
    assert padded.edges.a.shape[0] == edges + 4
    assert egnn.node_mask(padded).sum() == 9
    assert egnn.edge_mask(padded).sum() == edges
    assert egnn.graph_mask(padded).sum() == 3
    assert (jnp.diff(padded.receivers) >= 0).all()
    for parts in (egnn.unbatch(padded), egnn.unbatch(egnn.batch(graphs))):
        for one, other in zip(parts, graphs, strict=True):
            chex.assert_trees_all_equal(one, other)


def test_readouts_equal_loops():
    graph = testing.random_graph()
    h = np.asarray(graph.nodes.h)
    parts = np.split(h, np.cumsum(graph.n_node)[:-1])
    np.testing.assert_allclose(
        egnn.sum_nodes(graph, graph.nodes.h), [p.sum(0) for p in parts], rtol=1e-6
    )
    means = [p.mean(0) if len(p) else np.zeros(2) for p in parts]
    np.testing.assert_allclose(egnn.mean_nodes(graph, graph.nodes.h), means, rtol=1e-6)


X = np.zeros((3, 2))
NAN = np.array([[0.0, 0.0], [0.0, np.nan], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: egnn.complete_graph(x=np.zeros(3)), r"x has shape \(3,\)"),
        (lambda: egnn.complete_graph(x=1.0), r"x has shape \(\)"),
        (
            lambda: egnn.complete_graph(x=X, h=np.zeros((2, 5))),
            r"h has shape \(2, 5\); expected \(3, any width\)",
        ),
        (
            lambda: egnn.complete_graph(x=X, v=np.zeros((3, 3))),
            r"v has shape \(3, 3\); expected \(3, 2\)",
        ),
        (
            lambda: egnn.complete_graph(x=X, a=np.zeros((5, 1))),
            r"a has shape \(5, 1\); expected \(6, any width\)",
        ),
        (lambda: egnn.complete_graph(x=NAN), "x is nan at row 1, column 1"),
        (lambda: egnn.complete_graph(x=X, v=X + np.inf), "v is inf at row 0, column 0"),
        (lambda: egnn.complete_graph(x=X.astype(str)), "dtype"),
        (
            lambda: egnn.graph_from_adjacency(np.zeros((2, 3)), x=X),
            r"adjacency has shape \(2, 3\); expected \(3, 3\)",
        ),
        (
            lambda: egnn.graph_from_edges([0, 3], [1, 1], x=X),
            "senders holds 3; expected node indices from 0 to 2",
        ),
        (lambda: egnn.graph_from_edges([0], [-1], x=X), "receivers holds -1"),
        (
            lambda: egnn.graph_from_edges([0, 1], [1], x=X),
            "senders has 2 entries but receivers has 1",
        ),
        (lambda: egnn.graph_from_edges([0.5], [1], x=X), "expected a list of integers"),
        (lambda: egnn.batch([]), "no graphs"),
        (lambda: egnn.batch([egnn.complete_graph(x=X), egnn.complete_graph(x=X, v=X)]), "differ"),
        (
            lambda: egnn.batch([egnn.complete_graph(x=X)] * 2, egnn.Budget(6, 20, 3)),
            "graph 1 with 3 nodes and 6 edges does not fit",
        ),
        (
            lambda: egnn.batch([egnn.complete_graph(x=X)], egnn.Budget(9, 5, 3)),
            "graph 0 with 3 nodes and 6 edges",
        ),
        (lambda: egnn.batch([egnn.complete_graph(x=X)] * 2, egnn.Budget(9, 20, 2)), "2 graphs"),
    ],
)
def test_nonsense_is_refused_with_what_was_received(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bfloat16_is_a_type_of_real_numbers():
    graph = egnn.complete_graph(x=X, h=jnp.ones((3, 2), jnp.bfloat16))
    assert graph.nodes.h.dtype == jnp.bfloat16


def test_graphs_are_built_inside_differentiated_functions():
    def energy(x):
        graph = egnn.complete_graph(x=x)
        return jnp.sum((graph.nodes.x[graph.receivers] - graph.nodes.x[graph.senders]) ** 2)

    x = jnp.arange(6.0).reshape(3, 2)
    chex.assert_trees_all_close(jax.jit(jax.grad(energy))(x), 4 * (3 * x - x.sum(0, keepdims=True)))
