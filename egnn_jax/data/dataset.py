"""Graphs of different sizes, packed side by side into batches of one static shape."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph.graph import Budget, GraphsTuple, complete_edges


class GraphSet:
    """S graphs of different sizes, kept flat so that any batch of them is gathered by NumPy alone.

    Args:
      n_node: the number of nodes M of each graph (S,).
      nodes: what nodes carry, arrays (ΣM, …).
      edges: what edges carry, arrays (ΣE, …), or None.
      globals_: what each graph carries, arrays (S, …), or None.
      ends: n_edge (S,), and senders and receivers (ΣE,) counted from each graph's first node and
        sorted by receiver; every graph is complete if not given, its edges in the order of
        :func:`egnn_jax.complete_edges`.
    """

    def __init__(
        self,
        n_node: np.ndarray,
        nodes: Any,
        edges: Any = None,
        globals_: Any = None,
        ends: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self._n_node = np.append(np.asarray(n_node, np.int32), 0)  # row -1 is a graph without nodes
        if ends is None:
            self._n_edge = self._n_node * np.maximum(self._n_node - 1, 0)
            *self._ends, starts = _edge_lists(self._n_node)
            self._first_end = starts[self._n_node]
        else:
            self._n_edge, *self._ends = np.append(np.asarray(ends[0], np.int32), 0), *ends[1:]
            self._first_end = _starts(self._n_edge)
        self._nodes, self._edges, self._globals = nodes, edges, globals_

    def __len__(self) -> int:
        return len(self._n_node) - 1

    def deal(
        self, rows: np.ndarray, steps: int, groups: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Graphs dealt into batches that are all of nearly the same size, so that one shape fits
        them with little waste.

        The graphs are put into B classes of similar size, and each batch gets one of each at random
        (stratified sampling).

        Args:
          rows: the graphs of an epoch (steps·B,).
          steps, groups: how many batches, and how many parts of a batch (one a device).
          generator: decides which graphs come together.

        Returns:
          (steps, groups, B/groups).
        """
        classes = rows[np.argsort(self._n_edge[rows], kind="stable")].reshape(-1, steps)
        batches = generator.permuted(classes, axis=1).T
        return _in_turns(batches.reshape(steps, -1, groups)).swapaxes(1, 2)

    def budgets(self, graphs: int, groups: int = 1) -> list[Budget]:
        """Shapes for so many graphs in each of the groups of a batch, the smallest first; whatever
        :meth:`deal` makes fits the last.

        For single graphs these are the quartiles of their sizes; for more there is only one.
        """
        if graphs == 1:
            order = np.argsort(self._n_edge[:-1], kind="stable")
            places = np.ceil(len(self) * np.array([0.25, 0.5, 0.75, 1])).astype(int)
            largest = [order[:place] for place in places]
            shapes = {
                (int(self._n_node[part].max()), int(self._n_edge[part].max())) for part in largest
            }
            return [Budget(n_node + 1, n_edge, 2) for n_node, n_edge in sorted(shapes)]
        # The largest of each class of ``deal``; the graphs left out of an epoch, fewer than a
        # batch, shift the classes a little.
        size = graphs * groups
        largest = (
            np.minimum(
                np.ceil(np.arange(1, size + 1) * len(self) / size).astype(int) + 2 * size, len(self)
            )
            - 1
        )
        n_node, n_edge = (
            int(_in_turns(np.sort(count[:-1])[largest].reshape(graphs, groups)).sum(axis=0).max())
            for count in (self._n_node, self._n_edge)
        )
        return [Budget(n_node + 1, n_edge, graphs + 1)]

    def pack(self, rows: np.ndarray) -> GraphsTuple:
        """The graphs numbered ``rows``, (B,) or (…, groups, B/groups) as :meth:`deal` gives them,
        padded as jraph pads; -1 is no graph.

        Every field gets the leading axes of ``rows`` and the shape of the last of :meth:`budgets`.
        If one of the batches does not fit, all get that of B graphs of the largest size, which
        costs a compilation and loses nothing.
        """
        leading, (size, flat) = rows.shape[:-1], (rows.shape[-1], rows.reshape(-1, rows.shape[-1]))
        n_node, n_edge = self._n_node[flat], self._n_edge[flat]
        budget = self.budgets(size, *leading[-1:])[-1]
        if n_node.sum(axis=1).max() >= budget.n_node or n_edge.sum(axis=1).max() > budget.n_edge:
            budget = Budget(
                size * int(self._n_node.max()) + 1, size * int(self._n_edge.max()), size + 1
            )
        node, edge = _Places(n_node, self._n_node, flat), _Places(n_edge, self._n_edge, flat)
        first_node = _starts(n_node).reshape(-1)
        ends = []
        for indices in self._ends:
            padded = np.repeat(
                n_node.sum(axis=1, dtype=np.int32)[:, None], budget.n_edge, axis=1
            )  # the first padding node
            padded[edge.batch, edge.place] = (
                indices[self._first_end[flat].reshape(-1)[edge.graph] + edge.within]
                + first_node[edge.graph]
            )
            ends.append(padded)
        packed = GraphsTuple(
            nodes=jax.tree.map(lambda a: node.fill(a, len(flat), budget.n_node), self._nodes),
            edges=jax.tree.map(lambda a: edge.fill(a, len(flat), budget.n_edge), self._edges),
            senders=ends[0],
            receivers=ends[1],
            n_node=np.append(
                n_node, budget.n_node - n_node.sum(axis=1, keepdims=True), axis=1
            ).astype(np.int32),
            n_edge=np.append(
                n_edge, budget.n_edge - n_edge.sum(axis=1, keepdims=True), axis=1
            ).astype(np.int32),
            globals=jax.tree.map(
                lambda a: np.append(a[flat], np.zeros_like(a[flat][:, :1]), axis=1), self._globals
            ),
        )
        return jax.tree.map(lambda a: a.reshape(leading + a.shape[1:]), packed)


def ends_within(
    n_node: np.ndarray, x: np.ndarray, cutoff: float, block: int = 10_000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``ends`` of :class:`GraphSet` for nodes of one graph at most ``cutoff`` apart.

    Args:
      n_node: (S,).
      x: coordinates (ΣM, n).
      cutoff: a distance in the unit of x.
      block: so many graphs at a time, to bound the memory.
    """
    *lists, starts = _edge_lists(n_node)
    parts = []
    for first in range(0, len(n_node), block):
        sizes = n_node[first : first + block]
        count = sizes * np.maximum(sizes - 1, 0)
        graph = np.repeat(np.arange(len(sizes)), count)
        within = np.arange(len(graph)) - _starts(count)[graph]
        senders, receivers = (part[starts[sizes][graph] + within] for part in lists)
        origin = n_node[:first].sum() + _starts(sizes)[graph]
        near = ((x[origin + receivers] - x[origin + senders]) ** 2).sum(axis=1) <= cutoff**2
        parts.append(
            (np.bincount(graph[near], minlength=len(sizes)), senders[near], receivers[near])
        )
    n_edge, senders, receivers = (np.concatenate(part) for part in zip(*parts, strict=True))
    return n_edge.astype(np.int32), senders, receivers


def trimmed(
    loss: Callable[[Any, GraphsTuple, jax.Array], jax.Array], budgets: Sequence[Budget]
) -> Callable[..., jax.Array]:
    """``loss(params, batch, key)``, computed at the smallest of several budgets that holds the
    graphs of a padded batch.

    Value and gradient with respect to ``params`` are those of ``loss``; there are no other
    derivatives. A batch that fits none but the last is taken as it is.
    """
    *smaller, _ = budgets
    if not smaller:
        return loss

    def at_smallest(
        function: Callable[..., Any], params: Any, batch: GraphsTuple, key: jax.Array
    ) -> Any:
        choices = [partial(_trim, budget=budget) for budget in smaller] + [lambda batch: batch]
        real_nodes, real_edges = jnp.sum(batch.n_node[:-1]), jnp.sum(batch.n_edge[:-1])
        fits = [(real_nodes < budget.n_node) & (real_edges <= budget.n_edge) for budget in smaller]
        index = jnp.argmax(jnp.stack([*fits, jnp.ones((), bool)]))
        return jax.lax.switch(
            index, [lambda trim=trim: function(params, trim(batch), key) for trim in choices]
        )

    @jax.custom_vjp
    def value(params: Any, batch: GraphsTuple, key: jax.Array) -> jax.Array:
        return at_smallest(loss, params, batch, key)

    # Differentiated outside, each branch would keep room for what every other one has to remember.
    def forward(params: Any, batch: GraphsTuple, key: jax.Array) -> tuple[jax.Array, Any]:
        return at_smallest(jax.value_and_grad(loss), params, batch, key)

    def backward(gradient: Any, cotangent: jax.Array) -> tuple[Any, None, None]:
        return jax.tree.map(lambda g: cotangent * g, gradient), None, None

    value.defvjp(forward, backward)
    return value


def _trim(batch: GraphsTuple, budget: Budget) -> GraphsTuple:
    """A padded batch with less padding."""

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


class _Places:
    """Where each node (or edge) of the batches comes from in the flat arrays, and where it goes.

    Args:
      counts: of the graphs of each batch (K, B).
      all_counts: of all graphs (S,).
      rows: the numbers of the graphs (K, B).
    """

    def __init__(self, counts: np.ndarray, all_counts: np.ndarray, rows: np.ndarray) -> None:
        flat = counts.reshape(-1)
        self.graph = np.repeat(np.arange(len(flat)), flat)
        self.within = np.arange(len(self.graph)) - _starts(flat)[self.graph]
        self.batch = self.graph // counts.shape[1]
        self.place = _starts(counts).reshape(-1)[self.graph] + self.within
        self._source = _starts(all_counts)[rows.reshape(-1)][self.graph] + self.within

    def fill(self, values: np.ndarray, batches: int, budget: int) -> np.ndarray:
        """The flat ``values`` as (batches, budget, …), padded with zeros."""
        padded = np.zeros((batches, budget, *values.shape[1:]), values.dtype)
        padded[self.batch, self.place] = values[self._source]
        return padded


def _in_turns(classes: np.ndarray) -> np.ndarray:
    """Neighbours of the classes (…, rounds, groups) given to the groups forth and back, as cards
    are.
    """
    dealt = classes.copy()
    dealt[..., 1::2, :] = dealt[..., 1::2, ::-1]
    return dealt


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where each of several runs of so many entries starts, along the last axis."""
    return np.cumsum(counts, axis=-1) - counts


def _edge_lists(n_node: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Senders and receivers of a complete graph of each size that occurs, one after the other, and
    by number of nodes where each starts.
    """
    sizes = np.unique(n_node)
    lists = [complete_edges(size) for size in sizes]
    senders, receivers = (np.concatenate(part) for part in zip(*lists, strict=True))
    starts = np.zeros(sizes.max() + 1, np.int64)
    starts[sizes] = _starts(np.array([len(part) for part, _ in lists]))
    return senders, receivers, starts
