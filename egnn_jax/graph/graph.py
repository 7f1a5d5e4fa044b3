"""Geometric graphs as jraph ``GraphsTuple``s: build, batch, pad, mask, pass messages, read out.

Conventions, everywhere: ``i`` is the receiver and ``j`` the sender of an edge, messages are summed
  at
receivers, and edges are sorted by receiver. Shapes: N nodes, E edges, G graphs, F features, A edge
attributes, n coordinates (any dimension).
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax.typing import ArrayLike

from egnn_jax.graph import _validation, neighbors


class Nodes(flax.struct.PyTreeNode):
    """What a node carries: ``h`` (N, F) invariant features, ``x`` (N, n) coordinates, ``v`` (N, n)
    velocities.
    """

    h: Any
    x: Any
    v: Any = None


class PeriodicEdges(flax.struct.PyTreeNode):
    """What an edge in a periodic cell carries: ``shift`` (E, n) from the sender to its image, and
    attributes ``a`` (E, A) or None.
    """

    shift: Any
    a: Any = None


if TYPE_CHECKING:

    class GraphsTuple(NamedTuple):
        """jraph's ``GraphsTuple``, with the types of the fields as this library fills them."""

        nodes: Nodes
        edges: Any
        receivers: Any
        senders: Any
        globals: Any
        n_node: Any
        n_edge: Any
else:
    GraphsTuple = jraph.GraphsTuple


_jraph: Any = jraph  # whose annotations know nodes only as arrays, lists and mappings


class Budget(NamedTuple):
    """The static shape that a batch is padded to; one node and one graph of it are always
    padding.
    """

    n_node: int
    n_edge: int
    n_graph: int


def complete_edges(n_node: int) -> tuple[np.ndarray, np.ndarray]:
    """Senders and receivers (M(M-1),) of the complete graph without self-loops, sorted by
    receiver.
    """
    receivers, senders = np.nonzero(~np.eye(n_node, dtype=bool))
    return senders.astype(np.int32), receivers.astype(np.int32)


def complete_graph(
    x: ArrayLike,
    h: ArrayLike | None = None,
    v: ArrayLike | None = None,
    edges: ArrayLike | None = None,
) -> GraphsTuple:
    """One graph in which every node sends to every other.

    Args:
      x: coordinates (M, n), in any unit.
      h: features (M, F); a single constant 1 per node if not given.
      v: velocities (M, n).
      edges: attributes (M(M-1), A) in the order of :func:`complete_edges`.

    Raises:
      ValueError: a shape does not fit, or a coordinate is not finite.
    """
    return graph_from_edges(
        *complete_edges(np.shape(x)[0] if np.ndim(x) else 0), x=x, h=h, v=v, edges=edges
    )


def graph_from_adjacency(
    adjacency: ArrayLike, x: ArrayLike, h: ArrayLike | None = None, v: ArrayLike | None = None
) -> GraphsTuple:
    """One graph with an edge from j to i wherever ``adjacency[i, j]`` (M, M) is not zero.

    Arguments and errors are otherwise those of :func:`complete_graph`.
    """
    adjacency = np.asarray(adjacency)
    n_node = np.shape(x)[0] if np.ndim(x) else 0
    if adjacency.shape != (n_node, n_node):
        raise ValueError(
            f"adjacency has shape {adjacency.shape}; expected ({n_node}, {n_node}), one row "
            f"per node of x"
        )
    receivers, senders = np.nonzero(adjacency)
    return graph_from_edges(senders, receivers, x=x, h=h, v=v)


def graph_from_edges(
    senders: ArrayLike,
    receivers: ArrayLike,
    x: ArrayLike,
    h: ArrayLike | None = None,
    v: ArrayLike | None = None,
    edges: ArrayLike | None = None,
    shift: ArrayLike | None = None,
) -> GraphsTuple:
    """One graph from an edge list; edge k goes from node ``senders[k]`` to node ``receivers[k]``.

    Edges (and their attributes) are sorted by receiver, keeping their order otherwise.

    Args:
      senders, receivers: node indices (E,).
      x, h, v: as in :func:`complete_graph`. They may be traced, which skips the check of their
        values.
      edges: attributes (E, A), in the order of ``senders``.
      shift: what takes each sender to its image in a periodic cell (E, n), in the unit of x.

    Raises:
      ValueError: a shape does not fit, an index is out of range, or a value is not finite.
    """
    x = _validation.matrix("x", x)
    n_node, n_dim = x.shape
    h = jnp.ones((n_node, 1), x.dtype) if h is None else _validation.matrix("h", h, rows=n_node)
    v = None if v is None else _validation.matrix("v", v, rows=n_node, columns=n_dim)
    senders, receivers = (
        _validation.indices(k, i, n_node)
        for k, i in (("senders", senders), ("receivers", receivers))
    )
    if senders.shape != receivers.shape:
        raise ValueError(
            f"senders has {senders.size} entries but receivers has {receivers.size}; expected "
            f"one pair per edge"
        )
    order = np.argsort(receivers, kind="stable")
    a = None if edges is None else _validation.matrix("edges", edges, rows=len(order))[order]
    return GraphsTuple(
        nodes=Nodes(h=h, x=x, v=v),
        edges=a
        if shift is None
        else PeriodicEdges(
            _validation.matrix("shift", shift, rows=len(order), columns=n_dim)[order].astype(
                x.dtype
            ),
            a,
        ),
        senders=jnp.asarray(senders[order]),
        receivers=jnp.asarray(receivers[order]),
        n_node=jnp.asarray([n_node], jnp.int32),
        n_edge=jnp.asarray([len(order)], jnp.int32),
        globals=None,
    )


def radius_graph(
    x: ArrayLike,
    cutoff: float,
    h: ArrayLike | None = None,
    v: ArrayLike | None = None,
    cell: ArrayLike | None = None,
    periodic: bool | Sequence[bool] = True,
) -> GraphsTuple:
    """One graph in which nodes at most ``cutoff`` apart send to each other, found on the host in
    O(M).

    In a periodic cell these are images of nodes, and every pair of images within the cutoff is an
    edge, also where the cutoff is longer than the cell. Edges are made once, from the values of x:
    as x moves under ``jit``, in ``graph.nodes``, they stay. Nodes keep their order; where there are
    very many, one in which neighbours come one after the other spares the caches.

    Args:
      x: coordinates (M, n), n from 1 to 3, inside the cell or not.
      cutoff: a distance in the unit of x.
      h, v: as in :func:`complete_graph`.
      cell: lattice vectors as rows (n, n), in the unit of x; open space if not given.
      periodic: whether space repeats along the lattice vectors, for all or for each.

    Raises:
      ValueError: as in :func:`complete_graph`; the cutoff is no distance, n is above 3, or the cell
        has no volume.
    """
    if not 0 < cutoff < np.inf:
        raise ValueError(f"cutoff is {cutoff}; expected a finite distance above 0")
    if np.ndim(x) == 2 and np.shape(x)[1] > 3:
        raise ValueError(
            f"x has {np.shape(x)[1]} coordinates; expected 1 to 3 (knn_graph takes any number)"
        )
    points = _validation.points("x", x)
    lattice = None if cell is None else _validation.lattice(cell, periodic, points.shape[1])
    senders, receivers, shift = neighbors.within(points, cutoff, lattice)
    return graph_from_edges(senders, receivers, x=x, h=h, v=v, shift=shift)


def knn_graph(
    x: ArrayLike,
    k: int,
    h: ArrayLike | None = None,
    v: ArrayLike | None = None,
    cell: ArrayLike | None = None,
    periodic: bool | Sequence[bool] = True,
) -> GraphsTuple:
    """One graph in which each node receives from the ``k`` nearest others, or from their images in
    a periodic cell.

    Of nodes equally far away any may be taken, so prefer :func:`radius_graph` in a crystal. Edges
    stay as x moves.

    Args:
      x: coordinates (M, n), in any unit.
      k: the in-degree of every node.
      h, v, cell, periodic: as in :func:`radius_graph`.

    Raises:
      ValueError: as in :func:`complete_graph`; k is below 1 or there are too few nodes, or the cell
        has no volume.
    """
    points = _validation.points("x", x)
    lattice = None if cell is None else _validation.lattice(cell, periodic, points.shape[1])
    others = len(points) - 1 if lattice is None or not lattice.periodic.any() else np.inf
    if not 1 <= k <= others:
        raise ValueError(
            f"k is {k}; expected at least 1 and at most {others}, the number of other nodes"
        )
    senders, receivers, shift = neighbors.nearest(points, k, lattice)
    return graph_from_edges(senders, receivers, x=x, h=h, v=v, shift=shift)


def batch(graphs: Iterable[GraphsTuple], budget: Budget | None = None) -> GraphsTuple:
    """Several graphs as one, node indices shifted; padded to ``budget`` if given.

    Raises:
      ValueError: no graphs, graphs whose fields differ, or a graph that does not fit the budget
        (named with its size).
    """
    graphs = list(graphs)
    if not graphs:
        raise ValueError("batch received no graphs; expected at least one")
    if (
        len(
            {
                (
                    jax.tree.structure(g),
                    *(np.shape(leaf)[1:] for leaf in jax.tree.leaves((g.nodes, g.edges))),
                )
                for g in graphs
            }
        )
        > 1
    ):
        raise ValueError(
            "the graphs differ in what they carry (v, edges, globals or a width); expected "
            "all alike"
        )
    if budget is not None:
        _validation.fit([(int(np.sum(g.n_node)), int(np.sum(g.n_edge))) for g in graphs], budget)
    batched = _jraph.batch_np([jax.tree.map(np.asarray, g) for g in graphs])
    if budget is not None:
        batched = _jraph.pad_with_graphs(batched, *budget)
    return jax.tree.map(jnp.asarray, batched)


def unbatch(graph: GraphsTuple, padded: bool = False) -> Sequence[GraphsTuple]:
    """The single graphs of a batch; ``padded`` says that it was padded, and the padding is left
    out.
    """
    host = jax.tree.map(np.array, graph)
    return [
        jax.tree.map(jnp.asarray, g)
        for g in _jraph.unbatch_np(_jraph.unpad_with_graphs(host) if padded else host)
    ]


def node_mask(graph: GraphsTuple) -> jax.Array:
    """(N,) True at the real nodes of a padded batch; a batch that was not padded must not be
    given.
    """
    return _jraph.get_node_padding_mask(graph)


def edge_mask(graph: GraphsTuple) -> jax.Array:
    """(E,) True at the real edges of a padded batch; a batch that was not padded must not be
    given.
    """
    return _jraph.get_edge_padding_mask(graph)


def graph_mask(graph: GraphsTuple) -> jax.Array:
    """(G,) True at the real graphs of a padded batch; a batch that was not padded must not be
    given.
    """
    return _jraph.get_graph_padding_mask(graph)


def graph_of_node(graph: GraphsTuple) -> jax.Array:
    """(N,) index of the graph each node belongs to."""
    n_node = jnp.asarray(graph.n_node)
    return jnp.repeat(
        jnp.arange(n_node.shape[0]), n_node, total_repeat_length=graph.nodes.x.shape[0]
    )


def edge_vectors(graph: GraphsTuple, x: jax.Array) -> jax.Array:
    """r_ij = x_i − x_j (E, n) of coordinates (N, n), from the image of the sender where edges have
    a shift.
    """
    r_ij = x[graph.receivers] - x[graph.senders]
    return r_ij - graph.edges.shift if isinstance(graph.edges, PeriodicEdges) else r_ij


def edge_attributes(graph: GraphsTuple) -> jax.Array | None:
    """a_ij (E, A), or None."""
    return graph.edges.a if isinstance(graph.edges, PeriodicEdges) else graph.edges


def sum_at_receivers(graph: GraphsTuple, values: jax.Array) -> jax.Array:
    """(E, …) to (N, …): the sum over the edges that end in each node, Σ_j values_ij."""
    return _segment_sum(values, graph.receivers, graph.nodes.x.shape[0])


def add_at_receivers(graph: GraphsTuple, sums: jax.Array, values: jax.Array) -> jax.Array:
    """(N, …) and (E, …) to (N, …): sums_i + Σ_j values_ij; a receiver that is no node, as N, is
    left out.
    """
    return sums.at[graph.receivers].add(
        values.astype(sums.dtype), indices_are_sorted=True, mode="drop"
    )


def softmax_at_receivers(graph: GraphsTuple, logits: jax.Array) -> jax.Array:
    """(E, …) to (E, …): exp(logits_ij) / Σ_j exp(logits_ij), over the edges that end in one
    node.
    """
    return _jraph.segment_softmax(
        logits, graph.receivers, graph.nodes.x.shape[0], indices_are_sorted=True
    )


def in_degree(graph: GraphsTuple) -> jax.Array:
    """(N, 1) the number of edges that end in each node."""
    return sum_at_receivers(graph, jnp.ones((graph.receivers.shape[0], 1), graph.nodes.x.dtype))


def sum_nodes(graph: GraphsTuple, values: jax.Array) -> jax.Array:
    """Readout (N, …) to (G, …): the sum over the nodes of each graph."""
    return _segment_sum(values, graph_of_node(graph), graph.n_node.shape[0])


def mean_nodes(graph: GraphsTuple, values: jax.Array) -> jax.Array:
    """Readout (N, …) to (G, …): the mean over the nodes of each graph; 0 for a graph without
    nodes.
    """
    n_node = jnp.maximum(jnp.asarray(graph.n_node), 1).astype(values.dtype)
    return sum_nodes(graph, values) / n_node.reshape((-1,) + (1,) * (values.ndim - 1))


def dtype_of_sums(values: jax.Array) -> jnp.dtype:
    """In what type many values are added: float32 where they have fewer bits, otherwise their
    own.
    """
    return jnp.dtype(jnp.float32) if values.dtype in (jnp.bfloat16, jnp.float16) else values.dtype


def _segment_sum(values: jax.Array, segments: jax.Array, number: int) -> jax.Array:
    wide = values.astype(dtype_of_sums(values))
    return jax.ops.segment_sum(wide, segments, number, indices_are_sorted=True).astype(values.dtype)
