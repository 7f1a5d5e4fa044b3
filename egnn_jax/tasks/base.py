"""What the training loop asks of a task."""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jraph
import numpy as np

Apply = Callable[[Any, jraph.GraphsTuple], jraph.GraphsTuple]
"""``model.apply``: parameters and a graph to a graph."""

Sums = tuple[jax.Array, jax.Array]
"""The sum of a quantity over a batch, and how many terms it has."""


class Task(Protocol):
    """Data, inputs, loss and metrics. A task is a frozen dataclass whose fields are its options."""

    metric: ClassVar[str]
    """The metric whose smallest validation value chooses the epoch."""

    def size(self, split: str) -> int:
        """How many samples a split ("train", "valid", "test") has."""
        ...

    def pack(self, split: str, rows: np.ndarray) -> Any:
        """Host arrays of K stacked batches from sample numbers (K, B); -1 is padding."""
        ...

    def graph(self, batch: Any) -> jraph.GraphsTuple:
        """The model's input for one batch."""
        ...

    def loss(self, apply: Apply, params: Any, batch: Any, key: jax.Array) -> jax.Array:
        """What training minimises, a scalar."""
        ...

    def metrics(self, apply: Apply, params: Any, batch: Any, key: jax.Array) -> dict[str, Sums]:
        """What evaluation reports, as sums over the real samples of a batch."""
        ...
