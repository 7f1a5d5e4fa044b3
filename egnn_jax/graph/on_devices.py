"""Functions of one graph, computed on the parts of one that is spread over devices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from egnn_jax.graph.exchange import AXIS, exchange, sum_over_parts
from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.graph.partition import PartitionedGraph


def on_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of parameters and a graph, as one of parameters and a graph in parts.

    >>> graph = egnn.complete_graph(x=np.eye(3))
    >>> model = egnn.EGNN(features=8, layers=2)
    >>> params = model.init(jax.random.key(0), graph)
    >>> parts = egnn.partition(graph, jax.devices()[:1])
    >>> egnn.on_devices(model.apply)(params, parts).nodes.h.shape
    (3, 8)

    It is compiled, and can be differentiated any number of times, by parameters and by what
    :meth:`PartitionedGraph.with_nodes` was given.

    Args:
      function: ``(params, graph, …) -> result``, such as a model's ``apply`` or a loss. Each device
        calls it with its part: the nodes that it owns, then padding (:func:`egnn_jax.node_mask`),
        and the edges that end in them. What is gathered at senders has to pass through
        :func:`egnn_jax.exchange`; sums over nodes are those of :func:`egnn_jax.sum_nodes` and
        :func:`egnn_jax.mean_nodes`, which add up what the devices have.

    Returns:
      ``(params, parts, …) -> result``: a graph with all its nodes and edges in the order of the
      one that :func:`egnn_jax.partition` was given, or what else the function returns, which has
      to be the same on all devices. Other arguments are arrays, the same for all devices.

    Raises:
      ValueError: in the call: a result is not the same on all devices; the model does not exchange
        what it gathers; it takes a maximum over nodes; there are no parts.
    """

    @jax.jit
    def run(params: Any, parts: PartitionedGraph, others: tuple[Any, ...]) -> Any:
        def on_each(params: Any, globals_: Any, local: Any, others: Any) -> tuple[Any, Any]:
            graph, plan, node = jax.tree.map(lambda a: a[0], local)
            graph = graph._replace(globals=globals_.replace(exchange=plan))
            rows, whole = _rows_and_whole(function(params, graph, *others), graph, node)
            _require_same(whole)
            return jax.tree.map(lambda a: a[None], rows), whole

        spread, same = PartitionSpec(AXIS), PartitionSpec()
        mapped = jax.shard_map(
            on_each,
            mesh=parts.mesh,
            in_specs=(same, same, spread, same),
            out_specs=(spread, same),
        )
        local = (parts.parts, parts.exchange, parts.node)
        rows, whole = mapped(params, parts.globals, local, others)
        if rows is None:
            return whole
        nodes = jax.tree.map(partial(_in_order, parts.node, parts.size[0]), rows[0])
        edges = jax.tree.map(partial(_in_order, parts.edge, parts.size[1]), rows[1])
        return GraphsTuple(nodes=nodes, **edges, **whole)

    def on_parts(params: Any, parts: PartitionedGraph, *others: Any) -> Any:
        if not isinstance(parts, PartitionedGraph):
            raise ValueError(
                f"the graph is a {type(parts).__name__}; expected a PartitionedGraph, as "
                "egnn.partition makes it"
            )
        return run(params, parts, others)

    return on_parts


def _rows_and_whole(result: Any, graph: GraphsTuple, node: jax.Array) -> tuple[Any, Any]:
    """What a device has of a result: nodes and edges of its own, and what all have alike.

    Args:
      result: of the function; what is no graph is alike.
      graph: the part.
      node: which nodes of the whole graph it owns (N',).
    """
    if not isinstance(result, GraphsTuple):
        return None, jax.tree.map(jnp.asarray, result)
    ends = exchange(graph, node)
    edges = {
        "edges": result.edges,
        "senders": ends[result.senders],
        "receivers": ends[result.receivers],
    }
    whole = {
        "n_node": sum_over_parts(graph, result.n_node),
        "n_edge": sum_over_parts(graph, result.n_edge),
        "globals": result.globals.replace(exchange=None),
    }
    return (result.nodes, edges), whole


def _require_same(values: Any) -> None:
    """Raise ValueError for values that each device has of its own."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        try:
            jax.lax.pcast(leaf, AXIS, to="varying")
        except ValueError as error:
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"the result{name} differs between devices; expected a graph, or sums over all "
                "nodes by egnn.sum_nodes or egnn.mean_nodes"
            ) from error


def _in_order(which: jax.Array, number: int, values: jax.Array) -> jax.Array:
    """Rows (D, M', …) in the order of the whole graph (M, …)."""
    whole = jnp.zeros((number, *values.shape[2:]), values.dtype)
    return whole.at[which].set(values, mode="drop")
