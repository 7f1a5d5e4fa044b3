"""Simulations as pure functions that can be jitted, vmapped and differentiated."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from egnn_jax.graph._validation import (
    host,
    require_count,
    require_function,
    require_number,
    require_real,
)

Step = Callable[[Any, Any], Any]
"""A function (params, state) -> state of any pytrees."""


class Rollout(NamedTuple):
    """Result of :func:`rollout`.

    Attributes:
      state: the state after the last step.
      frames: the saved frames, with a leading axis of size steps / save_every, or None.
      finite: number of steps after which all numbers of the state were still finite, () int32; less
        than ``steps`` if the simulation has diverged.
    """

    state: Any
    frames: Any
    finite: jax.Array


def rollout(
    step: Step,
    params: Any,
    state: Any,
    steps: int,
    save_every: int | None = None,
    *,
    save: Callable[[Any], Any] = lambda state: state,
    checkpoint: Literal["sqrt", "none"] = "sqrt",
) -> Rollout:
    """Apply a step function T times, as a pure function that can be jitted and differentiated.

    The gradient of T steps needs the intermediate values of each step. With ``checkpoint="sqrt"``,
    about 2 √T states are stored instead and steps are recomputed, at most three times if no frames
    are saved and five times otherwise (Griewank 1992).

    Args:
      step: (params, state) -> state, for example from :func:`velocity_verlet`, or from jax-md with
        its neighbor list as part of the state.
      params: parameters of the network, or whatever to differentiate with respect to.
      state: the initial state, a pytree.
      steps: T, a Python integer, 0 or more.
      save_every: number of steps between saved frames; nothing is saved if not given.
      save: function that selects what to save of a state, for example ``lambda state: state.x``.
      checkpoint: "none" stores all intermediate values for the gradient.

    Returns:
      A :class:`Rollout`.

    Raises:
      ValueError: an argument is out of range, ``step`` changes shapes or dtypes of the state, or
        (if nothing is traced) a neighbor list in the state has overflowed.
      FloatingPointError: a number of the state is not finite, if nothing is traced; the message
        names the step. In a traced function, check ``finite``.
    """
    require_function("step", step, "(params, state) -> state")
    require_function("save", save, "of a state")
    require_count("steps", steps, 0)
    interval = max(steps, 1) if save_every is None else save_every
    require_count("save_every", interval)
    if save_every is not None and steps % interval:
        raise ValueError(f"steps is {steps}; expected a multiple of save_every, {interval}")
    if checkpoint not in ("sqrt", "none"):
        raise ValueError(f"checkpoint is {checkpoint!r}; expected 'sqrt' or 'none'")
    state = jax.tree.map(jnp.asarray, state)
    _require_same_types("step", jax.eval_shape(step, params, state), state)

    def advance(carry: Any) -> tuple[Any, None]:
        state, count, finite = carry
        state = jax.tree.map(jnp.asarray, step(params, state))
        finite = finite & _is_finite(state)
        return (state, count + finite.astype(jnp.int32), finite), None

    def advance_and_save(carry: Any) -> tuple[Any, Any]:
        carry, _ = _scan(advance, carry, interval, checkpoint)
        return carry, save(carry[0])

    finite = _is_finite(state)
    # In shard_map, zeros_like gives a count that varies over devices if the state does.
    initial = (state, jnp.zeros_like(finite, jnp.int32), finite)
    if save_every is None:
        (state, finite, _), frames = _scan(advance, initial, steps, checkpoint)
    else:
        (state, finite, _), frames = _scan(advance_and_save, initial, steps // interval, checkpoint)
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((state, finite))):
        _require_valid(state, int(finite), steps, bool(initial[2]))
    return Rollout(state, frames, finite)


class Phase(NamedTuple):
    """Phase-space state: positions x, velocities v and forces f at x, each (M, n)."""

    x: jax.Array
    v: jax.Array
    f: jax.Array


def velocity_verlet(
    force: Callable[[Any, jax.Array], jax.Array], timestep: float, masses: Any = 1.0
) -> tuple[Callable[..., Phase], Step]:
    """Create a velocity Verlet integrator: v += Δt f / 2m, x += Δt v, v += Δt f(x) / 2m.

    The map is symplectic and time-reversible: with -v it retraces its path.

    >>> init, step = egnn.velocity_verlet(lambda k, x: -k * x, 2 * np.pi / 100)  # springs
    >>> start = init(1.0, jnp.ones((1, 3)), jnp.zeros((1, 3)))
    >>> final = egnn.rollout(step, 1.0, start, 100).state  # one period
    >>> bool(abs(final.x - 1).max() < 1e-4)
    True

    Args:
      force: (params, x (M, n)) -> forces (M, n), for example the negative gradient of an energy.
      timestep: Δt, in the unit implied by those of x, masses and forces: with Å, u and eV/Å, it is
        ``ase.units.fs`` times femtoseconds.
      masses: masses of the particles (M,), or one mass for all.

    Returns:
      ``init(params, x, v)``, which returns a :class:`Phase`, and ``step(params, phase)`` for
      :func:`rollout`, which evaluates the force once.

    Raises:
      ValueError: the timestep is not finite, or masses are not above 0 or not (M,); in ``init``: x,
        v or the forces do not have shape (M, n).
    """
    if not isinstance(timestep, Tracer):
        require_number("timestep", timestep)
        if not np.isfinite(timestep):
            raise ValueError(f"timestep is {timestep}; expected a finite number")
    if not isinstance(masses, Tracer):
        masses = host("masses", masses) if np.iterable(masses) else masses
        require_real("masses", np.asarray(masses).dtype)
    shape = jnp.shape(masses)
    if len(shape) > 1 or not (isinstance(masses, Tracer) or np.all(np.asarray(masses) > 0)):
        raise ValueError(f"masses are {masses}; expected a number above 0, or one a particle (M,)")
    weights = jnp.asarray(masses)[:, None] if shape else masses

    def init(params: Any, x: jax.Array, v: jax.Array) -> Phase:
        state = Phase(jnp.asarray(x), jnp.asarray(v), jnp.asarray(force(params, x)))
        shapes = [array.shape for array in state]
        if jnp.ndim(x) != 2 or shape not in ((), shapes[0][:1]) or len(set(shapes)) > 1:
            raise ValueError(
                f"x, v and forces have shapes {', '.join(map(str, shapes))}, and masses {shape}; "
                "expected (M, n) of each, and (M,) or () of masses"
            )
        return state

    def step(params: Any, state: Phase) -> Phase:
        v = state.v + timestep / 2 * state.f / weights
        x = state.x + timestep * v
        f = force(params, x)
        return Phase(x, v + timestep / 2 * f / weights, f)

    return init, step


def _scan(
    f: Callable[[Any], tuple[Any, Any]], carry: Any, length: int, checkpoint: str
) -> tuple[Any, Any]:
    """Apply ``f`` ``length`` times, in about √length blocks that store only their first carry."""

    def scan(f: Callable[[Any], tuple[Any, Any]], carry: Any, length: int) -> tuple[Any, Any]:
        return jax.lax.scan(lambda carry, _: f(carry), carry, None, length)

    if checkpoint == "none" or length < 4:
        return scan(f, carry, length)
    # Inside a scan, CSE cannot undo the rematerialization, so it need not be prevented.
    single = jax.checkpoint(f, prevent_cse=False)
    size = _block(length)
    block = jax.checkpoint(lambda carry: scan(single, carry, size), prevent_cse=False)
    carry, blocks = scan(block, carry, length // size)
    carry, remainder = scan(single, carry, length % size)
    outputs = jax.tree.map(
        lambda a, b: jnp.concatenate([a.reshape(a.shape[0] * size, *a.shape[2:]), b]),
        blocks,
        remainder,
    )
    return carry, outputs


def _block(length: int) -> int:
    """A divisor near √length, to avoid compiling a remainder; √length if there is none."""
    root = math.isqrt(length)
    return next((size for size in range(root, root // 2, -1) if length % size == 0), root)


def _is_finite(state: Any) -> jax.Array:
    arrays = [a for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(a).all() for a in arrays] or True).all()


def _require_same_types(name: str, result: Any, state: Any) -> None:
    """Raise ValueError if a step changes the structure, shapes or dtypes of the state."""
    actual, expected = (
        jax.tree.map(lambda a: f"{jnp.result_type(a)}{list(jnp.shape(a))}", tree)
        for tree in (result, state)
    )
    same = jax.tree.leaves(actual) == jax.tree.leaves(expected)
    if not same or jax.tree.structure(result) != jax.tree.structure(state):
        raise ValueError(f"{name} returns {actual}; expected {expected}, as it was given")


def _require_valid(state: Any, finite: int, steps: int, started_finite: bool) -> None:
    """Raise if a simulation has diverged, or its neighbor list has overflowed."""
    if not started_finite:
        raise FloatingPointError("the state to start from is not finite")
    if finite < steps:
        raise FloatingPointError(f"the state is not finite after step {finite + 1} of {steps:,}")
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: hasattr(leaf, "did_buffer_overflow"))
    if any(np.any(getattr(leaf, "did_buffer_overflow", False)) for leaf in leaves):
        raise ValueError(
            "the neighbor list overflowed; expected one with more room, for example by "
            "capacity_multiplier"
        )
