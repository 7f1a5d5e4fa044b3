"""Graphs and parameters that expose errors in layers."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph._validation import require_count
from egnn_jax.graph.batching import Budget, batch
from egnn_jax.graph.build import graph_from_edges
from egnn_jax.graph.graph import GraphsTuple

_MAX_SIZE = 10_000  # nodes, coordinates, features or attributes


def random_graph(
    seed: int = 0,
    sizes: Sequence[int] = (5, 1, 7),
    n: int = 3,
    features: int = 2,
    attributes: int = 2,
    velocity: bool = True,
    coincident: bool = True,
    padding: bool = True,
) -> GraphsTuple:
    """Draw a batch of random directed graphs, in the default float dtype, with difficult cases.

    Args:
      seed: seed of all random numbers.
      sizes: number of nodes of each graph. The last node of each graph receives nothing; a single
        node has no edges.
      n: number of coordinates.
      features: width of h.
      attributes: width of the edge attributes; 0 for none.
      velocity: whether nodes have velocities; the first node of each graph is at rest.
      coincident: place the second node of each graph at the first one.
      padding: append padding nodes, edges and graphs, whose fields hold arbitrary numbers.

    Raises:
      ValueError: ``sizes`` is empty or not a list of integers, or a number is out of range.
    """
    widths = (("n", n, 1), ("features", features, 1), ("attributes", attributes, 0))
    for name, value, minimum in widths:
        require_count(name, value, minimum)
        if value > _MAX_SIZE:
            raise ValueError(f"{name} is {value}; expected at most {_MAX_SIZE:,}")
    require_count("seed", seed, 0)
    if not isinstance(sizes, Sequence | np.ndarray) or getattr(sizes, "ndim", 1) != 1:
        raise ValueError(f"sizes are {sizes!r}; expected a list of whole numbers")
    for size in sizes:
        require_count("a size", size)
        if size > _MAX_SIZE:
            raise ValueError(f"a size is {size}; expected at most {_MAX_SIZE:,}")
    if not len(sizes):
        raise ValueError("sizes are (); expected at least one graph")
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(jnp.result_type(float))
    graphs = []
    for size in sizes:
        adjacency = (rng.random((size, size)) < 0.7) & ~np.eye(size, dtype=bool)
        adjacency[-1] = False
        if size > 2:
            adjacency[0, 1] = adjacency[1, 0] = True  # an edge of length zero, if coincident
        receivers, senders = np.nonzero(adjacency)
        x, v = draw(size, n), draw(size, n)
        v[0] = 0
        if coincident:
            x[1:2] = x[0]
        a = draw(len(senders), attributes) if attributes else None
        graphs.append(
            graph_from_edges(
                senders,
                receivers,
                x=x,
                h=draw(size, features),
                v=v if velocity else None,
                a=a,
            )
        )
    return pad_with_noise(batch(graphs), seed) if padding else batch(graphs)


def pad_with_noise(
    graph: GraphsTuple, seed: int = 0, n_node: int = 3, n_edge: int = 5, n_graph: int = 2
) -> GraphsTuple:
    """Pad a batch with arbitrary numbers instead of zeros.

    Zeros would hide sums that wrongly include the padding.

    Args:
      graph: a batch without padding.
      seed: seed of the numbers.
      n_node, n_edge, n_graph: number of padding nodes, edges and graphs to append.
    """
    real_nodes, real_edges = graph.nodes.x.shape[0], graph.senders.shape[0]
    budget = Budget(real_nodes + n_node, real_edges + n_edge, graph.n_node.shape[0] + n_graph)
    padded = batch([graph], budget)
    rng = np.random.default_rng([seed, 1])

    def noise(n_real: int) -> Callable[[jax.Array], jax.Array]:
        def fill(a: jax.Array) -> jax.Array:
            shape = a[n_real:].shape
            is_integer = jnp.issubdtype(a.dtype, jnp.integer)  # node types or lattice steps
            values = rng.integers(1, 10, shape) if is_integer else rng.standard_normal(shape)
            return a.at[n_real:].set(values.astype(a.dtype))

        return fill

    return padded._replace(
        nodes=jax.tree.map(noise(real_nodes), padded.nodes),
        edges=jax.tree.map(noise(real_edges), padded.edges),
    )


def randomise_parameters(params: Any, seed: int = 0) -> Any:
    """Redraw ``params`` at random, so that every part of a network contributes to the output.

    Kernels (…, in, out) are normal with variance 1/in, all else normal with standard deviation 1/2,
    except that "scale" and "var" of normalization layers are positive, around 1.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], a: jax.Array) -> jax.Array:
        scale = 0.5 if a.ndim < 2 else a.shape[-2] ** -0.5
        values = scale * rng.standard_normal(a.shape)
        if path and getattr(path[-1], "key", None) in ("scale", "var"):
            values = np.exp(values)
        return jnp.asarray(values, a.dtype)

    return jax.tree.map_with_path(draw, params)
