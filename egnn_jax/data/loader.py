"""Loaders with random access to batches by epoch and number, so that training resumes exactly."""

import inspect
from functools import lru_cache
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph._validation import host, require_count


class Dataset(Protocol):
    """Samples from which a :class:`DatasetLoader` makes batches.

    Attributes:
      pads: whether batches can contain padding without a sample, which metrics ignore.
    """

    pads: bool

    def __len__(self) -> int:
        """The number of samples S."""
        ...

    def arrange(
        self, rows: np.ndarray, steps: int, shards: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Assign samples to the batches of an epoch.

        A data set with samples of different sizes may reorder them at random, so that all batches
        have nearly the same size.

        Args:
          rows: sample numbers (steps·B,) in random order; -1 is no sample.
          steps: the number of batches.
          shards: the number of equal parts of each batch, one per device.
          rng: the random number generator.

        Returns:
          Sample numbers (steps, shards, B/shards).
        """
        ...

    def pack(self, rows: np.ndarray, own: slice = slice(None)) -> Any:
        """Pack samples into arrays with the leading axes of ``rows`` (…, B); -1 is no sample.

        With several processes, rows are (…, shards, B/shards), and only the shards ``own`` are
        packed, in the same shape as for all shards. With one process, ``own`` is not given.
        """
        ...


class Loader(Protocol):
    """The protocol of loaders for :func:`egnn_jax.fit` and :func:`egnn_jax.evaluate`.

    Any object with these members works. Batches are random access: the samples of batch k of an
    epoch depend only on the epoch and k, so that a resumed run sees the same batches as an
    uninterrupted one.
    """

    batch_size: int

    def num_batches(self, epoch: int | None) -> int:
        """The number of full batches of an epoch or, for None, of batches of an evaluation."""
        ...

    def batches(
        self, epoch: int | None, start: int, count: int, shards: int = 1, own: slice = slice(None)
    ) -> Any:
        """Batches ``start`` to ``start + count`` (exclusive) of an epoch, stacked.

        Args:
          epoch: the epoch, from 0; or None for all samples, each once, with the last batch padded
            if the data set supports padding. The order is up to the loader.
          start, count: the first batch and the number of batches.
          shards: the number of equal parts of each batch, one per device.
          own: which shards to pack; only given with several processes.

        Returns:
          A pytree of arrays with leading axes (count, shards), or (count, number of ``own``).
        """
        ...

    def remainder(self) -> Any:
        """The samples left over by the batches of an evaluation: one smaller batch, or None.

        This method may be missing if batches are padded.
        """
        ...


class DatasetLoader:
    """Load shuffled batches of a data set for training, and all samples, each once, for evaluation.

    Graphs are batched by size, in an evaluation too: ``rows(None)`` (batches, 1, B) gives the
    sample numbers of each batch, -1 for padding.

    Args:
      dataset: the samples.
      batch_size: samples per batch, B; in training, samples after the last full batch of an epoch
        are dropped.
      seed: seed of the order of samples, which differs between epochs.

    Raises:
      ValueError: the batch size is below 1, the seed below 0, or the data set is empty.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int = 0) -> None:
        require_count("batch_size", batch_size)
        require_count("seed", seed, 0)
        if not len(dataset):
            raise ValueError("the data set has no samples; expected at least 1")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rows = lru_cache(maxsize=2)(self._arrange)

    def __reduce__(self) -> Any:
        """Pickle the arguments only, without cached epochs."""
        return type(self), (self.dataset, self.batch_size, self.seed)

    def num_batches(self, epoch: int | None) -> int:
        """See :meth:`Loader.num_batches`."""
        full, remaining = divmod(len(self.dataset), self.batch_size)
        return full + 1 if epoch is None and remaining and self.dataset.pads else full

    def batches(
        self, epoch: int | None, start: int, count: int, shards: int = 1, own: slice = slice(None)
    ) -> Any:
        """See :meth:`Loader.batches`."""
        rows = self.rows(epoch, shards)[start : start + count]
        if own == slice(None):
            return self.dataset.pack(rows)
        require_own(self.dataset, "pack")
        return self.dataset.pack(rows, own)

    def remainder(self) -> Any:
        """See :meth:`Loader.remainder`."""
        first = self.num_batches(None) * self.batch_size
        rows = np.arange(first, len(self.dataset))
        return self.dataset.pack(rows) if len(rows) else None

    def _arrange(self, epoch: int | None, shards: int = 1) -> np.ndarray:
        size, steps = len(self.dataset), self.num_batches(epoch)
        rows = np.full(steps * self.batch_size, -1)
        if epoch is None:
            rng = np.random.default_rng(0)
            rows[: min(size, len(rows))] = np.arange(min(size, len(rows)))
        else:
            rng = np.random.default_rng([self.seed, epoch])
            rows[:] = rng.permutation(size)[: len(rows)]
        return self.dataset.arrange(rows, steps, shards, rng)


def any_batch(loader: Loader) -> Any:
    """The first batch of an evaluation, or the remainder if there is no full batch."""
    if loader.num_batches(None):
        return jax.tree.map(lambda a: a[0, 0], loader.batches(None, 0, 1))
    return loader.remainder()


def require_own(value: Any, method: str) -> None:
    """Raise ValueError if a method cannot pack only the shards of one process."""
    if "own" not in inspect.signature(getattr(value, method)).parameters:
        raise ValueError(
            f"{type(value).__name__}.{method} has no argument own; expected it among several "
            "processes, each of which packs some shards of a batch"
        )


def require_loader(name: str, value: Any) -> None:
    """Raise ValueError if ``value`` is not a :class:`Loader`."""
    if not all(hasattr(value, member) for member in ("batch_size", "num_batches", "batches")):
        raise ValueError(
            f"{name} is a {type(value).__name__}; expected a loader, such as dataset.loader(32)"
        )
    require_count("batch_size", value.batch_size)


class ArrayDataset:
    """S samples of one size: a pytree of arrays (S, …), for example the states of N particles.

    Batches have the structure of ``arrays``, with the leading axes of the requested rows. They are
    never padded: an evaluation ends with a smaller batch.

    Args:
      arrays: a NamedTuple, dict or other pytree of arrays.

    Raises:
      ValueError: the arrays differ in S, or one is not finite (the sample is named) or not numeric.
    """

    pads = False

    def __init__(self, arrays: Any) -> None:
        arrays = jax.tree_util.tree_map_with_path(_samples, arrays)
        leaves = jax.tree_util.tree_leaves_with_path(arrays)
        sizes = {len(leaf) for _, leaf in leaves}
        if len(sizes) != 1:
            raise ValueError(
                f"the arrays have {sorted(sizes)} samples; expected one number for all"
            )
        for path, leaf in leaves:
            finite = np.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
            if len(bad_rows := np.flatnonzero(~finite)):
                name = jax.tree_util.keystr(path, simple=True)
                raise ValueError(
                    f"{name} of sample {bad_rows[0]} is not finite; expected finite numbers"
                )
        self.arrays = arrays
        (self._size,) = sizes

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, rows: slice | np.ndarray) -> "ArrayDataset":
        """The samples of these rows, a slice or an array of indices or booleans.

        Raises:
          ValueError: ``rows`` is one index.
        """
        if not isinstance(rows, slice) and np.ndim(rows) == 0:
            raise ValueError(f"rows is {rows!r}; expected a slice or a list of rows")
        return ArrayDataset(jax.tree.map(lambda a: a[rows], self.arrays))

    def arrange(
        self, rows: np.ndarray, steps: int, shards: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Keep the order of rows, since all samples have the same size."""
        return rows.reshape(steps, shards, -1)

    def pack(self, rows: np.ndarray, own: slice = slice(None)) -> Any:
        """The arrays at ``rows`` (…, B), with zeros for -1. See :meth:`Dataset.pack`."""
        rows = rows[..., own, :] if rows.ndim > 1 else rows
        return jax.tree.map(
            lambda a: np.where(_expand(rows >= 0, a), a[rows], np.zeros((), a.dtype)), self.arrays
        )

    def loader(self, batch_size: int, seed: int = 0) -> DatasetLoader:
        """See :class:`DatasetLoader`."""
        return DatasetLoader(self, batch_size, seed)


def _samples(path: Any, leaf: Any) -> np.ndarray:
    """Convert a leaf to a host array (S, …) of numbers or booleans."""
    name = jax.tree_util.keystr(path, simple=True) or "the array"
    array = host(name, leaf)
    if array.ndim < 1 or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; expected numbers (S, …), a "
            "row for each sample"
        )
    return array


def _expand(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return mask.reshape(mask.shape + (1,) * (like.ndim - 1))
