"""What the training loop asks of a task."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

from egnn_jax.data.cache import write_atomically
from egnn_jax.graph.graph import GraphsTuple

Apply = Callable[..., Any]
"""``model.apply``: (parameters, graph) to graph."""

Sums = tuple[jax.Array, jax.Array]
"""The sum of a quantity over a batch, and how many terms it has."""


class Task(Protocol):
    """Data, inputs, loss and metrics. A task is a frozen dataclass whose fields are its options."""

    @property
    def metric(self) -> str:
        """The metric whose smallest validation value chooses the epoch."""
        ...

    @property
    def paper(self) -> Mapping[str, float]:
        """The paper's test value of that metric, by the registry's name of the model."""
        ...

    @property
    def units(self) -> Mapping[str, str]:
        """The units of the metrics that have one."""
        ...

    @property
    def draws(self) -> int:
        """How many passes the final metrics are averaged over, each with a random key of its own; 1
        where keys do not matter.
        """
        ...

    def network(self, model: nn.Module) -> nn.Module:
        """What is trained: the model, and the task's readout where it has one."""
        ...

    def size(self, split: str) -> int:
        """How many samples a split ("train", "valid", "test") has."""
        ...

    def deal(
        self, split: str, rows: np.ndarray, steps: int, groups: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Sample numbers ``rows`` (steps·B,), in the order of an epoch, dealt into batches (steps,
        groups, B/groups).

        A task whose samples differ in size may change the order, at random from ``generator``, so
        that batches do not.
        """
        ...

    def pack(self, split: str, rows: np.ndarray) -> Any:
        """Host arrays of batches from sample numbers (…, B), stacked along the leading axes; -1 is
        padding.
        """
        ...

    def graph(self, batch: Any, key: jax.Array) -> GraphsTuple:
        """The model's input for one batch; ``key`` draws what is random in it."""
        ...

    def loss(self, apply: Apply, params: Any, batch: Any, key: jax.Array) -> jax.Array:
        """What training minimises, a scalar."""
        ...

    def metrics(self, apply: Apply, params: Any, batch: Any, key: jax.Array) -> dict[str, Sums]:
        """What evaluation reports, as sums over the real samples of a batch."""
        ...

    def details(self, apply: Apply, params: Any) -> dict[str, Any]:
        """What there is to say of the predictions beyond the metrics, as plain values; may be
        empty.
        """
        ...

    def draw(self, apply: Apply, params: Any, path: Path) -> Path:
        """Write a picture of predictions beside the truth on the test split."""
        ...

    def compare(self, results: Mapping[str, Any], folder: Path) -> list[Path]:
        """Write tables and pictures of several runs' results together, where the task has such;
        returns the files.
        """
        ...


def save(figure: Any, path: Path, dpi: int = 130, tight: bool = True) -> Path:
    """Write a matplotlib figure, cut to what is drawn if ``tight``, and free it."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, bbox_inches="tight" if tight else None)
    plt.close(figure)
    return path


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table; the first row's keys are its head."""
    lines = [
        list(rows[0]),
        ["---"] * len(rows[0]),
        *([row[key] for key in rows[0]] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_table(rows: Sequence[dict[str, str]], stem: Path) -> list[Path]:
    """The table as ``stem``.md and ``stem``.png."""
    import matplotlib.pyplot as plt

    text, picture = stem.with_suffix(".md"), stem.with_suffix(".png")
    write_atomically(text, markdown(rows).encode())
    figure, axes = plt.subplots(figsize=(1.6 * len(rows[0]), 0.4 * (len(rows) + 1)))
    axes.axis("off")
    table = axes.table(
        [list(row.values()) for row in rows],
        colLabels=list(rows[0]),
        loc="center",
        cellLoc="center",
    )
    table.scale(1, 1.4)
    save(figure, picture)
    return [text, picture]


class OfGraphSets:
    """What a task whose splits are sets of graphs needs no lines for."""

    splits: Any
    """The :class:`GraphSet` of each split, by name."""

    def size(self, split: str) -> int:
        """The number of graphs in a split."""
        return len(self.splits[split])

    def deal(
        self, split: str, rows: np.ndarray, steps: int, groups: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Batches of about as many edges each, see :meth:`GraphSet.deal`."""
        return self.splits[split].deal(rows, steps, groups, generator)

    def pack(self, split: str, rows: np.ndarray) -> GraphsTuple:
        """Batches stacked along the leading axes of ``rows`` (…, B); a row of -1 is padding."""
        return self.splits[split].pack(rows)
