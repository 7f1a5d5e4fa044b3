"""Observables of one simulation as functions of the potential: reweighting of its frames."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_SHARE = 0.5  # of frames, below which their weights say little of the other potential


class Weights(NamedTuple):
    """What :func:`reweight` returns.

    Attributes:
      weights: w (S,), of sum 1: ``jnp.sum(w * observable)`` is the mean of an observable.
      effective: exp(-Σ w log w), the number of frames that count, 1 to S.
    """

    weights: jax.Array
    effective: jax.Array


def reweight(energies: Any, reference: Any, kT: Any) -> Weights:
    """w_k ∝ exp(-(U_k - U⁰_k) / kT), of frames of the canonical ensemble of the energies U⁰.

    >>> weights, effective = egnn.reweight(jnp.array([0.0, 0.0]), jnp.array([0.0, 1.0]), kT=1.0)
    >>> f"{weights[1] / weights[0]:.3f}, {effective:.2f} of two frames"
    '2.718, 1.79 of two frames'

    Means of observables with these weights are those of the potential U, and their gradients with
    respect to its parameters need no gradient through the simulation (DiffTRe, Thaler and
    Zavadlav 2021)::

        frames = egnn.rollout(step, params, state, 100_000, 100, save=lambda state: state.x).frames
        reference = jax.lax.stop_gradient(jax.vmap(energy, (None, 0))(params, frames))

        def loss(params):
            weights, _ = egnn.reweight(jax.vmap(energy, (None, 0))(params, frames), reference, kT)
            return jnp.sum((weights @ observables - measured) ** 2)

    Far from the reference few frames count: simulate again there.

    Args:
      energies: U of each frame (S,), of the potential whose means are sought.
      reference: U⁰ of each frame (S,), of the potential that they were drawn with.
      kT: in the unit of the energies, such as ``300 * ase.units.kB`` for eV.

    Returns:
      :class:`Weights`.

    Raises:
      ValueError: the energies have other shapes than (S,); where nothing is traced, also where
        they are not finite or kT is not above 0.

    Warns:
      RuntimeWarning: fewer than half of the frames count, where nothing is traced.
    """
    # Energies in float64 are subtracted as such.
    energies, reference = (
        a if isinstance(a, jax.Array) else np.asarray(a) for a in (energies, reference)
    )
    if energies.ndim != 1 or energies.shape != reference.shape or not energies.size:
        raise ValueError(
            f"energies and reference have shapes {energies.shape} and {reference.shape}; expected "
            "(S,) of both, one a frame"
        )
    if not isinstance(kT, Tracer) and not (jnp.ndim(kT) == 0 and kT > 0):
        raise ValueError(f"kT is {kT}; expected a number above 0")
    logits = jnp.asarray(reference - energies) / kT
    weights = jax.nn.softmax(logits)
    logs = jnp.where(weights > 0, jax.nn.log_softmax(logits), 0)
    effective = jnp.exp(-jnp.sum(weights * logs))
    if isinstance(effective, Tracer):
        return Weights(weights, effective)
    if bad := int(jnp.sum(~jnp.isfinite(logits))):
        raise ValueError(f"{bad} of {len(weights)} energies are not finite")
    if effective < _SHARE * len(weights):
        warnings.warn(
            f"{float(effective):.1f} of {len(weights)} frames count, less than half: the potential "
            "is far from the one that they were drawn with; simulate again with it",
            RuntimeWarning,
            stacklevel=2,
        )
    return Weights(weights, effective)
