"""Layers, activations and aggregations of one's own in an EGNN."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing


class Doubling(nn.Module):
    """A layer of a user: h' = 2 W h."""

    features: int
    factor: float = 2.0

    @nn.compact
    def __call__(self, graph):
        h = self.factor * nn.Dense(self.features)(graph.nodes.h)
        return graph._replace(nodes=graph.nodes.replace(h=h))


def apply(model, graph):
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    return lambda g: model.apply(params, g)


def test_an_own_layer_gets_the_options_it_has():
    graph = testing.random_graph()
    model = egnn.EGNN(features=3, layers=2, layer=Doubling)
    params = model.init(jax.random.key(0), graph)
    assert set(params["params"]) == {"embedding", "layer_0", "layer_1"}
    kernels = [params["params"][f"layer_{k}"]["Dense_0"]["kernel"] for k in range(2)]
    embedding = params["params"]["embedding"]
    h = graph.nodes.h @ embedding["kernel"] + embedding["bias"]
    np.testing.assert_allclose(
        model.apply(params, graph).nodes.h, 4 * h @ kernels[0] @ kernels[1], rtol=1e-5, atol=1e-6
    )


def test_fields_of_an_own_layer_are_set_by_a_partial():
    graph = testing.random_graph()
    model = egnn.EGNN(features=3, layers=1, layer=Doubling)
    params = model.init(jax.random.key(0), graph)
    six = model.clone(layer=functools.partial(Doubling, factor=6.0)).apply(params, graph)
    np.testing.assert_allclose(six.nodes.h, 3 * model.apply(params, graph).nodes.h, rtol=1e-6)


def test_fields_of_a_partial_win_over_those_of_the_network():
    graph = testing.random_graph()
    own = egnn.EGNN(features=3, layers=1, layer=functools.partial(egnn.EGCL, normalize=True))
    same = egnn.EGNN(features=3, layers=1, normalize=True)
    params = testing.randomise_parameters(same.init(jax.random.key(0), graph))
    np.testing.assert_array_equal(
        own.apply(params, graph).nodes.x, same.apply(params, graph).nodes.x
    )
    other = egnn.EGNN(features=3, layers=1).apply(params, graph)
    assert np.abs(own.apply(params, graph).nodes.x - other.nodes.x).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cutoff": 2.0}, "cutoff is 2.0, which Doubling does not have; expected a layer with this"),
     ({"tanh": True}, "tanh is True, which Doubling does not have"),
     ({"layer": functools.partial(egnn.EGCL, cutoff=2.0)}, "the layer sets cutoff; expected it")],
)  # fmt: skip
def test_options_that_the_layers_would_ignore_are_refused(options, message):
    model = egnn.EGNN(**{"features": 3, "layers": 1, "layer": Doubling} | options)
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), testing.random_graph())


def test_with_a_cutoff_normalized_layers_have_forces_that_are_the_gradient(x64):
    """Without a cutoff, the length is a constant for derivatives, as in the authors' code."""
    x = np.random.default_rng(0).standard_normal((4, 3))
    options = {"features": 4, "layers": 2, "coordinate_aggregation": "sum", "normalize": True}

    def wrong_by(cutoff):
        graph = egnn.complete_graph(x, h=np.ones((4, 1)))
        run = apply(egnn.EGNN(**options, cutoff=cutoff), graph)
        energy = lambda x: run(graph._replace(nodes=graph.nodes.replace(x=x))).nodes.h.sum()
        step = 1e-5 * np.eye(12)[5].reshape(4, 3)
        numeric = (energy(x + step) - energy(x - step)) / 2e-5
        return abs(float(jax.grad(energy)(jnp.asarray(x))[1, 2] - numeric))

    assert wrong_by(6.0) < 1e-7
    assert wrong_by(None) > 1e-3


@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_aggregations_equal_loops(x64, aggregation):
    graph = testing.random_graph(sizes=(4,), padding=False)
    layer = egnn.EGCL(features=2, aggregation=aggregation, update_coordinates=False)
    seen = {}

    def spy(graph, m_ij):
        loop = np.zeros((len(graph.nodes.x), m_ij.shape[1]))
        for i in range(len(loop)):
            mine = np.asarray(m_ij)[np.asarray(graph.receivers) == i]
            if len(mine):
                loop[i] = mine.mean(axis=0) if aggregation == "mean" else mine.max(axis=0)
        seen["called"] = True
        return jnp.asarray(loop)

    params = testing.randomise_parameters(jax.eval_shape(layer.init, jax.random.key(0), graph))
    own = egnn.EGCL(features=2, aggregation=spy, update_coordinates=False)
    np.testing.assert_allclose(
        layer.apply(params, graph).nodes.h, own.apply(params, graph).nodes.h, rtol=1e-12
    )
    assert seen


@pytest.mark.parametrize("aggregation", ["mean", "max"])
@pytest.mark.parametrize("activation", ["gelu", jnp.tanh])
def test_other_options_keep_the_symmetries(x64, aggregation, activation):
    model = egnn.EGNN(features=4, layers=2, aggregation=aggregation, activation=activation)
    fn = apply(model, testing.random_graph())
    testing.assert_equivariant(fn, testing.random_graph())
    testing.assert_permutation_equivariant(fn, testing.random_graph())
    testing.assert_padding_invariant(fn, testing.random_graph(padding=False))


def test_an_activation_is_used():
    graph = testing.random_graph()
    silu, same, other = (
        egnn.EGNN(features=4, layers=1, activation=a) for a in ("silu", jax.nn.silu, "relu")
    )
    params = testing.randomise_parameters(jax.eval_shape(silu.init, jax.random.key(0), graph))
    out = [model.apply(params, graph).nodes.h for model in (silu, same, other)]
    np.testing.assert_allclose(out[0], out[1], rtol=1e-5)
    assert np.abs(out[0] - out[2]).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "siluu"}, "activation is 'siluu'; expected a function, or the name"),
        ({"activation": None}, "activation is None; expected a function"),
        ({"aggregation": "median"}, "aggregation is 'median'; expected one of"),
        ({"aggregation": "max", "edge_block": 4}, "edge_block expects 'sum'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    graph = testing.random_graph()
    with pytest.raises(ValueError, match=message):
        egnn.EGNN(features=2, layers=1, **options).init(jax.random.key(0), graph)
