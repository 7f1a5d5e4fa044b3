"""Time and memory of a large graph, on one device and partitioned over several, one core each.

PYTHONPATH=scripts python -m benchmarks.partition --nodes 100000 --devices 1 2 --repeats 3

Measures the gradient of a scalar with respect to all parameters, for random points with 50
neighbors each and an EGNN of 4 layers of 64 features, with messages summed in blocks. Each number
of devices runs in a fresh process on as many cores, by ``taskset``; one device computes the whole
graph without partition. ``--plan 8 64`` partitions the graph for more devices than there are, and
only prints what each would own and receive.

Results go to runs/partition.json, and the gradients, which must agree, next to it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import costs

import egnn_jax as egnn
from egnn_jax._files import write_atomically
from egnn_jax.experiments.tables import markdown
from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.graph.partition import divide
from egnn_jax.training.distributed import use_all_cores

NEIGHBORS = 50
"""The mean number of neighbors of a node."""
TOLERANCE = 1e-3
"""Tolerance of gradients in float32, relative to the largest entry of each array."""


def points(nodes: int) -> GraphsTuple:
    """Random points at density 1 with :data:`NEIGHBORS` neighbors each, sorted by cells."""
    side = nodes ** (1 / 3)
    x = np.random.default_rng(0).uniform(0, side, (nodes, 3)).astype(np.float32)
    # Sorted by cells, like the atoms of a material, so that neighbors are close in memory.
    x = x[np.lexsort(np.floor(x / 4).T)]
    return egnn.radius_graph(x, side * costs.relative_cutoff(NEIGHBORS / (nodes - 1)))


def mean_square(model: Any) -> Any:
    """A scalar of the output that depends on every parameter."""

    def value(params: Any, graph: GraphsTuple) -> jax.Array:
        nodes = model.apply(params, graph).nodes
        squares = jnp.concatenate([nodes.x**2, nodes.h**2], axis=-1)
        return jnp.sum(egnn.mean_nodes(graph, squares)[0])

    return value


def measure(nodes: int, devices: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Measure the cost of a gradient in this process, and write the gradient to a file.

    Returns:
      ``s``, the median seconds per call; ``device_gib``, arguments, results and temporaries of the
      compiled program on one device; ``peak_gib``, the peak memory of the process from compilation
      on; ``own``, ``received`` and ``edges``, the largest numbers of any part.
    """
    graph = points(nodes)
    model = egnn.EGNN(features=64, layers=4, edge_block=16_384)
    shapes = jax.eval_shape(lambda graph: graph, graph)
    params: Any = model.lazy_init(jax.random.key(0), shapes)
    value, sizes = mean_square(model), {"own": nodes, "received": 0, "edges": len(graph.senders)}
    input_graph: Any = graph
    if devices > 1:
        input_graph = egnn.partition(graph, devices)
        value, sizes = egnn.on_devices(value), max_part_sizes(input_graph)
    del graph
    reset_peak()
    compiled = jax.jit(jax.grad(value)).lower(params, input_graph).compile()
    params, input_graph = jax.device_put((params, input_graph), compiled.input_shardings[0])
    times, gradient = [], None
    for _ in range(repeats + 1):  # the first warms caches up
        start = time.perf_counter()
        gradient = jax.block_until_ready(compiled(params, input_graph))
        times.append(time.perf_counter() - start)
    peak = costs.peak_gib()
    memory = compiled.memory_analysis()
    memory_fields = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    np.savez(folder / f"gradient-{devices}.npz", **arrays)
    return {
        "devices": devices,
        "nodes": nodes,
        "s": float(np.median(times[1:])),
        "device_gib": sum(getattr(memory, name) for name in memory_fields) / 2**30,
        "peak_gib": peak,
    } | sizes


def max_part_sizes(partitioned: Any) -> dict[str, int]:
    """The largest sizes of any part, including padding."""
    return {
        "own": partitioned.node.shape[1],
        "received": partitioned.exchange.sent.shape[1],
        "edges": partitioned.edge.shape[1],
    }


def reset_peak() -> None:
    """Reset the peak memory of this process, if Linux allows it."""
    if (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5", encoding="utf-8")


def in_a_process(arguments: argparse.Namespace, devices: int) -> dict[str, Any]:
    """Run :func:`measure` in a fresh process on as many cores as devices."""
    cores = sorted(os.sched_getaffinity(0))[:devices]
    if len(cores) < devices:
        raise ValueError(f"--devices has {devices}; expected at most {len(cores)}, a core each")
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m"]
    command += ["benchmarks.partition", "--measure", "--devices", str(devices)]
    command += ["--nodes", str(arguments.nodes), "--repeats", str(arguments.repeats)]
    command += ["--out", str(arguments.out)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(re.findall(r"^\{.*\}$", process.stdout, re.M)[-1])


def require_agreement(folder: Path, device_counts: list[int]) -> float:
    """Return the largest difference between gradients.

    Raises:
      ValueError: the difference exceeds rounding.
    """
    reference, *gradients = (
        dict(np.load(folder / f"gradient-{devices}.npz")) for devices in device_counts
    )
    differences = [
        np.abs(a - gradient[name]).max() / np.abs(a).max()
        for gradient in gradients
        for name, a in reference.items()
    ]
    largest = float(np.max(differences, initial=0.0))  # NaN if one is
    if not largest < TOLERANCE:
        raise ValueError(f"gradients differ by {largest:.1e}; expected less than {TOLERANCE:g}")
    return largest


def plan(nodes: int, device_counts: list[int]) -> None:
    """Print what each device would own and receive."""
    graph = points(nodes)
    rows = []
    for devices in device_counts:
        partition = divide(graph, devices)
        sizes = max_part_sizes(partition)
        ratio = f"{sizes['received'] / sizes['own']:.2f}"
        exchange_sizes = {"received / own": ratio, "rounds": len(partition.exchange.rounds)}
        rows.append(formatted({"devices": devices} | sizes | exchange_sizes))
    print(markdown(rows))


def row(result: dict[str, Any], first: dict[str, Any]) -> dict[str, str]:
    """A row of the table, relative to the first number of devices."""
    return formatted(
        {
            "devices": result["devices"],
            "s": f"{result['s']:.2f}",
            "speed-up": f"{first['s'] / result['s']:.2f}",
            "GiB a device": f"{result['device_gib']:.3f}",
            "of one": f"{result['device_gib'] / first['device_gib']:.2f}",
            "GiB, peak of the process": f"{result['peak_gib']:.2f}",
        }
        | {name: result[name] for name in ("own", "received", "edges")}
    )


def formatted(values: dict[str, Any]) -> dict[str, str]:
    """Format integers with commas, and leave text unchanged."""
    return {k: f"{v:,}" if isinstance(v, int) else v for k, v in values.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=100_000, help="of the graph (100,000)")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2], help="to compare (1 2)")
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many calls (3)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="a folder (runs)")
    parser.add_argument("--plan", type=int, nargs="+", help="only divide, for these numbers")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.plan:
        plan(arguments.nodes, arguments.plan)
        return
    if arguments.measure:
        use_all_cores()
        (devices,) = arguments.devices
        print(json.dumps(measure(arguments.nodes, devices, arguments.repeats, arguments.out)))
        return
    results = [in_a_process(arguments, number) for number in arguments.devices]
    write_atomically(arguments.out / "partition.json", json.dumps(results, indent=2).encode())
    print(markdown([row(result, results[0]) for result in results]))
    print(f"gradients agree to {require_agreement(arguments.out, arguments.devices):.1e}")


if __name__ == "__main__":
    main()
