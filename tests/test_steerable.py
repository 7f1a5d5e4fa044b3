"""TFN and SE(3)-Transformer against e3nn's own algebra, reflections, attention; SchNet's energy;
what they refuse.
"""

import dataclasses
from functools import partial

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.graph.graph import softmax_at_receivers
from egnn_jax.models.schnet import shifted_softplus
from egnn_jax.models.se3_transformer import AttentionLayer
from egnn_jax.models.tfn import TFNLayer
from egnn_jax.nn.radial import cosine_cutoff, gaussian_basis
from egnn_jax.nn.tensor import NormNonlinearity, edge_features, irreps, product


def features_of(graph, kind, seed=0):
    return e3nn.normal(
        kind, jax.random.key(seed), (graph.nodes.x.shape[0],), dtype=graph.nodes.x.dtype
    )


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(TFNLayer(4, 2, 3), marks=pytest.mark.slow),
        pytest.param(TFNLayer(4, 2, 3, "ignored"), marks=pytest.mark.slow),
        AttentionLayer(4, 2, 3, 2),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_layer_turns_random_irreps_as_e3nn_does(x64, layer):
    """V(Q x) = D(Q) V(x) with e3nn's own matrices, for features of every degree in and out."""
    graph = testing.random_graph()
    features = features_of(graph, irreps(4, 2, layer.parity))

    @jax.jit
    def apply(params, graph, features):
        described = edge_features(graph, 4, layer.parity, graph.nodes.x.dtype)
        return layer.apply(params, graph, features, described)

    described = edge_features(graph, 4, layer.parity, graph.nodes.x.dtype)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), graph, features, described)
    params = testing.randomise_parameters(shapes)
    out = apply(params, graph, features)
    assert {ir.l for _, ir in out.irreps} == {0, 1, 2}
    for determinant in (1, -1) if layer.parity == "natural" else (1,):
        q = egnn.random_orthogonal(jax.random.key(1), 3, determinant)
        got = apply(params, egnn.transform(graph, q), features.transform_by_matrix(q))
        np.testing.assert_allclose(
            got.array, out.transform_by_matrix(q).array, rtol=1e-9, atol=1e-9
        )


def test_messages_are_the_products_of_e3nn_edge_by_edge(x64):
    graph = testing.random_graph()
    features, edges = (
        features_of(graph, "4x0e+4x1o"),
        edge_features(graph, 2, "natural", graph.nodes.x.dtype),
    )
    got = product(graph, features, edges, 1)
    for k in (0, 3, 11):
        i, j = int(graph.receivers[k]), int(graph.senders[k])
        r_ij = graph.nodes.x[i] - graph.nodes.x[j]
        if jnp.linalg.norm(r_ij) == 0:
            continue
        y = e3nn.spherical_harmonics("0e+1o+2e", r_ij, normalize=True)
        expected = e3nn.tensor_product(features[j], y, filter_ir_out=["0e", "1o"])
        assert expected.irreps == got.irreps
        np.testing.assert_allclose(got.array[k], expected.array, atol=1e-12)
    assert {ir.l for _, ir in product(graph, features, edges, 2).irreps} == {0, 1, 2}


def test_one_tfn_layer_is_its_formula_in_loops(x64):
    """Self-interaction and weighted sum, with e3nn's linear maps given the layer's parameters."""
    graph = testing.random_graph()
    features, edges = (
        features_of(graph, "4x0e+4x1o"),
        edge_features(graph, 2, "natural", graph.nodes.x.dtype),
    )
    layer = TFNLayer(4, 1, 3)
    params = testing.randomise_parameters(
        jax.eval_shape(layer.init, jax.random.key(0), graph, features, edges)
    )
    products = product(graph, features, edges, 1)
    radial = params["params"]["radial"]
    hidden = edges.invariants @ radial["Dense_0"]["kernel"] + radial["Dense_0"]["bias"]
    weights = (
        hidden / (1 + jnp.exp(-hidden)) @ radial["Dense_1"]["kernel"] + radial["Dense_1"]["bias"]
    )
    messages = np.asarray((products * weights).array)
    summed = np.zeros((len(graph.nodes.x), messages.shape[1]))
    for k, i in enumerate(np.asarray(graph.receivers)):
        summed[i] += messages[k]
    linear = e3nn.flax.Linear("4x0e+4x1o", biases=True, gradient_normalization="element")
    mixed = linear.apply(
        {"params": params["params"]["mix"]}, e3nn.IrrepsArray(products.irreps, jnp.asarray(summed))
    )
    kept = linear.apply({"params": params["params"]["self_interaction"]}, features)
    expected = NormNonlinearity().apply({"params": params["params"]["nonlinearity"]}, kept + mixed)
    np.testing.assert_allclose(
        layer.apply(params, graph, features, edges).array, expected.array, atol=1e-11
    )


@pytest.mark.parametrize(
    "model",
    [egnn.TFN(6, 2), pytest.param(egnn.SE3Transformer(6, 2), marks=pytest.mark.slow)],
    ids=lambda m: type(m).__name__,
)
def test_parity_decides_about_reflections(x64, model):
    graph = testing.random_graph()
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    testing.assert_equivariant(jax.jit(partial(model.apply, params)), graph)
    every = dataclasses.replace(model, parity="ignored")
    params = testing.randomise_parameters(jax.eval_shape(every.init, jax.random.key(0), graph))
    with pytest.raises(AssertionError, match="after a reflection"):
        testing.assert_equivariant(jax.jit(partial(every.apply, params)), graph)


def test_attention_sums_to_one_over_the_neighbours(x64):
    graph = testing.random_graph()
    logits = 50 * jax.random.normal(jax.random.key(0), (graph.senders.shape[0], 2), jnp.float64)
    attention = np.asarray(softmax_at_receivers(graph, logits))
    for i in range(len(graph.nodes.x)):
        inside = np.asarray(graph.receivers) == i
        if inside.any():
            weights = np.exp(logits[inside] - logits[inside].max(axis=0))
            np.testing.assert_allclose(attention[inside], weights / weights.sum(axis=0), rtol=1e-9)


def test_schnets_displacement_is_the_force_of_its_energy(x64):
    graph = testing.random_graph(velocity=False, coincident=False)
    model = egnn.SchNet(features=6, layers=2, num_rbf=8, forces=True)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    readout = params["params"]

    def energy(x):
        alone = dataclasses.replace(model, forces=False)
        h = alone.apply(params, graph._replace(nodes=graph.nodes.replace(x=x))).nodes.h
        hidden = shifted_softplus(h @ readout["energy"]["kernel"] + readout["energy"]["bias"])
        return jnp.sum(hidden @ readout["energy_out"]["kernel"])

    moved = model.apply(params, graph).nodes.x - graph.nodes.x
    np.testing.assert_allclose(moved, -jax.grad(energy)(graph.nodes.x), atol=1e-11)
    assert np.abs(moved).max() > 1e-3


def test_radial_functions():
    d = jnp.array([0.0, 1.0, 2.5, 5.0, 7.0])
    basis = gaussian_basis(d, 6, 5.0)
    np.testing.assert_allclose(basis[1], np.exp(-((1 - np.arange(6.0)) ** 2) / 2), rtol=1e-5)
    np.testing.assert_allclose(
        cosine_cutoff(d, 5.0), [1, (np.cos(np.pi / 5) + 1) / 2, 0.5, 0, 0], atol=1e-6
    )
    np.testing.assert_allclose(
        shifted_softplus(jnp.array([0.0, 2.0])), [0, np.log(np.exp(2) / 2 + 0.5)], atol=1e-6
    )


def test_derivatives_of_the_shifted_softplus(x64):
    x = jnp.array([-800.0, -3.0, 0.0, 2.0, 800.0])
    gate = jax.nn.sigmoid(x)
    first, second, third = gate, gate * (1 - gate), gate * (1 - gate) * (1 - 2 * gate)
    f = shifted_softplus
    for expected in (jax.nn.softplus(x) - np.log(2), first, second, third):
        np.testing.assert_allclose(jax.vmap(f)(x), expected, rtol=1e-12, atol=1e-15)
        f = jax.grad(f)


def test_beyond_the_cutoff_nothing_is_felt(x64):
    graph = egnn.complete_graph(x=np.array([[0.0, 0, 0], [1, 0, 0], [9, 0, 0]]))
    model = egnn.SchNet(features=5, layers=2, cutoff=4.0)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    told = model.apply(params, graph).nodes.h
    farther = graph._replace(nodes=graph.nodes.replace(x=graph.nodes.x.at[2, 0].set(20.0)))
    np.testing.assert_array_equal(told, model.apply(params, farther).nodes.h)


@pytest.mark.parametrize(
    ("model", "n", "message"),
    [
        (egnn.TFN(), 2, r"x has shape \(2, 2\); expected \(N, 3\)"),
        (egnn.SE3Transformer(), 4, r"x has shape \(4, 4\); expected \(N, 3\)"),
        (egnn.TFN(parity="odd"), 3, "parity is 'odd'"),
        (egnn.TFN(degree=0), 3, "degree is 0; expected at least 1"),
        (
            egnn.SE3Transformer(features=6, heads=4),
            3,
            "features is 6; expected a multiple of heads, which is 4",
        ),
        (egnn.SchNet(cutoff=0.0), 3, "cutoff is 0.0"),
    ],
)
def test_what_is_refused(model, n, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), egnn.complete_graph(x=np.eye(n)))
