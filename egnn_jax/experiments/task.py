"""The base class of tasks: data, head and loss of an experiment, and what it reports."""

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax._progress import progress_bar
from egnn_jax.data.dataset import GraphDataset
from egnn_jax.data.structures import Structure
from egnn_jax.graph import batching
from egnn_jax.graph.batching import Budget
from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.training.evaluation import Metrics
from egnn_jax.training.step import Loss

Apply = Callable[..., Any]
"""The type of ``network.apply``: (parameters, graph) to graph."""

PROGRESS_BAR_THRESHOLD = 5_000
"""The number of graphs from which predictions show a progress bar."""

MAX_BATCH_EDGES = 200_000
"""The largest number of edges of a batch of several graphs in predictions, to bound the memory."""


class Task:
    """Base class of tasks, frozen dataclasses whose fields are the options in YAML.

    A task must define :meth:`samples` and :meth:`loss`; all other methods have defaults. To predict
    properties of molecules with :class:`egnn_jax.Pretrained` and ``egnn predict``, it also defines
    ``columns`` and ``properties``, like :class:`egnn_jax.experiments.qm9.QM9`.
    """

    metric: str = "loss"
    """The metric whose smallest validation value selects the parameters."""

    trained_on: str = "training"
    test_set: str = "the test set"
    alike: str = "samples like those of the validation set"
    """The names, in the output of predictions, of the training and test samples, and of the samples
    that intervals are made for."""

    def samples(self, split: str) -> Any:
        """The samples of "train", "valid" or "test", for example a :class:`egnn_jax.GraphDataset`.

        Any object with a length and a method ``loader(batch_size, seed)`` works.
        """
        raise NotImplementedError  # each task has its own

    def loss(self, apply: Apply) -> Loss:
        """The loss of a network, given its ``apply``: (params, batch, key) -> (scalar, metrics)."""
        raise NotImplementedError  # each task has its own

    def metrics(self, apply: Apply) -> Metrics | None:
        """The metrics that evaluation reports; by default, the loss and its metrics."""
        return None

    def network(self, model: nn.Module) -> nn.Module:
        """The network to train: the model with the head of this task; by default, the model."""
        return model

    def graph(self, batch: Any, key: jax.Array) -> GraphsTuple:
        """The network's input for one batch; by default, the batch itself.

        Args:
          batch: a batch from the loader of :meth:`samples`.
          key: the random key, if the input is random.
        """
        return batch

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the user's data files; a run is refused if one of them has changed."""
        return ()

    @property
    def units(self) -> Mapping[str, str]:
        """The units of the metrics that have one."""
        return {}

    @property
    def reads_bonds(self) -> bool:
        """Whether ``properties`` takes ``bonds``, a :class:`egnn_jax.data.bonds.Bonds`."""
        return False

    @property
    def elements(self) -> tuple[str, ...]:
        """The symbols of the elements that predictions support, if inputs have elements."""
        return ()

    def takes(self, molecule: Structure) -> bool:
        """Whether the task supports a molecule: its elements are among :attr:`elements`."""
        return set(molecule.symbols) <= set(self.elements)

    def outside(self, molecule: Structure) -> list[str]:
        """How a molecule differs from the training molecules: by default, in its elements, a charge
        or its ``notes``.
        """
        unknown_elements = sorted(set(molecule.symbols) - set(self.elements))
        reasons = []
        if unknown_elements:
            training_elements = ", ".join(self.elements)
            reasons.append(
                f"it has {', '.join(unknown_elements)}; {self.trained_on} has {training_elements}"
            )
        if molecule.charge:
            reasons.append(f"its charge is {molecule.charge:+d}")
        return [*reasons, *molecule.notes]

    @property
    def paper(self) -> Mapping[str, float]:
        """The paper's test value of :attr:`metric`, by registered model name."""
        return {}

    @property
    def draws(self) -> int:
        """The number of random keys over which final metrics are averaged; 1 without randomness."""
        return 1

    def constants(self) -> dict[str, Any]:
        """Plain values from the data that predictions need, for example means."""
        return {}

    def with_constants(self, constants: Mapping[str, Any]) -> "Task":
        """This task with the values that :meth:`constants` returned, so that it needs no data."""
        return self

    def details(self, apply: Apply, params: Any) -> dict[str, Any]:
        """Information on predictions beyond the metrics, as plain values."""
        return {}

    def trivial(self, apply: Apply) -> tuple[str, Apply] | None:
        """A trivial answer without learning, if any: a description, and a substitute for ``apply``.

        Runs are compared with it, see :func:`egnn_jax.experiments.outcome.judge`.
        """
        return None

    def plot(self, apply: Apply, params: Any, path: Path) -> Path | None:
        """Plot predictions and true values of test samples to a file, if the task supports it."""
        return None

    def compare(self, results: Mapping[str, Any], folder: Path) -> list[Path]:
        """Write tables and plots that compare several results, and return the files written."""
        return []


def predictions(
    predict: Callable[[Apply, Any, GraphsTuple], jax.Array],
    apply: Apply,
    params: Any,
    graphs: GraphDataset,
    num_values: int,
) -> np.ndarray:
    """Predict values (S, num_values) of all graphs, in order, on all devices of the process.

    Args:
      predict: (apply, params, batch) to an array whose first rows belong to the batch's graphs.
      apply: the network's ``apply``; with the same one, only new shapes are compiled.
      params: the network's parameters.
      graphs: the graphs.
      num_values: the number of values per graph.
    """
    # Small enough that the activations of a batch stay in a CPU's caches.
    batch_size = prediction_batch_size(graphs, 10 if jax.default_backend() == "cpu" else 100)
    compiled, values = jax.jit(apply), np.zeros((len(graphs), num_values))
    if len(graphs) <= batch_size:
        outputs = predict(
            compiled, params, jax.device_put(_pack_to_powers_of_two(graphs, batch_size))
        )
        values[:] = np.asarray(outputs)[: len(graphs)]
        return values
    loader = graphs.loader(batch_size)
    num_batches = loader.num_batches(None)
    devices = jax.local_devices()[:num_batches]
    params = [jax.device_put(params, device) for device in devices]
    pending: deque[tuple[np.ndarray, jax.Array]] = deque()
    batch_indices = range(num_batches)
    if len(graphs) >= PROGRESS_BAR_THRESHOLD:
        batch_indices = progress_bar(batch_indices, unit="batch", desc="predictions")
    for k in batch_indices:
        rows = loader.rows(None)[k, 0]
        batch = jax.tree.map(lambda a: a[0, 0], loader.batches(None, k, 1))
        device_index = k % len(devices)
        batch = jax.device_put(batch, devices[device_index])
        pending.append((rows[rows >= 0], predict(compiled, params[device_index], batch)))
        while len(pending) > (2 * len(devices) if k + 1 < num_batches else 0):
            rows, outputs = pending.popleft()
            values[rows] = np.asarray(outputs)[: len(rows)]
    return values


def prediction_batch_size(graphs: GraphDataset, max_graphs: int) -> int:
    """A batch size for predictions, at most ``max_graphs``, smaller for graphs with many edges."""
    if not len(graphs):
        return max_graphs
    max_n_edge = max(graphs.budgets(1)[-1].n_edge, 1)
    return max(min(max_graphs, len(graphs), MAX_BATCH_EDGES // max_n_edge), 1)


def _pack_to_powers_of_two(graphs: GraphDataset, max_graphs: int) -> GraphsTuple:
    """Pack at most ``max_graphs`` graphs into one batch whose sizes are powers of 2, so that
    successive predictions need few compilations.
    """
    packed = graphs.pack(np.arange(len(graphs)))
    counts = len(packed.nodes.x), len(packed.senders)
    padding_nodes, padding_edges = ((1 << count.bit_length()) - count for count in counts)
    return batching.padded(
        packed, Budget(padding_nodes, padding_edges, max_graphs + 2 - len(packed.n_node))
    )


def zeros_of(apply: Apply) -> Apply:
    """A substitute for a network's ``apply`` that returns zeros of the same shapes."""

    def zeros(params: Any, graph: Any) -> Any:
        shapes = jax.eval_shape(apply, params, graph)
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    return zeros
