"""Learned forces inside a simulation: symmetries, conservation, gradients and what they find."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.run import load, train
from egnn_jax.potentials.learned_dynamics import LearnedDynamics, PairForce


def charged(rng, sizes=(5, 3), dtype=np.float64):
    graphs = []
    for size in sizes:
        charges = rng.choice([-1.0, 1.0], size=(size, 1))
        x, v = rng.normal(size=(2, size, 3))
        graph = egnn.complete_graph(x=x.astype(dtype), v=v.astype(dtype), h=charges.astype(dtype))
        products = charges[graph.receivers] * charges[graph.senders]
        graphs.append(graph._replace(edges=graph.edges.replace(a=jnp.asarray(products, dtype))))
    return egnn.batch(graphs)


def random(module, graph):
    return testing.randomise_parameters(jax.eval_shape(module.init, jax.random.key(0), graph))


@pytest.mark.parametrize("layers", [0, 1])
def test_it_turns_and_moves_with_its_input(x64, rng, layers):
    graph, model = charged(rng), LearnedDynamics(8, layers, steps=5)
    params = random(model, graph)
    testing.assert_equivariant(partial(model.apply, params), graph)


@pytest.mark.parametrize("layers", [0, 1])
def test_momentum_is_kept(x64, rng, layers):
    graph, model = charged(rng), PairForce(8, layers)
    forces = model.apply(random(model, graph), graph)
    assert np.abs(forces).max() > 0.1
    np.testing.assert_allclose(forces[:5].sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(forces[5:].sum(axis=0), 0, atol=1e-12)


def test_a_pair_force_is_the_gradient_of_an_energy(x64, rng):
    """Its Jacobian is symmetric, and with more than two particles in it is not."""
    graph = charged(rng, (4,))
    asymmetry = []
    for layers in (0, 1):
        model = PairForce(8, layers)
        params = random(model, graph)
        force = lambda x, model=model, params=params: model.apply(
            params, graph._replace(nodes=graph.nodes.replace(x=x))
        )
        jacobian = jax.jacobian(force)(graph.nodes.x).reshape(12, 12)
        asymmetry.append(np.abs(jacobian - jacobian.T).max() / np.abs(jacobian).max())
    assert asymmetry[0] < 1e-12
    assert asymmetry[1] > 1e-3


def test_forces_are_bounded_and_finite_at_the_same_place(rng):
    graph = charged(rng, (4,), np.float32)
    graph = graph._replace(nodes=graph.nodes.replace(x=graph.nodes.x.at[1].set(graph.nodes.x[0])))
    model = PairForce(8, bound=3.0)
    params = jax.tree.map(lambda a: 30 * a, random(model, graph))
    forces = model.apply(params, graph)
    assert np.isfinite(forces).all()
    assert np.linalg.norm(forces, axis=1).max() <= 9.001
    gradient = jax.grad(lambda p: jnp.sum(model.apply(p, graph) ** 2))(params)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradient))


@pytest.mark.parametrize("growth", [None, 1.0])
def test_gradients_through_a_simulation_of_particles_at_one_place_are_finite(rng, growth):
    graph = charged(rng, (4,), np.float32)
    moved = {name: getattr(graph.nodes, name).at[1].set(getattr(graph.nodes, name)[0])
             for name in ("x", "v")}  # fmt: skip
    graph = graph._replace(nodes=graph.nodes.replace(**moved))
    model = LearnedDynamics(8, steps=20, growth=growth)
    params = random(model, graph)

    def end(params, x):
        own = graph._replace(nodes=graph.nodes.replace(x=x))
        return jnp.sum(jnp.sin(model.apply(params, own).nodes.x))

    gradients = jax.jit(jax.grad(end, (0, 1)))(params, graph.nodes.x)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradients))
    assert np.abs(gradients[1]).max() > 0


@pytest.mark.parametrize("growth", [None, 1.0])
def test_second_derivatives_are_finite_on_padding(rng, growth):
    graph = egnn.batch(egnn.unbatch(charged(rng, (3,), np.float32)), egnn.Budget(5, 8, 2))
    model = LearnedDynamics(4, steps=2, growth=growth)
    params = random(model, graph)
    value = lambda p: jnp.sum(jnp.sin(model.apply(p, graph).nodes.x[:3]))
    square = lambda p: sum(jnp.sum(a**2) for a in jax.tree.leaves(jax.grad(value)(p)))
    gradients = jax.jit(jax.grad(square))(params)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradients))
    assert any(np.abs(a).max() > 0 for a in jax.tree.leaves(gradients))


def test_growth_bounds_the_gradient_and_nothing_else(x64, rng):
    graph = charged(rng)
    exact, loose, tight = (
        LearnedDynamics(8, steps=20, growth=growth) for growth in (None, 1e6, 0.1)
    )
    params = random(exact, graph)

    def of_start(model):
        def end(x):
            moved = graph._replace(nodes=graph.nodes.replace(x=x))
            return jnp.sum(jnp.sin(model.apply(params, moved).nodes.x))

        return jax.jit(jax.value_and_grad(end))(graph.nodes.x)

    (value, gradient), same, bounded = map(of_start, (exact, loose, tight))
    assert value == pytest.approx(same[0]) == pytest.approx(bounded[0])
    np.testing.assert_allclose(same[1], gradient, rtol=1e-10)
    longest = np.linalg.norm(np.cos(exact.apply(params, graph).nodes.x), axis=1)
    for particles in (slice(0, 5), slice(5, 8)):  # of each system its own
        lengths = np.linalg.norm(bounded[1][particles], axis=1)
        # Beside the bounded gradient there is that of the first force.
        assert lengths.max() < 0.2 * longest[particles].max()
        assert np.linalg.norm(gradient[particles], axis=1).max() > lengths.max()


def test_growth_lets_gradients_of_velocities_pass(x64, rng):
    graph = charged(rng)
    params = random(LearnedDynamics(8), graph)

    def gradient(growth):
        model = LearnedDynamics(8, steps=10, time=0.5, growth=growth)
        return jax.grad(lambda params: jnp.sum(model.apply(params, graph).nodes.v ** 2))(params)

    exact, loose = gradient(None), gradient(1e6)
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(exact)) > 1e-3
    chex.assert_trees_all_close(exact, loose, rtol=1e-10)


def test_steps_and_time_are_no_part_of_the_parameters(x64, rng):
    graph = charged(rng)
    model = LearnedDynamics(8, steps=400, time=0.5)
    params = random(model, graph)
    whole = model.apply(params, graph)
    half = model.clone(time=0.25, steps=100)
    twice = half.apply(params, half.apply(params, graph))
    np.testing.assert_allclose(twice.nodes.x, whole.nodes.x, rtol=2e-3, atol=2e-3)
    still = graph._replace(nodes=graph.nodes.replace(v=jnp.zeros_like(graph.nodes.v)))
    without = graph._replace(nodes=graph.nodes.replace(v=None))
    np.testing.assert_array_equal(
        model.apply(params, without).nodes.x, model.apply(params, still).nodes.x
    )


@pytest.mark.parametrize("option", ["bound", "time", "growth"])
def test_options_that_make_no_sense(rng, option):
    graph = charged(rng, dtype=np.float32)
    with pytest.raises(ValueError, match=f"{option} is -1; expected a finite number above 0"):
        LearnedDynamics(8, steps=2, **{option: -1}).init(jax.random.key(0), graph)


@pytest.mark.slow
def test_the_law_is_found_from_where_particles_end(tmp_path):
    """Coulomb's law, after ten epochs of the recipe at 100 steps."""
    config = configs.load("nbody/dynamics")
    model = config.model.clone(steps=100)
    train(dataclasses.replace(config, model=model, epochs=10), tmp_path / "run")
    _, network, params = load(tmp_path / "run")
    # Opposite charges come near to each other; equal ones do not, and are learned from afar.
    distances = np.array([0.2, 0.4, 0.7, 1.0, 1.5])
    found = pair_forces(network, params, distances)
    np.testing.assert_allclose(found, -(distances**-2), rtol=0.15)


def pair_forces(network, params, distances):
    """The force on a particle at these distances from one of opposite charge."""
    force = PairForce(network.features, network.layers, network.bound)
    found = []
    for distance in distances:
        x = np.array([[0, 0, 0], [distance, 0, 0]], np.float32)
        graph = egnn.complete_graph(x=x, h=np.array([[1], [-1]], np.float32))
        graph = graph._replace(edges=graph.edges.replace(a=-jnp.ones((2, 1))))
        found.append(float(force.apply({"params": params["params"]["force"]}, graph)[1, 0]))
    return np.array(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layers": 1}, "layers is 1 for a graph without h; expected 0"),
     ({"layers": -1}, "layers is -1; expected at least 0")],
)  # fmt: skip
def test_layers_need_h(options, message):
    graph = egnn.complete_graph(np.eye(3))
    graph = graph._replace(nodes=graph.nodes.replace(h=None))
    with pytest.raises(ValueError, match=message):
        LearnedDynamics(8, steps=2, **options).init(jax.random.key(0), graph)
