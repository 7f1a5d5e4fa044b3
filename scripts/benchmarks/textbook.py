"""Textbook peers of ``make benchmark``: EGNN in JAX, and the N-body simulation in NumPy.

Both follow the equations literally, without optimization.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data import nbody
from egnn_jax.graph.graph import GraphsTuple

Params = Mapping[str, Any]


def egnn(params: Params, graph: GraphsTuple, shrinkage: float = 0.0) -> GraphsTuple:
    """Apply our EGNN, alone or in an Autoencoder or Readout, with the same parameters.

    Every message is a concatenation of gathered features, every sum an unsorted ``segment_sum``.

    Args:
      params: parameters of ``EGNN``, ``Autoencoder(EGNN)`` or ``Readout(EGNN)``; options are
        inferred from the parts present.
      graph: as for the model.
      shrinkage: see :class:`egnn_jax.EGCL`.
    """
    tree = params["params"]
    encoder = tree.get("encoder", tree)
    if "embedding" in encoder:
        graph = graph._replace(
            nodes=graph.nodes.replace(h=dense(encoder["embedding"], graph.nodes.h))
        )
    for k in range(sum(name.startswith("layer_") for name in encoder)):
        graph = layer(encoder[f"layer_{k}"], graph, shrinkage)
    if "decoder" in tree:
        z, w, b = graph.nodes.x, tree["decoder"]["w"], tree["decoder"]["b"]
        squared = jnp.sum((z[graph.receivers] - z[graph.senders]) ** 2, axis=-1, keepdims=True)
        graph = graph._replace(edges=graph.edges.replace(a=w * squared + b))  # eq. 9
    if "graph_dec" in tree:
        n_graph = len(graph.n_node)
        graph_index = jnp.repeat(
            jnp.arange(n_graph), graph.n_node, total_repeat_length=len(graph.nodes.h)
        )
        pooled = jax.ops.segment_sum(mlp(tree["node_dec"], graph.nodes.h), graph_index, n_graph)
        graph = graph._replace(globals=graph.globals.replace(y=mlp(tree["graph_dec"], pooled)))
    return graph


def layer(params: Params, graph: GraphsTuple, shrinkage: float) -> GraphsTuple:
    """Compute eqs. 3 to 8, as in the authors' code."""
    (h, x, v), i, j = (graph.nodes.h, graph.nodes.x, graph.nodes.v), graph.receivers, graph.senders

    def sum_at_receivers(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, i, len(x))

    r_ij = x[i] - x[j]
    inputs = [h[i], h[j], jnp.sum(r_ij**2, axis=-1, keepdims=True)]
    m_ij = jnp.concatenate(inputs if graph.edges.a is None else [*inputs, graph.edges.a], axis=-1)
    m_ij = jax.nn.silu(
        dense(params["phi_e"]["Dense_0"], jax.nn.silu(dense(params["phi_e"], m_ij)))
    )  # eq. 3
    if "phi_inf" in params:
        m_ij = m_ij * jax.nn.sigmoid(dense(params["phi_inf"], m_ij))  # eq. 8
    if "phi_x" in params:
        x = x + sum_at_receivers(r_ij * mlp(params["phi_x"], m_ij)) / jnp.maximum(
            sum_at_receivers(jnp.ones((len(i), 1))), 1
        )  # eq. 4
        if v is not None:
            x = x + mlp(params["phi_v"], h) * v  # eq. 7
        x = (1 - shrinkage) * x
    dh = mlp(params["phi_h"], jnp.concatenate([h, sum_at_receivers(m_ij)], axis=-1))  # eqs. 5 and 6
    return graph._replace(nodes=graph.nodes.replace(h=h + dh if h.shape == dh.shape else dh, x=x))


def dense(params: Params, x: jax.Array) -> jax.Array:
    """Linear layer x W + b."""
    return x @ params["kernel"] + params.get("bias", 0.0)


def mlp(params: Params, x: jax.Array) -> jax.Array:
    """Two-layer perceptron Linear·SiLU·Linear."""
    return dense(params["Dense_1"], jax.nn.silu(dense(params["Dense_0"], x)))


def trajectories(name: str, split: str, count: int) -> dict[str, np.ndarray]:
    """Simulate the first training trajectories of a data set, one at a time.

    Args:
      name: name of the data set.
      split: "train", for the signature of :func:`egnn_jax.data.nbody._generate`.
      count: the number of trajectories S.

    Returns:
      Positions ``x`` and ``target`` (S, 5, 3).
    """
    recipe = nbody.RECIPES[name]
    frames = [step // recipe.sample_every - 1 for step in (recipe.input_step, recipe.target_step)]
    unused_frames = nbody.LENGTH // recipe.sample_every - 1
    charges, *states = nbody.initial_states(
        np.random.RandomState(recipe.seed), count, unused_frames=unused_frames
    )
    with jax.enable_x64(True):
        x, v = (np.asarray(a) for a in nbody.reflect(*states))
    positions = [
        trajectory(*initial, nbody.LENGTH, recipe.sample_every)[frames]
        for initial in zip(charges, x, v, strict=True)
    ]
    return dict(zip(("x", "target"), np.stack(positions, axis=1), strict=True))


def trajectory(
    charges: np.ndarray, x: np.ndarray, v: np.ndarray, steps: int, sample_every: int
) -> np.ndarray:
    """Simulate positions (frames, M, n) of one trajectory, in the authors' arithmetic.

    Args:
      charges: charges (M,).
      x, v: initial positions and velocities (M, n).
      steps: the authors' T; T - 1 steps are simulated.
      sample_every: the number of steps between two frames.
    """
    charges, x, v = charges[:, None], x.copy(), v.copy()
    frames = []

    def force() -> np.ndarray:
        norms = (x**2).sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            strength = charges @ charges.T / np.power(norms + norms.T - 2 * x @ x.T, 1.5)
        np.fill_diagonal(strength, 0)
        components = [
            (strength * np.subtract.outer(x[:, axis], x[:, axis])).sum(axis=-1)
            for axis in range(x.shape[1])
        ]
        return np.clip(np.stack(components, axis=1), -0.1 / nbody.DT, 0.1 / nbody.DT)

    v += nbody.DT * force()
    for step in range(1, steps):
        x += nbody.DT * v
        if step % sample_every == 0:
            frames.append(x.copy())
        v += nbody.DT * force()
    return np.stack(frames)
