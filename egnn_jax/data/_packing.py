"""Packing graphs of different sizes into arrays of one shape."""

import mmap
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph._validation import require_number
from egnn_jax.graph.batching import Budget
from egnn_jax.graph.build import complete_edges
from egnn_jax.graph.graph import GraphsTuple


def complete_edge_lists(n_node: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges of one complete graph of each size in ``n_node``.

    Returns:
      Senders and receivers of these graphs, concatenated, and the start of those of M nodes, by M.
    """
    sizes = np.unique(n_node)
    senders, receivers = (
        np.concatenate(arrays) for arrays in zip(*map(complete_edges, sizes), strict=True)
    )
    starts = np.zeros(sizes.max() + 1, np.int64)
    starts[sizes] = exclusive_cumsum(sizes * np.maximum(sizes - 1, 0))
    return senders, receivers, starts


def budgets(n_node: np.ndarray, n_edge: np.ndarray, graphs: int, shards: int) -> list[Budget]:
    """Budgets of shards of ``graphs`` graphs, for graphs of these sizes (S,), smallest first."""
    if graphs == 1:
        order = np.argsort(n_edge, kind="stable")
        counts = np.ceil(len(order) * np.array([0.25, 0.5, 0.75, 1])).astype(int)
        smallest_rows = [order[:count] for count in counts]
        shapes = {(int(n_node[rows].max()), int(n_edge[rows].max())) for rows in smallest_rows}
        return [Budget(nodes + 1, edges, 2) for nodes, edges in sorted(shapes)]
    # Sum the largest graph of each class of ``arrange``, which sorts by edges; with a cutoff,
    # graphs of one class differ in their number of nodes. Graphs dropped from an epoch and the
    # padding of an evaluation, each fewer than a batch, shift the classes a little, and graphs with
    # equal numbers of edges can be in any order: so look at a window around each class.
    batch_size = graphs * shards
    order = np.argsort(n_edge, kind="stable")
    sorted_n_edge = n_edge[order]
    class_bounds = np.ceil(np.arange(batch_size + 1) * len(order) / batch_size).astype(int)
    windows = []
    for start, end in pairwise(class_bounds):
        min_edges = sorted_n_edge[max(start - 2 * batch_size, 0)]
        max_edges = sorted_n_edge[min(end + 2 * batch_size, len(order)) - 1]
        window = np.searchsorted(sorted_n_edge, [min_edges, max_edges + 1])
        windows.append(order[slice(*window)])
    totals = []
    for counts in (n_node, n_edge):
        class_maxima = np.array([counts[rows].max() for rows in windows])
        totals.append(int(snake(class_maxima.reshape(graphs, shards)).sum(axis=0).max()))
    nodes, edges = totals
    return [Budget(nodes + 1, edges, graphs + 1)]


def fitting(budget: Budget, rows: np.ndarray, n_node: np.ndarray, n_edge: np.ndarray) -> Budget:
    """The budget, or that of B graphs of the largest size if a shard (…, B) does not fit."""
    nodes, edges = (np.where(rows >= 0, n[rows], 0).sum(axis=-1).max() for n in (n_node, n_edge))
    if nodes < budget.n_node and edges <= budget.n_edge:
        return budget
    graphs = rows.shape[-1]
    return Budget(graphs * int(n_node.max()) + 1, graphs * int(n_edge.max()), graphs + 1)


class Gather:
    """Indices of the nodes (or edges) of batches in the flat arrays and in the batches.

    Args:
      counts: the number of nodes (or edges) of each graph of each batch (K, B).
      first: the index of the first one of each graph in the flat arrays (K, B).
    """

    def __init__(self, counts: np.ndarray, first: np.ndarray) -> None:
        flat_counts = counts.reshape(-1)
        self.graph = np.repeat(np.arange(len(flat_counts)), flat_counts)
        index_in_graph = np.arange(len(self.graph)) - exclusive_cumsum(flat_counts)[self.graph]
        self.batch = self.graph // counts.shape[1]
        self.target = exclusive_cumsum(counts).reshape(-1)[self.graph] + index_in_graph
        self.source = first.reshape(-1)[self.graph] + index_in_graph


class Runs:
    """Copies the nodes (or edges) of graphs from the flat arrays into batches, as runs of rows.

    Copying whole runs is faster than indexing single rows, above all from a file.

    Args:
      counts: the number of nodes (or edges) of each graph of each batch (K, B).
      first: the index of the first one of each graph in the flat arrays (K, B).
      budget: the number of rows of a batch.
    """

    def __init__(self, counts: np.ndarray, first: np.ndarray, budget: int) -> None:
        self._shape = len(counts), budget
        target_start = exclusive_cumsum(counts) + budget * np.arange(len(counts))[:, None]
        self._targets, self._sources = (
            list(map(slice, start.ravel().tolist(), (start + counts).ravel().tolist()))
            for start in (target_start, first)
        )

    def fill(
        self, values: np.ndarray, add: np.ndarray | None = None, padding: np.ndarray | None = None
    ) -> np.ndarray:
        """Copy the rows of ``values`` into an array (K, budget, …).

        Args:
          values: the flat array.
          add: a number to add to the rows of each graph (K, B); the result has 32 bits or more.
          padding: the value of padding rows in each batch (K,); 0 if not given.
        """
        if isinstance(values, np.memmap):
            _prefetch(values, self._sources)
            values = values.view(np.ndarray)  # slicing it takes a tenth of the time
        # A sum can be larger than narrow integers hold.
        dtype = values.dtype if add is None else np.promote_types(values.dtype, np.int32)
        padded = np.zeros((*self._shape, *values.shape[1:]), dtype)
        if padding is not None:
            padded[:] = padding[:, None]
        flat_rows = padded.reshape(-1, *values.shape[1:])
        for target, source in zip(self._targets, self._sources, strict=True):
            flat_rows[target] = values[source]
        if add is not None:
            for target, offset in zip(self._targets, add.ravel().tolist(), strict=True):
                flat_rows[target] += offset
        return padded


def _prefetch(values: np.memmap, runs: Sequence[slice]) -> None:
    """Ask the system to read runs of rows from disk all at once.

    Otherwise they are read sequentially, each with a lot of unneeded data around it.
    """
    mapped: Any = getattr(values, "_mmap", None)
    if mapped is None or not hasattr(mmap, "MADV_WILLNEED") or not values.flags.c_contiguous:
        return
    address, mapped_address = (
        array.__array_interface__["data"][0] for array in (values, np.frombuffer(mapped, np.uint8))
    )
    offset = address - mapped_address
    for run in runs:
        start, stop = (offset + row * values.strides[0] for row in (run.start, run.stop))
        start -= start % mmap.PAGESIZE
        if run.stop > run.start:
            mapped.madvise(mmap.MADV_WILLNEED, start, stop - start)


def snake(classes: np.ndarray) -> np.ndarray:
    """Reverse every second round of (…, rounds, shards), which evens out the shards' sizes."""
    reordered = classes.copy()
    reordered[..., 1::2, :] = reordered[..., 1::2, ::-1]
    return reordered


def exclusive_cumsum(counts: np.ndarray) -> np.ndarray:
    """The start of each of several consecutive runs of the given lengths, along the last axis."""
    return np.cumsum(counts, axis=-1) - counts


def edges_within(
    n_node: np.ndarray, x: np.ndarray, cutoff: float, block: int = 4_000_000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges of many small graphs whose nodes are at most ``cutoff`` apart.

    Args:
      n_node: (S,).
      x: coordinates (ΣM, n).
      cutoff: a distance in the unit of x.
      block: the number of pairs of nodes to process at once, to bound the memory; a larger graph
        is processed alone.

    Returns:
      The ``edge_lists`` of :meth:`egnn_jax.GraphDataset.from_arrays`.
    """
    index_dtype = np.min_scalar_type(n_node.max())  # 8 bits for molecules
    cumulative_pairs = np.cumsum(n_node.astype(np.int64) * np.maximum(n_node - 1, 0))
    blocks, start = [], 0
    while start < len(n_node):
        previous_pairs = cumulative_pairs[start - 1] if start else 0
        end = int(np.searchsorted(cumulative_pairs, previous_pairs + block, side="right"))
        end = max(end, start + 1)
        sizes = n_node[start:end]
        all_senders, all_receivers, pair_offsets = complete_edge_lists(sizes)
        n_pair = sizes * np.maximum(sizes - 1, 0)
        graph = np.repeat(np.arange(len(sizes)), n_pair)
        index_in_graph = np.arange(len(graph)) - exclusive_cumsum(n_pair)[graph]
        pair = pair_offsets[sizes][graph] + index_in_graph
        senders = all_senders.astype(index_dtype)[pair]
        receivers = all_receivers.astype(index_dtype)[pair]
        node_offset = n_node[:start].sum() + exclusive_cumsum(sizes)[graph]
        squared = ((x[node_offset + receivers] - x[node_offset + senders]) ** 2).sum(axis=1)
        within_cutoff = squared <= cutoff**2
        n_edge = np.bincount(graph[within_cutoff], minlength=len(sizes))
        blocks.append((n_edge, senders[within_cutoff], receivers[within_cutoff]))
        start = end
    n_edge, senders, receivers = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    return n_edge.astype(np.int32), senders, receivers


def trimmed(
    loss: Callable[[Any, GraphsTuple, jax.Array], jax.Array], budgets: Sequence[Budget]
) -> Callable[..., jax.Array]:
    """Evaluate ``loss(params, batch, key)`` at the smallest budget that fits a padded batch.

    Value and gradient with respect to ``params`` are those of ``loss``; there are no other
    derivatives. A batch that fits only the last budget is not trimmed.
    """
    *smaller, _ = budgets
    if not smaller:
        return loss

    def at_smallest(
        function: Callable[..., Any], params: Any, batch: GraphsTuple, key: jax.Array
    ) -> Any:
        branches = [partial(_trim, budget=budget) for budget in smaller] + [lambda batch: batch]
        real_nodes, real_edges = jnp.sum(batch.n_node[:-1]), jnp.sum(batch.n_edge[:-1])
        fits = [(real_nodes < budget.n_node) & (real_edges <= budget.n_edge) for budget in smaller]
        index = jnp.argmax(jnp.stack([*fits, jnp.ones((), bool)]))
        return jax.lax.switch(
            index, [lambda trim=trim: function(params, trim(batch), key) for trim in branches]
        )

    @jax.custom_vjp
    def value(params: Any, batch: GraphsTuple, key: jax.Array) -> jax.Array:
        return at_smallest(loss, params, batch, key)

    # If differentiated outside, each branch would allocate the residuals of every other one.
    def forward(params: Any, batch: GraphsTuple, key: jax.Array) -> tuple[jax.Array, Any]:
        return at_smallest(jax.value_and_grad(loss), params, batch, key)

    def backward(gradient: Any, cotangent: jax.Array) -> tuple[Any, None, None]:
        return jax.tree.map(lambda g: cotangent * g, gradient), None, None

    value.defvjp(forward, backward)
    return value


def _trim(batch: GraphsTuple, budget: Budget) -> GraphsTuple:
    """Reduce the padding of a padded batch to a budget."""

    def pad(counts: jax.Array, total: int) -> jax.Array:
        return counts.at[-1].set((total - jnp.sum(counts[:-1])).astype(counts.dtype))

    return batch._replace(
        nodes=jax.tree.map(lambda a: a[: budget.n_node], batch.nodes),
        edges=jax.tree.map(lambda a: a[: budget.n_edge], batch.edges),
        senders=batch.senders[: budget.n_edge],
        receivers=batch.receivers[: budget.n_edge],
        n_node=pad(batch.n_node, budget.n_node),
        n_edge=pad(batch.n_edge, budget.n_edge),
    )


def split_by_fractions(rows: np.ndarray, fractions: Sequence[float]) -> list[np.ndarray]:
    """Split ``rows`` (S,) into one part for each fraction, and the rest.

    Raises:
      ValueError: a fraction or their sum is not between 0 and 1, or a part would be empty.
    """
    for fraction in fractions:
        require_number("a fraction", fraction)
    if not (fractions and min(fractions) > 0 and sum(fractions) < 1):
        raise ValueError(f"fractions are {fractions}; expected numbers above 0, together below 1")
    parts = np.split(rows, np.round(np.cumsum(fractions) * len(rows)).astype(int))
    if min(map(len, parts)) == 0:
        raise ValueError(f"fractions are {fractions} of {len(rows)} graphs; a part would be empty")
    return parts
