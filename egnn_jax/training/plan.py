"""The arguments and the result of ``fit``."""

import dataclasses
import math
from typing import Any

from egnn_jax.data.loader import DatasetLoader, Loader, require_loader
from egnn_jax.graph._validation import require_count, require_number


@dataclasses.dataclass(frozen=True)
class Plan:
    """The data and schedule of a run; the fields are the arguments of ``fit``."""

    train: Loader
    valid: Loader | None
    epochs: int
    monitor: str = "loss"
    seed: int = 0
    seeds: int = 1
    ema_decay: float = 0.0
    micro_batches: int = 1
    eval_every: int = 1
    chunk_steps: int = 200
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Raise ValueError if a loader or number is invalid."""
        require_loader("train", self.train)
        if self.valid is not None:
            require_loader("valid", self.valid)
        for name in ("epochs", "seeds", "micro_batches", "eval_every", "chunk_steps"):
            require_count(name, getattr(self, name))
        require_number("checkpoint_seconds", self.checkpoint_seconds)
        require_number("ema_decay", self.ema_decay)
        if not self.checkpoint_seconds >= 0:
            raise ValueError(
                f"checkpoint_seconds is {self.checkpoint_seconds}; expected 0 or more seconds"
            )
        batch_size = self.train.batch_size
        if self.train.num_batches(0) < 1:
            num_samples = ""
            if isinstance(self.train, DatasetLoader):
                num_samples = f", {len(self.train.dataset)}"
            raise ValueError(
                f"batch_size is {batch_size}; expected at most the number of samples to train on"
                f"{num_samples}"
            )
        if batch_size % self.micro_batches:
            raise ValueError(
                f"micro_batches is {self.micro_batches}; expected a divisor of the batch_size "
                f"{batch_size}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; expected a number from 0 to below 1")
        require_count("seed", self.seed, 0, 2**32 - self.seeds)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """The result of :func:`fit`; with several seeds, arrays have a leading axis of that size.

    Attributes:
      params: the parameters with the best validation value (without validation, the last ones).
      best_value: that value; nan without validation.
      best_epoch: the epoch of that value.
      history: one entry per evaluation: epoch, step, seconds, training loss, validation metrics.
      seconds: training time, including the time before the run was resumed.
      notes: remarks on the numbers, for example that devices changed on resume.
    """

    params: Any = dataclasses.field(repr=False)
    best_value: Any
    best_epoch: Any
    history: list[dict[str, Any]]
    seconds: float
    notes: tuple[str, ...] = ()


def chunk_length(interval: int, total: int, max_length: int) -> int:
    """The number of steps per compiled call: a divisor of all intervals if one is large enough.

    With a divisor, only one scan length is compiled. Much shorter scans waste time on allocation.
    """
    longest = min(max_length, interval)
    divisor = max(d for d in range(1, longest + 1) if math.gcd(interval, total) % d == 0)
    return divisor if 2 * divisor > longest else longest
