"""Callbacks of training: progress bars, logs and early stopping.

A callback is any object with some of the methods of :class:`Callback`::

    class Printer(egnn.Callback):
        def evaluated(self, progress):
            print(progress.epoch, progress.metrics)
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from egnn_jax._extras import require
from egnn_jax._files import expanded
from egnn_jax._progress import progress_bar
from egnn_jax.graph._validation import require_number


@dataclasses.dataclass
class Progress:
    """The progress of training; with several seeds, values have a leading axis of that size.

    Attributes:
      step, total_steps: optimizer steps taken so far and in total.
      epoch, epochs: epochs completed so far and in total.
      loss: the mean training loss since the last evaluation.
      metrics: the metrics of the last evaluation on the validation samples.
      monitor: the name of the metric that selects the best parameters.
      best_value, best_epoch: its smallest value so far, and the epoch of that value (0: none yet).
      seconds: training time, including the time before the run was resumed.
      params: the parameters to evaluate (the moving average if there is one), on devices; None
        before the first step. The next step reuses their memory: copy them to keep them.
      folder: the folder of the run, or None.
    """

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    epochs: int = 0
    loss: Any = float("nan")
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    monitor: str = "loss"
    best_value: Any = float("inf")
    best_epoch: Any = 0
    seconds: float = 0.0
    params: Any = None
    folder: Path | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """The last evaluation as plain values: one line of ``metrics.jsonl``."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "train": {"loss": _plain(self.loss)},
            "valid": {name: _plain(value) for name, value in self.metrics.items()},
        }


class Callback:
    """Base class of callbacks of :func:`egnn_jax.fit`; every method is optional."""

    def started(self, progress: Progress) -> None:
        """Called before the first step, also when training is resumed."""

    def stepped(self, progress: Progress) -> None:
        """Called after each compiled call, which takes up to ``chunk_steps`` steps."""

    def evaluated(self, progress: Progress) -> bool | None:
        """Called after each evaluation; return True, or an array of True, to stop training."""

    def ended(self, progress: Progress) -> None:
        """Called after the last step, and also if training is interrupted or fails."""


METHODS = ("started", "stepped", "evaluated", "ended")


class ProgressBar(Callback):
    """Show a progress bar on stderr, or occasional lines if stderr is not a terminal."""

    def __init__(self, description: str = "") -> None:
        self._description = description
        self._bar: Any = None

    def started(self, progress: Progress) -> None:
        """See :class:`Callback`."""
        name = self._description or (progress.folder.name if progress.folder else "fit")
        self._bar = progress_bar(
            total=progress.total_steps, initial=progress.step, unit="step", desc=name
        )
        self._bar.set_postfix_str("compiling")

    def stepped(self, progress: Progress) -> None:
        """See :class:`Callback`."""
        if self._bar.postfix == "compiling":
            self._bar.set_postfix_str("", refresh=False)
        self._bar.update(progress.step - self._bar.n)

    def evaluated(self, progress: Progress) -> None:
        """See :class:`Callback`."""
        postfix = {"epoch": f"{progress.epoch:g}/{progress.epochs}"}
        postfix["loss"] = f"{np.mean(progress.loss):.5f}"
        if progress.monitor in progress.metrics:
            postfix["valid"] = f"{np.mean(progress.metrics[progress.monitor]):.5f}"
            postfix["best"] = f"{np.mean(progress.best_value):.5f}"
        self._bar.set_postfix(postfix)

    def ended(self, progress: Progress) -> None:
        """See :class:`Callback`."""
        self._bar.close()


class MetricsLog(Callback):
    """Write ``metrics.jsonl`` in the folder of the run, one line of JSON per evaluation."""

    def started(self, progress: Progress) -> None:
        """See :class:`Callback`."""
        from egnn_jax.training.checkpoint import RunFolder

        if progress.folder is None:
            raise ValueError("MetricsLog writes to the folder of a run; expected fit(…, folder=…)")
        self._run = RunFolder(progress.folder)
        self._run.rewind(progress.step)

    def evaluated(self, progress: Progress) -> None:
        """See :class:`Callback`."""
        self._run.log(progress.entry)


class EarlyStopping(Callback):
    """Stop training once no seed's validation value has improved for a number of epochs.

    Args:
      patience: the number of epochs.

    Raises:
      ValueError: ``patience`` is not above 0.
    """

    def __init__(self, patience: float) -> None:
        require_number("patience", patience)
        if not patience > 0:
            raise ValueError(f"patience is {patience!r}; expected a number of epochs above 0")
        self.patience = patience

    def evaluated(self, progress: Progress) -> bool:
        """See :class:`Callback`."""
        return progress.epoch - float(np.max(progress.best_epoch)) >= self.patience


class TensorBoard(Callback):
    """Write scalars for TensorBoard; needs ``pip install 'egnn-jax[tensorboard]'``.

    Args:
      folder: the folder for events; by default, ``tensorboard`` in the folder of the run.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self._folder = folder
        self._writer: Any = None

    def started(self, progress: Progress) -> None:
        """See :class:`Callback`."""
        require("tensorboardX")
        from tensorboardX import SummaryWriter

        folder = self._folder or (progress.folder or Path()) / "tensorboard"
        self._writer = SummaryWriter(str(expanded(folder)), purge_step=progress.step + 1)

    def evaluated(self, progress: Progress) -> None:
        """See :class:`Callback`."""
        self._writer.add_scalar("train/loss", np.mean(progress.loss), progress.step)
        for name, value in progress.metrics.items():
            self._writer.add_scalar(f"valid/{name}", np.mean(value), progress.step)

    def ended(self, progress: Progress) -> None:
        """See :class:`Callback`."""
        self._writer.close()


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()
