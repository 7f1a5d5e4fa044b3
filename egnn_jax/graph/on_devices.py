"""Evaluate functions of a graph on a graph that is spread over devices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from egnn_jax.graph._validation import require_function
from egnn_jax.graph.exchange import AXIS, exchange, sum_over_parts
from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.graph.partition import PartitionedGraph


def on_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a function of parameters and a graph into one of parameters and a partitioned graph.

    >>> graph = egnn.complete_graph(x=np.eye(3))
    >>> model = egnn.EGNN(features=8, layers=2)
    >>> params = model.init(jax.random.key(0), graph)
    >>> parts = egnn.partition(graph, jax.devices()[:1])
    >>> egnn.on_devices(model.apply)(params, parts).nodes.h.shape
    (3, 8)

    The result is compiled. It can be differentiated any number of times, with respect to the
    parameters and to the values passed to :meth:`PartitionedGraph.with_nodes`.

    Args:
      function: ``(params, graph, …) -> result``, for example a model's ``apply`` or a loss. Each
        device calls it with its part: the nodes that it owns, then padding
        (:func:`egnn_jax.node_mask`), and the edges that end in them. It must pass whatever it
        gathers at senders through :func:`egnn_jax.exchange`, and sum over nodes with
        :func:`egnn_jax.sum_nodes` or :func:`egnn_jax.mean_nodes`, which sum over devices too.

    Returns:
      ``(params, parts, …) -> result``. If the function returns a graph, the result has all nodes
      and edges in the order of the graph passed to :func:`egnn_jax.partition`; any other result
      must be the same on all devices. Further arguments are arrays, the same on all devices.

    Raises:
      ValueError: ``function`` is not a function; or, when called: a result differs between
        devices, the model does not exchange what it gathers, or takes a maximum over nodes, or the
        graph is not a :class:`PartitionedGraph`.
    """
    require_function("function", function, "(params, graph, …), such as model.apply")

    @jax.jit
    def run(params: Any, parts: PartitionedGraph, args: tuple[Any, ...]) -> Any:
        def on_device(params: Any, globals_: Any, shard: Any, args: Any) -> tuple[Any, Any]:
            graph, plan, node = jax.tree.map(lambda a: a[0], shard)
            graph = graph._replace(globals=globals_.replace(exchange=plan))
            result = function(params, graph, *args)
            rows, shared = _split_result(result, graph, node)
            _require_replicated(shared)
            return jax.tree.map(lambda a: a[None], rows), shared

        sharded, replicated = PartitionSpec(AXIS), PartitionSpec()
        mapped = jax.shard_map(
            on_device,
            mesh=parts.mesh,
            in_specs=(replicated, replicated, sharded, replicated),
            out_specs=(sharded, replicated),
        )
        shards = (parts.parts, parts.exchange, parts.node)
        rows, shared = mapped(params, parts.globals, shards, args)
        if rows is None:
            return shared
        nodes = jax.tree.map(partial(_to_graph_order, parts.node, parts.size[0]), rows[0])
        edges = jax.tree.map(partial(_to_graph_order, parts.edge, parts.size[1]), rows[1])
        return GraphsTuple(nodes=nodes, **edges, **shared)

    def on_parts(params: Any, parts: PartitionedGraph, *args: Any) -> Any:
        if not isinstance(parts, PartitionedGraph):
            raise ValueError(
                f"the graph is a {type(parts).__name__}; expected a PartitionedGraph, as "
                "egnn.partition makes it"
            )
        return run(params, parts, args)

    return on_parts


def _split_result(result: Any, graph: GraphsTuple, node: jax.Array) -> tuple[Any, Any]:
    """Split a result into the rows of the device's nodes and edges, and the values that are the
    same on all devices.

    Args:
      result: result of the function; anything but a graph is shared.
      graph: the part.
      node: index of each node in the whole graph (N',).
    """
    if not isinstance(result, GraphsTuple):
        return None, jax.tree.map(jnp.asarray, result)
    graph_node = exchange(graph, node)  # also of the nodes received from other devices
    edges = {
        "edges": result.edges,
        "senders": graph_node[result.senders],
        "receivers": graph_node[result.receivers],
    }
    shared = {
        "n_node": sum_over_parts(graph, result.n_node),
        "n_edge": sum_over_parts(graph, result.n_edge),
        "globals": None if result.globals is None else result.globals.replace(exchange=None),
    }
    return (result.nodes, edges), shared


def _require_replicated(values: Any) -> None:
    """Raise ValueError if values vary between devices."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        try:
            jax.lax.pcast(leaf, AXIS, to="varying")
        except ValueError as error:
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"the result{name} differs between devices; expected a graph, or sums over all "
                "nodes by egnn.sum_nodes or egnn.mean_nodes"
            ) from error


def _to_graph_order(indices: jax.Array, size: int, values: jax.Array) -> jax.Array:
    """Reorder rows (D, M', …) of parts to those of the whole graph (M, …)."""
    rows = jnp.zeros((size, *values.shape[2:]), values.dtype)
    return rows.at[indices].set(values, mode="drop")
