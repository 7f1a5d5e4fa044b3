"""Functions of distance: radial bases, and cutoff functions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

FREQUENCIES = (0.0, 1.0, 2.0, 3.0) * 2
PHASES = (jnp.pi / 2, *(0.0,) * 3, *(jnp.pi / 2,) * 4)
"""Initial values for :class:`DampedWaves`; a phase of 0 at frequency 0 would give 0 everywhere."""


def gaussian_basis(distance: jax.Array, num_rbf: int, cutoff: float) -> jax.Array:
    """Gaussian basis exp(-(d - μ_k)² / 2δ²): (E,) to (E, num_rbf).

    The centers μ_k are evenly spaced from 0 to ``cutoff``, with spacing δ.
    """
    centers = jnp.linspace(0, cutoff, num_rbf, dtype=distance.dtype)
    step = cutoff / max(num_rbf - 1, 1)
    return jnp.exp(-(((distance[:, None] - centers) / step) ** 2) / 2)


def cosine_cutoff(distance: jax.Array, cutoff: float) -> jax.Array:
    """Cosine cutoff (cos(π d / cutoff) + 1) / 2, and 0 beyond: 1 at d = 0.

    Its value and slope are 0 at the cutoff; its second derivative jumps there.
    """
    return (jnp.cos(jnp.pi * jnp.minimum(distance / cutoff, 1)) + 1) / 2


def polynomial_envelope(distance: jax.Array, cutoff: float, p: int = 6) -> jax.Array:
    """Envelope 1 - (p+1)(p+2)/2 uᵖ + p(p+2) uᵖ⁺¹ - p(p+1)/2 uᵖ⁺², u = d / cutoff, and 0 beyond.

    It is 1 at d = 0; its value and first two derivatives are 0 at the cutoff (Gasteiger et al.
    2020).
    """
    u = jnp.minimum(distance / cutoff, 1)
    bracket = (p + 1) * (p + 2) / 2 - p * (p + 2) * u + p * (p + 1) / 2 * u**2
    return 1 - u**p * bracket


def bessel_basis(distance: jax.Array, num_rbf: int, cutoff: float) -> jax.Array:
    """Bessel basis √(2/c) sin(kπd/c) / d for k = 1, 2, …, with the cutoff c: (E,) to (E, num_rbf).

    At d = 0 it takes its limit. At the cutoff it is 0 but its slope is not: apply an envelope.
    """
    k = jnp.arange(1, num_rbf + 1, dtype=distance.dtype)
    return jnp.sqrt(2 / cutoff) * (k * jnp.pi / cutoff) * _sinc(k * distance[:, None] / cutoff)


def _sinc(x: jax.Array) -> jax.Array:
    """sin(πx) / (πx), with all derivatives at 0; JAX 0.12's ``sinc`` fails inside shard_map."""
    angle = jnp.pi * x
    t = angle**2
    is_small = t < 0.01
    series = 1 - t / 6 * (1 - t / 20 * (1 - t / 42 * (1 - t / 72)))
    safe_angle = jnp.where(is_small, 1, angle)
    return jnp.where(is_small, series, jnp.sin(safe_angle) / safe_angle)


class DampedWaves(nn.Module):
    """Damped waves sin(2π s_k d + φ_k) / dᵖ, p = 0 … 3, with learned s and φ: (E,) to (E, 4 K).

    They are 0 at d = 0.
    """

    @nn.compact
    def __call__(self, distance: jax.Array) -> jax.Array:
        initializer = lambda values: lambda key, shape, dtype: jnp.array(values, dtype)
        s = self.param("scales", initializer(FREQUENCIES), (len(FREQUENCIES),), distance.dtype)
        phi = self.param("phases", initializer(PHASES), (len(PHASES),), distance.dtype)
        s, phi = (z.astype(distance.dtype) for z in (s, phi))  # full precision
        is_positive = distance[:, None] > 0
        d = jnp.where(is_positive, distance[:, None], 1)
        waves = jnp.where(is_positive, jnp.sin(2 * jnp.pi * s * d + phi), 0)
        powers = jnp.stack([jnp.ones_like(d), 1 / d, 1 / d**2, 1 / d**3], axis=-1)
        return (waves[:, :, None] * powers).reshape(len(distance), len(FREQUENCIES) * 4)
