"""Memory and time of the gradient through a simulation of ethanol, with and without checkpoints.

PYTHONPATH=scripts python -m benchmarks.gradients --repeats 3

The gradient of a distance by all parameters after 400 steps of velocity Verlet, through
``egnn.rollout``. Memory is what XLA sets aside for temporary values. Parameters are random.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from benchmarks import costs, dynamics

import egnn_jax as egnn
from egnn_jax.experiments.tables import markdown


def gradient(name: str, steps: int, checkpoint: Any) -> Any:
    """The compiled gradient, and its parameters."""
    atoms = dynamics.ethanol()
    network, params = dynamics.potential(name)
    graph = egnn.complete_graph(atoms)

    def force(params: Any, x: jax.Array) -> Any:
        return network.apply(params, graph._replace(nodes=graph.nodes.replace(x=x))).nodes.y

    masses = atoms.get_masses().astype(np.float32)
    init, step = egnn.velocity_verlet(force, 0.5 * units.fs, masses)

    def end(params: Any) -> jax.Array:
        start = init(params, graph.nodes.x, jnp.zeros_like(graph.nodes.x))
        x = egnn.rollout(step, params, start, steps, checkpoint=checkpoint).state.x
        return jnp.linalg.norm(x[0] - x[2])

    return jax.jit(jax.grad(end)).lower(params).compile(), params


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each (3)")
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    print(costs.machine()["machine"])
    rows = []
    for name in dynamics.ETHANOL:
        row, found = {"ethanol": name}, {}
        for checkpoint in ("sqrt", "none"):
            run, params = gradient(name, arguments.steps, checkpoint)
            times = []
            for _ in range(arguments.repeats):
                started = time.perf_counter()
                found[checkpoint] = jax.block_until_ready(run(params))
                times.append(time.perf_counter() - started)
            memory = run.memory_analysis().temp_size_in_bytes / 2**20
            row |= {
                f"{checkpoint} (MiB)": f"{memory:.1f}",
                f"{checkpoint} (s)": f"{min(times):.2f}",
            }
        one, other = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found[kind])])
            for kind in ("sqrt", "none")
        )
        row["difference"] = f"{np.abs(one - other).max() / np.abs(other).max():.1e}"
        rows.append(row)
    print(markdown(rows))


if __name__ == "__main__":
    main()
