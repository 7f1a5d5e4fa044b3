"""Geometric graphs: node and edge fields, aggregation over edges, and readout over nodes.

Conventions throughout the library: ``i`` is the receiver and ``j`` the sender of an edge, messages
are summed at receivers, and edges are sorted by receiver. Shapes: N nodes, E edges, G graphs,
F features, A edge attributes, T targets, n coordinates (any dimension).

This is the only module that uses jraph.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import jraph

from egnn_jax.graph._arrays import require_arrays, require_lists, require_rows
from egnn_jax.graph._sums import dtype_of_sums, segment_sum, to_average
from egnn_jax.graph.exchange import (
    is_part,
    number_of_rows,
    require_exchanged,
    require_one_part,
    sum_over_parts,
)


class Nodes(flax.struct.PyTreeNode):
    """Node fields of a graph.

    Attributes:
      h: invariant features (N, F), or integer node types (N,) such as atomic numbers, which a
        model embeds.
      x: coordinates (N, n).
      v: velocities (N, n), or None.
      y: targets or predictions of each node (N, …), for example forces, or None; models ignore it.
    """

    h: Any
    x: Any
    v: Any = None
    y: Any = None


class Edges(flax.struct.PyTreeNode):
    """Edge fields of a graph.

    Attributes:
      a: attributes a_ij (E, A), or None.
      shift: vector from a sender to its periodic image (E, n), in the unit of x, or None.
      steps: the shift as integer lattice steps (E, n), ``shift = steps @ cell``, or None.
    """

    a: Any = None
    shift: Any = None
    steps: Any = None


class Globals(flax.struct.PyTreeNode):
    """Fields of whole graphs.

    Attributes:
      y: targets (G, T), or predictions of a :class:`egnn_jax.Readout`, or None.
      cell: lattice vectors as rows (G, n, n), in the unit of x, or None.
      stress: stress (G, n, n) of periodic structures, target or prediction, or None.
      exchange: communication plan of a part of a graph, see :func:`egnn_jax.partition`; else None.
    """

    y: Any = None
    cell: Any = None
    stress: Any = None
    exchange: Any = None


if TYPE_CHECKING:

    class GraphsTuple(NamedTuple):
        """jraph's ``GraphsTuple``, typed with this library's fields."""

        nodes: Nodes
        edges: Edges
        receivers: Any
        senders: Any
        globals: Globals
        n_node: Any
        n_edge: Any
else:
    GraphsTuple = jraph.GraphsTuple


class PaddedGraphsTuple(GraphsTuple):
    """A batch padded to a static shape, as returned by :func:`egnn_jax.batch` and by loaders.

    The real graphs come first, then one padding graph with all padding nodes (at least one) and
    all padding edges (self-loops of its first node), then padding graphs without nodes. jraph pads
    in the same way; the type distinguishes a padded batch from one without padding.
    """

    __slots__ = ()


def node_mask(graph: GraphsTuple) -> jax.Array:
    """Boolean mask (N,), True at the nodes of real graphs.

    Raises:
      ValueError: the batch is not a :class:`PaddedGraphsTuple`.
    """
    require_geometric(graph)
    padding_graph = _padding_graph(graph)
    return _real_mask(graph, padding_graph, graph.nodes.x.shape[0], jnp.asarray(graph.n_node))


def edge_mask(graph: GraphsTuple) -> jax.Array:
    """Boolean mask (E,), True at the edges of real graphs.

    Raises:
      ValueError: the batch is not a :class:`PaddedGraphsTuple`.
    """
    padding_graph = _padding_graph(graph)
    return _real_mask(graph, padding_graph, graph.receivers.shape[0], jnp.asarray(graph.n_edge))


def graph_mask(graph: GraphsTuple) -> jax.Array:
    """Boolean mask (G,), True at real graphs, including those without nodes.

    Raises:
      ValueError: the batch is not a :class:`PaddedGraphsTuple`.
    """
    return _padding_graph(graph) > jnp.arange(graph.n_node.shape[0])


def _real_mask(graph: GraphsTuple, padding_graph: Any, size: int, counts: jax.Array) -> jax.Array:
    """Mask of the nodes or edges (size,) that are not padding."""
    padding = size - jnp.sum(counts) if is_part(graph) else counts[padding_graph]
    return jnp.arange(size, dtype=counts.dtype) < size - padding


def _padding_graph(graph: GraphsTuple) -> Any:
    """The index of the padding graph with nodes, the last graph that has any; G in a part."""
    if isinstance(graph, GraphsTuple) and is_part(graph):
        return graph.n_node.shape[0]
    if not isinstance(graph, PaddedGraphsTuple):
        raise ValueError(
            f"the graph is a {type(graph).__name__}; expected a PaddedGraphsTuple, as egnn.batch "
            "with a budget and loaders make it: a batch without padding has no mask"
        )
    require_lists(graph)
    has_nodes = jnp.asarray(graph.n_node) > 0
    return has_nodes.shape[0] - 1 - jnp.argmax(has_nodes[::-1])


def require_geometric(graph: GraphsTuple, dimensions: int | None = None) -> None:
    """Raise ValueError if a graph is not from this library, its arrays are inconsistent, or x has
    other ``dimensions``. Checks shapes and dtypes only, since values may be traced.
    """
    if not isinstance(graph, GraphsTuple):
        raise ValueError(
            f"the graph is a {type(graph).__name__}; expected a GraphsTuple, as "
            "egnn.graph_from_edges makes it"
        )
    nodes, edges = graph.nodes, graph.edges
    if not (isinstance(nodes, Nodes) and isinstance(edges, Edges)):
        raise ValueError(
            f"the graph's nodes are of type {type(nodes).__name__} and its edges of type "
            f"{type(edges).__name__}; expected egnn.Nodes and egnn.Edges, as "
            "egnn.graph_from_edges makes them"
        )
    require_arrays(graph)
    if dimensions is not None and nodes.x.shape[-1] != dimensions:
        raise ValueError(f"x has shape {nodes.x.shape}; expected (N, {dimensions})")


def graph_of_node(graph: GraphsTuple) -> jax.Array:
    """The index of the graph that each node belongs to (N,); G for padding nodes in a part."""
    n_node = jnp.asarray(graph.n_node, jnp.int32)  # sums of narrow integers overflow
    size = graph.nodes.x.shape[0]
    if is_part(graph):
        n_node = jnp.append(n_node, size - jnp.sum(n_node))
    return jnp.repeat(jnp.arange(n_node.shape[0]), n_node, total_repeat_length=size)


def total_nodes(graph: GraphsTuple) -> jax.Array:
    """The number of nodes of each graph (G,), summed over all devices that hold parts of it."""
    return sum_over_parts(graph, jnp.asarray(graph.n_node))


def edge_vectors(graph: GraphsTuple, x: jax.Array) -> jax.Array:
    """Compute r_ij = x_i − x_j (E, n) from x (N, n), with periodic images of the senders.

    Raises:
      ValueError: the graph is not from this library, or x is not a floating-point array with the
        rows that :func:`egnn_jax.exchange` returns.
    """
    require_geometric(graph)
    require_exchanged(graph, "x", x)
    require_rows("x", x, number_of_rows(graph), "node", jnp.floating)
    r_ij = x[graph.receivers] - x[graph.senders]
    return r_ij if graph.edges.shift is None else r_ij - graph.edges.shift


def sum_at_receivers(graph: GraphsTuple, values: jax.Array) -> jax.Array:
    """Sum edge values (E, …) at receivers, Σ_j values_ij, to (N, …).

    Integers narrower than 32 bits are summed and returned in 32 bits.

    Raises:
      ValueError: the graph is not from this library, or the values are not numbers (E, …).
    """
    require_geometric(graph)
    require_rows("values", values, graph.receivers.shape[0], "edge")
    return segment_sum(values, graph.receivers, graph.nodes.x.shape[0])


def mean_at_receivers(graph: GraphsTuple, values: jax.Array) -> jax.Array:
    """Average edge values (E, …) at receivers to (N, …); 0 for nodes without incoming edges."""
    wide, dtype = to_average(values)
    count = jnp.maximum(in_degree(graph), 1).reshape(-1, *(1,) * (wide.ndim - 1))
    return (sum_at_receivers(graph, wide) / count.astype(wide.dtype)).astype(dtype)


def max_at_receivers(graph: GraphsTuple, values: jax.Array) -> jax.Array:
    """Elementwise maximum of edge values (E, …) at receivers, (N, …); 0 without incoming edges."""
    n_node = graph.nodes.x.shape[0]
    largest = jax.ops.segment_max(values, graph.receivers, n_node, indices_are_sorted=True)
    return jnp.where(jnp.isneginf(largest), 0, largest)


def add_at_receivers(graph: GraphsTuple, sums: jax.Array, values: jax.Array) -> jax.Array:
    """sums_i + Σ_j values_ij, (N, …) and (E, …) to (N, …); receivers of N or more are dropped."""
    values = values.astype(sums.dtype)
    return sums.at[graph.receivers].add(values, indices_are_sorted=True, mode="drop")


def softmax_at_receivers(graph: GraphsTuple, logits: jax.Array) -> jax.Array:
    """Softmax of edge logits (E, …) over the edges that end in the same node."""
    return _softmax(logits, graph.receivers, graph.nodes.x.shape[0])


def in_degree(graph: GraphsTuple) -> jax.Array:
    """The number of incoming edges of each node (N, 1)."""
    ones = jnp.ones((graph.receivers.shape[0], 1), graph.nodes.x.dtype)
    return sum_at_receivers(graph, ones)


def sum_nodes(graph: GraphsTuple, values: jax.Array) -> jax.Array:
    """Sum node values (N, …) over the nodes of each graph, to (G, …).

    Integers narrower than 32 bits are summed and returned in 32 bits.

    Raises:
      ValueError: the graph is not from this library, or the values are not numbers (N, …).
    """
    require_geometric(graph)
    require_rows("values", values, graph.nodes.x.shape[0], "node")
    total = segment_sum(values, graph_of_node(graph), graph.n_node.shape[0])
    return sum_over_parts(graph, total)


def mean_nodes(graph: GraphsTuple, values: jax.Array) -> jax.Array:
    """Average node values (N, …) over the nodes of each graph, to (G, …); 0 without nodes.

    Means of integers have the default float type.

    Raises:
      ValueError: as in :func:`sum_nodes`.
    """
    require_geometric(graph)
    require_rows("values", values, graph.nodes.x.shape[0], "node")
    wide, dtype = to_average(values)
    n_node = jnp.maximum(total_nodes(graph), 1).astype(wide.dtype)
    total = sum_nodes(graph, wide)
    return (total / n_node.reshape(-1, *(1,) * (wide.ndim - 1))).astype(dtype)


def max_nodes(graph: GraphsTuple, values: jax.Array) -> jax.Array:
    """Elementwise maximum of node values (N, …) over each graph, (G, …); 0 without nodes.

    Raises:
      ValueError: as in :func:`sum_nodes`, or the graph is spread over devices.
    """
    require_geometric(graph)
    require_one_part(graph, "a maximum over nodes")
    require_rows("values", values, graph.nodes.x.shape[0], "node")
    n_node = jnp.asarray(graph.n_node).reshape(-1, *(1,) * (values.ndim - 1))
    n_graph = n_node.shape[0]
    largest = jax.ops.segment_max(values, graph_of_node(graph), n_graph, indices_are_sorted=True)
    return jnp.where(n_node > 0, largest, 0)


def softmax_nodes(graph: GraphsTuple, logits: jax.Array) -> jax.Array:
    """Softmax of node logits (N, …) over the nodes of each graph."""
    require_one_part(graph, "a softmax over nodes")
    return _softmax(logits, graph_of_node(graph), graph.n_node.shape[0])


def _softmax(logits: jax.Array, segments: jax.Array, num_segments: int) -> jax.Array:
    """Softmax over each segment, computed in at least 32 bits."""
    softmax: Any = jraph.segment_softmax
    wide = logits.astype(dtype_of_sums(logits))
    return softmax(wide, segments, num_segments, indices_are_sorted=True).astype(logits.dtype)
