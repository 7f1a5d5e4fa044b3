"""Evaluate networks of the N-body task on systems that they were not trained on.

PYTHONPATH=scripts python -m benchmarks.other_systems runs/nbody/dynamics runs/nbody/egnn_best

The systems have 3, 5, 10 and 20 charged particles, simulated as in the paper, and for 3,000 steps
instead of 1,000; a learned force is then integrated three times as long. Errors are mean and median
squared errors over the coordinates of a system. For learned forces, the table also has the energy
change along a trajectory relative to the kinetic energy: the median over systems in which no two
particles come closer than 0.1, where the simulator itself does not conserve energy.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data import nbody
from egnn_jax.experiments.nbody import Batch
from egnn_jax.experiments.run import first_seed, load
from egnn_jax.experiments.tables import markdown
from egnn_jax.potentials.learned_dynamics import LearnedDynamics

START = 3_100
"""Simulator steps before the frame that a network starts from, as in the paper's data."""


@partial(jax.jit, static_argnums=(3, 4))
def simulate(c: Any, x: Any, v: Any, steps: int, sample_every: int | None = None) -> Any:
    """Simulate positions and velocities (S, frames, M, 3)."""
    return jax.vmap(lambda c, x, v: nbody.simulate(c, x, v, steps, sample_every))(c, x, v)


def systems(count: int, particles: int, steps: int) -> tuple[Batch, np.ndarray]:
    """Systems, their states after ``steps`` steps, and the shortest distance on the way (S,)."""
    random = np.random.RandomState(particles)
    with jax.enable_x64(True):
        c, x, v = nbody.initial_states(random, count, particles)
        x, v = (a[:, 0] for a in simulate(c, *nbody.reflect(x, v), START))
        trajectory = simulate(c, x, v, steps, 10)[0]
        r_ij = trajectory[:, :, :, None] - trajectory[:, :, None]
        distance = jnp.linalg.norm(r_ij, axis=-1) + 1e9 * jnp.eye(particles)
        shortest = np.asarray(distance.min(axis=(1, 2, 3)))
        fields = [np.asarray(a, np.float32) for a in (x, v, trajectory[:, -1], c, np.ones(count))]
    return Batch(*map(jnp.asarray, fields)), shortest


@partial(jax.jit, static_argnums=(0, 1))
def predict(task: Any, network: Any, params: Any, batch: Batch) -> list[jax.Array]:
    """Predict positions and velocities (S, M, 3)."""
    nodes = network.apply(params, task.graph(batch)).nodes
    return [a.reshape(batch.x.shape) for a in (nodes.x, nodes.v)]


def energy(c: Any, x: Any, v: Any) -> tuple[Any, Any]:
    """Kinetic and potential energy (S,)."""
    r_ij = x[:, :, None] - x[:, None]
    distance = jnp.linalg.norm(r_ij, axis=-1)
    pair_energies = c[:, :, None] * c[:, None] / jnp.where(distance > 0, distance, jnp.inf)
    return jnp.sum(v**2, axis=(1, 2)) / 2, jnp.sum(pair_energies, axis=(1, 2)) / 2


def main() -> None:
    """Evaluate and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--systems", type=int, default=500, help="of each kind (500)")
    parser.add_argument("--steps", type=int, default=1_000, help="of a learned force, each 1,000")
    options = parser.parse_args()
    settings = [(3, 1_000), (5, 1_000), (10, 1_000), (20, 1_000), (5, 3_000)]
    batches = {setting: systems(options.systems, *setting) for setting in settings}
    rows = []
    for path in options.runs:
        config, network, params = load(path)
        params = first_seed(config, params)
        row = {"run": path.name}
        for (particles, steps), (batch, shortest) in batches.items():
            name, duration = f"{particles} particles, {steps:,} steps", steps // 1_000
            if isinstance(network, LearnedDynamics):
                model = network.clone(time=float(duration), steps=duration * options.steps)
            elif duration == 1:
                model = network
            else:
                row[name] = "–"
                continue

            x, v = predict(config.task, model, params, batch)
            error = np.asarray(jnp.mean((x - batch.target) ** 2, axis=(1, 2)))
            row[name] = f"{error.mean():.4f}, {np.median(error):.1e}"
            if isinstance(network, LearnedDynamics):
                initial = energy(batch.charges, batch.x, batch.v)
                final = energy(batch.charges, x, v)
                change = np.abs(sum(final) - sum(initial)) / np.maximum(initial[0], final[0])
                far_changes = np.asarray(change)[shortest > 0.1]
                row[f"{name}: energy"] = f"{np.median(far_changes):.1e} ({len(far_changes)})"
        rows.append(row)
    keys = dict.fromkeys(key for row in rows for key in row)
    print(markdown([{key: row.get(key, "–") for key in keys} for row in rows]))


if __name__ == "__main__":
    main()
