"""Complex features of degree l with orders m = -l … l: solid harmonics, products, channel mixing.

A complex array is one real array with a leading axis of 2, its real and imaginary part: products
of complex64 are slow on CPUs. Degrees lie side by side on the last axis: order m of degree l has
the place l² + l + m of (L + 1)² places.
"""

import functools
from collections.abc import Sequence
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.nn.mlp import Parity


def degree_of(places: int) -> int:
    """The highest degree L of (L + 1)² places."""
    return round(places**0.5) - 1


def part(values: jax.Array, degree: int) -> jax.Array:
    """The places (…, 2 l + 1) of one degree."""
    return values[..., degree**2 : (degree + 1) ** 2]


@functools.cache
def clebsch_gordan(l1: int, l2: int, l: int) -> np.ndarray:
    """⟨l1 m1 l2 m2 | l m⟩ (2 l1 + 1, 2 l2 + 1, 2 l + 1) by Racah's formula."""
    f = factorial
    table = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l + 1))
    if not abs(l1 - l2) <= l <= l1 + l2:
        return table
    delta = f(l1 + l2 - l) * f(l1 - l2 + l) * f(l2 - l1 + l) / f(l1 + l2 + l + 1)
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l - m1), min(l2, l - m1) + 1):
            m = m1 + m2
            root = f(l1 + m1) * f(l1 - m1) * f(l2 + m2) * f(l2 - m2) * f(l + m) * f(l - m)
            total = 0.0
            for k in range(l1 + l2 - l + 1):
                terms = (
                    l1 + l2 - l - k,
                    l1 - m1 - k,
                    l2 + m2 - k,
                    l - l2 + m1 + k,
                    l - l1 - m2 + k,
                )
                if min(terms) >= 0:
                    total += (-1) ** k / np.prod([float(f(n)) for n in (k, *terms)])
            table[l1 + m1, l2 + m2, l + m] = ((2 * l + 1) * delta * root) ** 0.5 * total
    return table


def solid_harmonics(r: jax.Array, degree: int) -> jax.Array:
    """conj(√(4π / (2l + 1)) ‖r‖ˡ Y_lm(r/‖r‖)) with the Condon–Shortley phase, for l = 0 … ``degree``:
    (E, 3) to (2, E, (degree + 1)²).

    Polynomials of r: 1 and zeros at r = 0. Degree l comes from the product of l - 1 and 1.
    """
    x, y, z = (r[..., k] / 2**0.5 for k in range(3))
    first = jnp.stack(
        [jnp.stack([x, 2**0.5 * z, -x], -1), jnp.stack([y, jnp.zeros_like(y), y], -1)]
    )
    one = jnp.ones_like(first[0, ..., :1])
    parts = [jnp.stack([one, jnp.zeros_like(one)]), first][: degree + 1]
    for l in range(2, degree + 1):
        table = clebsch_gordan(l - 1, 1, l)
        table = jnp.asarray(table / table[l - 1, 1, l], r.dtype)  # ⟨l-1 0 1 0 | l 0⟩
        pairs = outer(parts[-1], first)
        parts.append(jnp.einsum("...ab,abm->...m", pairs, table, precision="highest"))
    return jnp.concatenate(parts, axis=-1)


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b, elementwise, of complex arrays (2, …)."""
    return jnp.stack([a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]])


def outer(a: jax.Array, b: jax.Array) -> jax.Array:
    """a_p b_q, (2, …, P) and (2, …, Q) to (2, …, P, Q)."""
    return multiply(a[..., :, None], b[..., None, :])


def dual(values: jax.Array) -> jax.Array:
    """(-1)ᵐ F_-m (…, K) of F: its product with F', summed over m, is an invariant."""
    l = np.repeat(np.arange(n := degree_of(values.shape[-1]) + 1), 2 * np.arange(n) + 1)
    m = np.arange(n**2) - l**2 - l
    return values[..., l**2 + l - m] * jnp.asarray((-1.0) ** m, values.dtype)


def sum_orders(values: jax.Array) -> jax.Array:
    """Σ_m over the orders of each degree, (…, (L + 1)²) to (…, L + 1)."""
    degrees = range(degree_of(values.shape[-1]) + 1)
    return jnp.stack([jnp.sum(part(values, l), axis=-1) for l in degrees], axis=-1)


def mix(kernel: jax.Array, values: jax.Array) -> jax.Array:
    """Σ_k kernel_ko values_k, complex: (2, K, O) and (2, K, …) to (2, O, …)."""
    real, imaginary = kernel
    block = jnp.block([[real, imaginary], [-imaginary, real]])
    flat = values.reshape(block.shape[0], -1)
    return (block.T @ flat).reshape(2, kernel.shape[-1], *values.shape[2:])


@functools.cache
def _tables(l1: int, degree2: int, degree: int, parity: Parity) -> tuple[np.ndarray, list[int]]:
    """Coefficients (K1, K2, columns) of all products of degree l1 with 0 … ``degree2``, sorted by
    the degree l of the product, then by l2; and how many products have each l up to ``degree``.
    """
    columns, counts = [np.zeros((2 * l1 + 1, (degree2 + 1) ** 2, 0))], []
    for l in range(degree + 1):
        found = [
            l2
            for l2 in range(abs(l1 - l), min(l1 + l, degree2) + 1)
            if parity == "ignored" or (l1 + l2 + l) % 2 == 0
        ]
        for l2 in found:
            table = np.zeros((2 * l1 + 1, (degree2 + 1) ** 2, 2 * l + 1))
            table[:, l2**2 : (l2 + 1) ** 2] = clebsch_gordan(l1, l2, l)
            columns.append(table)
        counts.append(len(found))
    return np.concatenate(columns, axis=-1), counts


def couple(pairs: jax.Array, degree: int, parity: Parity) -> list[jax.Array]:
    """Σ_m1m2 ⟨l1 m1 l2 m2 | l m⟩ pairs_m1m2 of all l1 and l2, channel by channel.

    Args:
      pairs: complex (2, C, N, K1, K2).
      degree: the highest l.
      parity: "natural" leaves out products with odd l1 + l2 + l, such as the cross product of two
        vectors.

    Returns:
      For each l complex (2, P C, N, 2 l + 1) of its P pairs of degrees, l1 outer and l2 inner.
    """
    channels, number = pairs.shape[1:3]
    found: list[list[jax.Array]] = [[] for _ in range(degree + 1)]
    for l1 in range(degree_of(pairs.shape[3]) + 1):
        table, counts = _tables(l1, degree_of(pairs.shape[4]), degree, parity)
        rows = pairs[..., l1**2 : (l1 + 1) ** 2, :].reshape(2, channels, number, -1)
        coupled = rows @ jnp.asarray(table.reshape(rows.shape[-1], -1), pairs.dtype)
        start = 0
        for l, count in enumerate(counts):
            end = start + count * (2 * l + 1)
            of_l = coupled[..., start:end].reshape(2, channels, number, count, 2 * l + 1)
            found[l].append(of_l.transpose(0, 3, 1, 2, 4))
            start = end
    joined = [jnp.concatenate(of_l, axis=1) for of_l in found]
    return [z.reshape(2, z.shape[1] * channels, *z.shape[3:]) for z in joined]


def by_degree(parts: Sequence[jax.Array]) -> jax.Array:
    """Degrees 0, 1, … (…, 2 l + 1) side by side."""
    return jnp.concatenate(list(parts), axis=-1)
