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
    metric, found, notes = config.task.metric, {}, list(result.notes)
    best, value, words = np.atleast_1d(result.best_value), np.nan, ""
    answer = config.task.trivial(network.apply)
    if answer is not None:
        words, apply = answer
        evaluate = Evaluation(
            config.task.metrics(apply) or metrics_of(config.task.loss(apply)),
            config.task.samples("valid").loader(config.batch_size),
            seed=config.seed,
        )
        value = float(evaluate(first_seed(config, result.params))[metric])
        found["trivial"] = {"answer": words, metric: value}
        if np.max(best) >= value:
            notes.append(
                f"the best {metric} of the validation samples is {np.max(best):.5g}, no better "
                f"than {value:.5g} of a trivial prediction ({words})"
            )
    last, diverged = np.max(best), False
    if result.history:  # else metrics.jsonl was deleted
        first, last = (
            np.max(np.nan_to_num(np.asarray(entry["valid"][metric]), nan=np.inf))
            for entry in (result.history[0], result.history[-1])
        )
        allowed = EXPLODED * max(first, 0.0 if np.isnan(value) else value)
        # A training loss that decreases means overfitting.
        learned = np.all(_loss(result.history[-1]) < _loss(result.history[0]))
        diverged = last > allowed > 0 and not learned
    if np.max(best) > EXPLODED * value > 0 or diverged:
        found["exploded"] = True
        epochs = np.unique(result.best_epoch).tolist()
        notes.append(
            f"the training exploded: {metric} of the validation samples is {last:.5g} at the end; "
            f"the best parameters, of epoch {', '.join(map(str, epochs))}, are kept"
        )
    return found | ({"notes": notes} if notes else {})


def _loss(entry: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(entry["train"]["loss"])
