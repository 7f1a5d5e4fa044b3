"""The task, Figure 3 (a GNN cannot tell the nodes of a cycle apart), and the use on one's own
graphs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import reproduce
from egnn_jax.experiments.autoencoder import GraphAutoencoder, complete
from egnn_jax.experiments.paper import FIGURE5
from egnn_jax.experiments.run import load, train
from egnn_jax.nn.heads import Autoencoder, Decoder
from tests import reference

GRAPHS = [nx.cycle_graph(4), nx.path_graph(6), nx.complete_graph(3), nx.empty_graph(2)]


@pytest.fixture
def batch():
    return complete(GRAPHS).pack(np.arange(4))


def graph_given(logits):
    """An ``apply`` that decodes these logits."""
    return lambda params, graph: graph._replace(edges=graph.edges.replace(a=logits))


def pairs(batch):
    """For each graph the true A_ij and the places of its ordered pairs."""
    ends = np.cumsum(np.asarray(batch.n_edge[:-1]))
    return [
        (np.asarray(batch.edges.a[end - count : end, 0]), slice(end - count, end))
        for end, count in zip(ends, batch.n_edge, strict=False)
    ]


def test_metrics_are_as_defined(batch, rng):
    logits = 3 * rng.standard_normal(batch.edges.a.shape)
    bce, wrong, total, tp, fp, fn = 0.0, 0, 0, 0, 0, 0
    for true, place in pairs(batch):
        decoded = 1 / (1 + np.exp(-logits[place, 0]))
        for a, p in zip(true, decoded, strict=True):
            bce -= np.log(p) if a else np.log(1 - p)
            wrong += (p > 0.5) != a
            tp, fp, fn = tp + (p > 0.5 and a), fp + (p > 0.5 and not a), fn + (p <= 0.5 and a)
        total += len(true)
    task = GraphAutoencoder()
    sums = task.metrics(graph_given(jnp.asarray(logits)))({}, batch, jax.random.key(0))
    got = {name: float(a / b) for name, (a, b) in sums.items()}
    assert got == pytest.approx(
        {"bce": bce / 4, "error": 100 * wrong / total, "f1": tp / (tp + 0.5 * (fp + fn))}, rel=1e-5
    )


def test_padding_counts_nothing(batch, rng):
    task = GraphAutoencoder()
    logits = jnp.asarray(rng.standard_normal(batch.edges.a.shape))
    real = int(batch.n_edge[:-1].sum())
    assert real < len(logits)
    sums = [
        task.metrics(graph_given(value))({}, batch, jax.random.key(0))
        for value in (logits, logits.at[real:].set(1e6))
    ]
    assert jax.tree.map(float, sums[0]) == jax.tree.map(float, sums[1])
    some = complete(GRAPHS).pack(np.array([0, 2, -1, -1]))
    metrics = task.metrics(graph_given(jnp.zeros(some.edges.a.shape)))
    assert float(metrics({}, some, jax.random.key(0))["bce"][1]) == 2


def test_the_loss_is_the_validation_bce():
    task = GraphAutoencoder("overfit")
    model = task.network(egnn.EGNN(features=4, layers=1, embed=False))
    batch = task.samples("train").pack(np.arange(3))
    key = jax.random.key(0)
    params = model.init(key, task.graph(batch, key))
    # Noise depends on the shape a batch is trimmed to, so compare without any.
    still = dataclasses.replace(task, noise="none")
    sums = still.metrics(model.apply)(params, batch, key)["bce"]
    loss = jax.jit(lambda params, batch: still.loss(model.apply)(params, batch, key)[0])
    np.testing.assert_allclose(loss(params, batch), sums[0] / sums[1], rtol=1e-6)


def test_noise_is_drawn_from_the_key_and_anew(batch):
    for noise, field, still in (("x", "x", "h"), ("h", "h", "x")):
        task = GraphAutoencoder(noise=noise)
        one, again, other = (task.graph(batch, jax.random.key(k)).nodes for k in (0, 0, 1))
        np.testing.assert_array_equal(getattr(one, field), getattr(again, field))
        assert np.abs(getattr(one, field) - getattr(other, field)).min() > 0
        np.testing.assert_array_equal(getattr(one, still), getattr(other, still))
    nodes = GraphAutoencoder(noise="none").graph(batch, jax.random.key(0)).nodes
    assert (nodes.x == 0).all()
    assert (nodes.h[: int(batch.n_node[:-1].sum())] == 1).all()


@pytest.mark.parametrize("linear", [False, True])
def test_the_decoder_is_equation_9(x64, rng, linear):
    z = rng.standard_normal((5, 3))
    decoder = Decoder(linear=linear)
    params = testing.randomise_parameters(jax.eval_shape(decoder.init, jax.random.key(0), z, z))
    got = jax.nn.sigmoid(decoder.apply(params, z[:, None], z[None]))[..., 0]
    np.testing.assert_allclose(got, reference.decoder(params["params"], z), rtol=1e-12)


def test_the_decoder_starts_as_the_authors():
    params = Decoder().init(jax.random.key(0), jnp.zeros((1, 3)), jnp.zeros((1, 3)))["params"]
    assert (float(params["w"][0]), float(params["b"][0])) == (pytest.approx(-0.1), 1.0)


@pytest.mark.parametrize("embedding", ["x", "h"])
def test_the_autoencoder_is_symmetric(x64, embedding):
    model = Autoencoder(egnn.EGNN(features=5, layers=2), embedding)
    graph = testing.random_graph(velocity=False, attributes=1)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    testing.assert_equivariant(lambda g: model.apply(params, g), graph)
    testing.assert_permutation_equivariant(lambda g: model.apply(params, g), graph)


@pytest.mark.parametrize(
    "size", [4, *(pytest.param(size, marks=pytest.mark.slow) for size in (5, 12, 16))]
)
def test_figure_3(x64, size):
    """The nodes of a cycle look alike to a GNN without noise, whatever its parameters; not to an
    EGNN.
    """
    cycle = complete([nx.cycle_graph(size)]).pack(np.array([0]))
    cycle = jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, cycle)
    gnn = GraphAutoencoder(embedding="h", noise="none").network(
        egnn.GNN(8, 3, coordinates=False, embed=False, output_features=4)
    )
    graph = GraphAutoencoder(embedding="h", noise="none").graph(cycle, jax.random.key(0))
    params = testing.randomise_parameters(jax.eval_shape(gnn.init, jax.random.key(0), graph))
    out = gnn.apply(params, graph)
    np.testing.assert_allclose(out.nodes.h[:size], np.tile(out.nodes.h[:1], (size, 1)), rtol=1e-12)
    decoded = np.asarray(out.edges.a[: size * (size - 1), 0])
    np.testing.assert_allclose(
        decoded, decoded[0], rtol=1e-12
    )  # one probability for edges and for gaps: no threshold decodes it

    task = GraphAutoencoder(noise="x")
    model = task.network(egnn.EGNN(8, 3, embed=False))
    graph = task.graph(cycle, jax.random.key(0))
    out = model.apply(
        testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph)), graph
    )
    assert len(np.unique(np.round(out.nodes.x[:size], 6), axis=0)) == size


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = configs.load("autoencoder/egnn_best")
    config = dataclasses.replace(
        config,
        task=dataclasses.replace(config.task, dataset="erdos_renyi"),
        epochs=1,
        eval_every=1,
        ema_decay=0.99,
    )
    folder = tmp_path_factory.mktemp("run")
    return train(config, folder), load(folder)


@pytest.mark.slow
def test_one_epoch_already_finds_most_edges(trained):
    result, (config, _, _) = trained
    assert result["metrics"]["test"]["error"] < 8
    train, valid = (
        np.array([[g.number_of_edges(), len(g) * (len(g) - 1) // 2] for g in graphs])
        for graphs in map(config.task.graphs, ("train", "valid"))
    )
    p = train[:, 0].sum() / train[:, 1].sum()
    alone = -2 * np.mean(valid @ [np.log(p / (1 - p)), np.log(1 - p)])  # each pair both ways
    assert result["trivial"]["bce"] == pytest.approx(alone, rel=1e-4)
    assert result["metrics"]["test"] != result["first_draw"]["test"]


@pytest.mark.slow
def test_ones_own_graph_there_and_back(trained, tmp_path):
    _, (config, model, params) = trained
    graph = nx.relabel_nodes(nx.cycle_graph(4), dict(enumerate("abcd")))
    z = config.task.embed(model, params, graph)
    assert z.shape == (4, 8)
    np.save(tmp_path / "z.npy", z)
    again = config.task.reconstruct(model, params, np.load(tmp_path / "z.npy"))
    assert list(again) == [0, 1, 2, 3]
    assert all(0.5 < p <= 1 for *_, p in again.edges.data("probability"))
    other = config.task.embed(model, params, graph, jax.random.key(1))
    assert np.abs(other - z).max() > 1e-3
    # What it decodes is what training and evaluation see.
    batch = complete([graph]).pack(np.zeros(1, int))
    out = model.apply(params, config.task.graph(batch, jax.random.PRNGKey(0)))
    assert again.number_of_edges() == int((np.asarray(out.edges.a[:12, 0]) > 0).sum()) / 2


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (nx.DiGraph([(0, 1)]), "is a DiGraph; expected an undirected networkx.Graph"),
        (nx.MultiGraph([(0, 1)]), "is a MultiGraph; expected an undirected networkx.Graph"),
        (
            nx.Graph([(0, 1, {"weight": 0.5})]),
            "an edge of weight 0.5; expected a graph without weights",
        ),
        (nx.Graph([(0, 1, {"weight": [1]})]), r"an edge of weight \[1\]; expected a graph"),
        (nx.Graph([(3, 3)]), "an edge from node 3 to itself; expected no self-loops"),
        (nx.Graph(), "expected a networkx.Graph with at least one node"),
        (np.eye(3), "expected a networkx.Graph with at least one node"),
    ],
)
def test_graphs_that_cannot_be_embedded(graph, message):
    with pytest.raises(ValueError, match=message):
        GraphAutoencoder().embed(None, None, graph)


@pytest.fixture(scope="module")
def untrained():
    config = configs.load("autoencoder/egnn_best")
    task = dataclasses.replace(config.task, dataset="erdos_renyi")
    batch = complete([nx.path_graph(4)]).pack(np.zeros(1, int))
    model = config.network()
    return task, model, model.init(jax.random.key(0), task.graph(batch, jax.random.PRNGKey(0)))


def test_a_larger_graph_gives_a_warning(untrained):
    task, model, params = untrained
    with pytest.warns(UserWarning, match="has 17 nodes; the autoencoder was trained on at most 16"):
        assert task.embed(model, params, nx.path_graph(17)).shape == (17, 8)


@pytest.mark.parametrize("z", [np.zeros(8), np.zeros((3, 7)), np.full((3, 8), np.nan)])
def test_embeddings_that_cannot_be_decoded(untrained, z):
    task, model, params = untrained
    with pytest.raises(ValueError, match="expected finite numbers"):
        task.reconstruct(model, params, z)
    with pytest.raises(ValueError, match="nodes has 1 twice; expected distinct labels"):
        task.reconstruct(model, params, np.eye(3, 8), nodes=[1, 1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 0}, "dimensions is 0"),
        ({"draws": 0}, "draws 0"),
        ({"edge_probability": 1.0}, "edge_probability is 1.0"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        GraphAutoencoder(**options)


def test_every_row_of_figure_5_has_a_config_and_the_papers_value_beside_it():
    for dataset, rows in FIGURE5.items():
        for encoder, (bce, *_) in rows.items():
            recipe, task = reproduce.FIGURE5_RECIPES[encoder]
            config = reproduce.Options().recipe(f"autoencoder/{recipe}", dataset=dataset, **task)
            assert config.task.dataset == dataset
            assert config.task.paper.get(configs.to_dict(config)["model"]["name"]) == bce


def test_the_baseline_finds_no_edge(tmp_path):
    metrics = train(configs.load("autoencoder/baseline"), tmp_path)["metrics"]["test"]
    assert round(metrics["error"], 2) == 31.79
    assert metrics["f1"] == 0
