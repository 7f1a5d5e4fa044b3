"""Models against the plain-loop oracle, against the authors' outputs, and against the symmetries they claim."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax.graph import GraphsTuple
from tests import reference
from tests.helpers import order_one, random_graph


@pytest.fixture(autouse=True)
def strict():
    """No model may mix dtypes."""
    with jax.numpy_dtype_promotion("strict"):
        yield


DEFAULTS = {
    "velocity": "input",
    "infer_edges": False,
    "coordinate_aggregation": "mean",
    "normalize": False,
    "tanh": False,
    "clip": None,
    "update_coordinates": True,
    "residual": True,
}
OPTIONS = [
    {},
    {"velocity": "carried"},
    {"infer_edges": True},
    {"coordinate_aggregation": "sum"},
    {"coordinate_aggregation": "all_nodes"},
    {"normalize": True},
    {"tanh": True},
    {"update_coordinates": False},
    {"residual": False},
    {"velocity": "carried", "infer_edges": True, "normalize": True, "tanh": True, "coordinate_aggregation": "sum", "residual": False},
]


def name(options):
    return ",".join(f"{k}={v}" for k, v in options.items()) or "default"


def trained(model, graph, rng):
    """A function of the graph with parameters of order one, so that nothing hides below a tolerance."""
    params = order_one(model.init(jax.random.key(0), graph), rng)
    return params, jax.jit(lambda g: model.apply(params, g))


@pytest.mark.parametrize("options", [*OPTIONS, {"clip": 0.1}], ids=name)
@pytest.mark.parametrize(("n", "velocity", "attributes"), [(3, True, 2), (1, False, 0), (5, True, 0)])
def test_egnn_equals_the_plain_loops(x64, rng, options, n, velocity, attributes):
    graph = random_graph(rng, n=n, velocity=velocity, attributes=attributes, padding=False)
    params, apply = trained(egnn.EGNN(features=5, layers=2, **options), graph, rng)
    out = apply(graph).nodes
    host = jax.tree.map(np.asarray, graph)
    expected = reference.egnn(
        jax.tree.map(np.asarray, params["params"]), host.nodes.h, host.nodes.x, host.nodes.v, host.edges, host.senders,
        host.receivers, host.n_node, 2, **(DEFAULTS | options),
    )  # fmt: skip
    for got, want in zip((out.h, out.x, out.v), expected, strict=True):
        if want is None:
            assert got is None
        else:
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


MODELS = [*((egnn.EGNN, o) for o in OPTIONS), (egnn.RadialField, {}), (egnn.RadialField, {"tanh": False}), (egnn.Linear, {})]


@pytest.mark.parametrize(("model", "options"), MODELS, ids=lambda v: v.__name__ if isinstance(v, type) else name(v))
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_rotations_reflections_and_translations(x64, rng, model, options, n):
    sizes = {} if model is egnn.Linear else {"features": 6, "layers": 3}
    graph = random_graph(rng, n=n)
    _, apply = trained(model(**sizes, **options), graph, rng)
    out = apply(graph)
    if options.get("update_coordinates", True):
        real = egnn.node_mask(graph)[:, None]
        assert np.abs(np.where(real, out.nodes.x - graph.nodes.x, 0)).max() > 1e-2, "nothing moves: this test would see nothing"
    for determinant in (1, -1):
        q = egnn.random_orthogonal(jax.random.key(n), n, determinant)
        shift = 10 * jnp.ones((1, n))
        moved, expected = apply(egnn.transform(graph, q, shift)).nodes, egnn.transform(out, q, shift).nodes
        np.testing.assert_allclose(moved.x, expected.x, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(moved.v, expected.v, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(moved.h, expected.h, rtol=1e-10, atol=1e-10)


def test_the_gnn_has_no_rotation_symmetry(x64, rng):
    graph = random_graph(rng)
    _, apply = trained(egnn.GNN(features=6, layers=2), graph, rng)
    q = egnn.random_orthogonal(jax.random.key(0), 3)
    assert np.abs(apply(egnn.transform(graph, q)).nodes.x - egnn.transform(apply(graph), q).nodes.x).max() > 1e-2


@pytest.mark.parametrize("model", egnn.MODELS.values(), ids=lambda m: m.__name__)
def test_permuted_nodes_give_permuted_outputs(x64, rng, model):
    n = 7
    x, v, h = (rng.standard_normal((n, k)) for k in (3, 3, 2))
    a = np.triu(rng.standard_normal((n, n)), 1)
    senders, receivers = egnn.complete_edges(n)
    perm = rng.permutation(n)
    inverse = np.argsort(perm)
    graph = egnn.graph_from_edges(senders, receivers, x=x, h=h, v=v, edges=a[receivers, senders][:, None])
    shuffled = egnn.graph_from_edges(
        inverse[senders], inverse[receivers], x=x[perm], h=h[perm], v=v[perm], edges=a[receivers, senders][:, None]
    )
    _, apply = trained(model(), graph, rng)
    chex.assert_trees_all_close(apply(shuffled).nodes, jax.tree.map(lambda leaf: leaf[perm], apply(graph).nodes), rtol=1e-10)


@pytest.mark.parametrize("model", egnn.MODELS.values(), ids=lambda m: m.__name__)
def test_padding_and_neighbours_in_the_batch_change_nothing(x64, rng, model):
    graphs = [random_graph(rng, sizes=(k,), padding=False) for k in (4, 2, 6)]
    _, apply = trained(model(), graphs[0], rng)
    edges = sum(g.senders.shape[0] for g in graphs)
    padded = egnn.unbatch(apply(egnn.batch(graphs, egnn.Budget(20, edges + 9, 7))), padded=True)
    for alone, together in zip(graphs, padded, strict=True):
        chex.assert_trees_all_close(apply(alone).nodes, together.nodes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("model", [*((egnn.EGNN, o) for o in OPTIONS), (egnn.RadialField, {}), (egnn.GNN, {})], ids=str)
def test_gradients_are_finite_with_coincident_nodes_and_padding(x64, rng, model):
    model = model[0](features=4, layers=2, **model[1])
    graph = random_graph(rng)
    graph = graph._replace(nodes=graph.nodes.replace(x=graph.nodes.x.at[1].set(graph.nodes.x[0]), v=graph.nodes.v.at[0].set(0)))
    params, _ = trained(model, graph, rng)

    def energy(params, x):
        out = model.apply(params, graph._replace(nodes=graph.nodes.replace(x=x))).nodes
        return jnp.sum(out.x**2) + jnp.sum(out.h**2)

    x = graph.nodes.x
    for tree in (jax.grad(energy, (0, 1))(params, x), jax.jvp(lambda x: jax.grad(energy, 1)(params, x), (x,), (x,))):
        chex.assert_tree_all_finite(tree)


def test_vmap_over_graphs_equals_a_loop(x64, rng):
    graphs = [egnn.complete_graph(x=rng.standard_normal((5, 3)), v=rng.standard_normal((5, 3))) for _ in range(4)]
    _, apply = trained(egnn.EGNN(features=6, layers=2), graphs[0], rng)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *graphs)
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(apply, graphs))
    chex.assert_trees_all_close(jax.vmap(apply)(stacked), looped, rtol=1e-10)


def test_initialisation_is_that_of_the_authors():
    graph = egnn.complete_graph(x=np.eye(3), h=np.ones((3, 16)))
    params = egnn.EGNN(features=400, layers=1).init(jax.random.key(0), graph)["params"]
    for path, fan_in in {("embedding",): 16, ("layer_0", "phi_e"): 801, ("layer_0", "phi_h", "Dense_0"): 800}.items():
        layer = params
        for key in path:
            layer = layer[key]
        for value in (layer["kernel"], layer["bias"]):
            bound = fan_in**-0.5
            assert 0.95 * bound < np.abs(value).max() <= bound
            assert abs(np.std(value) / (bound / 3**0.5) - 1) < 0.1
    small = params["layer_0"]["phi_x"]["Dense_1"]
    assert set(small) == {"kernel"}
    bound = 1e-3 * (6 / 401) ** 0.5
    assert 0.95 * bound < np.abs(small["kernel"]).max() <= bound


def test_messages_are_not_concatenated():
    """The first edge layer is applied at nodes: no (E, 2F + 1) array exists in the compiled program."""
    graph = egnn.complete_graph(x=np.random.default_rng(0).standard_normal((9, 3)), h=np.ones((9, 32)))
    model = egnn.EGNN(features=32, layers=1)
    params = model.init(jax.random.key(0), graph)
    assert "72,65" not in jax.jit(model.apply).lower(params, graph).as_text().replace("x", ",")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (egnn.EGNN(coordinate_aggregation="max"), "coordinate_aggregation is 'max'"),
        (egnn.EGCL(features=3), "h has 1 features; expected 3"),
        (egnn.EGNN(velocity="none"), "velocity is 'none'"),
    ],
)
def test_nonsense_options_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), egnn.complete_graph(x=np.eye(3), v=np.eye(3)))


def test_linear_needs_velocities():
    with pytest.raises(ValueError, match="v=None"):
        egnn.Linear().init(jax.random.key(0), egnn.complete_graph(x=np.eye(3)))


def _dense(z, key):
    return {"kernel": z[f"param/{key}.weight"].T} | ({"bias": z[f"param/{key}.bias"]} if f"param/{key}.bias" in z else {})


def _mlp(z, key):
    return {"Dense_0": _dense(z, f"{key}.0"), "Dense_1": _dense(z, f"{key}.2")}


def _edge_mlp(z, key):
    return _dense(z, f"{key}.0") | {"Dense_0": _dense(z, f"{key}.2")}


def _golden_graph(z, h, x, v=None):
    nodes = egnn.Nodes(h=h, x=x, v=v)
    edges = z["input/edge_attr"]
    return GraphsTuple(nodes, edges, z["input/receivers"], z["input/senders"], None, z["input/n_node"], None)


def _layers(z):
    return range(1 + max(int(key.split("gcl_")[1][0]) for key in z if "gcl_" in key))


GOLDEN = Path(__file__).parent / "data" / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*egnn*.npz")), ids=lambda p: p.stem)
def test_egnn_gives_the_authors_outputs(x64, path):
    z = dict(np.load(path))
    clean = path.stem.startswith("egnn_clean")
    params = {"embedding": _dense(z, "embedding_in" if clean else "embedding")}
    if clean:
        params["embedding_out"] = _dense(z, "embedding_out")
    for k in _layers(z):
        parts = {"phi_e": _edge_mlp(z, f"gcl_{k}.edge_mlp"), "phi_x": _mlp(z, f"gcl_{k}.coord_mlp"), "phi_h": _mlp(z, f"gcl_{k}.node_mlp")}
        if not clean:
            parts["phi_v"] = _mlp(z, f"gcl_{k}.coord_mlp_vel")
        if "att1" in path.stem:
            parts["phi_inf"] = _dense(z, f"gcl_{k}.att_mlp.0")
        params[f"layer_{k}"] = parts
    model = egnn.EGNN(
        features=16,
        layers=len(_layers(z)),
        output_features=z["output/h"].shape[1] if clean else None,
        infer_edges="att1" in path.stem,
        normalize="norm1" in path.stem,
        tanh="tanh1" in path.stem,
        clip=None if clean else 100.0,
    )
    graph = _golden_graph(z, z["input/h"], z["input/x"], z.get("input/v"))
    out = model.apply({"params": params}, graph).nodes
    np.testing.assert_allclose(out.x, z["output/x"], rtol=1e-10, atol=1e-10)
    if clean:
        np.testing.assert_allclose(out.h, z["output/h"], rtol=1e-10, atol=1e-10)
    else:
        squares = lambda x: jnp.sum(model.apply({"params": params}, graph._replace(nodes=graph.nodes.replace(x=x))).nodes.x ** 2)
        gradient = jax.grad(squares)(jnp.asarray(z["input/x"]))
        np.testing.assert_allclose(gradient, z["output/grad_x_of_sum_x2"], rtol=1e-10, atol=1e-10)


def test_gnn_gives_the_authors_outputs(x64):
    z = dict(np.load(GOLDEN / "nbody_gnn.npz"))
    params = {"embedding": _dense(z, "embedding.0"), "decoder": _mlp(z, "decoder")}
    for k in _layers(z):
        params |= {f"layer_{k}_phi_e": _edge_mlp(z, f"gcl_{k}.edge_mlp"), f"layer_{k}_phi_h": _mlp(z, f"gcl_{k}.node_mlp")}
    graph = _golden_graph(z, None, z["input/h"][:, :3], z["input/h"][:, 3:])
    out = egnn.GNN(features=16, layers=len(_layers(z))).apply({"params": params}, graph)
    np.testing.assert_allclose(out.nodes.x, z["output/x"], rtol=1e-10, atol=1e-10)


def test_radial_field_gives_the_authors_outputs(x64):
    z = dict(np.load(GOLDEN / "nbody_radial_field.npz"))
    params = {f"layer_{k}_phi_rf": _mlp(z, f"gcl_{k}.phi") for k in _layers(z)}
    params |= {f"layer_{k}_phi_v": _mlp(z, f"gcl_{k}.coord_mlp_vel") for k in _layers(z)}
    graph = _golden_graph(z, None, z["input/x"], z["input/v"])
    out = egnn.RadialField(features=16, layers=len(_layers(z))).apply({"params": params}, graph)
    np.testing.assert_allclose(out.nodes.x, z["output/x"], rtol=1e-10, atol=1e-10)
