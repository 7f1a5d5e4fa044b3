"""Assessing a run: comparison with a trivial prediction, and detection of exploded training."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from egnn_jax.experiments.config import Config
from egnn_jax.experiments.start import first_seed
from egnn_jax.training.evaluation import Evaluation, metrics_of
from egnn_jax.training.plan import FitResult

EXPLODED = 10.0
"""The factor over the trivial or first value beyond which training counts as exploded."""


def judge(config: Config, network: Any, result: FitResult) -> dict[str, Any]:
    """Assess a run beyond its metrics, as entries of ``result.json``.

    Returns:
      ``trivial``: the validation value of :meth:`egnn_jax.Task.trivial`, if the task has one.
      ``notes``, if any: sentences from training, and whether the result is no better than the
      trivial one or training exploded. ``exploded``: True if the best validation value of a seed is
      more than :data:`EXPLODED` times the trivial one, or if the last value is more than that many
      times both the first and the trivial one while the training loss has not decreased either.
    """
    metric = config.task.metric
    entries: dict[str, Any] = {}
    notes = list(result.notes)
    best_values = np.atleast_1d(result.best_value)
    trivial_value = np.nan
    trivial = config.task.trivial(network.apply)
    if trivial is not None:
        description, apply = trivial
        evaluate = Evaluation(
            config.task.metrics(apply) or metrics_of(config.task.loss(apply)),
            config.task.samples("valid").loader(config.batch_size),
            seed=config.seed,
        )
        trivial_value = float(evaluate(first_seed(config, result.params))[metric])
        entries["trivial"] = {"answer": description, metric: trivial_value}
        if np.max(best_values) >= trivial_value:
            notes.append(
                f"the best {metric} of the validation samples is {np.max(best_values):.5g}, no "
                f"better than {trivial_value:.5g} of a trivial prediction ({description})"
            )
    last_value, diverged = np.max(best_values), False
    if result.history:  # else metrics.jsonl was deleted
        first_value, last_value = (
            np.max(np.nan_to_num(np.asarray(entry["valid"][metric]), nan=np.inf))
            for entry in (result.history[0], result.history[-1])
        )
        limit = EXPLODED * max(first_value, 0.0 if np.isnan(trivial_value) else trivial_value)
        # A training loss that decreases means overfitting.
        loss_decreased = np.all(_loss(result.history[-1]) < _loss(result.history[0]))
        diverged = last_value > limit > 0 and not loss_decreased
    if np.max(best_values) > EXPLODED * trivial_value > 0 or diverged:
        entries["exploded"] = True
        epochs = np.unique(result.best_epoch).tolist()
        notes.append(
            f"the training exploded: {metric} of the validation samples is {last_value:.5g} at the "
            f"end; the best parameters, of epoch {', '.join(map(str, epochs))}, are kept"
        )
    return entries | ({"notes": notes} if notes else {})


def _loss(entry: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(entry["train"]["loss"])
