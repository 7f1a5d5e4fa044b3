"""Graphs of different sizes as flat arrays, packed into padded batches of one shape."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from egnn_jax._files import expanded
from egnn_jax.data import _flat, _packing, storage
from egnn_jax.data._flat import EdgeLists, arrays_of, checked_graphs, flat, require_flat
from egnn_jax.data.loader import DatasetLoader
from egnn_jax.graph._validation import require_count
from egnn_jax.graph.batching import Budget
from egnn_jax.graph.graph import Edges, Globals, GraphsTuple, Nodes, PaddedGraphsTuple


class GraphDataset:
    """S graphs of any sizes, from which batches are gathered with NumPy.

    ``dataset[k]`` is one graph, and ``dataset[rows]`` a data set that shares the arrays.

    Args:
      graphs: graphs, or batches without padding, that all have the same fields.

    Raises:
      ValueError: there are no graphs, or their fields differ (the message names the first graph).
    """

    pads = True

    def __init__(self, graphs: Iterable[GraphsTuple]) -> None:
        self._set(*flat(list(checked_graphs(graphs))))

    @classmethod
    def from_arrays(
        cls,
        n_node: np.ndarray,
        nodes: Nodes,
        edges: Edges | None = None,
        globals_: Globals | None = None,
        edge_lists: EdgeLists | None = None,
    ) -> "GraphDataset":
        """Make a data set from flat arrays, which are not copied and may be memory-mapped.

        Args:
          n_node: the number of nodes M of each graph (S,).
          nodes: arrays (ΣM, …).
          edges: arrays (ΣE, …).
          globals_: arrays (S, …).
          edge_lists: n_edge (S,), and senders and receivers (ΣE,), counted from the first node of
            each graph and sorted by receiver. If not given, every graph is complete, with its edges
            in the order of :func:`egnn_jax.complete_edges`.

        Raises:
          ValueError: the lengths of arrays do not match n_node and n_edge, an edge ends outside of
            its graph, or edges are not sorted.
        """
        require_flat(n_node, nodes, edges, globals_, edge_lists)
        self = cls.__new__(cls)
        self._set(n_node, nodes, edges or Edges(), globals_ or Globals(), edge_lists)
        return self

    def _set(
        self,
        n_node: np.ndarray,
        nodes: Nodes,
        edges: Edges,
        globals_: Globals,
        edge_lists: EdgeLists | None,
    ) -> None:
        self._nodes, self._edges, self._globals = nodes, edges, globals_
        self._n_node = np.asarray(n_node, np.int32)
        self._first_node = _packing.exclusive_cumsum(self._n_node)
        if edge_lists is None:
            self._n_edge = self._n_node * np.maximum(self._n_node - 1, 0)
            *self._endpoints, starts = _packing.complete_edge_lists(self._n_node)
            self._first_endpoint = starts[self._n_node]  # graphs of one size share them
        else:
            n_edge, *self._endpoints = edge_lists
            self._n_edge = np.asarray(n_edge, np.int32)
            self._first_endpoint = _packing.exclusive_cumsum(self._n_edge)
        self._first_edge = _packing.exclusive_cumsum(self._n_edge)
        self._rows = np.arange(len(self._n_node))
        self._budgets: dict[tuple[int, int], list[Budget]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> Any:
        if np.ndim(key) == 0 and not isinstance(key, slice):
            return self._graph(range(len(self))[key])
        subset = self.__class__.__new__(self.__class__)
        subset.__dict__.update(self.__dict__)
        starts = ("_first_node", "_first_edge", "_first_endpoint")
        for name in ("_rows", "_n_node", "_n_edge", *starts):
            setattr(subset, name, getattr(self, name)[key])
        subset._budgets = {}
        return subset

    @property
    def n_node(self) -> np.ndarray:
        """The number of nodes of each graph (S,)."""
        return self._n_node

    @property
    def y(self) -> np.ndarray:
        """The targets of the graphs (S, T).

        Raises:
          ValueError: the graphs have no targets.
        """
        if self._globals.y is None:
            raise ValueError("the graphs have no targets; expected y where they were built")
        return np.asarray(self._globals.y[self._rows])

    def with_targets(self, y: np.ndarray) -> "GraphDataset":
        """The same graphs with other targets (S, T), or ValueError if these are not finite."""
        globals_ = jax.tree.map(lambda a: a[self._rows], self._globals)
        dataset = self[:]
        dataset._globals = globals_.replace(y=_flat.matrix_of_targets(y, len(self)))
        dataset._rows = np.arange(len(self))
        return dataset

    def node_features(self) -> np.ndarray:
        """h of the nodes of all graphs (ΣM, …), in the order of the graphs."""
        if self._nodes.h is None:
            raise ValueError("the graphs have no h")
        return self._nodes.h[_packing.Gather(self._n_node[None], self._first_node[None]).source]

    def target_statistics(self) -> dict[str, tuple[float, ...]]:
        """``mean`` and ``scale`` (standard deviation, or 1 of equal values) of each target (T,).

        These are arguments of :class:`egnn_jax.Readout`.
        """
        mean = self.y.mean(axis=0, dtype=np.float64)
        scale = _flat.scale_or_one(self.y.std(axis=0, dtype=np.float64), self.y)
        return {"mean": tuple(mean.tolist()), "scale": tuple(scale.tolist())}

    def split(self, *fractions: float, seed: int = 0) -> tuple["GraphDataset", ...]:
        """Split the data set at random into one part for each fraction, and the rest.

        Args:
          fractions: shares of the graphs, for example 0.8, 0.1 for train, valid and the rest.
          seed: seed of the random order.

        Raises:
          ValueError: a fraction or their sum is not between 0 and 1, or a part would be empty.
        """
        require_count("seed", seed, 0)
        order = np.random.default_rng(seed).permutation(len(self))
        return tuple(self[part] for part in _packing.split_by_fractions(order, fractions))

    def loader(self, batch_size: int, seed: int = 0) -> DatasetLoader:
        """A loader of batches of graphs, see :class:`egnn_jax.data.loader.DatasetLoader`."""
        return DatasetLoader(self, batch_size, seed)

    def save(self, folder: Path | str) -> None:
        """Write the data set to a new folder, see :meth:`write`; :meth:`open` reads it.

        Raises:
          ValueError: the folder already exists.
        """
        with storage.writing(expanded(folder)) as writer:
            for k in range(len(self)):
                writer.append(arrays_of(self[k]))

    @classmethod
    def write(cls, folder: Path | str, graphs: Iterable[GraphsTuple]) -> "GraphDataset":
        """Write graphs, which need not fit in memory, atomically to a new folder.

        Args:
          folder: a new folder, which :meth:`open` reads.
          graphs: as for :class:`GraphDataset`; read one at a time, so a generator works.

        Returns:
          The data set, memory-mapped.

        Raises:
          ValueError: the folder exists, there are no graphs, or one differs from the first in its
            fields or a dtype (the message names it).
          OSError: writing fails, for example because the disk is full.
        """
        folder = expanded(folder)
        with storage.writing(folder) as writer:
            for graph in checked_graphs(graphs):
                writer.append(arrays_of(graph))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path | str, verify: bool = False) -> "GraphDataset":
        """Open a data set that :meth:`save` or :meth:`write` wrote, with memory-mapped arrays.

        Args:
          folder: the folder of the data set.
          verify: check the SHA-256 of every file; sizes are always checked.

        Raises:
          ValueError: this is not a data set, or a file is missing, has a wrong size or is damaged.
        """
        arrays = storage.read_arrays(expanded(folder), verify)
        trees = storage.unflatten(arrays)
        nodes, edges, globals_ = (trees[name] for name in ("nodes", "edges", "globals"))
        lists = arrays["n_edge"], arrays["senders"], arrays["receivers"]
        self = cls.__new__(cls)  # from_arrays would read all arrays to check them
        self._set(arrays["n_node"], nodes, edges, globals_, lists)
        return self

    def arrange(
        self, rows: np.ndarray, steps: int, shards: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Assign graphs to batches of similar size, so that one shape fits all with little padding.

        Graphs are sorted into B classes of similar size, and each batch takes one of each class at
        random (stratified sampling). See :meth:`egnn_jax.data.loader.Dataset.arrange`.
        """
        sizes = np.where(rows >= 0, self._n_edge[rows], 0)
        classes = rows[np.argsort(sizes, kind="stable")].reshape(-1, steps)
        batches = rng.permuted(classes, axis=1).T
        return _packing.snake(batches.reshape(steps, -1, shards)).swapaxes(1, 2)

    def budgets(self, graphs: int, shards: int = 1) -> list[Budget]:
        """The budgets of a shard of ``graphs`` graphs, smallest first.

        Every shard that :meth:`arrange` returns fits the last one. For single graphs, the budgets
        are the quartiles of their sizes; for more graphs there is only one.
        """
        key = graphs, shards
        if key not in self._budgets:
            self._budgets[key] = _packing.budgets(self._n_node, self._n_edge, *key)
        return self._budgets[key]

    def pack(self, rows: np.ndarray, own: slice = slice(None)) -> PaddedGraphsTuple:
        """Pack the graphs ``rows`` into padded batches; see :class:`~egnn_jax.PaddedGraphsTuple`.

        Args:
          rows: (B,) or (…, shards, B/shards) as :meth:`arrange` returns them; -1 is no graph.
          own: which shards to pack; their shape does not depend on it.

        Returns:
          NumPy arrays with the leading axes of ``rows`` and the shape of the last of
          :meth:`budgets`. If a batch does not fit, all have the shape for B graphs of the largest
          size, which costs a compilation.
        """
        shards = rows.shape[-2:-1]
        budget = self.budgets(rows.shape[-1], *shards)[-1]  # the same in all processes
        budget = _packing.fitting(budget, rows, self._n_node, self._n_edge)
        rows = rows[..., own, :] if shards else rows
        leading, size = rows.shape[:-1], rows.shape[-1]
        rows = rows.reshape(-1, size)
        rows = np.take_along_axis(rows, np.argsort(rows < 0, axis=1, kind="stable"), axis=1)
        real = rows >= 0
        n_node, n_edge = (np.where(real, n[rows], 0) for n in (self._n_node, self._n_edge))
        node_runs = _packing.Runs(n_node, self._first_node[rows], budget.n_node)
        edge_runs = _packing.Runs(n_edge, self._first_edge[rows], budget.n_edge)
        endpoint_runs = _packing.Runs(n_edge, self._first_endpoint[rows], budget.n_edge)
        node_offsets = _packing.exclusive_cumsum(n_node)
        first_padding = n_node.sum(axis=1, dtype=np.int32)

        def padded_counts(n: np.ndarray, total: int) -> np.ndarray:
            padded = np.append(n, np.zeros_like(n[:, :1]), axis=1).astype(np.int32)
            padded[np.arange(len(n)), real.sum(axis=1)] = total - n.sum(axis=1)
            return padded

        def padded_globals(a: np.ndarray) -> np.ndarray:
            padded = np.zeros((len(rows), size + 1, *a.shape[1:]), a.dtype)
            padded[:, :-1][real] = a[self._rows[rows[real]]]
            return padded

        packed = PaddedGraphsTuple(
            nodes=jax.tree.map(lambda a: node_runs.fill(a), self._nodes),
            edges=jax.tree.map(lambda a: edge_runs.fill(a), self._edges),
            senders=endpoint_runs.fill(self._endpoints[0], node_offsets, first_padding),
            receivers=endpoint_runs.fill(self._endpoints[1], node_offsets, first_padding),
            n_node=padded_counts(n_node, budget.n_node),
            n_edge=padded_counts(n_edge, budget.n_edge),
            globals=jax.tree.map(padded_globals, self._globals),
        )
        return jax.tree.map(lambda a: a.reshape(leading + a.shape[1:]), packed)

    def _graph(self, row: int) -> GraphsTuple:
        """One graph, without padding."""
        n_node, n_edge = self._n_node[row], self._n_edge[row]
        nodes = slice(self._first_node[row], self._first_node[row] + n_node)
        edges = slice(self._first_edge[row], self._first_edge[row] + n_edge)
        endpoints = slice(self._first_endpoint[row], self._first_endpoint[row] + n_edge)
        k = self._rows[row]
        senders, receivers = (
            np.asarray(a[endpoints], np.promote_types(a.dtype, np.int32)) for a in self._endpoints
        )
        return GraphsTuple(
            nodes=jax.tree.map(lambda a: np.asarray(a[nodes]), self._nodes),
            edges=jax.tree.map(lambda a: np.asarray(a[edges]), self._edges),
            senders=senders,
            receivers=receivers,
            n_node=self._n_node[row : row + 1],
            n_edge=self._n_edge[row : row + 1],
            globals=jax.tree.map(lambda a: np.asarray(a[k : k + 1]), self._globals),
        )
