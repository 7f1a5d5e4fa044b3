"""What the training loop asks of a task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from egnn_jax.graph import GraphsTuple

Apply = Callable[..., Any]
"""``model.apply``: (parameters, graph) to graph."""

Sums = tuple[jax.Array, jax.Array]
"""The sum of a quantity over a batch, and how many terms it has."""


class Task(Protocol):
    """Data, inputs, loss and metrics. A task is a frozen dataclass whose fields are its options."""

    metric: ClassVar[str]
    """The metric whose smallest validation value chooses the epoch."""

    paper: ClassVar[dict[str, float]]
    """The paper's test value of that metric, by the registry's name of the model."""

    def size(self, split: str) -> int:
        """How many samples a split ("train", "valid", "test") has."""
        ...

    def pack(self, split: str, rows: np.ndarray) -> Any:
        """Host arrays of K stacked batches from sample numbers (K, B); -1 is padding."""
        ...

    def graph(self, batch: Any) -> GraphsTuple:
        """The model's input for one batch."""
        ...

    def loss(self, apply: Apply, params: Any, batch: Any, key: jax.Array) -> jax.Array:
        """What training minimises, a scalar."""
        ...

    def metrics(self, apply: Apply, params: Any, batch: Any, key: jax.Array) -> dict[str, Sums]:
        """What evaluation reports, as sums over the real samples of a batch."""
        ...

    def draw(self, apply: Apply, params: Any, path: Path) -> Path:
        """Write a picture of predictions beside the truth on the test split."""
        ...
