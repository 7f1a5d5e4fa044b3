"""Mistakes that other implementations made: ours is without each, and each, planted into our
source, is found.
"""

import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.experiments import optimizer as optimizer_module
from egnn_jax.models import egcl
from tests import reference


def planted(module, old, new):
    """The module with one line of its source changed."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} is not in {module.__name__} once; adapt this test"
    changed = types.ModuleType(module.__name__)
    exec(
        compile(source.replace(old, new), f"{module.__file__} with {new!r}", "exec"),
        changed.__dict__,
    )
    return changed


def layer(module, graph, **options):
    """One EGCL of the module with parameters of order one, and these."""
    model = module.EGCL(features=graph.nodes.h.shape[1], **options)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    return lambda g: model.apply(params, g).nodes, params["params"]


def arrow(**fields):
    """Node 0 sends to node 1, and nothing else to anything."""
    return egnn.graph_from_edges(
        [0], [1], x=[[0.0, 0.0], [1.0, 2.0]], h=[[1.0, 2.0, 0.5], [0.3, 0.2, -1.0]], **fields
    )


def messages_and_moves_arrive_at_receivers(module):
    graph = arrow()
    out, params = layer(module, graph)
    got = out(graph)
    alone = graph.nodes.h + np.stack(
        [
            reference.mlp(params["phi_h"], np.append(h, np.zeros(3)))
            for h in np.asarray(graph.nodes.h)
        ]
    )
    np.testing.assert_array_equal(got.x[0], graph.nodes.x[0])
    np.testing.assert_allclose(got.h[0], alone[0], rtol=1e-12)
    assert np.abs(got.x[1] - graph.nodes.x[1]).max() > 1e-3
    assert np.abs(got.h[1] - alone[1]).max() > 1e-3


def velocity_gate_reads_h_before_its_update(module):
    graph = arrow(v=[[1.0, -1.0], [0.5, 2.0]])
    out, params = layer(module, graph)
    gate = reference.mlp(params["phi_v"], graph.nodes.h[0])
    np.testing.assert_allclose(
        out(graph).x[0], graph.nodes.x[0] + gate * graph.nodes.v[0], rtol=1e-12
    )


def inferred_edges_are_one_number_an_edge(module):
    graph = arrow()
    _, params = layer(module, graph, infer_edges=True)
    assert params["phi_inf"]["kernel"].shape == (3, 1)


def coordinates_move_by_the_mean(module):
    """Each edge given twice moves a node as far as each edge once."""
    graph = testing.random_graph(attributes=0, padding=False, features=3)
    ends = [np.repeat(np.asarray(end), 2) for end in (graph.senders, graph.receivers)]
    twice = graph._replace(senders=ends[0], receivers=ends[1], n_edge=2 * graph.n_edge)
    out, _ = layer(module, graph)
    assert np.abs(out(graph).x - graph.nodes.x).max() > 0.1
    np.testing.assert_allclose(out(twice).x, out(graph).x, rtol=1e-12)


def derivatives_at_the_same_place_are_finite(module):
    graph = testing.random_graph(features=3)
    model = module.EGCL(features=3, normalize=True)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    testing.assert_finite_gradients(model.apply, graph, params)


def nodes_at_the_same_place_do_not_push_each_other(module):
    graph = egnn.complete_graph(x=np.full((3, 2), 0.7), h=np.eye(3))
    for normalize in (False, True):
        np.testing.assert_array_equal(
            layer(module, graph, normalize=normalize)[0](graph).x, graph.nodes.x
        )


def only_neighbours_count(module):
    adjacency = np.array([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    graph = egnn.graph_from_adjacency(
        adjacency, x=np.random.default_rng(0).standard_normal((4, 2)), h=np.eye(4)[:, :3]
    )
    out, _ = layer(module, graph)
    place = lambda field: (
        lambda value: out(graph._replace(nodes=graph.nodes.replace(**{field: value})))
    )
    for field in ("x", "h"):
        slopes = jax.jacobian(place(field))(getattr(graph.nodes, field))
        for slope in (slopes.x, slopes.h):
            depends = np.abs(slope).max(axis=(1, 3)) > 0
            np.testing.assert_array_equal(depends & ~np.eye(4, dtype=bool), adjacency > 0)


def the_schedule_advances_once_a_step(module):
    optimizer = module.Optimizer(learning_rate=1.0, schedule="cosine")
    transform = optimizer.build(steps_per_epoch=5, steps=20)
    params = {"w": jnp.ones(())}
    state, sizes = transform.init(params), []
    for _ in range(20):
        updates, state = transform.update({"w": jnp.ones(())}, state, params)
        sizes.append(-float(updates["w"]))
    np.testing.assert_allclose(sizes, 0.5 * (1 + np.cos(np.pi * np.arange(20) / 20)), atol=1e-4)


MESSAGES = "m_i = aggregate(graph, m_ij)"
MOVES = "dx = None if dx_ij is None else sum_at_receivers(graph, dx_ij)"
DEFECTS = [
    (
        messages_and_moves_arrive_at_receivers,
        egcl,
        MOVES,
        "dx = jax.ops.segment_sum(dx_ij, graph.senders, len(x))",
    ),
    (
        velocity_gate_reads_h_before_its_update,
        egcl,
        "self.phi_v(h)",
        "self.phi_v(h + self.phi_h(jnp.concatenate([h, m_i], axis=-1)))",
    ),
    (
        inferred_edges_are_one_number_an_edge,
        egcl,
        "self.phi_inf = Dense(1)",
        "self.phi_inf = Dense(self.features)",
    ),
    (
        coordinates_move_by_the_mean,
        egcl,
        "return 1 / jnp.maximum(in_degree(graph), 1)",
        "return jnp.ones((), dtype)",
    ),
    (
        derivatives_at_the_same_place_are_finite,
        egcl,
        "length = jax.lax.stop_gradient(length) if self.cutoff is None else length",
        "length = jnp.sqrt(jnp.sum(r_ij**2, axis=-1, keepdims=True))",
    ),
    (
        nodes_at_the_same_place_do_not_push_each_other,
        egcl,
        "r_ij = edge_vectors(graph, x_all)",
        "r_ij = edge_vectors(graph, x_all) + 1e-8",
    ),
    (
        only_neighbours_count,
        egcl,
        MESSAGES,
        "m_i = jnp.zeros_like(h) + m_ij.sum(axis=0)",
    ),
    (
        the_schedule_advances_once_a_step,
        optimizer_module,
        "return optax.chain(*transforms)",
        "return optax.chain(*transforms, optax.scale_by_schedule(lambda k: rate(3 * k) / rate(k)))",
    ),
]
each_defect = pytest.mark.parametrize(
    ("check", "module", "old", "new"), DEFECTS, ids=lambda value: getattr(value, "__name__", "")
)


@each_defect
def test_we_are_without_it(x64, check, module, old, new):
    check(module)


@each_defect
def test_planted_it_is_found(x64, check, module, old, new):
    changed = planted(module, old, new)
    with pytest.raises(AssertionError):
        check(changed)
