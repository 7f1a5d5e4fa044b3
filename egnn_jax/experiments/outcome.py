"""What a run's numbers are worth: beside a trivial answer, and whether the training exploded."""

from typing import Any

import numpy as np

from egnn_jax.experiments.config import Config
from egnn_jax.experiments.start import first_seed
from egnn_jax.training.evaluation import Evaluation
from egnn_jax.training.plan import FitResult

EXPLODED = 10.0
"""How many times the value of the trivial answer, or of the first evaluation, is an explosion."""


def judge(config: Config, network: Any, result: FitResult) -> dict[str, Any]:
    """What there is to say of a training beside its numbers, as entries of ``result.json``.

    Returns:
      ``trivial``: the validation value of :meth:`egnn_jax.Task.trivial`, where the task has one.
      ``notes``: sentences, where there are any: those of the training, that it is worse than the
      trivial answer, that it exploded. ``exploded``: True, where the best validation value of a
      seed is more than :data:`EXPLODED` times the trivial one, or the last one more than that many
      times both the first and the trivial one.
    """
    metric, found, notes = config.task.metric, {}, list(result.notes)
    best, value, words = np.atleast_1d(result.best_value), np.nan, ""
    answer = config.task.trivial(network.apply)
    if answer is not None:
        words, apply = answer
        evaluate = Evaluation(
            config.task.metrics(apply) or (lambda *_: {}),
            config.task.samples("valid").loader(config.batch_size),
            seed=config.seed,
        )
        value = float(evaluate(first_seed(config, result.params)).get(metric, np.nan))
        found["trivial"] = {"answer": words, metric: value}
        if np.max(best) > value:
            notes.append(
                f"the best {metric} of the validation samples is {np.max(best):.5g}, worse than "
                f"{value:.5g} of a trivial answer ({words})"
            )
    first, last = (
        np.max(np.nan_to_num(np.asarray(entry["valid"][metric]), nan=np.inf))
        for entry in (result.history[0], result.history[-1])
    )
    allowed = EXPLODED * max(first, 0.0 if np.isnan(value) else value)
    if np.max(best) > EXPLODED * value or last > allowed > 0:
        found["exploded"] = True
        epochs = np.unique(result.best_epoch).tolist()
        notes.append(
            f"the training exploded: {metric} of the validation samples is {last:.5g} at the end; "
            f"the best parameters, of epoch {', '.join(map(str, epochs))}, are kept"
        )
    return found | ({"notes": notes} if notes else {})
