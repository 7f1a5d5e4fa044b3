"""Functions of distance: the bases that edges are described in, and the cutoff that ends them."""

import flax.linen as nn
import jax
import jax.numpy as jnp

FREQUENCIES = (0.0, 1.0, 2.0, 3.0) * 2
PHASES = (jnp.pi / 2, *(0.0,) * 3, *(jnp.pi / 2,) * 4)
"""Of :class:`DampedWaves` before training; sin(0) would be 0 everywhere."""


def gaussian_basis(distance: jax.Array, number: int, cutoff: float) -> jax.Array:
    """(E,) to (E, number): exp(-(d - μ_k)² / 2δ²), centres μ_k evenly from 0 to ``cutoff``, δ the
    step between them.
    """
    centres = jnp.linspace(0, cutoff, number, dtype=distance.dtype)
    step = cutoff / max(number - 1, 1)
    return jnp.exp(-(((distance[:, None] - centres) / step) ** 2) / 2)


def cosine_cutoff(distance: jax.Array, cutoff: float) -> jax.Array:
    """(cos(π d / cutoff) + 1) / 2 up to the cutoff, 0 beyond: 1 at d = 0, and smooth at the
    cutoff.
    """
    return (jnp.cos(jnp.pi * jnp.minimum(distance / cutoff, 1)) + 1) / 2


def polynomial_envelope(distance: jax.Array, cutoff: float, p: int = 6) -> jax.Array:
    """1 - (p+1)(p+2)/2 uᵖ + p(p+2) uᵖ⁺¹ - p(p+1)/2 uᵖ⁺², u = d / cutoff, and 0 beyond.

    1 at d = 0; value and two derivatives are 0 at the cutoff (Gasteiger et al. 2020).
    """
    u = jnp.minimum(distance / cutoff, 1)
    bracket = (p + 1) * (p + 2) / 2 - p * (p + 2) * u + p * (p + 1) / 2 * u**2
    return 1 - u**p * bracket


def bessel_basis(distance: jax.Array, number: int, cutoff: float) -> jax.Array:
    """(E,) to (E, number): √(2/c) sin(kπd/c) / d for k = 1, 2, …, with the cutoff c; at d = 0 its
    limit. Each is 0 at the cutoff, with a slope that an envelope has to end.
    """
    k = jnp.arange(1, number + 1, dtype=distance.dtype)
    return jnp.sqrt(2 / cutoff) * (k * jnp.pi / cutoff) * _sinc(k * distance[:, None] / cutoff)


def _sinc(x: jax.Array) -> jax.Array:
    """sin(πx) / (πx), with all its derivatives at 0; that of JAX 0.12 fails inside shard_map."""
    angle = jnp.pi * x
    t = angle**2
    near = t < 0.01
    series = 1 - t / 6 * (1 - t / 20 * (1 - t / 42 * (1 - t / 72)))
    far = jnp.where(near, 1, angle)
    return jnp.where(near, series, jnp.sin(far) / far)


class DampedWaves(nn.Module):
    """sin(2π s_k d + φ_k) / dᵖ for p = 0 … 3, and 0 at d = 0, with learned s and φ: (E,)
    to (E, 4 K).
    """

    @nn.compact
    def __call__(self, distance: jax.Array) -> jax.Array:
        start = lambda values: lambda key, shape, dtype: jnp.array(values, dtype)
        s = self.param("scales", start(FREQUENCIES), (len(FREQUENCIES),), distance.dtype)
        phi = self.param("phases", start(PHASES), (len(PHASES),), distance.dtype)
        s, phi = (z.astype(distance.dtype) for z in (s, phi))  # in full precision
        apart = distance[:, None] > 0
        d = jnp.where(apart, distance[:, None], 1)
        waves = jnp.where(apart, jnp.sin(2 * jnp.pi * s * d + phi), 0)
        powers = jnp.stack([jnp.ones_like(d), 1 / d, 1 / d**2, 1 / d**3], axis=-1)
        return (waves[:, :, None] * powers).reshape(len(distance), len(FREQUENCIES) * 4)
