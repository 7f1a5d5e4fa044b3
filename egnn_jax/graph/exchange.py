"""What the parts of one graph, each on a device, exchange; a graph in one part exchanges nothing.

A part has the nodes that it owns and all edges that end in them. Its senders are rows of what
:func:`exchange` returns: first the own nodes, then those of other parts that send to them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

AXIS = "parts"
"""The mesh axis of the devices that have one part each."""


class Round(NamedTuple):
    """One step of an exchange, in which a device sends to one other at most.

    Attributes:
      rows: how many rows each device sends.
      pairs: of devices, from and to.
    """

    rows: int
    pairs: tuple[tuple[int, int], ...]


class Exchange(flax.struct.PyTreeNode):
    """What a part sends to other parts.

    Attributes:
      sent: own nodes whose values are sent (H,), round after round; as many rows are received.
      rounds: of the exchange.
    """

    sent: Any
    rounds: tuple[Round, ...] = flax.struct.field(pytree_node=False)


def exchange(graph: Any, values: Any) -> Any:
    """The rows that ``graph.senders`` counts: values of the nodes, then those of other devices.

    >>> graph = egnn.complete_graph(x=np.eye(3))
    >>> egnn.exchange(graph, graph.nodes.x)[graph.senders].shape
    (6, 3)

    What a layer gathers at senders has to pass through here, so that the layer also works on one
    graph in parts, see :func:`egnn_jax.on_devices`. On a graph in one part nothing happens.

    Args:
      graph: a graph, or a part of one.
      values: an array (N, …), or a tree of them.

    Returns:
      The arrays (N, …) as they are; in a part (N + H, …), with H rows from other devices, whose
      derivatives go back there. Receivers are below N and count the same rows.
    """
    plan = _plan(graph)
    return values if plan is None else jax.tree.map(lambda a: _with_others(plan, a), values)


def _with_others(plan: Exchange, values: jax.Array) -> jax.Array:
    sent, received, first = values[plan.sent], [values], 0
    for rows, pairs in plan.rounds:
        received.append(jax.lax.ppermute(sent[first : first + rows], AXIS, pairs))
        first += rows
    return jnp.concatenate(received)


def sum_over_parts(graph: Any, values: Any) -> Any:
    """Σ over the devices that have the parts of a graph; of one part the values themselves."""
    return values if _plan(graph) is None else jax.lax.psum(values, AXIS)


def number_of_rows(graph: Any) -> int:
    """How many rows :func:`exchange` returns: N, or N + H in a part."""
    plan = _plan(graph)
    return graph.nodes.x.shape[0] + (0 if plan is None else plan.sent.shape[0])


def vary(graph: Any, values: Any) -> Any:
    """Values that are the same on all devices, as values that each device has of its own.

    The sum of their derivatives over the devices is then taken once, here, and not wherever they
    are used.
    """
    return values if _plan(graph) is None else jax.lax.pcast(values, AXIS, to="varying")


def is_part(graph: Any) -> bool:
    """Whether a graph is one of several parts."""
    return _plan(graph) is not None


def require_one_part(graph: Any, what: str) -> None:
    """Raise ValueError for a part, where something is not computed over several devices."""
    if is_part(graph):
        raise ValueError(f"{what} is not computed over several devices; expected a graph in one")


def require_exchanged(graph: Any, name: str, values: Any) -> None:
    """Raise ValueError for values of own nodes alone, where senders count others too."""
    shape: Sequence[int] = getattr(values, "shape", ())
    rows = number_of_rows(graph)
    if is_part(graph) and tuple(shape[:1]) != (rows,):
        raise ValueError(
            f"{name} has shape {tuple(shape)} in a graph that is spread over devices; expected "
            f"({rows}, …): a model that calls egnn.exchange for what it gathers at senders"
        )


def _plan(graph: Any) -> Exchange | None:
    return getattr(graph.globals, "exchange", None)
