"""Extending a finished or stopped run to more epochs, if this equals one uninterrupted run."""

import dataclasses

from egnn_jax.experiments.config import Config
from egnn_jax.training.checkpoint import RunFolder


def is_longer(run: RunFolder, before: Config, config: Config) -> bool:
    """Whether ``config`` extends a run, that is, differs from ``before`` only by more epochs.

    With a learning rate that is constant (after warm-up) or falls on plateaus, the run continues as
    if it had been started with the epochs of ``config``, apart from the evaluation at its former
    end.

    Raises:
      ValueError: the config has fewer epochs, or the learning rate depends on their number.
    """
    same_otherwise = dataclasses.replace(before, epochs=config.epochs) == config
    if not same_otherwise or config.epochs == before.epochs:
        return False
    if config.epochs < before.epochs:
        raise ValueError(
            f"{run.path} holds a run of {before.epochs} epochs and the config has "
            f"{config.epochs}; expected as many or more, or another folder"
        )
    if config.optimizer.schedule not in ("constant", "plateau"):
        raise ValueError(
            f"{run.path} holds a run of {before.epochs} epochs with the schedule "
            f"{config.optimizer.schedule!r}, whose learning rates are others in a run of "
            f"{config.epochs} epochs: going on would give neither run. Expected another folder for "
            f"the longer run, which may start from these weights: --init {run.path}"
        )
    return True
