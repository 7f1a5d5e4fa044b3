"""Recover a pair potential from its radial distribution function.

PYTHONPATH=scripts python -m benchmarks.pair_potential

Lennard-Jones particles are simulated, and only their radial distribution function is kept. A
polynomial with 14 coefficients is fitted to it by ``egnn.reweight``. Prints the error of the
potential where pairs were found, and writes a plot to ``runs/pair_potential``.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import egnn_jax as egnn

COUNT, DENSITY, kT = 64, 0.4, 1.0
LENGTH = (COUNT / DENSITY) ** (1 / 3)
CUTOFF, SHORTEST = 2.5, 0.8
TERMS = 14
REPLICAS = 8
STEPS_PER_FRAME = 100
BINS = np.linspace(0.0, CUTOFF, 101)


def lennard_jones(_: Any, r: jax.Array) -> jax.Array:
    """Potential 4 (r⁻¹² − r⁻⁶), shifted so that value and derivative are 0 at the cutoff."""
    u = lambda r: 4 * (r**-12 - r**-6)
    slope = jax.grad(u)(CUTOFF)
    return u(r) - u(CUTOFF) - slope * (r - CUTOFF)


def polynomial(params: jax.Array, r: jax.Array) -> jax.Array:
    """Learned potential: r⁻¹² and Chebyshev polynomials; value and slope are 0 at the cutoff."""
    s = 2 * (r - SHORTEST) / (CUTOFF - SHORTEST) - 1
    terms = [jnp.ones_like(s), s]
    for _ in range(TERMS - 2):
        terms.append(2 * s * terms[-1] - terms[-2])
    smooth = sum(c * term for c, term in zip(params, terms, strict=True))
    return ((CUTOFF / r) ** 12 * CUTOFF**-12 + smooth) * (1 - r / CUTOFF) ** 2


def distances(x: jax.Array) -> jax.Array:
    """Distances of all pairs (P,), to the nearest image."""
    i, j = np.triu_indices(COUNT, 1)
    r_ij = x[i] - x[j]
    r_ij -= LENGTH * jnp.round(r_ij / LENGTH)
    return egnn.safe_norm(r_ij)


def energy(pair: Any, params: Any, x: jax.Array) -> jax.Array:
    """Potential energy U of positions (M, 3)."""
    r = distances(x)
    within_cutoff = r < CUTOFF
    # Extrapolate linearly below the range of the polynomial.
    clipped = jnp.clip(r, SHORTEST, CUTOFF)
    value = pair(params, clipped)
    slope = jax.grad(lambda r: pair(params, r))(jnp.float32(SHORTEST))
    return jnp.sum(jnp.where(within_cutoff, value + slope * jnp.minimum(r - SHORTEST, 0.0), 0.0))


@partial(jax.jit, static_argnums=(0, 4))
def simulate(pair: Any, params: Any, key: jax.Array, x: jax.Array, frames: int) -> jax.Array:
    """Simulate positions (replicas, frames, M, 3) at constant temperature, redrawing velocities
    after each frame.
    """
    force = lambda params, x: -jax.grad(partial(energy, pair), 1)(params, x)
    init, step = egnn.velocity_verlet(force, 0.004)

    def frame(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        v = jnp.sqrt(kT) * jax.random.normal(key, x.shape)
        state = egnn.rollout(step, params, init(params, x, v), STEPS_PER_FRAME).state
        return state.x, state.x

    keys = jax.random.split(key, (len(x), frames))
    return jax.vmap(lambda x, keys: jax.lax.scan(frame, x, keys)[1])(x, keys)


@jax.jit
def distribution(x: jax.Array) -> jax.Array:
    """Radial distribution function g(r) of one frame, in :data:`BINS`."""
    counts, _ = jnp.histogram(distances(x), jnp.asarray(BINS))
    shells = 4 / 3 * np.pi * np.diff(BINS**3)
    return counts / (COUNT * (COUNT - 1) / 2 * shells / LENGTH**3)


def learn(target: jax.Array, x: jax.Array, rounds: int, frames: int) -> jax.Array:
    """Fit the parameters so that g(r) matches the target."""
    pair_energy = partial(energy, polynomial)
    energies = jax.jit(jax.vmap(pair_energy, (None, 0)))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 12 * rounds))
    params, key = jnp.zeros(TERMS), jax.random.key(1)
    state = optimizer.init(params)

    @jax.jit
    def update(
        params: Any, state: Any, all_frames: Any, reference_energies: Any, distributions: Any
    ) -> Any:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            weights = egnn.reweight(
                jax.vmap(pair_energy, (None, 0))(params, all_frames), reference_energies, kT
            )
            return jnp.sum((weights.weights @ distributions - target) ** 2), weights.effective

        (value, effective), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value, effective

    for k in range(rounds):
        key, simulation_key = jax.random.split(key)
        trajectory = simulate(polynomial, params, simulation_key, x, frames)
        x, samples = trajectory[:, -1], trajectory[:, frames // 5 :].reshape(-1, COUNT, 3)
        reference_energies = energies(params, samples)
        distributions = jax.vmap(distribution)(samples)
        updates, effective, value = 0, np.inf, np.nan
        while updates < 20 and effective > 0.8 * len(samples):
            params, state, value, effective = update(
                params, state, samples, reference_energies, distributions
            )
            updates += 1
        print(f"round {k}: {updates} updates, squared error of g {value:.5f}", flush=True)
    return params


def main() -> None:
    """Simulate, fit and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="simulations (40)")
    parser.add_argument("--frames", type=int, default=100, help="of each and replica (100)")
    parser.add_argument("--target-frames", type=int, default=1_000, help="of the target (1,000)")
    parser.add_argument("--out", type=Path, default=Path("runs/pair_potential"))
    options = parser.parse_args()
    start = time.monotonic()
    lattice = np.stack(np.meshgrid(*3 * [np.arange(4)]), axis=-1).reshape(-1, 3)
    x = jnp.asarray(np.broadcast_to(lattice * LENGTH / 4, (REPLICAS, COUNT, 3)), jnp.float32)
    x = simulate(lennard_jones, None, jax.random.key(0), x, 100)[:, -1]
    frames = simulate(lennard_jones, None, jax.random.key(2), x, options.target_frames)
    target = jax.lax.map(distribution, frames.reshape(-1, COUNT, 3)).mean(axis=0)
    print(f"target: {frames.shape[0] * frames.shape[1]} frames, {time.monotonic() - start:.0f} s")
    params = learn(target, x, options.rounds, options.frames)
    r = (BINS[1:] + BINS[:-1]) / 2
    sampled = np.asarray(target) > 0.1
    true, learned = (
        np.asarray(jax.vmap(partial(pair, params))(jnp.asarray(r, jnp.float32)))
        for pair in (lennard_jones, polynomial)
    )
    error = np.abs(learned - true)[sampled]
    print(
        f"potential between {r[sampled].min():.2f} and {CUTOFF}, where g is above 0.1: error "
        f"at most {error.max():.4f}, mean {error.mean():.4f} in units of ε; "
        f"{time.monotonic() - start:.0f} s"
    )
    draw(r, sampled, {"Lennard-Jones": true, "learned": learned}, options.out / "potential.png")


def draw(r: np.ndarray, sampled: np.ndarray, curves: dict[str, np.ndarray], path: Path) -> None:
    """Plot both potentials where pairs were found."""
    from egnn_jax.experiments import plots

    points = {name: list(zip(r[sampled], u[sampled], strict=True)) for name, u in curves.items()}
    print(plots.curves(points, "distance", "pair potential", "From g(r) alone", path))


if __name__ == "__main__":
    main()
