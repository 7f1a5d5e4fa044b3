"""Build the padded graph of a single structure under jit."""

from typing import Any

import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import Edges, Globals, GraphsTuple, Nodes, PaddedGraphsTuple


def padded_graph(
    numbers: jax.Array,
    x: jax.Array,
    senders: jax.Array,
    receivers: jax.Array,
    shift: jax.Array | None = None,
    cell: jax.Array | None = None,
) -> GraphsTuple:
    """Build the graph of one structure, and a padding graph with a single node.

    Args:
      numbers: atomic numbers (M,).
      x: positions (M, 3).
      senders: sender of each edge (E,); M for padding edges.
      receivers: receiver of each edge (E,), in ascending order; M for padding edges.
      shift: vectors to the images of the senders (E, 3), 0 for padding edges.
      cell: lattice vectors as rows (3, 3).
    """
    n = x.shape[0]
    n_edge = jnp.sum(receivers < n, dtype=jnp.int32)
    cells: Any = None if cell is None else jnp.stack([cell, jnp.zeros_like(cell)]).astype(x.dtype)
    return PaddedGraphsTuple(
        nodes=Nodes(h=jnp.pad(numbers, (0, 1)), x=jnp.pad(x, ((0, 1), (0, 0)))),
        edges=Edges(shift=None if shift is None else shift.astype(x.dtype)),
        senders=senders,
        receivers=receivers,
        n_node=jnp.array([n, 1], jnp.int32),
        n_edge=jnp.stack([n_edge, senders.shape[0] - n_edge]),
        globals=Globals(cell=cells),
    )
