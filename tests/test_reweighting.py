"""Means and gradients of observables by reweighting, against the exact ones of a harmonic trap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn

kT = 0.7


def energy(k, x):
    return k * jnp.sum(x**2, axis=(-2, -1)) / 2


def frames(rng, k, count):
    """Positions of two particles in a trap, drawn from exp(-U / kT)."""
    return jnp.asarray(rng.normal(size=(count, 2, 3)) * np.sqrt(kT / k))


def test_means_and_gradients_are_those_of_the_other_potential(x64, rng):
    """⟨Σ x²⟩ = 6 kT / k, and its derivative -6 kT / k²."""
    x = frames(rng, 1.0, 100_000)
    reference = energy(1.0, x)

    def mean(k):
        weights, _ = egnn.reweight(energy(k, x), reference, kT)
        return jnp.sum(weights * jnp.sum(x**2, axis=(1, 2)))

    for k in (1.0, 1.1, 0.9):
        value, gradient = jax.value_and_grad(mean)(k)
        assert value == pytest.approx(6 * kT / k, rel=0.01)
        assert gradient == pytest.approx(-6 * kT / k**2, rel=0.03)
    # Against a difference quotient of means over frames that are drawn anew.
    drawn = [jnp.sum(frames(rng, k, 400_000) ** 2, axis=(1, 2)).mean() for k in (0.9, 1.1)]
    assert jax.grad(mean)(1.0) == pytest.approx(float((drawn[1] - drawn[0]) / 0.2), rel=0.05)


def test_large_energies_in_float64_are_subtracted_as_such():
    reference = np.array([-1e6, -1e6])
    weights, _ = egnn.reweight(reference + np.array([0.01, 0.0]), reference, 0.025)
    np.testing.assert_allclose(weights, np.exp([-0.4, 0]) / np.exp([-0.4, 0]).sum(), rtol=1e-5)
    # A frame without weight, where nothing can be refused.
    effective = jax.jit(egnn.reweight)(jnp.array([0.0, jnp.inf]), jnp.zeros(2), 0.5).effective
    assert effective == pytest.approx(1)


def test_the_number_of_frames_that_count(x64, rng):
    x = frames(rng, 1.0, 1_000)
    weights, effective = egnn.reweight(energy(1.0, x) + 3.0, energy(1.0, x), kT)
    assert effective == pytest.approx(1_000)
    np.testing.assert_allclose(weights, 1e-3)
    skewed = jnp.asarray([0.0, 0.0, 50.0, 50.0])
    with pytest.warns(RuntimeWarning, match=r"2\.0 of 5 frames count"):
        weights, effective = egnn.reweight(jnp.append(skewed, 60.0), jnp.zeros(5), jnp.asarray(0.5))
    assert effective == pytest.approx(2)
    assert jax.jit(egnn.reweight)(skewed, jnp.zeros(4), 0.5).effective == pytest.approx(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], 1.0), r"shapes \(1,\) and \(2,\)"),
        ((1.0, 1.0, 1.0), r"shapes \(\) and \(\)"),
        (([], [], 1.0), r"shapes \(0,\)"),
        (([1.0], [1.0], 0.0), "kT is 0.0; expected a number above 0"),
        (([1.0], [1.0], float("nan")), "kT is nan"),
        (([1.0], [1.0], "1"), "kT is .*'1'.*; expected a number"),
        (([1.0, float("nan")], [1.0, 1.0], 1.0), "1 of 2 energies are not finite"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        egnn.reweight(*arguments)
