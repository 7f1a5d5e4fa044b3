"""TensorNet against its equations as plain loops, and where its interactions end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from tests.helpers import graph_of_distinct_places
from tests.reference import layer_norm, linear, mlp, silu


def parts(matrix):
    """The multiple of the identity, the antisymmetric and the traceless symmetric part."""
    identity = np.eye(3) * np.trace(matrix) / 3
    return identity, (matrix - matrix.T) / 2, (matrix + matrix.T) / 2 - identity


def mixed(p, name, tensors):
    """Channels of each part combined by its own matrix: (N, F, 3, 3) to the same."""
    kernels = [p[f"{name}_{kind}"]["kernel"] for kind in "ias"]
    result = np.zeros_like(tensors)
    for i in np.ndindex(tensors.shape[:2]):
        for kernel, part in zip(kernels, parts(tensors[i]), strict=True):
            result[i[0]] += kernel[i[1]][:, None, None] * part
    return result


def normalized(tensors):
    return tensors / (1 + (tensors**2).sum(axis=(2, 3), keepdims=True))


def by_loops(model, p, graph):
    """h of each node, with 3 × 3 matrices, edge by edge and channel by channel."""
    features, cutoff = model.features, model.cutoff
    x = np.asarray(graph.nodes.x)
    h = linear(p["embedding"], graph.nodes.h)
    edges = []
    for e, (i, j) in enumerate(zip(graph.receivers, graph.senders, strict=True)):
        r = x[i] - x[j]
        u = (d := np.sqrt(r @ r)) and r / d
        k = np.arange(1, model.num_rbf + 1)
        s = np.sqrt(2 / cutoff) * np.sin(k * np.pi * d / cutoff) / d if d < cutoff else 0 * k
        t = d / cutoff
        fade = 1 - 28 * t**6 + 48 * t**7 - 21 * t**8 if t < 1 else 0.0
        edges.append((i, j, -u, np.append(s, graph.edges.a[e]), fade))
    tensors = np.zeros((len(x), features, 3, 3))
    for i, j, u, s, fade in edges:  # u from i to j
        z = (linear(p["z_i"], h[i]) + linear(p["z_j"], h[j])) * fade
        w = linear(p["tensors_w"], s)
        cross = np.array([[0, -u[2], u[1]], [u[2], 0, -u[0]], [-u[1], u[0], 0]])
        for c in range(features):
            terms = (np.eye(3), cross, np.outer(u, u) - np.eye(3) / 3)
            for k, term in enumerate(terms):
                tensors[i, c] += z[c] * w[k * features + c] * term
    gates = mlp(p["tensors_gates"], layer_norm(p["tensors_norm"], (tensors**2).sum(axis=(2, 3))))
    tensors = mixed(p, "tensors_mix", tensors)
    for i in np.ndindex(tensors.shape[:2]):
        factors = silu(gates)[i[0], i[1] :: features]
        tensors[i] = sum(f * part for f, part in zip(factors, parts(tensors[i]), strict=True))
    for layer in range(model.layers):
        y = mixed(p, f"layer_{layer}_y", normalized(tensors))
        messages = np.zeros_like(tensors)
        for i, j, _, s, fade in edges:
            w = linear(p[f"layer_{layer}_w"], s) * fade
            for c in range(features):
                for k, part in enumerate(parts(y[j, c])):
                    messages[i, c] += w[k * features + c] * part
        delta = mixed(p, f"layer_{layer}_delta", normalized(y @ messages + messages @ y))
        tensors = tensors + delta + delta @ delta
    norms = np.zeros((len(x), 3, features))
    for i in np.ndindex(tensors.shape[:2]):
        norms[i[0], :, i[1]] = [(part**2).sum() for part in parts(tensors[i])]
    return mlp(p["out"], layer_norm(p["out_norm"], norms.reshape(len(x), -1)))


def built(graph, **options):
    model = egnn.TensorNet(features=4, num_rbf=3, **{"layers": 2, "cutoff": 3.0} | options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), graph)
    return model, testing.randomise_parameters(shapes)


def test_it_equals_its_equations(x64):
    graph = graph_of_distinct_places()
    model, params = built(graph)
    out = model.apply(params, graph)
    h = by_loops(model, jax.tree.map(np.asarray, params["params"]), graph)
    np.testing.assert_allclose(out.nodes.h, h, rtol=1e-9, atol=1e-9 * np.abs(h).max())
    np.testing.assert_array_equal(out.nodes.x, graph.nodes.x)
    np.testing.assert_array_equal(out.nodes.v, graph.nodes.v)


def test_it_sees_what_distances_to_one_node_do_not(x64):
    """Angles between the neighbors of a node, in one layer and with the same distances to it."""

    def h(angle):
        x = np.array([[0.0, 0, 0], [1, 0, 0], [np.cos(angle), np.sin(angle), 0]])
        # Neighbors do not see each other, so that only the angle at the first node differs.
        graph = egnn.graph_from_edges([1, 2], [0, 0], x, h=np.ones((3, 2)))
        model, params = built(graph, layers=1)
        return model.apply(params, graph).nodes.h[0]

    assert np.abs(h(1.0) - h(2.0)).max() > 1e-3
    np.testing.assert_allclose(h(1.0), h(-1.0), rtol=1e-10)


@pytest.mark.slow
def test_value_and_two_derivatives_do_not_jump_at_the_cutoff(x64):
    def out(distance):
        zero = jnp.zeros(())
        x = jnp.stack([jnp.zeros(3), jnp.stack([distance, zero, zero]), jnp.array([0.0, 1, 0])])
        graph = egnn.complete_graph(x, np.ones((3, 2)))
        model, params = built(egnn.complete_graph(np.eye(3), np.ones((3, 2))), cutoff=2.0)
        return jnp.sum(model.apply(params, graph).nodes.h[0])

    derivatives = (out, jax.grad(out), jax.grad(jax.grad(out)))
    for f in derivatives:
        np.testing.assert_allclose(f(2.0 - 1e-6), f(2.0 + 1e-6), atol=1e-3)
        assert abs(f(1.5) - f(3.0)) > 1e-2
    assert derivatives[1](3.0) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cutoff": 0.0}, "cutoff is 0.0"), ({"cutoff": float("inf")}, "cutoff is inf"),
     ({"num_rbf": 0}, "num_rbf is 0"),
     ({"features": 1.5}, "features is 1.5; expected a whole number")],
)  # fmt: skip
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        egnn.TensorNet(**options).init(jax.random.key(0), testing.random_graph())


def test_it_needs_three_dimensions():
    with pytest.raises(ValueError, match=r"x has shape \(.*, 2\); expected \(N, 3\)"):
        egnn.TensorNet().init(jax.random.key(0), testing.random_graph(n=2))
