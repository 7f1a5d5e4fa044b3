"""TFN and SE(3)-Transformer of Fuchs et al.: what symmetry and the golden values do not say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.nn.kernels import Filters

SMALL = {"features": 4, "layers": 3, "degree": 1, "radial": 4}
MODELS = [egnn.FuchsTFN(**SMALL), egnn.FuchsSE3Transformer(**SMALL, heads=2, div=2)]


def build(model, graph):
    params = jax.eval_shape(model.init, jax.random.key(0), graph)
    return jax.jit(partial(model.apply, testing.randomise_parameters(params)))


@pytest.mark.parametrize("model", MODELS)
def test_reflections_need_natural_parity(x64, model):
    graph = testing.random_graph(sizes=(7,), coincident=False)
    testing.assert_equivariant(build(model, graph), graph)
    apply = build(model.clone(parity="ignored"), graph)
    testing.assert_equivariant(apply, graph, reflection=False)
    with pytest.raises(AssertionError, match="after a reflection"):
        testing.assert_equivariant(apply, graph)


@pytest.mark.parametrize("model", MODELS)
def test_a_lone_node_keeps_its_own_features(x64, model):
    """The authors' mean over neighbors, with W h_i inside, is 0 without any."""
    h = np.array([[1.0, 2.0], [3.0, 1.0], [1.0, 2.0]])
    graph = egnn.graph_from_edges([0, 1], [1, 0], x=np.eye(3), h=h)
    out = build(model, graph)(graph).nodes
    assert np.abs(out.h[2]).max() > 1e-3
    assert np.abs(out.h[2] - out.h[0]).max() > 1e-3
    np.testing.assert_array_equal(out.x, graph.nodes.x)


def test_a_basis_turns_with_its_edge(x64):
    """Q_J(R r) = D(R) Q_J(r) D'(R)ᵀ; for l = 1 is D = R itself, in the order x, y, z."""
    graph = egnn.complete_graph(x=np.random.default_rng(0).standard_normal((4, 3)))
    turn = egnn.random_orthogonal(jax.random.key(0), 3, 1)
    before, after = (
        Filters(one, 2, jnp.float64, "ignored").basis(1, 1)
        for one in (graph, egnn.transform(graph, turn))
    )
    expected = jnp.einsum("bc,ecja,da->ebjd", turn, before, turn)
    np.testing.assert_allclose(after, expected, atol=1e-12)
    scalar, cross = before[:, :, 0], before[:, :, 1]
    np.testing.assert_allclose(scalar, scalar[:1, :1, :1] * np.eye(3) + 0 * scalar, atol=1e-12)
    np.testing.assert_allclose(cross, -cross.transpose(0, 2, 1), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_kinds_of_nodes_are_embedded(model):
    graph = egnn.complete_graph(x=np.eye(3), h=np.array([6, 1, 8]))
    params = model.init(jax.random.key(0), graph)
    assert params["params"]["embedding"]["table"].shape[1] == SMALL["features"]
    h = model.apply(params, graph).nodes.h
    assert h.shape == (3, 8)
    swapped = graph._replace(nodes=graph.nodes.replace(h=jnp.array([1, 6, 8])))
    assert np.abs(model.apply(params, swapped).nodes.h - h).max() > 1e-3


def test_the_maximum_over_nodes_is_taken_graph_by_graph(x64):
    graphs = [egnn.complete_graph(x=-k - np.eye(3)[:, :2] - 2, h=-np.eye(3) - k) for k in (1, 2)]
    linear = egnn.MaxReadout(egnn.GNN(features=3, layers=1), outputs=2)
    both = egnn.batch(graphs, egnn.Budget(9, 20, 4))
    params = testing.randomise_parameters(jax.eval_shape(linear.init, jax.random.key(0), both))
    y = linear.apply(params, both).globals.y
    for k, graph in enumerate(graphs):
        np.testing.assert_allclose(y[k], linear.apply(params, graph).globals.y[0], rtol=1e-10)
    values = jnp.asarray(both.nodes.h)
    got = egnn.max_nodes(both, values)
    np.testing.assert_array_equal(got[:2], [values[:3].max(axis=0), values[3:6].max(axis=0)])
    np.testing.assert_array_equal(got[3], np.zeros(3))  # a graph without nodes
    for dtype in (np.int8, np.int32, np.float32, jnp.bfloat16):
        got = egnn.max_nodes(both, values.astype(dtype))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got[3], np.zeros(3))
    lowest = egnn.max_nodes(both, values.at[:3].set(-np.inf))
    np.testing.assert_array_equal(lowest[0], np.full(3, -np.inf))
    for wrong in (jnp.float32(1), "h", None, values[:4]):
        with pytest.raises(ValueError, match=r"values is .*; expected an array"):
            egnn.max_nodes(both, wrong)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (egnn.FuchsTFN(), np.eye(2), r"x has shape \(2, 2\); expected \(N, 3\)"),
        (egnn.FuchsSE3Transformer(), np.eye(2), r"x has shape \(2, 2\); expected \(N, 3\)"),
        (egnn.FuchsTFN(degree=11), np.eye(3), "degree is 11; expected 0 to 10"),
        (egnn.FuchsTFN(degree=1.5), np.eye(3), "degree is 1.5; expected a whole number"),
        (egnn.FuchsTFN(layers=0), np.eye(3), "layers is 0"),
        (egnn.FuchsTFN(parity="odd"), np.eye(3), "parity is 'odd'; expected one of"),
        (egnn.FuchsSE3Transformer(heads=3), np.eye(3), "features / div is 4; expected a multiple"),
        (egnn.FuchsSE3Transformer(div=17), np.eye(3), "features / div is 0; expected a multiple"),
    ],
)
def test_what_makes_no_sense_is_refused(model, x, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), egnn.complete_graph(x=x))
