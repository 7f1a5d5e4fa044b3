import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax.nn.radial import bessel_basis


def test_safe_norm_and_its_derivatives_are_finite_at_zero(x64):
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(egnn.safe_norm(x), [5, 0])
    gradient = jax.grad(lambda x: egnn.safe_norm(x).sum())(x)
    np.testing.assert_allclose(gradient, [[0.6, 0.8], [0, 0]])
    assert np.isfinite(jax.hessian(lambda x: egnn.safe_norm(x).sum())(x)).all()


@pytest.mark.parametrize("determinant", [1, -1])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_random_orthogonal(x64, n, determinant):
    for seed in range(5):
        q = egnn.random_orthogonal(jax.random.key(seed), n, determinant)
        np.testing.assert_allclose(q @ q.T, np.eye(n), atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(q), determinant, atol=1e-12)


def test_unknown_determinant():
    with pytest.raises(ValueError, match="determinant is 2"):
        egnn.random_orthogonal(jax.random.key(0), 3, 2)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_norm_of_constant_zeros_is_zero_when_compiled(x64, dtype):
    """XLA works out constants by itself, and may multiply squares."""
    zeros = jax.jit(lambda: egnn.safe_norm(jnp.zeros((1, 3, 6), dtype) * 1, axis=1))()
    np.testing.assert_array_equal(zeros, 0)


def test_derivatives_of_the_bessel_basis_are_right_near_coincident_atoms(x64):
    """√(2/c) sin(kπd/c) / d and two derivatives, from the series of the sine."""
    cutoff, k = 2.0, 3
    w = k * np.pi / cutoff
    scale = np.sqrt(2 / cutoff) * w
    basis = lambda d: bessel_basis(d[None], k, cutoff)[0, -1]
    for d in (0.0, 1e-8, 1e-4, 0.02, 0.0212, 0.0213, 0.05):
        a = w * d
        series = [
            1 - a**2 / 6 + a**4 / 120 - a**6 / 5040,
            w * (-a / 3 + a**3 / 30 - a**5 / 840),
            w**2 * (-1 / 3 + a**2 / 10 - a**4 / 168),
        ]
        found = [f(jnp.asarray(d)) for f in (basis, jax.grad(basis), jax.grad(jax.grad(basis)))]
        np.testing.assert_allclose(found, scale * np.array(series), rtol=1e-7, atol=1e-12)


def test_graphs_are_rotated_in_full_precision_on_any_device():
    """On GPUs, the default for products of float32 is TensorFloat-32."""
    graph = egnn.complete_graph(x=np.eye(3))
    globals_ = graph.globals.replace(cell=jnp.ones((1, 3, 3)), stress=jnp.ones((1, 3, 3)))
    moved = jax.make_jaxpr(lambda g: egnn.transform(g, np.eye(3)))(graph._replace(globals=globals_))
    found = [e.params["precision"] for e in moved.eqns if e.primitive.name == "dot_general"]
    assert len(found) == 4
    assert all(set(p) == {jax.lax.Precision.HIGHEST} for p in found)
