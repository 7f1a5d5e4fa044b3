"""Complex features of degree l and order m = -l … l: solid harmonics, products, channel mixing.

A complex array is stored as a real array with a leading axis of 2 (real and imaginary part), since
products of complex64 are slow on CPUs. The last axis holds all degrees: order m of degree l is at
index l² + l + m of (L + 1)².
"""

import functools
from collections.abc import Sequence
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.nn.mlp import Parity


def degree_of(size: int) -> int:
    """The highest degree L of an axis of size (L + 1)²."""
    return round(size**0.5) - 1


def part(values: jax.Array, degree: int) -> jax.Array:
    """The entries (…, 2 l + 1) of one degree."""
    return values[..., degree**2 : (degree + 1) ** 2]


@functools.cache
def clebsch_gordan(l1: int, l2: int, l: int) -> np.ndarray:
    """Coefficients ⟨l1 m1 l2 m2 | l m⟩ (2 l1 + 1, 2 l2 + 1, 2 l + 1) by Racah's formula."""
    f = factorial
    coefficients = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l + 1))
    if not abs(l1 - l2) <= l <= l1 + l2:
        return coefficients
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
            coefficients[l1 + m1, l2 + m2, l + m] = ((2 * l + 1) * delta * root) ** 0.5 * total
    return coefficients


def solid_harmonics(r: jax.Array, degree: int) -> jax.Array:
    """Conjugate solid harmonics conj(√(4π / (2l + 1)) ‖r‖ˡ Y_lm(r/‖r‖)), l = 0 … ``degree``, with
    the Condon–Shortley phase: (E, 3) to (2, E, (degree + 1)²).

    They are polynomials of r: at r = 0, 1 for l = 0 and 0 otherwise. Degree l is computed from the
    product of degrees l - 1 and 1.
    """
    x, y, z = (r[..., k] / 2**0.5 for k in range(3))
    degree_1 = jnp.stack(
        [jnp.stack([x, 2**0.5 * z, -x], -1), jnp.stack([y, jnp.zeros_like(y), y], -1)]
    )
    ones = jnp.ones_like(degree_1[0, ..., :1])
    harmonics = [jnp.stack([ones, jnp.zeros_like(ones)]), degree_1][: degree + 1]
    for l in range(2, degree + 1):
        coefficients = clebsch_gordan(l - 1, 1, l)
        # Divided by ⟨l-1 0 1 0 | l 0⟩.
        coefficients = jnp.asarray(coefficients / coefficients[l - 1, 1, l], r.dtype)
        products = outer(harmonics[-1], degree_1)
        harmonics.append(jnp.einsum("...ab,abm->...m", products, coefficients, precision="highest"))
    return jnp.concatenate(harmonics, axis=-1)


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """Elementwise product of complex arrays (2, …)."""
    return jnp.stack([a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]])


def outer(a: jax.Array, b: jax.Array) -> jax.Array:
    """Outer product a_p b_q of complex arrays (2, …, P) and (2, …, Q), (2, …, P, Q)."""
    return multiply(a[..., :, None], b[..., None, :])


def dual(values: jax.Array) -> jax.Array:
    """Dual (-1)ᵐ F_-m (…, K) of F, whose product with any F', summed over m, is invariant."""
    n = degree_of(values.shape[-1]) + 1
    l = np.repeat(np.arange(n), 2 * np.arange(n) + 1)
    m = np.arange(n**2) - l**2 - l
    return values[..., l**2 + l - m] * jnp.asarray((-1.0) ** m, values.dtype)


def orders(degree: int) -> np.ndarray:
    """Indicator matrix (L + 1, (L + 1)²): 1 if an entry belongs to a degree.

    Multiplying by it sums over orders, or repeats a number for each order. This is faster than
    slicing, whose gradient is a sum of padded arrays.
    """
    return np.repeat(np.eye(degree + 1), 2 * np.arange(degree + 1) + 1, axis=1)


def sum_orders(values: jax.Array) -> jax.Array:
    """Sum over the orders m of each degree, (…, (L + 1)²) to (…, L + 1)."""
    return values @ jnp.asarray(orders(degree_of(values.shape[-1])).T, values.dtype)


def repeat_orders(values: jax.Array) -> jax.Array:
    """Repeat the value of each degree for each of its orders, (…, L + 1) to (…, (L + 1)²)."""
    return values @ jnp.asarray(orders(values.shape[-1] - 1), values.dtype)


def mix(kernel: jax.Array, values: jax.Array) -> jax.Array:
    """Complex linear map Σ_k kernel_ko values_k: (2, K, O) and (2, K, …) to (2, O, …)."""
    real, imaginary = kernel
    block = jnp.block([[real, imaginary], [-imaginary, real]])
    flat = values.reshape(block.shape[0], -1)
    return (block.T @ flat).reshape(2, kernel.shape[-1], *values.shape[2:])


@functools.cache
def _coupling_matrix(
    l1: int, degree2: int, degree: int, parity: Parity
) -> tuple[np.ndarray, list[int]]:
    """Coefficients ⟨l1 m1 l2 m2 | l m⟩ of l1 with l2 = 0 … ``degree2``, one column for each
    (l, l2, m) in this order; and the number of l2 for each l.
    """
    blocks, counts = [np.zeros((2 * l1 + 1, (degree2 + 1) ** 2, 0))], []
    for l in range(degree + 1):
        l2_range = range(abs(l1 - l), min(l1 + l, degree2) + 1)
        step = 2 if parity == "natural" else 1  # l1 + l2 + l of the first l2 is even
        for l2 in l2_range[::step]:
            block = np.zeros((2 * l1 + 1, (degree2 + 1) ** 2, 2 * l + 1))
            block[:, l2**2 : (l2 + 1) ** 2] = clebsch_gordan(l1, l2, l)
            blocks.append(block)
        counts.append(len(l2_range[::step]))
    coefficients = np.concatenate(blocks, axis=-1)
    return coefficients.reshape(-1, coefficients.shape[-1]), counts


def couple(pairs: Sequence[jax.Array], degree: int, parity: Parity) -> list[jax.Array]:
    """Couple all l1 and l2 to l, channel by channel: Σ_m1m2 ⟨l1 m1 l2 m2 | l m⟩ pairs_m1m2.

    Args:
      pairs: complex products (2, C, N, 2 l1 + 1, K2) for l1 = 0, 1, …
      degree: the highest l.
      parity: "natural" omits products with odd l1 + l2 + l, such as the cross product of two
        vectors.

    Returns:
      For each l, complex (2, P C, N, 2 l + 1) for its P pairs of degrees, l1 outer and l2 inner.
    """
    terms: list[list[jax.Array]] = [[] for _ in range(degree + 1)]
    for l1, pairs_l1 in enumerate(pairs):
        coefficients, counts = _coupling_matrix(l1, degree_of(pairs_l1.shape[-1]), degree, parity)
        flat = pairs_l1.reshape(*pairs_l1.shape[:3], -1)
        coupled = flat @ jnp.asarray(coefficients, flat.dtype)
        offsets = np.cumsum(np.array(counts) * (2 * np.arange(degree + 1) + 1))
        for l, coupled_l in enumerate(jnp.split(coupled, offsets[:-1], axis=-1)):
            terms_l = coupled_l.reshape(*flat.shape[:3], counts[l], 2 * l + 1)
            terms[l].append(terms_l.transpose(0, 3, 1, 2, 4))
    outputs = [jnp.concatenate(terms_l, axis=1) for terms_l in terms]
    return [z.reshape(2, z.shape[1] * z.shape[2], *z.shape[3:]) for z in outputs]


def cartesian(f: jax.Array) -> jax.Array:
    """Convert the real part of complex features of degree 1 (2, N, 3) to vectors (N, 3)."""
    (minus, zero, plus), (minus_i, _, plus_i) = (jnp.moveaxis(z, -1, 0) for z in f)
    # x = (F_-1 - F_1) / √2, y = (F_-1 + F_1) / √2i and z = F_0 of the conjugated harmonics
    return jnp.stack([minus - plus, minus_i + plus_i, 2**0.5 * zero], axis=-1) / 2**0.5
