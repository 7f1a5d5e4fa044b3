"""The graph of one structure at a static shape, inside of jit."""

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
    """One structure and a padding graph of one node.

    Args:
      numbers: atomic numbers (M,).
      x: positions (M, 3).
      senders: of each edge (E,); M where there is none.
      receivers: in ascending order (E,); M where there is none.
      shift: to the image of the sender (E, 3), 0 where there is no edge.
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
