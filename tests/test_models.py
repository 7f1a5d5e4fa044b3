"""Models against plain loops, how they start, and what they refuse; symmetries are
test_symmetries', golden values test_golden's.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.nn.heads import Autoencoder, L1NetReadout
from egnn_jax.nn.mlp import glorot_orthogonal
from egnn_jax.nn.radial import DampedWaves
from tests import reference

graphs = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "sizes": st.lists(st.integers(1, 6), min_size=1, max_size=3),
        "n": st.sampled_from([1, 2, 3, 6]),
        "features": st.sampled_from([1, 3]),
        "attributes": st.sampled_from([0, 2]),
        "velocity": st.booleans(),
        "coincident": st.booleans(),
    }
)
egnn_options = st.fixed_dictionaries(
    {
        "velocity": st.sampled_from(["input", "carried"]),
        "coordinate_aggregation": st.sampled_from(["mean", "sum", "all_nodes"]),
        "clip": st.sampled_from([None, 0.1]),
    }
    | {
        name: st.booleans()
        for name in ("infer_edges", "normalize", "tanh", "update_coordinates", "residual")
    }
)


def assert_equals_loops(model, loops, drawn):
    seed = drawn["seed"]
    graph = testing.random_graph(**drawn, padding=False)
    # Few shapes are few compilations.
    room = {
        "n_node": 19 - len(graph.nodes.x),
        "n_edge": 91 - len(graph.senders),
        "n_graph": 4 - len(graph.n_node),
    }
    graph = testing.pad_with_noise(graph, seed, **room)
    params = testing.randomise_parameters(
        jax.eval_shape(model.init, jax.random.key(0), graph), seed
    )
    out = model.apply(params, graph).nodes
    host = jax.tree.map(np.asarray, graph)
    nodes = host.nodes
    expected = loops(
        params["params"],
        nodes.h,
        nodes.x,
        nodes.v,
        host.edges.a,
        host.senders,
        host.receivers,
        host.n_node,
        model.layers,
    )
    for got, want in zip((out.h, out.x, out.v), expected, strict=True):
        if want is None:
            assert got is None
        else:
            np.testing.assert_allclose(
                got, want, rtol=1e-10, atol=1e-10 * np.abs(want).max(initial=1.0)
            )


@given(drawn=graphs, options=egnn_options, layers=st.integers(1, 3))
def test_egnn_equals_the_plain_loops(drawn, options, layers):
    with jax.enable_x64(True):
        loops = lambda *args: reference.egnn(*args, **options)
        assert_equals_loops(egnn.EGNN(features=5, layers=layers, **options), loops, drawn)


@given(drawn=graphs, layers=st.integers(1, 3))
def test_gnn_equals_the_plain_loops(drawn, layers):
    with jax.enable_x64(True):
        assert_equals_loops(egnn.GNN(features=5, layers=layers), reference.gnn, drawn)


@given(drawn=graphs, tanh=st.booleans(), layers=st.integers(1, 3))
def test_radial_field_equals_the_plain_loops(drawn, tanh, layers):
    with jax.enable_x64(True):
        loops = lambda *args: reference.radial_field(*args, tanh=tanh)
        assert_equals_loops(egnn.RadialField(features=5, layers=layers, tanh=tanh), loops, drawn)


def test_initialisation_is_that_of_the_authors():
    graph = egnn.complete_graph(x=np.eye(3), h=np.ones((3, 16)))
    params = egnn.EGNN(features=400, layers=1).init(jax.random.key(0), graph)["params"]
    for path, fan_in in {
        ("embedding",): 16,
        ("layer_0", "phi_e"): 801,
        ("layer_0", "phi_h", "Dense_0"): 800,
    }.items():
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
    """The first edge layer is applied at nodes: no (E, 2F + 1) array exists in the compiled
    program.
    """
    graph = egnn.complete_graph(
        x=np.random.default_rng(0).standard_normal((9, 3)), h=np.ones((9, 32))
    )
    model = egnn.EGNN(features=32, layers=1)
    params = model.init(jax.random.key(0), graph)
    assert "72,65" not in jax.jit(model.apply).lower(params, graph).as_text().replace("x", ",")


BLOCKED = [
    {},
    {"infer_edges": True, "coordinate_aggregation": "all_nodes", "clip": 0.5},
    {"update_coordinates": False},
]


def test_moves_in_blocks_are_added_in_more_digits_than_halves_have():
    number = 3_000
    senders, receivers = np.arange(1, number + 1), np.zeros(number, int)
    x = np.eye(1, 3) * np.arange(number + 1)[:, None].clip(max=1)  # node 0 at 0, the others at 1
    graph = egnn.graph_from_edges(senders, receivers, x=x.astype(np.float16))
    graph = graph._replace(nodes=graph.nodes.replace(h=jnp.ones((number + 1, 4), jnp.float16)))
    options = {"features": 4, "coordinate_aggregation": "sum"}
    whole, blocked = egnn.EGCL(**options), egnn.EGCL(edge_block=1, **options)
    params = testing.randomise_parameters(jax.eval_shape(whole.init, jax.random.key(0), graph))
    moved, expected = (model.apply(params, graph).nodes.x[0, 0] for model in (blocked, whole))
    assert np.abs(expected) > 100
    np.testing.assert_allclose(moved, expected, rtol=2e-3)


@pytest.mark.parametrize("options", BLOCKED)
@pytest.mark.parametrize(
    "edge_block",
    [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(1_000, marks=pytest.mark.slow)],
)
def test_edges_in_blocks_give_the_same(x64, options, edge_block):
    """Values, gradients and derivatives of gradients, with the same parameters."""
    graph = testing.random_graph()
    whole = egnn.EGNN(features=5, layers=2, **options)
    blocked = egnn.EGNN(features=5, layers=2, edge_block=edge_block, **options)
    shapes = [jax.eval_shape(model.init, jax.random.key(0), graph) for model in (whole, blocked)]
    chex.assert_trees_all_equal(*shapes)
    params = testing.randomise_parameters(shapes[0])

    def of(model):
        def energy(params, nodes, edges):
            return sum(
                jnp.sum(jnp.sin(a))
                for a in jax.tree.leaves(
                    model.apply(params, graph._replace(nodes=nodes, edges=edges)).nodes
                )
            )

        inputs = (params, graph.nodes, graph.edges)
        gradient = jax.grad(energy, argnums=(0, 1, 2))
        return energy(*inputs), jax.jvp(gradient, inputs, inputs)

    chex.assert_trees_all_close(of(blocked), of(whole), rtol=1e-9, atol=1e-9)


def test_memory_of_edges_in_blocks_does_not_grow_with_the_edges():
    """Of the compiled gradient: an edge more costs a few numbers, not as many as it has
    features.
    """

    def temporaries(neighbours, edge_block):
        graph = egnn.knn_graph(np.random.default_rng(0).standard_normal((300, 3)), neighbours)
        model = egnn.EGNN(features=32, layers=2, edge_block=edge_block)
        params = jax.eval_shape(model.init, jax.random.key(0), graph)
        loss = lambda params, graph: jnp.sum(model.apply(params, graph).nodes.x ** 2)
        return (
            jax.jit(jax.grad(loss))
            .lower(params, graph)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    grows = {
        edge_block: (temporaries(100, edge_block) - temporaries(50, edge_block)) / (300 * 50) / 4
        for edge_block in (None, 256)
    }
    assert grows[256] < 8 < 2 * 32 < grows[None]


class Array(nn.Module):
    """A layer that returns features in place of a graph."""

    def __call__(self, graph):
        return np.zeros(3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (egnn.EGNN(edge_block=0), "edge_block is 0"),
        (egnn.EGNN(coordinate_aggregation="max"), "coordinate_aggregation is 'max'"),
        (egnn.EGCL(features=3), "h has 1 features; expected 3"),
        (egnn.EGNN(velocity="none"), "velocity is 'none'"),
        (egnn.EGNN(clip=-100.0), "clip is -100.0"),
        (egnn.EGNN(clip="1"), "clip is 1; expected a finite number above 0"),
        (egnn.EGNN(shrinkage=float("nan")), "shrinkage is nan; expected a finite number"),
        (egnn.RadialField(shrinkage=-0.1), "shrinkage is -0.1"),
        (egnn.EGNN(layer="EGCL"), "layer is EGCL; expected a class of flax modules"),
        (egnn.EGNN(layer=lambda graph: graph), "layer is <function"),
        (egnn.EGNN(layer=egnn.EGCL(4)), "layer is EGCL"),
        (egnn.EGNN(layer=egnn.EGNN), "layer is <class"),
        (egnn.EGNN(features=None), "features is None; expected a whole number"),
        (egnn.GNN(output_features=0), "output_features is 0"),
        (egnn.EGNN(layer=Array), "the layer returns a ndarray; expected the graph"),
        (egnn.PaiNN(epsilon="0.1"), "epsilon is 0.1; expected a finite number of at least 0"),
        (egnn.Cormorant(radius=0.0), "radius is 0.0; expected a finite number above 0"),
        (egnn.Cormorant(last_degree=-1), "last_degree is -1; expected at least 0"),
        (egnn.L1Net(radial_scale=0.0), "radial_scale is 0.0"),
        (egnn.L1Net(extra_layers=(1,)), r"extra_layers is \(1,\); expected pairs"),
        (egnn.L1Net(extra_layers=(4, -1)), r"extra_layers\[1\] is -1; expected at least 0"),
        (
            egnn.L1Net(extra_layers=(4, 0), update_coordinates=True),
            r"extra_layers is \(4, 0\); expected vectors at the end, to move x",
        ),
        (L1NetReadout(egnn.SchNet()), "SchNet has no output_features; expected a backbone that"),
        (
            egnn.EGNN(cutoff=3.0, aggregation="sum", coordinate_aggregation="mean"),
            "coordinate_aggregation is 'mean' .* expected 'sum' or 'all_nodes'",
        ),
        (egnn.EGNN(activation="one_hot"), "activation is 'one_hot'; expected a function"),
        (egnn.EGNN(activation="glu"), "activation is 'glu'; expected a function"),
        (egnn.MixedPrecision(egnn.EGNN(), "float16"), "compute_dtype is 'float16'; expected one"),
        (egnn.MixedPrecision("egnn"), "model is egnn; expected a flax module"),
        (egnn.Readout(None), "encoder is None; expected a flax module"),
        (egnn.Readout(egnn.PaiNN), "encoder is <class"),
        (L1NetReadout(None), "encoder is None; expected a flax module"),
        (egnn.Readout(egnn.EGNN(), 2, mean=(1.0, 2.0, 3.0)), r"mean has shape \(3,\)"),
        (egnn.SchNet(cutoff=float("inf")), "cutoff is inf; expected a finite number"),
        (Autoencoder(egnn.EGNN(), "z"), "embedding is 'z'"),
    ],
)
def test_nonsense_options_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), egnn.complete_graph(x=np.eye(3), v=np.eye(3)))


@pytest.mark.parametrize(
    "name", sorted(n for n, cls in egnn.MODELS.items() if cls.__module__.startswith("egnn_jax"))
)
def test_features_without_content_are_refused(name):
    model = egnn.MODELS[name]()
    graph = egnn.complete_graph(np.eye(3), v=np.eye(3))
    for h, message in ((None, "nodes have no h"), (np.ones((3, 0)), r"h has shape \(3, 0\)")):
        given = graph._replace(nodes=graph.nodes.replace(h=h))
        optional = h is None and name == "learned_dynamics"
        if optional or name in ("gnn", "linear", "radial_field"):  # these read only x and v
            jax.eval_shape(model.init, jax.random.key(0), given)
            continue
        with pytest.raises(ValueError, match=f"{message}; expected one feature or more"):
            jax.eval_shape(model.init, jax.random.key(0), given)


@pytest.mark.parametrize(
    "model",
    [egnn.EGCL(), egnn.EGNN(embed=False), egnn.GNN(coordinates=False, embed=False), egnn.SchNet()],
    ids=lambda model: type(model).__name__,
)
def test_features_of_another_shape_are_refused(model):
    graph = egnn.complete_graph(np.eye(3))
    shapes = [np.ones((3, 1, 2))] + ([] if type(model) is egnn.SchNet else [None, np.arange(3)])
    for h in shapes:
        given = graph._replace(nodes=graph.nodes.replace(h=h))
        with pytest.raises(ValueError, match=r"expected (one feature or more|\(N, F\))"):
            jax.eval_shape(model.init, jax.random.key(0), given)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_orthogonal_kernels_in_half_precision(dtype):
    kernel = glorot_orthogonal(jax.random.key(0), (4, 4), dtype)
    assert kernel.dtype == dtype
    product = np.asarray(kernel, np.float64) @ np.asarray(kernel, np.float64).T
    np.testing.assert_allclose(product, product[0, 0] * np.eye(4), atol=0.02)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
@pytest.mark.parametrize("model", [egnn.EGNN(4, 1, normalize=True), egnn.L1Net(4, layers=1)])
def test_coincident_nodes_are_finite_in_half_precision(model, dtype):
    x = jnp.array([[0, 0, 0], [0, 0, 0], [1, 2, 0]], dtype)
    graph = egnn.complete_graph(x, h=jnp.ones((3, 2), dtype))
    out = jax.jit(model.apply)(model.init(jax.random.key(0), graph), graph)
    assert np.isfinite(np.asarray(out.nodes.h, np.float32)).all()
    assert np.isfinite(np.asarray(out.nodes.x, np.float32)).all()


def test_node_types_out_of_range_give_nan():
    graph = egnn.complete_graph(np.eye(3), h=[1, 6, 8])
    model = egnn.EGNN(features=4, layers=1)
    params = model.init(jax.random.key(0), graph)
    for wrong in (-1, 119):
        h = jnp.array([1, wrong, 8])
        out = jax.jit(model.apply)(params, graph._replace(nodes=graph.nodes.replace(h=h)))
        assert np.isnan(out.nodes.h[1]).all()


def test_mixed_precision_keeps_what_multiplies_distances():
    graph = egnn.complete_graph(np.array([[0.0, 0, 0], [5, 0, 0]]), h=np.ones((2, 2)))
    waves = {"scales": jnp.full(8, 2.9), "phases": jnp.full(8, 0.3)}

    class Waves(nn.Module):
        @nn.compact
        def __call__(self, graph):
            h = DampedWaves(name="R")(jnp.full(2, 5.0))
            return graph._replace(nodes=graph.nodes.replace(h=h))

    params = {"params": {"R": waves}}
    mixed = egnn.MixedPrecision(Waves()).apply(params, graph).nodes.h
    np.testing.assert_array_equal(mixed, Waves().apply(params, graph).nodes.h)


def test_mixed_precision_returns_the_dtypes_of_its_input():
    model = Autoencoder(egnn.GNN(4, 1, coordinates=False), embedding="h")
    graph = egnn.complete_graph(np.eye(3), h=np.ones((3, 2)))
    params = model.init(jax.random.key(0), graph)
    out = egnn.MixedPrecision(model).apply(params, graph)
    assert {leaf.dtype for leaf in (out.nodes.h, out.edges.a)} == {jnp.dtype(jnp.float32)}


def test_statistics_of_a_head_may_be_arrays():
    graph = egnn.complete_graph(x=np.eye(3))
    options = {"mean": (1.0, 2.0), "scale": (0.5, 3.0)}
    plain = egnn.Readout(egnn.EGNN(features=4, layers=1), outputs=2)
    params, out = plain.init(jax.random.key(0), graph), []
    y = plain.apply(params, graph).globals.y
    for kind in (tuple, np.asarray, jnp.asarray):
        given = {name: kind(value) for name, value in options.items()}
        model = egnn.Readout(egnn.EGNN(features=4, layers=1), outputs=2, **given)
        out.append(model.apply(params, graph).globals.y)
    np.testing.assert_allclose(out[0], np.array([1.0, 2.0]) + np.array([0.5, 3.0]) * y, rtol=1e-6)
    np.testing.assert_array_equal(out[0], out[1])
    np.testing.assert_array_equal(out[0], out[2])


def test_targets_of_three_axes_are_refused():
    graph = egnn.batch([egnn.complete_graph(x=np.eye(3), y=[1.0])] * 2, (7, 13, 3))
    graph = graph._replace(globals=graph.globals.replace(y=jnp.ones((3, 3, 3))))
    loss = egnn.losses.mean_absolute_error(lambda params, graph: graph)
    with pytest.raises(ValueError, match=r"shape \(3, 3, 3\) .*; expected one shape \(G, T\)"):
        loss({}, graph, jax.random.key(0))


def test_losses_take_a_network_or_its_apply():
    graph = egnn.batch([egnn.complete_graph(x=np.eye(3), y=[1.0])], (4, 6, 2))
    model = egnn.Readout(egnn.EGNN(features=4, layers=1))
    params = model.init(jax.random.key(0), graph)
    values = [
        egnn.losses.mean_absolute_error(network)(params, graph, jax.random.key(0))[0]
        for network in (model, model.apply)
    ]
    assert values[0] == values[1]


def test_linear_needs_velocities():
    with pytest.raises(ValueError, match="v=None"):
        egnn.Linear().init(jax.random.key(0), egnn.complete_graph(x=np.eye(3)))
