import random

import networkx as nx
import numpy as np
import pytest

from egnn_jax.data import random_graphs


def share(graphs):
    """Edges in percent of all pairs: what a prediction of no edge gets wrong."""
    return (
        100
        * sum(2 * graph.number_of_edges() for graph in graphs)
        / sum(len(graph) * (len(graph) - 1) for graph in graphs)
    )


def test_community_is_the_authors_set():
    splits = {split: random_graphs.load("community", split) for split in random_graphs.SPLITS}
    assert [len(graphs) for graphs in splits.values()] == [5_000, 500, 500]
    assert {len(graph) for graphs in splits.values() for graph in graphs} == set(range(12, 21))
    assert round(share(splits["test"]), 2) == 31.79  # the paper's Baseline
    assert all(nx.is_connected(graph) for graph in splits["test"])


def test_erdos_renyi_is_the_authors_set():
    splits = {split: random_graphs.load("erdos_renyi", split) for split in random_graphs.SPLITS}
    assert [len(graphs) for graphs in splits.values()] == [5_000, 500, 500]
    sizes = [len(graph) for graph in splits["test"]]
    assert [sizes.count(size) for size in range(7, 17)] == [50] * 10
    # The paper's Baseline is the mean over graphs here; over all pairs it is 25.11.
    assert round(np.mean([share([graph]) for graph in splits["test"]]), 2) == 25.13


def test_draws_are_those_of_the_global_generators_that_the_authors_seed():
    random.seed(2)
    graphs = [nx.gnp_random_graph(size, 0.25) for _ in range(3) for size in range(7, 17)]
    random.shuffle(graphs)
    for ours, theirs in zip(random_graphs.erdos_renyi(2, 30), graphs, strict=True):
        assert nx.utils.graphs_equal(ours, theirs)
    np.random.seed(1)
    for graph in random_graphs.communities(1, 5):
        sizes = np.random.choice([6, 7, 8, 9, 10], 2)
        parts = [nx.gnp_random_graph(int(size), 0.7, seed=k) for k, size in enumerate(sizes)]
        expected = nx.disjoint_union(*parts)
        parts = list(nx.connected_components(expected))
        for i, one in enumerate(parts):
            for other in parts[i + 1 :]:
                edges = [
                    (a, b) for a in sorted(one) for b in sorted(other) if np.random.rand() < 0.01
                ]
                expected.add_edges_from(edges or [(min(one), min(other))])
        assert nx.utils.graphs_equal(graph, expected)


def test_neither_generator_of_the_caller_is_touched():
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    random_graphs.erdos_renyi(0, 10)
    random_graphs.communities(0, 2)
    assert (random.random(), np.random.rand()) == expected


def test_the_cache_gives_the_same_graphs(tmp_path):
    drawn = random_graphs.erdos_renyi(3, 100, 0.9)
    for _ in range(2):
        for split in ("train", "test"):
            kept = random_graphs.load("overfit", split, 0.9, folder=tmp_path)
            assert all(nx.utils.graphs_equal(a, b) for a, b in zip(kept, drawn, strict=True))
    assert [path.name for path in sorted((tmp_path / "random_graphs").iterdir())] == [
        "overfit-0.9.npz",
        "overfit-0.9.npz.sha256",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ring", "train"), "'ring' is unknown; expected one of"),
        (("community", "dev"), "'dev' is unknown; expected one of"),
        (("overfit", "train", 1.5), "edge_probability is 1.5; expected a number between 0 and 1"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_graphs.load(*arguments)
