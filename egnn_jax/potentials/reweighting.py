"""Reweighting of simulation frames: observables as differentiable functions of the potential."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from egnn_jax.graph._validation import require_number

_MIN_FRACTION = 0.5  # with a smaller fraction of effective frames, weights are unreliable


class Weights(NamedTuple):
    """Result of :func:`reweight`.

    Attributes:
      weights: w (S,), with sum 1: ``jnp.sum(w * observable)`` is the mean of an observable.
      effective: exp(-Σ w log w), the effective number of frames, 1 to S.
    """

    weights: jax.Array
    effective: jax.Array


def reweight(energies: Any, reference: Any, kT: Any) -> Weights:
    """Reweight canonical frames from U⁰ to another potential U, w_k ∝ exp(-(U_k - U⁰_k) / kT).

    >>> weights, effective = egnn.reweight(jnp.array([0.0, 0.0]), jnp.array([0.0, 1.0]), kT=1.0)
    >>> f"{weights[1] / weights[0]:.3f}, {effective:.2f} of two frames"
    '2.718, 1.79 of two frames'

    Weighted means of observables are those of the potential U. Their gradients with respect to its
    parameters need no gradient through the simulation (DiffTRe, Thaler and Zavadlav 2021)::

        frames = egnn.rollout(step, params, state, 100_000, 100, save=lambda state: state.x).frames
        reference = jax.lax.stop_gradient(jax.vmap(energy, (None, 0))(params, frames))

        def loss(params):
            weights, _ = egnn.reweight(jax.vmap(energy, (None, 0))(params, frames), reference, kT)
            return jnp.sum((weights @ observables - measured) ** 2)

    Far from the reference, few frames are effective: simulate again with the new potential.

    Args:
      energies: U of each frame (S,), for the potential whose means you want.
      reference: U⁰ of each frame (S,), for the potential that the frames were drawn with.
      kT: in the unit of the energies, for example ``300 * ase.units.kB`` for eV.

    Returns:
      :class:`Weights`.

    Raises:
      ValueError: the energies do not have shape (S,); or, if nothing is traced, they are not finite
        or kT is not above 0.

    Warns:
      RuntimeWarning: fewer than half of the frames are effective, if nothing is traced.
    """
    # Keep float64 energies in NumPy until they are subtracted.
    energies, reference = (
        a if isinstance(a, jax.Array) else np.asarray(a) for a in (energies, reference)
    )
    if energies.ndim != 1 or energies.shape != reference.shape or not energies.size:
        raise ValueError(
            f"energies and reference have shapes {energies.shape} and {reference.shape}; expected "
            "(S,) of both, one a frame"
        )
    if not isinstance(kT, Tracer):
        require_number("kT", kT)
        if not kT > 0:
            raise ValueError(f"kT is {kT}; expected a number above 0")
    logits = jnp.asarray(reference - energies) / kT
    weights = jax.nn.softmax(logits)
    log_weights = jnp.where(weights > 0, jax.nn.log_softmax(logits), 0)
    effective = jnp.exp(-jnp.sum(weights * log_weights))
    if isinstance(effective, Tracer):
        return Weights(weights, effective)
    if bad := int(jnp.sum(~jnp.isfinite(logits))):
        raise ValueError(f"{bad} of {len(weights)} energies are not finite")
    if effective < _MIN_FRACTION * len(weights):
        warnings.warn(
            f"{float(effective):.1f} of {len(weights)} frames count, less than half: the potential "
            "is far from the one that they were drawn with; simulate again with it",
            RuntimeWarning,
            stacklevel=2,
        )
    return Weights(weights, effective)
