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
from egnn_jax.graph.batching import require_valid_graph
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
        rows = jax.device_put(jnp.asarray(value), NamedSharding(self.mesh, PartitionSpec()))
        return jnp.concatenate([rows, jnp.zeros_like(rows[:1])])[self.node]


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
    devices = _select_devices(devices)
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    host_parts = divide(graph, len(devices), owners)
    sharded = NamedSharding(mesh, PartitionSpec(AXIS))
    replicated = NamedSharding(mesh, PartitionSpec())
    parts = jax.device_put(host_parts.replace(globals=None), sharded)
    return parts.replace(globals=jax.device_put(host_parts.globals, replicated), mesh=mesh)


def divide(graph: GraphsTuple, n_devices: int, owners: ArrayLike | None = None) -> PartitionedGraph:
    """Compute :func:`partition` on the host, as NumPy arrays that are not on devices yet."""
    host_graph = _to_host(graph)
    n_node = len(host_graph.nodes.x)
    if owners is None:
        owner = _bisect(host_graph, n_devices)
    else:
        owner = _validation.host("owners", owners)
        if owner.shape != (n_node,) or owner.dtype.kind not in "iu":
            raise ValueError(
                f"owners has shape {owner.shape} and dtype {owner.dtype}; expected ({n_node},) "
                "integers, a device for each node"
            )
        if len(bad := owner[(owner < 0) | (owner >= n_devices)]):
            raise ValueError(
                f"owners holds {bad[0]}; expected 0 to {n_devices - 1}, one per device"
            )
        owner = owner.astype(np.int64)

    senders, receivers = host_graph.senders, host_graph.receivers
    edge_owner = owner[receivers]
    node = _group_by_owner(owner, n_devices, padding=1)
    edge = _group_by_owner(edge_owner, n_devices, padding=0)
    row_of_node = np.zeros(n_node + 1, np.int32)  # row of each node on its device
    row_of_node[node] = np.arange(node.shape[1])
    sender_rows, exchange = _plan_exchange(senders, owner, edge_owner, row_of_node, node.shape)
    padding_node = (node < n_node).sum(axis=1, dtype=np.int32)[:, None]  # the first on each device
    is_padding = edge == len(senders)
    parts = GraphsTuple(
        nodes=jax.tree.map(lambda a: _append_zero(a)[node], host_graph.nodes),
        edges=jax.tree.map(lambda a: _append_zero(a)[edge], host_graph.edges),
        senders=np.where(is_padding, padding_node, _append_zero(sender_rows)[edge]),
        receivers=np.where(is_padding, padding_node, _append_zero(row_of_node[receivers])[edge]),
        n_node=np.stack([_counts_per_graph(host_graph.n_node, rows) for rows in node]),
        n_edge=np.stack([_counts_per_graph(host_graph.n_edge, rows) for rows in edge]),
        globals=None,  # pyright: ignore[reportArgumentType]
    )
    return PartitionedGraph(
        parts=parts,
        globals=host_graph.globals,
        exchange=exchange,
        node=node,
        edge=edge,
        size=(n_node, len(senders)),
    )


def _select_devices(devices: int | Sequence[Any] | None) -> list[Any]:
    if devices is None or isinstance(devices, int | np.integer):
        n_devices = len(jax.devices()) if devices is None else devices
        _validation.require_count("devices", n_devices, 1)
        if n_devices > len(jax.devices()):
            raise ValueError(
                f"devices is {n_devices}; expected at most {len(jax.devices())}, as many as JAX "
                "has (on CPUs see egnn.use_all_cores)"
            )
        return jax.devices()[:n_devices]
    selected: Any = list(devices) if np.iterable(devices) else []
    if not selected or len(set(selected)) < len(selected):
        raise ValueError(f"devices are {devices}; expected one or more, each once")
    return selected


def _to_host(graph: GraphsTuple) -> GraphsTuple:
    """Transfer a graph to the host.

    Raises:
      ValueError: the graph cannot be partitioned.
    """
    require_valid_graph("the graph", graph)
    if isinstance(graph, PaddedGraphsTuple):
        raise ValueError("partition received a padded batch; expected egnn.unbatch of it")
    if not isinstance(graph.globals, Globals):
        raise ValueError(
            f"the graph's globals are of type {type(graph.globals).__name__}; expected egnn.Globals"
        )
    return jax.tree.map(np.asarray, graph)


def _bisect(graph: GraphsTuple, n_devices: int) -> np.ndarray:
    """Assign nodes (N,) to devices by recursive bisection of space."""
    x = graph.nodes.x.astype(np.float64)
    sizes = np.asarray(graph.n_node)
    if len(sizes) > 1 and len(x):  # place graphs side by side, so that few of them are cut
        x[:, 0] += np.repeat(np.arange(len(sizes)), sizes) * (1 + np.ptp(x, axis=0).sum())
    in_degree = np.bincount(graph.receivers, minlength=len(x))
    owners = np.zeros(len(x), np.int64)

    def bisect(rows: np.ndarray, first_device: int, n_devices: int) -> None:
        if n_devices == 1 or not len(rows):
            owners[rows] = first_device
            return
        longest_side = np.argmax(np.ptp(x[rows], axis=0))
        rows = rows[np.argsort(x[rows, longest_side], kind="stable")]
        load = np.cumsum(in_degree[rows] + 1)
        half = n_devices // 2
        cut = int(np.searchsorted(load, load[-1] * half / n_devices, side="right"))
        bisect(rows[:cut], first_device, half)
        bisect(rows[cut:], first_device + half, n_devices - half)

    bisect(np.arange(len(x)), 0, n_devices)
    return owners


def _group_by_owner(owner: np.ndarray, n_devices: int, padding: int) -> np.ndarray:
    """Group rows (M,) by owner, in order, to (D, largest group + padding), filled up with M."""
    counts = np.bincount(owner, minlength=n_devices)
    order = np.argsort(owner, kind="stable")
    rows = np.full((n_devices, counts.max(initial=0) + padding), len(owner), np.int32)
    rows[np.arange(rows.shape[1]) < counts[:, None]] = order
    return rows


def _counts_per_graph(sizes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The number of rows, in ascending order, that belong to each graph (G,) of these sizes."""
    return np.diff(np.searchsorted(rows, np.cumsum(sizes)), prepend=0).astype(np.int32)


def _append_zero(a: np.ndarray) -> np.ndarray:
    """Append a row of zeros, which padding rows index."""
    return np.concatenate([a, np.zeros_like(a, shape=(1, *a.shape[1:]))])


def _plan_exchange(
    senders: np.ndarray,
    owner: np.ndarray,
    edge_owner: np.ndarray,
    row_of_node: np.ndarray,
    shape: tuple[int, ...],
) -> tuple[np.ndarray, Exchange]:
    """Plan the exchange, and convert senders (E,) to the rows it returns on each edge's device.

    Args:
      senders: nodes of the whole graph (E,).
      owner: device of each node (N,).
      edge_owner: device of each edge, that of its receiver (E,).
      row_of_node: row of each node on its device (N + 1,).
      shape: number of devices and of nodes on each (D, N').
    """
    n_devices, n_rows = shape
    remote_edges = np.flatnonzero(owner[senders] != edge_owner)
    remote_senders = senders[remote_edges]
    # One key for each node that a device needs from another, in an order that both can derive.
    edge_pair = owner[remote_senders] * n_devices + edge_owner[remote_edges]
    keys, edge_key = np.unique(edge_pair * len(owner) + remote_senders, return_inverse=True)
    pair, sent_node = np.divmod(keys, max(len(owner), 1))
    counts = np.bincount(pair, minlength=n_devices**2).reshape(n_devices, n_devices)
    rounds, first_row = _schedule_rounds(counts)
    rank = np.arange(len(keys)) - (np.cumsum(counts) - counts.ravel())[pair]
    row = first_row.ravel()[pair] + rank
    # Pairs that need fewer rows than their round has send a padding node.
    sent = np.full((n_devices, sum(r.rows for r in rounds)), n_rows - 1, np.int32)
    sent[pair // n_devices, row] = row_of_node[sent_node]
    sender_rows = row_of_node[senders]
    sender_rows[remote_edges] = n_rows + row[edge_key]
    return sender_rows, Exchange(sent, rounds)


def _schedule_rounds(counts: np.ndarray) -> tuple[tuple[Round, ...], np.ndarray]:
    """Schedule the rounds of an exchange in which device i sends counts[i, j] rows to device j.

    Also returns the first row of each pair (D, D) among all rows sent. Pairs go, largest first,
    into the first round in which both devices are free. The pairs of a round are thus of similar
    size, which keeps padding small.
    """
    pairs = [(int(i), int(j)) for i, j in zip(*np.nonzero(counts), strict=True)]
    pairs_of_rounds: list[list[tuple[int, int]]] = []
    for i, j in sorted(pairs, key=lambda pair: -counts[pair]):
        for round_pairs in pairs_of_rounds:
            if all(i != source and j != target for source, target in round_pairs):
                round_pairs.append((i, j))
                break
        else:
            pairs_of_rounds.append([(i, j)])
    first_row, total = np.zeros(counts.shape, np.int64), 0
    rounds = []
    for round_pairs in pairs_of_rounds:
        rows = int(counts[round_pairs[0]])
        rounds.append(Round(rows, tuple(round_pairs)))
        for pair in round_pairs:
            first_row[pair] = total
        total += rows
    return tuple(rounds), first_row
