"""What a graph of growing size costs."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import contenders, costs

import egnn_jax as egnn
from egnn_jax.graph.graph import GraphsTuple

NEIGHBOURS = 50
"""Of a node, on average."""


def measure(nodes: int, part: str, repeats: int) -> dict[str, float]:
    """EGNN 4 x 64 on a graph of so many nodes, in a worker of its own: seconds, and the most memory
    the process ever had.
    """
    side = nodes ** (1 / 3)
    x = np.random.default_rng(0).uniform(0, side, (nodes, 3)).astype(np.float32)
    x = x[
        np.lexsort(np.floor(x / 4).T)
    ]  # cell by cell, as the atoms of a material are listed: neighbours are near in memory
    graph = egnn.radius_graph(x, side * costs.relative_cutoff(NEIGHBOURS / (nodes - 1)))
    model: Any = egnn.EGNN(features=64, layers=4, edge_block=16_384)
    params = model.lazy_init(jax.random.PRNGKey(0), jax.eval_shape(lambda: graph))

    def value(params: Any, graph: GraphsTuple) -> jax.Array:
        out = model.apply(params, graph).nodes
        return jnp.mean(out.x**2) + jnp.mean(out.h**2)

    function = jax.jit(jax.grad(value) if part == "gradient" else value)
    times = []
    for _ in range(repeats + 1):  # the first compiles
        begun = time.perf_counter()
        jax.block_until_ready(function(params, graph))
        times.append(time.perf_counter() - begun)
    peak, flops = costs.peak_gib(), costs.flops(function, params, graph)
    rate = 1 / contenders.seconds_per_step("size", part, "matmul")
    return {
        "edges": len(graph.senders),
        "s": float(np.median(times[1:])),
        "peak_gib": peak,
        "floor_s": 1e-9 * flops / rate,
    }
