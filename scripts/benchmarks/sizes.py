"""Time and memory of an EGNN on one large graph."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import contenders, costs
from benchmarks.partition import points

import egnn_jax as egnn
from egnn_jax.graph.graph import GraphsTuple


def measure(nodes: int, part: str, repeats: int) -> dict[str, float]:
    """Measure an EGNN of 4 layers of 64 features on a graph of random points.

    Args:
      nodes: number of nodes.
      part: "forward", or "gradient" with respect to the parameters.
      repeats: number of calls, of which the median time is taken.

    Returns:
      ``edges``; ``s``, the seconds per call; ``peak_gib``, the peak memory of this process, so each
      size needs a fresh process; ``floor_s``, the time of the matrix products alone.
    """
    graph = points(nodes)
    model: Any = egnn.EGNN(features=64, layers=4, edge_block=16_384)
    params = model.lazy_init(jax.random.PRNGKey(0), jax.eval_shape(lambda: graph))

    def value(params: Any, graph: GraphsTuple) -> jax.Array:
        out = model.apply(params, graph).nodes
        return jnp.mean(out.x**2) + jnp.mean(out.h**2)

    function = jax.jit(jax.grad(value) if part == "gradient" else value)
    times = []
    for _ in range(repeats + 1):  # the first compiles
        start = time.perf_counter()
        jax.block_until_ready(function(params, graph))
        times.append(time.perf_counter() - start)
    peak, flops = costs.peak_gib(), costs.flops(function, params, graph)
    rate = 1 / contenders.seconds_per_step("size", part, "matmul")
    return {
        "edges": len(graph.senders),
        "s": float(np.median(times[1:])),
        "peak_gib": peak,
        "floor_s": 1e-9 * flops / rate,
    }
