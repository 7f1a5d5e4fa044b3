"""Exchange of node values between the parts of a graph that is spread over devices.

A part holds the nodes that it owns and all edges that end in them. Its senders index the rows that
:func:`exchange` returns: its own nodes first, then nodes of other parts that send to them. For a
graph on a single device, these functions do nothing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

AXIS = "parts"
"""The mesh axis over which parts are distributed, one per device."""


class Round(NamedTuple):
    """One step of an exchange, in which each device sends to at most one other.

    Attributes:
      rows: number of rows that each device sends.
      pairs: pairs of devices (from, to).
    """

    rows: int
    pairs: tuple[tuple[int, int], ...]


class Exchange(flax.struct.PyTreeNode):
    """Communication plan of a part: which node values it sends to other parts.

    Attributes:
      sent: own nodes whose values are sent (H,), round by round; as many rows are received.
      rounds: rounds of the exchange.
    """

    sent: Any
    rounds: tuple[Round, ...] = flax.struct.field(pytree_node=False)


def exchange(graph: Any, values: Any) -> Any:
    """Gather the rows that ``graph.senders`` indexes: own node values, then those of other devices.

    >>> graph = egnn.complete_graph(x=np.eye(3))
    >>> egnn.exchange(graph, graph.nodes.x)[graph.senders].shape
    (6, 3)

    A layer must pass whatever it gathers at senders through this function to also work on a graph
    that is spread over devices, see :func:`egnn_jax.on_devices`.

    Args:
      graph: a graph, or a part of one.
      values: an array (N, …), or a pytree of arrays.

    Returns:
      The arrays (N, …) unchanged; in a part, arrays (N + H, …) with H rows from other devices, to
      which their gradients flow back. Receivers are below N and index the same rows.
    """
    plan = _plan(graph)
    return values if plan is None else jax.tree.map(lambda a: _gather_rows(plan, a), values)


def _gather_rows(plan: Exchange, values: jax.Array) -> jax.Array:
    """Own values (N, …), followed by those that other devices send, (N + H, …)."""
    sent = values[plan.sent]
    gathered, start = [values], 0
    for rows, pairs in plan.rounds:
        gathered.append(jax.lax.ppermute(sent[start : start + rows], AXIS, pairs))
        start += rows
    return jnp.concatenate(gathered)


def sum_over_parts(graph: Any, values: Any) -> Any:
    """Sum values over the devices that hold parts of a graph; unchanged for a whole graph."""
    return values if _plan(graph) is None else jax.lax.psum(values, AXIS)


def number_of_rows(graph: Any) -> int:
    """The number of rows that :func:`exchange` returns: N, or N + H in a part."""
    plan = _plan(graph)
    return graph.nodes.x.shape[0] + (0 if plan is None else plan.sent.shape[0])


def vary(graph: Any, values: Any) -> Any:
    """Mark values that are the same on all devices as varying over devices.

    Their gradients are then summed over the devices once, here, instead of at each use.
    """
    return values if _plan(graph) is None else jax.lax.pcast(values, AXIS, to="varying")


def is_part(graph: Any) -> bool:
    """Whether a graph is a part of a graph that is spread over devices."""
    return _plan(graph) is not None


def require_one_part(graph: Any, operation: str) -> None:
    """Raise ValueError for a part, because ``operation`` is not supported over several devices."""
    if is_part(graph):
        raise ValueError(
            f"{operation} is not computed over several devices; expected a graph in one"
        )


def require_exchanged(graph: Any, name: str, values: Any) -> None:
    """Raise ValueError if values in a part lack the rows of other devices."""
    shape: Sequence[int] = getattr(values, "shape", ())
    rows = number_of_rows(graph)
    if is_part(graph) and tuple(shape[:1]) != (rows,):
        raise ValueError(
            f"{name} has shape {tuple(shape)} in a graph that is spread over devices; expected "
            f"({rows}, …): a model that calls egnn.exchange for what it gathers at senders"
        )


def _plan(graph: Any) -> Exchange | None:
    return getattr(graph.globals, "exchange", None)
