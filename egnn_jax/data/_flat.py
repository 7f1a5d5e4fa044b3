"""Graphs as flat, concatenated arrays, and checks of these arrays."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from egnn_jax.data import storage
from egnn_jax.data._packing import exclusive_cumsum
from egnn_jax.graph._validation import features, float_dtype, host, points
from egnn_jax.graph.batching import require_valid_graph
from egnn_jax.graph.graph import Edges, Globals, GraphsTuple, Nodes, PaddedGraphsTuple

EdgeLists = tuple[np.ndarray, np.ndarray, np.ndarray]
"""n_edge (S,), and senders and receivers (ΣE,) counted from the first node of each graph."""


class Flat(NamedTuple):
    """The arrays of S graphs, in the form of :meth:`egnn_jax.GraphDataset.from_arrays`."""

    n_node: np.ndarray
    nodes: Nodes
    edges: Edges
    globals_: Globals
    edge_lists: EdgeLists


def flat(graphs: Sequence[GraphsTuple]) -> Flat:
    """Concatenate the arrays of graphs, which must be :func:`checked_graphs`."""
    host_graphs = [jax.tree.map(np.asarray, graph) for graph in graphs]
    node_offsets = [np.repeat(np.cumsum(g.n_node) - g.n_node, g.n_edge) for g in host_graphs]
    senders, receivers = (
        np.concatenate(
            [
                getattr(graph, field) - offset
                for graph, offset in zip(host_graphs, node_offsets, strict=True)
            ]
        )
        for field in ("senders", "receivers")
    )
    n_node, n_edge, nodes, edges, globals_ = (
        jax.tree.map(
            lambda *leaves: np.concatenate(leaves),
            *(getattr(graph, field) for graph in host_graphs),
        )
        for field in ("n_node", "n_edge", "nodes", "edges", "globals")
    )
    return Flat(n_node, nodes, edges, globals_, (n_edge, senders, receivers))


def arrays_of(graph: GraphsTuple) -> dict[str, np.ndarray]:
    """The arrays of a graph by their names on disk.

    Raises:
      ValueError: the graph has no x, which a data set on disk must have.
    """
    if graph.nodes.x is None:
        raise ValueError("a graph has no x; expected coordinates, to write it to disk")
    n_node, nodes, edges, globals_, (n_edge, senders, receivers) = flat([graph])
    arrays = storage.flatten(nodes=nodes, edges=edges, globals=globals_)
    lists = {"n_node": n_node, "n_edge": n_edge, "senders": senders, "receivers": receivers}
    return arrays | lists


def checked_graphs(graphs: Iterable[GraphsTuple]) -> Iterator[GraphsTuple]:
    """Yield the graphs, checking that each has the same fields as the first.

    Raises:
      ValueError: there are no graphs, or one (named in the message) has other fields, is padded or
        is not a graph.
    """
    if isinstance(graphs, GraphsTuple):
        raise ValueError("graphs is one graph; expected a list of graphs")
    expected_signature, first_shapes = None, {}
    for k, graph in enumerate(graphs):
        if not isinstance(graph, GraphsTuple):
            raise ValueError(
                f"graph {k} is a {type(graph).__name__}; expected a GraphsTuple, as "
                "egnn_jax.from_ase or radius_graph makes it"
            )
        if isinstance(graph, PaddedGraphsTuple):
            raise ValueError(f"graph {k} is a padded batch; expected egnn.unbatch of it")
        require_valid_graph(f"graph {k}", graph)
        leaves, treedef = jax.tree.flatten((graph.nodes, graph.edges, graph.globals))
        signature = treedef, [np.shape(leaf)[1:] for leaf in leaves]
        if expected_signature is None:
            expected_signature, first_shapes = signature, _shapes(graph)
        if signature != expected_signature:
            raise ValueError(
                f"graph {k} carries {_shapes(graph)}; expected {first_shapes}, as graph 0"
            )
        yield graph
    if expected_signature is None:
        raise ValueError("GraphDataset received no graphs; expected at least one")


def _shapes(graph: GraphsTuple) -> dict[str, tuple[int, ...]]:
    """The shape of a row of each array of a graph, by name."""
    trees = {"nodes": graph.nodes, "edges": graph.edges, "globals": graph.globals}
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf)[1:]
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    }


def matrix_of_targets(y: Any, rows: int) -> np.ndarray:
    """Convert targets to an array (S, T) of finite numbers in the type of graphs; S is ``rows``."""
    converted = points("y", y).astype(float_dtype(np.asarray(y)))
    if len(converted) != rows:
        raise ValueError(f"y has {len(converted)} rows; expected {rows}, one for each graph")
    return converted


def scale_or_one(scale: Any, values: np.ndarray) -> np.ndarray:
    """The scale (…), or 1 where it is 0 or values (S, …) differ by no more than rounding.

    Missing values (nan) are ignored.
    """
    minimum, maximum = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
    tolerance = max(1e-12, 4 * np.finfo(values.dtype).eps)
    varies = maximum - minimum > tolerance * np.fmax(np.abs(minimum), np.abs(maximum))
    return np.where(varies & (scale > 0), scale, 1.0)


def require_flat(
    n_node: np.ndarray,
    nodes: Any,
    edges: Any,
    globals_: Any,
    edge_lists: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> None:
    """Raise ValueError if flat arrays do not match the sizes of the graphs and their edges."""
    counts = {"n_node": host("n_node", n_node)}
    if edge_lists is not None:
        counts["n_edge"] = host("n_edge", edge_lists[0])
    if nodes.x is not None and len(getattr(nodes.x, "shape", ())) != 2:
        raise ValueError(f"nodes x is a {type(nodes.x).__name__}; expected an array (ΣM, n)")
    for name, count in counts.items():
        if count.ndim != 1 or count.dtype.kind not in "iu" or (len(count) and count.min() < 0):
            raise ValueError(f"{name} is {count!r}; expected whole numbers (S,), none below 0")
    if not len(counts["n_node"]):
        raise ValueError("n_node is empty; expected the sizes of at least one graph")
    num_nodes = int(counts["n_node"].sum(dtype=np.int64))
    expected_lengths = [("nodes", nodes, num_nodes), ("globals_", globals_, len(counts["n_node"]))]
    if edge_lists is None:
        sizes = counts["n_node"].astype(np.int64)
        expected_lengths.append(("edges", edges, int((sizes * np.maximum(sizes - 1, 0)).sum())))
    else:
        n_edge = int(counts["n_edge"].sum(dtype=np.int64))
        expected_lengths += [("edges", edges, n_edge), ("edge_lists", edge_lists[1:], n_edge)]
        expected_lengths.append(("edge_lists", counts["n_edge"], len(counts["n_node"])))
    for name, tree, length in expected_lengths:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            array_name = f"{name} {jax.tree_util.keystr(path, simple=True, separator='.')}"
            if not hasattr(leaf, "dtype") or leaf.dtype.kind in "OSUMm" or not leaf.ndim:
                raise ValueError(
                    f"{array_name} is a {type(leaf).__name__}; expected an array of numbers"
                )
            if len(leaf) != length:
                raise ValueError(f"{array_name} has {len(leaf)} rows; expected {length}")
    _require_values(nodes)
    if edge_lists is not None:
        _require_edge_lists(counts["n_node"], counts["n_edge"], *edge_lists[1:])


def _require_values(nodes: Any) -> None:
    x, h = nodes.x, nodes.h
    if x is None:
        return
    for start in range(0, len(x), 1_000_000):  # in blocks, to bound the memory
        rows = slice(start, start + 1_000_000)
        bad_rows = np.flatnonzero(~np.isfinite(x[rows]).all(axis=1))
        if len(bad_rows):
            raise ValueError(
                f"nodes x is not finite in row {start + bad_rows[0]}; expected numbers"
            )
        if h is not None and h.ndim == 1:
            features("nodes h", h[rows], len(h[rows]))


def _require_edge_lists(
    n_node: np.ndarray, n_edge: np.ndarray, senders: np.ndarray, receivers: np.ndarray
) -> None:
    for name, indices in (("senders", senders), ("receivers", receivers)):
        if indices.dtype.kind not in "iu" or indices.ndim != 1:
            raise ValueError(
                f"{name} are {indices.dtype} of shape {indices.shape}; expected whole numbers (ΣE,)"
            )
    edge_offsets = exclusive_cumsum(n_edge.astype(np.int64))
    for start in range(0, len(n_edge), 10_000):  # in blocks, to bound the memory
        rows = slice(start, start + 10_000)
        graph_index = np.repeat(np.arange(len(n_edge[rows])), n_edge[rows])
        edges = slice(edge_offsets[start], edge_offsets[start] + len(graph_index))
        sizes = n_node[rows][graph_index]
        for name, indices in (("senders", senders[edges]), ("receivers", receivers[edges])):
            bad_edges = np.flatnonzero((indices < 0) | (indices >= sizes))
            if len(bad_edges):
                k = bad_edges[0]
                raise ValueError(
                    f"{name} of edge {edges.start + k} is {indices[k]}, in a graph of {sizes[k]} "
                    "nodes; expected the number of one of these, from 0"
                )
        indices = receivers[edges]
        same_graph = graph_index[1:] == graph_index[:-1]
        bad_edges = np.flatnonzero((indices[1:] < indices[:-1]) & same_graph)
        if len(bad_edges):
            raise ValueError(
                f"receivers of edges {edges.start + bad_edges[0]} and after are not in order; "
                "expected edges sorted by receiver"
            )
