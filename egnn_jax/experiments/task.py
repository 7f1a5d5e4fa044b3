"""What an experiment asks of a model: data, a head, a loss; and what there is to report."""

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data.dataset import GraphDataset
from egnn_jax.data.structures import Structure
from egnn_jax.graph import batching
from egnn_jax.graph.batching import Budget
from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.training.evaluation import Metrics
from egnn_jax.training.step import Loss

Apply = Callable[..., Any]
"""``network.apply``: (parameters, graph) to graph."""

SPLITS = ("train", "valid", "test")


class Task:
    """Base class of tasks: frozen dataclasses whose fields are the options in YAML.

    A task has to define :meth:`samples` and :meth:`loss`; all else has defaults. One that predicts
    properties of molecules also has ``columns`` and ``properties``, as
    :class:`egnn_jax.experiments.qm9.QM9`, and so works with :class:`egnn_jax.Pretrained` and
    ``egnn predict``.
    """

    metric: str = "loss"
    """The metric whose smallest validation value chooses the parameters."""

    trained_on: str = "training"
    test_set: str = "the test set"
    """What predictions call the samples of "train" and "test"."""

    def samples(self, split: str) -> Any:
        """The samples of "train", "valid" or "test", such as a :class:`egnn_jax.GraphDataset`.

        Anything will do that has ``loader(batch_size, seed)`` and a length.
        """
        raise NotImplementedError  # each task has its own

    def loss(self, apply: Apply) -> Loss:
        """The loss of the network whose ``apply`` is given: (params, batch, key) to it, metrics."""
        raise NotImplementedError  # each task has its own

    def metrics(self, apply: Apply) -> Metrics | None:
        """What evaluation reports; the metrics of the loss, and its value, by default."""
        return None

    def network(self, model: nn.Module) -> nn.Module:
        """What is trained: the model with the head that this task needs; the model by default."""
        return model

    def graph(self, batch: Any, key: jax.Array) -> GraphsTuple:
        """The network's input for one batch, which is the batch itself by default.

        Args:
          batch: as the loader of :meth:`samples` makes it.
          key: for what is random in the input.
        """
        return batch

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the user's files that samples come from; a run refuses changed ones."""
        return ()

    @property
    def units(self) -> Mapping[str, str]:
        """The units of the metrics that have one."""
        return {}

    @property
    def elements(self) -> tuple[str, ...]:
        """The symbols of the elements that predictions are for, where inputs have elements."""
        return ()

    def takes(self, molecule: Structure) -> bool:
        """Whether a molecule gets predictions: its elements are among :attr:`elements`."""
        return set(molecule.symbols) <= set(self.elements)

    def outside(self, molecule: Structure) -> list[str]:
        """In what a molecule differs from those that were trained on: by default in its elements,
        in a charge, or as its ``notes`` say.
        """
        unknown = sorted(set(molecule.symbols) - set(self.elements))
        own = ", ".join(self.elements)
        reasons = [f"it has {', '.join(unknown)}; {self.trained_on} has {own}"] if unknown else []
        if molecule.charge:
            reasons.append(f"its charge is {molecule.charge:+d}")
        return [*reasons, *molecule.notes]

    @property
    def paper(self) -> Mapping[str, float]:
        """The paper's test value of :attr:`metric`, by the registry's name of the model."""
        return {}

    @property
    def draws(self) -> int:
        """How many random keys the final metrics are averaged over; 1 where nothing is random."""
        return 1

    def constants(self) -> dict[str, Any]:
        """Plain values that predictions need and that come from the data, such as means."""
        return {}

    def with_constants(self, constants: Mapping[str, Any]) -> "Task":
        """This task with what :meth:`constants` returned for it, so that no data are needed."""
        return self

    def details(self, apply: Apply, params: Any) -> dict[str, Any]:
        """What there is to say of predictions beyond the metrics, as plain values."""
        return {}

    def trivial(self, apply: Apply) -> tuple[str, Apply] | None:
        """An answer without learning, in words and in the place of ``apply``, if there is one.

        A run is compared with it, see :func:`egnn_jax.experiments.outcome.judge`.
        """
        return None

    def plot(self, apply: Apply, params: Any, path: Path) -> Path | None:
        """Draw predictions beside the truth on test samples into a file, if there is a way."""
        return None

    def compare(self, results: Mapping[str, Any], folder: Path) -> list[Path]:
        """Write tables and pictures of several results together; the files written."""
        return []


def predictions(
    predict: Callable[[Apply, Any, GraphsTuple], jax.Array],
    apply: Apply,
    params: Any,
    graphs: GraphDataset,
    number: int,
) -> np.ndarray:
    """Numbers (S, number) of all graphs in their order, in batches on all devices of the process.

    Args:
      predict: (apply, params, batch) to an array whose first rows are those of the batch's graphs.
      apply: of the network; called with the same one again, it is compiled for new shapes alone.
      params: of the network.
      graphs: what is predicted.
      number: of what each graph gets.
    """
    # Small enough that what is computed of a batch stays in a CPU's caches.
    size = 10 if jax.default_backend() == "cpu" else 100
    compiled, values = jax.jit(apply), np.zeros((len(graphs), number))
    if len(graphs) <= size:
        batch = jax.device_put(_in_few_shapes(graphs, size))
        values[:] = np.asarray(predict(compiled, params, batch))[: len(graphs)]
        return values
    loader = graphs.loader(size)
    batches = loader.num_batches(None)
    devices = jax.local_devices()[:batches]
    params = [jax.device_put(params, device) for device in devices]
    running: deque[tuple[np.ndarray, jax.Array]] = deque()
    for k in range(batches):
        rows = loader.rows(None)[k, 0]
        batch = jax.tree.map(lambda a: a[0, 0], loader.batches(None, k, 1))
        place = k % len(devices)
        batch = jax.device_put(batch, devices[place])
        running.append((rows[rows >= 0], predict(compiled, params[place], batch)))
        while len(running) > (2 * len(devices) if k + 1 < batches else 0):
            rows, found = running.popleft()
            values[rows] = np.asarray(found)[: len(rows)]
    return values


def _in_few_shapes(graphs: GraphDataset, most: int) -> GraphsTuple:
    """At most so many graphs as one batch, of sizes that are powers of 2: graphs that are predicted
    one after the other then need few compilations.
    """
    packed = graphs.pack(np.arange(len(graphs)))
    counts = len(packed.nodes.x), len(packed.senders)
    nodes, edges = ((1 << count.bit_length()) - count for count in counts)
    return batching.padded(packed, Budget(nodes, edges, most + 2 - len(packed.n_node)))


def zeros_of(apply: Apply) -> Apply:
    """A network's ``apply`` whose output is 0 everywhere, in the shapes of the network's own."""

    def zeros(params: Any, graph: Any) -> Any:
        out = jax.eval_shape(apply, params, graph)
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), out)

    return zeros
