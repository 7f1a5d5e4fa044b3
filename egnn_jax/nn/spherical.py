"""Spherical Bessel basis, and sums over reversed edges."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev

from egnn_jax.graph.graph import GraphsTuple


@functools.cache
def spherical_bessel_zeros(degree: int, num_radial: int) -> np.ndarray:
    """The first positive zeros z_ln (degree + 1, num_radial) of spherical Bessel functions j_l."""
    from scipy.optimize import brentq
    from scipy.special import spherical_jn

    # The zeros of j_l interlace those of j_{l-1}, and j_0 = sin(z)/z has zeros nπ.
    zeros = [np.pi * np.arange(1, num_radial + degree + 1)]
    for l in range(1, degree + 1):
        j_l = functools.partial(spherical_jn, l)
        brackets = zip(zeros[-1], zeros[-1][1:], strict=False)
        zeros.append(np.array([brentq(j_l, a, b, xtol=1e-14) for a, b in brackets]))
    return np.stack([z[:num_radial] for z in zeros])


@functools.cache
def _expansion(degree: int, num_radial: int) -> np.ndarray:
    """Chebyshev coefficients (K, (degree + 1) · num_radial) of the :func:`spherical_bessel_basis`
    functions on [-1, 1].
    """
    from scipy.special import spherical_jn

    # The authors of DimeNet round the zeros to float32.
    z = spherical_bessel_zeros(degree, num_radial).astype(np.float32).astype(np.float64)
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


def spherical_bessel_basis(t: jax.Array, degree: int, num_radial: int) -> jax.Array:
    """Spherical Bessel basis √2 / |j_{l+1}(z_ln)| j_l(z_ln t), with the zeros z_ln, l = 0 … degree
    and n = 1 … num_radial: (E,) with 0 ≤ t ≤ 1 to (E, degree + 1, num_radial).

    The functions are orthonormal on a ball of radius 1, and entire. They are evaluated as Chebyshev
    series in t, which are exact up to rounding for all derivatives, even at t = 0, where the closed
    form is 0/0 and the recurrence over l loses all digits.
    """
    coefficients = _expansion(degree, num_radial)
    polynomials = jnp.stack([jnp.ones_like(t), t], axis=-1)
    while (n := polynomials.shape[-1] - 1) < len(coefficients) - 1:
        # T_{n+k} = 2 T_n T_k - T_{n-k}
        higher = 2 * polynomials[..., n:] * polynomials[..., 1:] - polynomials[..., n - 1 :: -1]
        polynomials = jnp.concatenate([polynomials, higher], axis=-1)
    truncated = polynomials[..., : len(coefficients)]
    values = jnp.matmul(truncated, jnp.asarray(coefficients, t.dtype), precision="highest")
    return values.reshape(*t.shape, degree + 1, num_radial)


def sum_over_reversed(graph: GraphsTuple, values: jax.Array) -> jax.Array:
    """Sum values (E, …) over the reverse edges of each edge; 0 if there are none.

    Reverse edges of an edge from j to i run from i to j between the same two positions. There is
    at most one unless edges are repeated. In a crystal, edges from other images of i do not count.
    """
    keys, reverse_keys = _edge_keys(graph)
    sums = jnp.zeros((2 * len(keys) + 1, *values.shape[1:]), values.dtype).at[keys].add(values)
    return sums[reverse_keys]


def _edge_keys(graph: GraphsTuple) -> tuple[jax.Array, jax.Array]:
    """Integer keys (E,) of each edge and of its reverse, by the positions that they connect."""
    i, j, edges = graph.receivers, graph.senders, graph.edges
    shift = edges.shift if edges.steps is None else edges.steps
    shifts = [] if shift is None else list(jax.lax.stop_gradient(shift).T)
    columns, reverse_columns = [i, j, *shifts], [j, i, *(-shift for shift in shifts)]
    all_columns = [jnp.concatenate(pair) for pair in zip(columns, reverse_columns, strict=True)]
    order = jnp.lexsort(all_columns[::-1])
    differs = [column[order] != jnp.roll(column[order], 1) for column in all_columns]
    ranks = jnp.cumsum(functools.reduce(jnp.logical_or, differs))  # from 0 or 1 on
    keys = jnp.zeros_like(ranks).at[order].set(ranks)
    return keys[: len(i)], keys[len(i) :]
