"""PaiNN against its equations as plain loops, and where its interactions end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.nn.radial import bessel_basis
from tests.helpers import graph_of_distinct_places
from tests.reference import mlp


def by_loops(model, p, graph):
    """h and v' of each node, edge by edge and channel by channel."""
    h, x, v = (np.asarray(a) for a in (graph.nodes.h, graph.nodes.x, graph.nodes.v))
    features, cutoff = model.features, model.cutoff
    h = h @ p["embedding"]["kernel"] + p["embedding"]["bias"]
    vectors = np.einsum("id,c->icd", v, p["vectors_in"]["kernel"][0])
    for layer in range(model.layers):
        named = lambda name, layer=layer: p[f"layer_{layer}_{name}"]
        phi = mlp(named("phi"), h)
        new_h, new_vectors = h.copy(), vectors.copy()
        for e, (i, j) in enumerate(zip(graph.receivers, graph.senders, strict=True)):
            r = x[i] - x[j]
            d = np.sqrt(r @ r)
            k = np.arange(1, model.num_rbf + 1)
            s = np.sqrt(2 / cutoff) * np.sin(k * np.pi * d / cutoff) / d if d < cutoff else 0 * k
            s = np.append(s, graph.edges.a[e])
            fade = (np.cos(np.pi * d / cutoff) + 1) / 2 if d < cutoff else 0.0
            w = (s @ named("filters")["kernel"] + named("filters")["bias"]) * fade
            for c in range(features):
                new_h[i, c] += phi[j, c] * w[c]
                carried = phi[j, features + c] * w[features + c] * vectors[j, c]
                along = phi[j, 2 * features + c] * w[2 * features + c] * r / d
                new_vectors[i, c] += carried + along
        h, vectors = new_h, new_vectors
        mix = named("update_mix")["kernel"]
        a_v = np.einsum("icd,ck->ikd", vectors, mix[:, :features])
        b_v = np.einsum("icd,ck->ikd", vectors, mix[:, features:])
        lengths = np.sqrt((b_v**2).sum(axis=2) + model.epsilon**2)
        a = mlp(named("update"), np.concatenate([h, lengths], axis=1))
        a_1, a_2, a_3 = np.split(a, 3, axis=1)
        h = h + a_1 * (a_v * b_v).sum(axis=2) + a_2
        vectors = vectors + a_3[:, :, None] * a_v
    return h, np.einsum("icd,c->id", vectors, p["vectors_out"]["kernel"][:, 0])


def built(graph, **options):
    model = egnn.PaiNN(features=5, layers=2, num_rbf=4, **{"cutoff": 3.0} | options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), graph)
    return model, testing.randomise_parameters(shapes)


@pytest.mark.parametrize("epsilon", [0.1, 0.0])
def test_it_equals_its_equations(x64, epsilon):
    graph = graph_of_distinct_places()
    model, params = built(graph, epsilon=epsilon)
    out = model.apply(params, graph)
    h, v = by_loops(model, jax.tree.map(np.asarray, params["params"]), graph)
    np.testing.assert_allclose(out.nodes.h, h, rtol=1e-10)
    np.testing.assert_allclose(out.nodes.v, v, rtol=1e-10)
    np.testing.assert_array_equal(out.nodes.x, graph.nodes.x)
    moved = dataclasses.replace(model, update_coordinates=True).apply(params, graph)
    np.testing.assert_allclose(moved.nodes.x, graph.nodes.x + v, rtol=1e-10)


def test_the_basis_is_zero_at_the_cutoff_and_finite_at_zero(x64):
    d = jnp.array([0.0, 1e-9, 1.0, 4.0])
    values = bessel_basis(d, 3, 4.0)
    expected = np.sqrt(2 / 4) * np.sin(np.arange(1, 4) * np.pi / 4)
    np.testing.assert_allclose(values[2], expected, rtol=1e-12)
    np.testing.assert_allclose(values[0], values[1], rtol=1e-12)
    np.testing.assert_allclose(values[3:], 0, atol=1e-15)


def test_nothing_jumps_where_a_neighbor_crosses_the_cutoff(x64):
    def out(distance):
        x = np.array([[0.0, 0, 0], [distance, 0, 0], [0, 1, 0]])
        graph = egnn.complete_graph(x, np.ones((3, 2)))
        model, params = built(graph, cutoff=2.0)
        return model.apply(params, graph).nodes.h[0]

    inside, at, outside = out(2.0 - 1e-4), out(2.0), out(3.0)
    np.testing.assert_allclose(inside, at, atol=1e-6)
    np.testing.assert_allclose(at, outside, atol=1e-12)
    assert np.abs(out(1.5) - outside).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cutoff": 0.0}, "cutoff is 0.0"), ({"cutoff": float("inf")}, "cutoff is inf"),
     ({"epsilon": -1.0}, "epsilon is -1.0"), ({"num_rbf": 0}, "num_rbf is 0"),
     ({"layers": 0}, "layers is 0")],
)  # fmt: skip
def test_options_that_make_no_sense(options, message):
    graph = testing.random_graph()
    with pytest.raises(ValueError, match=message):
        egnn.PaiNN(**options).init(jax.random.key(0), graph)
