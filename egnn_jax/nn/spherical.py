"""Spherical Bessel basis, and sums over reversed edges."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev

from egnn_jax.graph.graph import GraphsTuple


@functools.cache
def spherical_bessel_zeros(degree: int, number: int) -> np.ndarray:
    """The first positive zeros z_ln (degree + 1, number) of the spherical Bessel functions j_l."""
    from scipy.optimize import brentq
    from scipy.special import spherical_jn

    # The zeros of j_l interlace those of j_{l-1}, and j_0 = sin(z)/z has zeros nπ.
    zeros = [np.pi * np.arange(1, number + degree + 1)]
    for l in range(1, degree + 1):
        j_l = functools.partial(spherical_jn, l)
        between = zip(zeros[-1], zeros[-1][1:], strict=False)
        zeros.append(np.array([brentq(j_l, a, b, xtol=1e-14) for a, b in between]))
    return np.stack([z[:number] for z in zeros])


@functools.cache
def _expansion(degree: int, number: int) -> np.ndarray:
    """Chebyshev coefficients (K, (degree + 1) · number) of the :func:`spherical_bessel_basis`
    functions on [-1, 1].
    """
    from scipy.special import spherical_jn

    # The authors of DimeNet round the zeros to float32.
    z = spherical_bessel_zeros(degree, number).astype(np.float32).astype(np.float64)
    l = np.arange(degree + 1)[:, None]
    scale = np.sqrt(2) / np.abs(spherical_jn(l + 1, z))

    def functions(t: np.ndarray) -> np.ndarray:
        j = (
            spherical_jn(l[..., None], z[..., None] * np.abs(t))
            * np.where(t < 0, -1, 1) ** l[..., None]
        )
        return (scale[..., None] * j).reshape(-1, len(t)).T

    interpolate: Any = chebyshev.chebinterpolate  # annotated for one function, accepts several
    # Beyond order z, the coefficients of a wave of z radians decay faster than exponentially.
    return interpolate(functions, int(z.max()) + 36)


def spherical_bessel_basis(t: jax.Array, degree: int, number: int) -> jax.Array:
    """Spherical Bessel basis √2 / |j_{l+1}(z_ln)| j_l(z_ln t), with the zeros z_ln, l = 0 … degree
    and n = 1 … number: (E,) with 0 ≤ t ≤ 1 to (E, degree + 1, number).

    The functions are orthonormal on a ball of radius 1, and entire. They are evaluated as Chebyshev
    series in t, which are exact up to rounding for all derivatives, even at t = 0, where the closed
    form is 0/0 and the recurrence over l loses all digits.
    """
    coefficients = _expansion(degree, number)
    polynomials = jnp.stack([jnp.ones_like(t), t], axis=-1)
    while (n := polynomials.shape[-1] - 1) < len(coefficients) - 1:
        # T_{n+k} = 2 T_n T_k - T_{n-k}
        twice = 2 * polynomials[..., n:] * polynomials[..., 1:] - polynomials[..., n - 1 :: -1]
        polynomials = jnp.concatenate([polynomials, twice], axis=-1)
    kept = polynomials[..., : len(coefficients)]
    values = jnp.matmul(kept, jnp.asarray(coefficients, t.dtype), precision="highest")
    return values.reshape(*t.shape, degree + 1, number)


def sum_over_reversed(graph: GraphsTuple, values: jax.Array) -> jax.Array:
    """Sum values (E, …) over the reverse edges of each edge; 0 if there are none.

    Reverse edges of an edge from j to i run from i to j between the same two positions. There is
    at most one unless edges are repeated. In a crystal, edges from other images of i do not count.
    """
    there, back = _places(graph)
    sums = jnp.zeros((2 * len(there) + 1, *values.shape[1:]), values.dtype).at[there].add(values)
    return sums[back]


def _places(graph: GraphsTuple) -> tuple[jax.Array, jax.Array]:
    """Integer keys (E,) of each edge and of its reverse, by the positions that they connect."""
    i, j, edges = graph.receivers, graph.senders, graph.edges
    step = edges.shift if edges.steps is None else edges.steps
    steps = [] if step is None else list(jax.lax.stop_gradient(step).T)
    there, back = [i, j, *steps], [j, i, *(-step for step in steps)]
    keys = [jnp.concatenate(pair) for pair in zip(there, back, strict=True)]
    order = jnp.lexsort(keys[::-1])
    new = [key[order] != jnp.roll(key[order], 1) for key in keys]
    ranks = jnp.cumsum(functools.reduce(jnp.logical_or, new))  # from 0 or 1 on
    places = jnp.zeros_like(ranks).at[order].set(ranks)
    return places[: len(i)], places[len(i) :]
