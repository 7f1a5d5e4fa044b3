"""Differentiable simulations: values, gradients, memory and faults of rollouts."""

import contextlib
import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import egnn_jax as egnn


def spring(params, x):
    """Forces of a particle at each corner of a polygon on the next one, with an anharmonic part."""
    r = x - jnp.roll(x, 1, axis=0)
    pull = params["k"] * r * (1 + params["a"] * jnp.sum(r**2, axis=-1, keepdims=True))
    return jnp.roll(pull, -1, axis=0) - pull


def energy(params, state, masses):
    r = state.x - jnp.roll(state.x, 1, axis=0)
    d2 = jnp.sum(r**2, axis=-1)
    bonds = params["k"] * (d2 / 2 + params["a"] * d2**2 / 4)
    return jnp.sum(bonds) + jnp.sum(masses[:, None] * state.v**2) / 2


@pytest.fixture
def system(x64, rng):
    masses = jnp.asarray(rng.uniform(1, 2, 4))
    params = {"k": jnp.asarray(1.3), "a": jnp.asarray(0.2)}
    x, v = (jnp.asarray(rng.normal(size=(4, 3))) for _ in range(2))
    init, step = egnn.velocity_verlet(spring, 0.02, masses)
    return params, step, init(params, x, v), masses


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 12, 36, 37])
def test_a_rollout_is_the_steps_one_after_the_other(system, steps):
    params, step, start, _ = system
    expected = start
    for _ in range(steps):
        expected = step(params, expected)
    found = egnn.rollout(step, params, start, steps)
    assert int(found.finite) == steps
    assert found.frames is None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found.state, expected)


@pytest.mark.parametrize(("steps", "every"), [(12, 3), (12, 1), (35, 5), (21, 1), (0, 1), (5, 5)])
def test_frames_are_the_states_on_the_way(system, steps, every):
    params, step, start, _ = system
    found = egnn.rollout(step, params, start, steps, every, save=lambda state: state.x)
    assert found.frames.shape == (steps // every, 4, 3)
    for k, frame in enumerate(found.frames):
        expected = egnn.rollout(step, params, start, (k + 1) * every).state.x
        np.testing.assert_allclose(frame, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "every"),
    [
        (37, None), (36, 4), *(pytest.param(*case, marks=pytest.mark.slow)
                               for case in [(7, None), (36, None), (12, 1)])
    ],
)  # fmt: skip
def test_gradients_are_those_of_the_plain_scan_and_of_differences(system, steps, every):
    params, step, start, _ = system

    def end(params, x, checkpoint):
        state = start._replace(x=x, f=spring(params, x))
        out = egnn.rollout(step, params, state, steps, every, checkpoint=checkpoint)
        saved = 0.0 if every is None else jnp.sum(out.frames.v**3)
        return jnp.sum(out.state.x**2) + saved

    found, expected = (
        jax.jit(jax.grad(lambda p, x, kind=kind: end(p, x, kind), (0, 1)))(params, start.x)
        for kind in ("sqrt", "none")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, expected)
    check_grads(lambda p, x: end(p, x, "sqrt"), (params, start.x), 1, ["rev"], rtol=1e-6)


def test_the_gradient_keeps_the_square_root_of_the_steps(system):
    params, step, start, _ = system
    wide = jax.tree.map(lambda a: jnp.broadcast_to(a, (500, *a.shape)), start)

    def temporaries(steps, checkpoint):
        def end(params):
            run = lambda state: egnn.rollout(step, params, state, steps, checkpoint=checkpoint)
            return jnp.sum(jax.vmap(run)(wide).state.x ** 2)

        compiled = jax.jit(jax.grad(end)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(400, "sqrt") < 0.2 * temporaries(400, "none")
    assert temporaries(1600, "sqrt") < 2.5 * temporaries(400, "sqrt")


def test_a_state_may_be_of_a_class_without_equality():
    @jax.tree_util.register_pytree_node_class
    class State:
        def __init__(self, x):
            self.x = x

        def tree_flatten(self):
            return (self.x,), None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(*leaves)

    step = lambda params, state: State(params * state.x)
    assert float(egnn.rollout(step, 2.0, State(jnp.ones(())), 3).state.x) == 8


def test_systems_are_followed_at_once(system):
    params, step, start, _ = system
    others = start._replace(v=start.v[::-1])
    both = jax.tree.map(lambda *a: jnp.stack(a), start, others)
    found = jax.jit(jax.vmap(lambda state: egnn.rollout(step, params, state, 20).state.x))(both)
    for k, state in enumerate((start, others)):
        np.testing.assert_allclose(found[k], egnn.rollout(step, params, state, 20).state.x, 1e-10)


def test_verlet_goes_back_to_where_it_came_from_and_keeps_energy(system):
    params, step, start, masses = system
    there = egnn.rollout(step, params, start, 2_000, 10)
    back = egnn.rollout(step, params, there.state._replace(v=-there.state.v), 2_000).state
    np.testing.assert_allclose(back.x, start.x, atol=1e-8)
    energies = jax.vmap(lambda state: energy(params, state, masses))(there.frames)
    first, last = energies[:100].mean(), energies[-100:].mean()
    assert abs(last - first) < 2e-5 * abs(first)  # 2,000 steps of explicit Euler: it grows twofold
    assert np.abs(energies - energies[0]).max() < 1e-2 * abs(energies[0])


def test_a_step_of_verlet_is_newtons_second_law_to_second_order(system):
    """Halving the step divides the error of the end by four."""
    params, _, start, masses = system
    ends = []
    for count in (20, 40, 80):
        init, step = egnn.velocity_verlet(spring, 1.0 / count, masses)
        state = egnn.rollout(step, params, init(params, start.x, start.v), count).state
        ends.append(state.x)
    ratio = jnp.linalg.norm(ends[0] - ends[1]) / jnp.linalg.norm(ends[1] - ends[2])
    assert 3.8 < ratio < 4.2


def test_the_step_that_breaks_down_is_named():
    def step(params, state):
        return {"x": jnp.where(state["n"] == 6, params, state["x"]), "n": state["n"] + 1}

    start = {"x": jnp.zeros(3), "n": 0}
    for bad in (jnp.nan, jnp.inf):
        with pytest.raises(FloatingPointError, match="not finite after step 7 of 20"):
            egnn.rollout(step, bad, start, 20)
        found = jax.jit(lambda bad: egnn.rollout(step, bad, start, 20).finite)(bad)
        assert found == 6
    with pytest.raises(FloatingPointError, match="to start from is not finite"):
        egnn.rollout(step, 1.0, {"x": jnp.full(3, jnp.nan), "n": 0}, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "steps is -1; expected at least 0"),
        ({"steps": 2.0}, "steps is 2.0; expected a whole number"),
        ({"steps": 5, "save_every": 0}, "save_every is 0"),
        ({"steps": 5, "save_every": 2}, "steps is 5; expected a multiple of save_every, 2"),
        ({"steps": 5, "checkpoint": "log"}, "checkpoint is 'log'; expected 'sqrt' or 'none'"),
        ({"steps": 5, "save": "x"}, "save is of type str; expected a function of a state"),
        (
            {"steps": 5, "step": {"w": 1}},
            "step is of type dict; expected a function .params, state.",
        ),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        egnn.rollout(
            **{"step": lambda params, state: state, "params": None, "state": jnp.zeros(2)}
            | arguments
        )


def test_a_flax_module_without_parameters_is_a_step():
    class Decay(nn.Module):
        def __call__(self, params, state):
            return state / 2

    assert egnn.rollout(Decay(), None, jnp.ones(()), 3).state == 0.125


def test_a_step_that_changes_the_state_is_refused():
    with pytest.raises(ValueError, match=r"step returns float32\[3\]; expected float32\[2\]"):
        egnn.rollout(lambda p, s: jnp.zeros(3), None, jnp.zeros(2), 3)
    with pytest.raises(ValueError, match="step returns"):
        egnn.rollout(lambda p, s: (s, s), None, jnp.zeros(2), 3)


def test_states_without_particles_and_steps_that_return_numbers_of_python():
    found = egnn.rollout(lambda p, s: s + 1, None, jnp.zeros((0, 3)), 9, 1)
    assert found.frames.shape == (9, 0, 3)
    assert egnn.rollout(lambda p, s: 1.0, None, 2.0, 9).state == 1.0


def test_lists_of_neighbors_of_several_systems_overflow():
    @partial(jax.tree_util.register_dataclass, data_fields=["did_buffer_overflow"], meta_fields=[])
    @dataclasses.dataclass
    class Neighbors:
        did_buffer_overflow: jax.Array

    for overflow in (False, True):
        state = jnp.zeros(2), Neighbors(jnp.array([False, overflow]))
        with contextlib.ExitStack() as stack:
            if overflow:
                stack.enter_context(pytest.raises(ValueError, match="neighbor list overflowed"))
            egnn.rollout(lambda p, s: s, None, state, 3)


def test_a_state_may_hold_random_keys_and_whole_numbers():
    def step(params, state):
        x, key, count = state
        key, own = jax.random.split(key)
        return x + params * jax.random.normal(own, x.shape), key, count + 1

    start = (jnp.zeros(3), jax.random.key(0), 0)
    x, _, count = egnn.rollout(step, 0.5, start, 10).state
    again = egnn.rollout(step, 0.5, egnn.rollout(step, 0.5, start, 4).state, 6).state[0]
    np.testing.assert_array_equal(x, again)
    assert count == 10
    spread = lambda params: jnp.sum(egnn.rollout(step, params, start, 10).state[0] ** 2)
    assert jax.grad(spread)(0.5) == pytest.approx(2 * float(spread(0.5)) / 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.nan, 1.0), "timestep is nan; expected a finite number"),
        (("0.1", 1.0), "timestep is '0.1'; expected a number"),
        ((0.1, "a"), "masses has dtype"),
        ((0.1, 0.0), "masses are 0.0; expected a number above 0"),
        ((0.1, np.array([1.0, -1.0])), "expected a number above 0"),
        ((0.1, np.ones((2, 1))), r"or one a particle \(M,\)"),
        ((0.1, np.ones(3)), r"shapes \(2, 3\), \(2, 3\), \(2, 3\), and masses \(3,\)"),
    ],
)
def test_particles_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        egnn.velocity_verlet(lambda params, x: -x, *arguments)[0](None, np.eye(2, 3), np.eye(2, 3))


def test_forces_of_another_shape_are_refused():
    init, _ = egnn.velocity_verlet(lambda params, x: x[:, :1], 0.1)
    with pytest.raises(ValueError, match=r"shapes \(2, 3\), \(2, 3\), \(2, 1\), and masses"):
        init(None, np.eye(2, 3), np.eye(2, 3))
