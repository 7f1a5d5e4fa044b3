"""The checks of egnn_jax.testing catch what they are for: each deliberately broken layer fails the
check that names it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.graph.graph import graph_of_node, sum_at_receivers


def moved(graph, dx=0.0, **fields):
    return graph._replace(nodes=graph.nodes.replace(x=graph.nodes.x + dx, **fields))


def distances(graph):
    r = graph.nodes.x[graph.receivers] - graph.nodes.x[graph.senders]
    return r, jnp.sum(r**2, axis=-1, keepdims=True)


def sound(graph):
    """x_i + Σ_j r_ij / (1 + ‖r_ij‖²) + v_i, with h_i + Σ_j ‖r_ij‖²."""
    r, squares = distances(graph)
    return moved(
        graph,
        sum_at_receivers(graph, r / (1 + squares)) + graph.nodes.v,
        h=graph.nodes.h + sum_at_receivers(graph, squares),
    )


def coordinates_in_h(graph):
    return moved(sound(graph), h=graph.nodes.h + graph.nodes.x[:, :1])


def velocity_not_turned(graph):
    return moved(sound(graph), jnp.abs(graph.nodes.v))


def no_reflection(graph):
    r, _ = distances(graph)
    normal = jnp.cross(r, graph.nodes.v[graph.receivers])
    return moved(graph, sum_at_receivers(graph, normal))


def absolute_position(graph):
    return moved(graph, 0.1 * graph.nodes.x)


def sum_over_padding(graph):
    return moved(graph, graph.nodes.x - graph.nodes.x.mean(axis=0))


def first_edge_only(graph):
    r, _ = distances(graph)
    order = jnp.arange(r.shape[0], dtype=r.dtype)[:, None]
    return moved(graph, sum_at_receivers(graph, r / (1 + order)))


def number_of_node(graph):
    return moved(sound(graph), h=graph.nodes.h + jnp.arange(graph.nodes.h.shape[0])[:, None])


def position_in_batch(graph):
    return moved(sound(graph), h=graph.nodes.h + graph_of_node(graph)[:, None])


def plain_norm(graph):
    r, _ = distances(graph)
    return moved(
        graph, sum_at_receivers(graph, r / (1 + jnp.linalg.norm(r, axis=-1, keepdims=True)))
    )


def normalised_by_plain_norm(graph):
    r, squares = distances(graph)
    return moved(graph, sum_at_receivers(graph, r / (jnp.sqrt(squares) + 1e-8)))


def epsilon_added(graph):
    r = graph.nodes.x[graph.receivers] - graph.nodes.x[graph.senders] + 1e-6
    return moved(graph, sum_at_receivers(graph, r))


def clipped_by_component(graph):
    r, _ = distances(graph)
    return moved(graph, sum_at_receivers(graph, jnp.clip(r, -0.5, 0.5)))


def unmoved(graph):
    return moved(graph, 1e-9 * graph.nodes.v)


def blind(graph):
    return moved(graph, h=2 * graph.nodes.h)


ragged = lambda: testing.random_graph(padding=False)
equivariant = lambda fn: testing.assert_equivariant(fn, testing.random_graph())
permutation = lambda fn: testing.assert_permutation_equivariant(fn, testing.random_graph())
padding = lambda fn: testing.assert_padding_invariant(fn, ragged())
finite = lambda fn: testing.assert_finite_gradients(fn, testing.random_graph())

BROKEN = [
    (equivariant, coordinates_in_h, "nodes.h of node .* after a rotation"),
    (equivariant, velocity_not_turned, "nodes.x of node .* after a rotation"),
    (equivariant, no_reflection, "nodes.x of node .* after a reflection"),
    (equivariant, absolute_position, "nodes.x of node .* after a translation"),
    (equivariant, epsilon_added, "nodes.x of node .* after a rotation"),
    (equivariant, clipped_by_component, "nodes.x of node .* after a rotation"),
    (equivariant, unmoved, "nodes.x moves by .* errors would hide"),
    (equivariant, blind, "does not depend on them"),
    (permutation, first_edge_only, "nodes.x of node .* permuted"),
    (permutation, number_of_node, "nodes.h of node .* permuted"),
    (padding, sum_over_padding, "nodes.x of node .* after padding was appended"),
    (padding, position_in_batch, "nodes.h of node .* between graph 1 alone and in the batch"),
    (finite, plain_norm, "the gradient with respect to nodes.x of node .* is nan"),
    (finite, normalised_by_plain_norm, "the gradient with respect to nodes.x of node .* is nan"),
]


def named(value):
    return getattr(value, "__name__", "")


each_check = pytest.mark.parametrize(
    "check",
    [equivariant, permutation, padding, finite],
    ids=["equivariant", "permutation", "padding", "finite"],
)


@each_check
def test_a_sound_layer_passes(x64, check):
    check(sound)


@each_check
def test_a_sound_layer_passes_in_float32(check):
    check(sound)


@pytest.mark.parametrize(("check", "layer", "message"), BROKEN, ids=named)
def test_a_broken_layer_is_caught(x64, check, layer, message):
    with pytest.raises(AssertionError, match=message):
        check(layer)


# 1e-6 is less than float32 shows of coordinates of order one.
@pytest.mark.parametrize(
    ("check", "layer", "message"), [b for b in BROKEN if b[1] is not epsilon_added], ids=named
)
def test_a_broken_layer_is_caught_in_float32(check, layer, message):
    with pytest.raises(AssertionError, match=message):
        check(layer)


def test_a_graph_at_the_origin_shows_nothing(x64):
    with pytest.raises(AssertionError, match="does not depend on them"):
        testing.assert_equivariant(lambda g: g, egnn.complete_graph(np.zeros((3, 3))))


def test_padding_has_node_types(x64):
    graph = egnn.complete_graph(np.eye(3), h=np.array([1, 6, 8]))
    for seed in range(5):
        h = testing.pad_with_noise(graph, seed).nodes.h
        assert h[:3].tolist() == [1, 6, 8]
        assert h.min() >= 1


def test_only_what_is_asked_for_is_checked(x64):
    testing.assert_equivariant(no_reflection, testing.random_graph(), reflection=False)
    testing.assert_equivariant(absolute_position, testing.random_graph(), translation=False)


def test_invariant_outputs_are_arrays(x64):
    energy = lambda graph: egnn.sum_nodes(graph, sum_at_receivers(graph, distances(graph)[1]))
    testing.assert_equivariant(energy, testing.random_graph())
    testing.assert_permutation_equivariant(energy, testing.random_graph())
    testing.assert_padding_invariant(energy, ragged())
    height = lambda graph: egnn.sum_nodes(graph, graph.nodes.x[:, :1])
    with pytest.raises(AssertionError, match=r"the output of row .* after a rotation"):
        testing.assert_equivariant(height, testing.random_graph())


def test_an_array_of_another_shape_or_a_nan_is_a_failure(x64):
    with pytest.raises(AssertionError, match=r"nan .* expected"):
        testing.assert_equivariant(
            lambda g: moved(
                sound(g), h=jnp.where(jnp.abs(g.nodes.h) > 1, g.nodes.x[:, :1] * jnp.nan, 0.0)
            ),
            ragged(),
        )
    with pytest.raises(AssertionError, match="has the fields"):
        testing.assert_permutation_equivariant(
            lambda g: g.nodes.x[: 3 + int(g.nodes.x[0, 0] != ragged().nodes.x[0, 0])], ragged()
        )


def test_a_gradient_of_the_parameters_is_checked(x64):
    class Root(nn.Module):
        @nn.compact
        def __call__(self, graph):
            return moved(
                graph, graph.nodes.v * jnp.sqrt(self.param("scale", nn.initializers.zeros, ()))
            )

    graph = testing.random_graph()
    model = Root()
    with pytest.raises(AssertionError, match=r"with respect to params\.params\.scale"):
        testing.assert_finite_gradients(model.apply, graph, model.init(jax.random.key(0), graph))


def test_node_types_have_no_derivative():
    graph = egnn.complete_graph(x=np.random.default_rng(0).normal(size=(4, 3)), h=[1, 6, 8, 1])
    model = egnn.EGNN(features=4, layers=1)
    params = model.init(jax.random.key(0), graph)
    testing.assert_finite_gradients(lambda g: model.apply(params, g), graph)
    testing.assert_finite_gradients(model.apply, graph, params)


def test_padding_is_checked_of_rows_for_each_graph():
    graph = testing.random_graph(padding=False)
    for fn in (lambda g: g.nodes.x.sum(), lambda g: g.nodes.x):
        with pytest.raises(ValueError, match="expected a graph, or arrays with a row for each"):
            testing.assert_padding_invariant(fn, graph)


@pytest.mark.parametrize(
    "check",
    [testing.assert_equivariant, testing.assert_permutation_equivariant,
     testing.assert_padding_invariant, testing.assert_finite_gradients],
)  # fmt: skip
def test_checks_refuse_what_is_no_function_of_a_graph(check):
    graph, model = testing.random_graph(padding=False), egnn.EGNN(features=4, layers=1)
    with pytest.raises(
        ValueError, match="fn is of type EGNN; expected a function of a graph, such as"
    ):
        check(model, graph)
    with pytest.raises(
        ValueError, match="fn is of type GraphsTuple; expected a function of a graph"
    ):
        check(graph, model)
    with pytest.raises(ValueError, match="the graph is a ndarray; expected a GraphsTuple"):
        check(lambda g: g, np.zeros((3, 3)))
    check(model.bind(model.init(jax.random.key(0), graph)), graph)


def test_a_padded_batch_is_not_padded_again():
    with pytest.raises(ValueError, match=r"padded batch; expected .* random_graph\(padding=False"):
        testing.assert_padding_invariant(lambda g: g, testing.random_graph())


def test_random_graphs_have_what_they_promise():
    graph = testing.random_graph(3, sizes=(5, 1, 7), n=4)
    np.testing.assert_array_equal(graph.n_node, [5, 1, 7, 3, 0])
    assert egnn.node_mask(graph).sum() == 13
    x, v = np.asarray(graph.nodes.x), np.asarray(graph.nodes.v)
    assert (x[0] == x[1]).all()
    assert (x[6] == x[7]).all()
    assert (v[[0, 5, 6]] == 0).all()
    assert (x[13:] != 0).all(), "padding holds numbers"
    edges = set(
        zip(np.asarray(graph.senders).tolist(), np.asarray(graph.receivers).tolist(), strict=True)
    )
    assert {(0, 1), (1, 0)} <= edges
    assert any((j, i) not in edges for i, j in edges), "directed"
    assert not any(i in (4, 5, 12) for _, i in edges), "some nodes receive nothing"
    assert (np.diff(graph.receivers) >= 0).all()
    again = testing.random_graph(3, sizes=(5, 1, 7), n=4)
    jax.tree.map(np.testing.assert_array_equal, graph, again)
    bare = testing.random_graph(velocity=False, attributes=0)
    assert bare.nodes.v is None
    assert bare.edges == egnn.Edges()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"sizes": ()}, "expected at least one graph"), ({"sizes": (0,)}, "a size is 0"),
     ({"n": 0}, "n is 0; expected at least 1"), ({"features": 0}, "features is 0"),
     ({"attributes": -1}, "attributes is -1; expected at least 0"),
     ({"n": 10**15}, "n is 10{15}; expected at most 10,000")],
)  # fmt: skip
def test_nonsense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        testing.random_graph(**wrong)


def test_a_dtype_without_a_tolerance_needs_one():
    graph = jax.tree.map(
        lambda a: a.astype(jnp.bfloat16) if jnp.issubdtype(a.dtype, jnp.floating) else a,
        testing.random_graph(),
    )
    with pytest.raises(ValueError, match="x has dtype bfloat16, which has no default tolerance"):
        testing.assert_equivariant(sound, graph)


def test_redrawn_parameters_are_of_order_one():
    graph = testing.random_graph()
    params = egnn.EGNN().init(jax.random.key(0), graph)
    redrawn = testing.randomise_parameters(params)
    assert jax.tree.structure(redrawn) == jax.tree.structure(params)
    assert np.std(params["params"]["layer_0"]["phi_x"]["Dense_1"]["kernel"]) < 1e-3
    assert 0.5 < np.std(redrawn["params"]["layer_0"]["phi_x"]["Dense_1"]["kernel"]) * 8 < 1.5


def test_a_mask_that_differs_is_a_failure():
    graph = testing.random_graph(velocity=False, padding=False)
    mask = lambda g: jnp.abs(g.nodes.x[:, 0]) > 1
    with pytest.raises(
        AssertionError, match=r"the output.* is [01] after .*; expected [01]: 1 apart"
    ):
        testing.assert_equivariant(mask, graph)


def test_a_graph_without_nodes_shows_nothing():
    graph = egnn.complete_graph(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="the graph has no nodes; expected at least one"):
        testing.assert_equivariant(lambda g: g, graph)
