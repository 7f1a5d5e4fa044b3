"""Partition of a graph over devices: node ownership and communication plan."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from egnn_jax.graph import _validation
from egnn_jax.graph._forks import require_usable_jax
from egnn_jax.graph.batching import require_whole
from egnn_jax.graph.exchange import AXIS, Exchange, Round
from egnn_jax.graph.graph import Globals, GraphsTuple, Nodes, PaddedGraphsTuple


class PartitionedGraph(flax.struct.PyTreeNode):
    """A graph in D parts, one per device, as returned by :func:`egnn_jax.partition`.

    A pytree of arrays, which can be passed to jitted functions. All parts are padded to the same
    shape: the nodes that a part owns, at least one padding node, and all edges that end in them.

    Attributes:
      parts: graphs with arrays (D, …) and without globals, whose n_node and n_edge (D, G) exclude
        padding; senders index the rows that :func:`egnn_jax.exchange` returns.
      globals: globals of the whole graph, the same on all devices.
      exchange: nodes that each part sends (D, H).
      node: index of each node in the whole graph (D, N'); N for padding nodes.
      edge: index of each edge in the whole graph (D, E'); E for padding edges.
      size: N and E of the whole graph.
      mesh: the mesh of devices.
    """

    parts: GraphsTuple
    globals: Globals
    exchange: Exchange
    node: Any
    edge: Any
    size: tuple[int, int] = flax.struct.field(pytree_node=False)
    mesh: Any = flax.struct.field(pytree_node=False, default=None)

    def with_nodes(self, **fields: ArrayLike) -> "PartitionedGraph":
        """Return the same parts with other node values, which may be traced.

        >>> graph = egnn.complete_graph(x=np.eye(3))
        >>> parts = egnn.partition(graph, 1).with_nodes(x=2 * graph.nodes.x)

        Args:
          fields: fields of :class:`egnn_jax.Nodes`, for example ``x=…`` (N, n), in the order of
            the whole graph.

        Raises:
          ValueError: there is no such field, or its number of rows is not N.
        """
        return self.replace(
            parts=self.parts._replace(
                nodes=self.parts.nodes.replace(
                    **{name: self._split(name, value) for name, value in fields.items()}
                )
            )
        )

    def _split(self, name: str, value: Any) -> jax.Array:
        """Distribute node values (N, …) over the parts, (D, N', …)."""
        if name not in Nodes.__dataclass_fields__:
            raise ValueError(f"nodes have no {name}; expected fields of egnn.Nodes: h, x, v or y")
        if np.shape(value)[:1] != self.size[:1]:
            raise ValueError(
                f"{name} has shape {np.shape(value)}; expected ({self.size[0]}, …), a row for each "
                "node of the whole graph"
            )
        whole = jax.device_put(jnp.asarray(value), NamedSharding(self.mesh, PartitionSpec()))
        return jnp.concatenate([whole, jnp.zeros_like(whole[:1])])[self.node]


def partition(
    graph: GraphsTuple,
    devices: int | Sequence[Any] | None = None,
    owners: ArrayLike | None = None,
) -> PartitionedGraph:
    """Split a graph into one part per device, for :func:`egnn_jax.on_devices`.

    Each node is owned by one device, which also holds all edges that end in it. Nodes are divided
    by recursive bisection: space is halved across its longest side, with equally many edges in
    each half. Parts are therefore compact, with few edges from outside. Nodes at the same place,
    for example in a graph without coordinates, are divided in their order.

    Args:
      graph: a graph, or a batch without padding.
      devices: a list of devices, or a number of devices, the first of ``jax.devices()``; all by
        default.
      owners: the device that owns each node (N,), counted from 0, for a custom partition.

    Raises:
      ValueError: the graph is not from this library, padded, traced or already partitioned; its
        edges are not sorted by receiver; or there are fewer devices than requested.
    """
    require_usable_jax()
    found = _devices(devices)
    mesh = jax.make_mesh((len(found),), (AXIS,), axis_types=(AxisType.Auto,), devices=found)
    host = divide(graph, len(found), owners)
    spread, same = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((AXIS,), ()))
    placed = jax.device_put(host.replace(globals=None), spread)
    return placed.replace(globals=jax.device_put(host.globals, same), mesh=mesh)


def divide(graph: GraphsTuple, number: int, owners: ArrayLike | None = None) -> PartitionedGraph:
    """Compute :func:`partition` on the host, as NumPy arrays that are not on devices yet."""
    host = _whole(graph)
    n_node = len(host.nodes.x)
    if owners is None:
        owner = _bisected(host, number)
    else:
        owner = _validation.host("owners", owners)
        if owner.shape != (n_node,) or owner.dtype.kind not in "iu":
            raise ValueError(
                f"owners has shape {owner.shape} and dtype {owner.dtype}; expected ({n_node},) "
                "integers, a device for each node"
            )
        if len(bad := owner[(owner < 0) | (owner >= number)]):
            raise ValueError(f"owners holds {bad[0]}; expected 0 to {number - 1}, one per device")
        owner = owner.astype(np.int64)

    owner_of_edge = owner[host.receivers]
    node, edge = _grouped(owner, number, padding=1), _grouped(owner_of_edge, number, padding=0)
    place = np.zeros(n_node + 1, np.int32)  # row of each node on its device
    place[node] = np.arange(node.shape[1])
    senders, exchange = _exchange(host.senders, owner, owner_of_edge, place, node.shape)
    first = (node < n_node).sum(axis=1, dtype=np.int32)[:, None]  # first padding node
    padding = edge == len(host.senders)
    parts = GraphsTuple(
        nodes=jax.tree.map(lambda a: _with_row(a)[node], host.nodes),
        edges=jax.tree.map(lambda a: _with_row(a)[edge], host.edges),
        senders=np.where(padding, first, _with_row(senders)[edge]),
        receivers=np.where(padding, first, _with_row(place[host.receivers])[edge]),
        n_node=np.stack([_counts(host.n_node, rows) for rows in node]),
        n_edge=np.stack([_counts(host.n_edge, rows) for rows in edge]),
        globals=None,  # pyright: ignore[reportArgumentType]
    )
    return PartitionedGraph(
        parts=parts,
        globals=host.globals,
        exchange=exchange,
        node=node,
        edge=edge,
        size=(n_node, len(host.senders)),
    )


def _devices(devices: int | Sequence[Any] | None) -> list[Any]:
    if devices is None or isinstance(devices, int | np.integer):
        number = len(jax.devices()) if devices is None else devices
        _validation.require_count("devices", number, 1)
        if number > len(jax.devices()):
            raise ValueError(
                f"devices is {number}; expected at most {len(jax.devices())}, as many as JAX has "
                "(on CPUs see egnn.use_all_cores)"
            )
        return jax.devices()[:number]
    found: Any = list(devices) if np.iterable(devices) else []
    if not found or len(set(found)) < len(found):
        raise ValueError(f"devices are {devices}; expected one or more, each once")
    return found


def _whole(graph: GraphsTuple) -> GraphsTuple:
    """Transfer a graph to the host.

    Raises:
      ValueError: the graph cannot be partitioned.
    """
    require_whole("the graph", graph)
    if isinstance(graph, PaddedGraphsTuple):
        raise ValueError("partition received a padded batch; expected egnn.unbatch of it")
    if not isinstance(graph.globals, Globals):
        raise ValueError(
            f"the graph's globals are of type {type(graph.globals).__name__}; expected egnn.Globals"
        )
    return jax.tree.map(np.asarray, graph)


def _bisected(graph: GraphsTuple, number: int) -> np.ndarray:
    """Assign nodes (N,) to devices by recursive bisection of space."""
    x = graph.nodes.x.astype(np.float64)
    sizes = np.asarray(graph.n_node)
    if len(sizes) > 1 and len(x):  # place graphs side by side, so that few of them are cut
        x[:, 0] += np.repeat(np.arange(len(sizes)), sizes) * (1 + np.ptp(x, axis=0).sum())
    edges = np.bincount(graph.receivers, minlength=len(x))
    owners = np.zeros(len(x), np.int64)

    def bisect(rows: np.ndarray, first: int, number: int) -> None:
        if number == 1 or not len(rows):
            owners[rows] = first
            return
        longest = np.argmax(np.ptp(x[rows], axis=0))
        rows = rows[np.argsort(x[rows, longest], kind="stable")]
        load = np.cumsum(edges[rows] + 1)
        half = number // 2
        cut = int(np.searchsorted(load, load[-1] * half / number, side="right"))
        bisect(rows[:cut], first, half)
        bisect(rows[cut:], first + half, number - half)

    bisect(np.arange(len(x)), 0, number)
    return owners


def _grouped(owner: np.ndarray, number: int, padding: int) -> np.ndarray:
    """Group rows (M,) by owner, in order, to (D, largest group + padding), filled up with M."""
    count = np.bincount(owner, minlength=number)
    order = np.argsort(owner, kind="stable")
    rows = np.full((number, count.max(initial=0) + padding), len(owner), np.int32)
    rows[np.arange(rows.shape[1]) < count[:, None]] = order
    return rows


def _counts(sizes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The number of the given rows that belong to each graph (G,)."""
    return np.diff(np.searchsorted(rows, np.cumsum(sizes)), prepend=0).astype(np.int32)


def _with_row(a: np.ndarray) -> np.ndarray:
    """Append a row of zeros, which padding rows index."""
    return np.concatenate([a, np.zeros_like(a, shape=(1, *a.shape[1:]))])


def _exchange(
    senders: np.ndarray,
    owner: np.ndarray,
    owner_of_edge: np.ndarray,
    place: np.ndarray,
    shape: tuple[int, ...],
) -> tuple[np.ndarray, Exchange]:
    """Plan the exchange, and convert senders (E,) to the rows it returns on each edge's device.

    Args:
      senders: nodes of the whole graph (E,).
      owner: device of each node (N,).
      owner_of_edge: device of each edge, that of its receiver (E,).
      place: row of each node on its device (N + 1,).
      shape: number of devices and of nodes on each (D, N').
    """
    number, size = shape
    far = np.flatnonzero(owner[senders] != owner_of_edge)
    # One key for each node that a device needs from another, in an order that both can derive.
    pair_of_edge = owner[senders[far]] * number + owner_of_edge[far]
    keys, of_edge = np.unique(pair_of_edge * len(owner) + senders[far], return_inverse=True)
    pair, sent_node = np.divmod(keys, max(len(owner), 1))
    counts = np.bincount(pair, minlength=number**2).reshape(number, number)
    rounds, first = _rounds(counts)
    rank = np.arange(len(keys)) - (np.cumsum(counts) - counts.ravel())[pair]
    row = first.ravel()[pair] + rank
    # Pairs that need fewer rows than their round has send a padding node.
    sent = np.full((number, sum(r.rows for r in rounds)), size - 1, np.int32)
    sent[pair // number, row] = place[sent_node]
    found = place[senders]
    found[far] = size + row[of_edge]
    return found, Exchange(sent, rounds)


def _rounds(counts: np.ndarray) -> tuple[tuple[Round, ...], np.ndarray]:
    """Schedule the rounds of an exchange in which device i sends counts[i, j] rows to device j.

    Also returns the first row of each pair (D, D) among all rows sent. Pairs go, largest first,
    into the first round in which both devices are free. The pairs of a round are thus of similar
    size, which keeps padding small.
    """
    pairs = [(int(i), int(j)) for i, j in zip(*np.nonzero(counts), strict=True)]
    rounds: list[list[tuple[int, int]]] = []
    for i, j in sorted(pairs, key=lambda pair: -counts[pair]):
        free = (r for r in rounds if all(i != other and j != to for other, to in r))
        chosen = next(free, None)
        if chosen is None:
            rounds.append([(i, j)])
        else:
            chosen.append((i, j))
    first, total = np.zeros(counts.shape, np.int64), 0
    made = []
    for members in rounds:
        rows = int(counts[members[0]])
        made.append(Round(rows, tuple(members)))
        for pair in members:
            first[pair] = total
        total += rows
    return tuple(made), first
