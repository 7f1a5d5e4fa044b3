"""Memory and time of the gradient through a simulation of ethanol, with and without checkpoints.

PYTHONPATH=scripts python -m benchmarks.gradients --repeats 3

Computes the gradient of a distance after 400 velocity Verlet steps with respect to all parameters,
with ``egnn.rollout``. Memory is XLA's allocation for temporaries. Parameters are random. The
difference between the two gradients is given in float32, which is timed, and in float64.
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


def gradient(name: str, steps: int, checkpoint: Any, dtype: Any = np.float32) -> Any:
    """Return the compiled gradient function, and its parameters."""
    atoms = dynamics.ethanol()
    network, params = dynamics.potential(name)
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
    graph = egnn.complete_graph(atoms)
    x = jnp.asarray(graph.nodes.x, dtype)

    def force(params: Any, x: jax.Array) -> Any:
        return network.apply(params, graph._replace(nodes=graph.nodes.replace(x=x))).nodes.y

    masses = atoms.get_masses().astype(dtype)
    init, step = egnn.velocity_verlet(force, 0.5 * units.fs, masses)

    def final_distance(params: Any) -> jax.Array:
        initial = init(params, x, jnp.zeros_like(x))
        final_x = egnn.rollout(step, params, initial, steps, checkpoint=checkpoint).state.x
        return jnp.linalg.norm(final_x[0] - final_x[2])

    return jax.jit(jax.grad(final_distance)).lower(params).compile(), params


def relative_difference(gradients: dict[str, Any]) -> str:
    """The largest difference between two gradients, relative to the largest component."""
    gradient_sqrt, gradient_none = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients[checkpoint])])
        for checkpoint in ("sqrt", "none")
    )
    return f"{np.abs(gradient_sqrt - gradient_none).max() / np.abs(gradient_none).max():.0e}"


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
        row, gradients = {"ethanol": name}, {}
        for checkpoint in ("sqrt", "none"):
            run, params = gradient(name, arguments.steps, checkpoint)
            times = []
            for _ in range(arguments.repeats):
                start = time.perf_counter()
                gradients[checkpoint] = jax.block_until_ready(run(params))
                times.append(time.perf_counter() - start)
            memory = run.memory_analysis().temp_size_in_bytes / 2**20
            row |= {
                f"{checkpoint} (MiB)": f"{memory:.1f}",
                f"{checkpoint} (s)": f"{min(times):.2f}",
            }
        row["difference"] = relative_difference(gradients)
        with jax.enable_x64(True):
            for checkpoint in ("sqrt", "none"):
                run, params = gradient(name, arguments.steps, checkpoint, np.float64)
                gradients[checkpoint] = jax.block_until_ready(run(params))
        row["difference in float64"] = relative_difference(gradients)
        rows.append(row)
    print(markdown(rows))


if __name__ == "__main__":
    main()
