"""Target columns of molecules: numbers (regression) or classes (classification)."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data._flat import scale_or_one

MISSING = ("", "na", "nan", "n/a", "null", "?")
"""Texts that mark a missing value, in lower case."""
NO_NUMBER = (*MISSING, "none", "-")
"""Texts that mark a missing value among numbers; among words, they may be classes."""
MAX_ABS_VALUE = 1e30
"""The largest absolute value of a number, far enough from float32's limit for sums of errors."""
COVERAGE = 0.9
"""The share of molecules whose true value a prediction interval should contain."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A column of numbers, standardized by mean and scale.

    Args:
      name: the name of the column.
      mean, scale: mean and standard deviation (1 of equal values) of the training molecules.
    """

    name: str
    mean: float
    scale: float

    @staticmethod
    def of(name: str, texts: np.ndarray, locations: np.ndarray) -> "Numbers":
        """Make a column with the statistics of training values (S,), given as in :meth:`labels`.

        Raises:
          ValueError: a value is not a number, or all are missing.
        """
        values = Numbers(name, 0.0, 1.0).labels(texts, locations)
        if not np.isfinite(values).any():
            raise ValueError(f"no training molecule has a value of {name!r}")
        scale = scale_or_one(np.nanstd(values), values)
        return Numbers(name, float(np.nanmean(values)), float(scale))

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the predicted values."""
        return (self.name,)

    def labels(self, texts: np.ndarray, locations: np.ndarray) -> np.ndarray:
        """Texts (S,) as standardized numbers, nan for missing values.

        Args:
          texts: the values.
          locations: for errors, the file and line, or the molecule, of each.

        Raises:
          ValueError: a text is neither a number up to :data:`MAX_ABS_VALUE` nor in
            :data:`NO_NUMBER`.
        """
        values = np.full(len(texts), np.nan)
        for k, text in enumerate(texts.tolist()):
            if text.strip().lower() in NO_NUMBER:
                continue
            try:
                values[k] = float(text)
            except ValueError:
                values[k] = np.inf
            if not abs(values[k]) <= MAX_ABS_VALUE:
                raise ValueError(
                    f"{locations[k]}: {self.name} is {text[:50]!r}; expected a number up to "
                    f"{MAX_ABS_VALUE:g}, or nothing where it is not known (for words: --task.kind "
                    "classification)"
                )
        return (values - self.mean) / self.scale

    def loss(self, out: jax.Array, label: jax.Array) -> jax.Array:
        """The absolute error |ŷ - y| of standardized values: (G, 1) and (G,) to (G,)."""
        return jnp.abs(out[:, 0] - label)

    def error(self, out: jax.Array, label: jax.Array) -> jax.Array:
        """The absolute error (G,) in the unit of the column."""
        return self.scale * self.loss(out, label)

    def predicted(self, out: np.ndarray) -> np.ndarray:
        """Outputs (S, 1) in the unit of the column."""
        return self.mean + self.scale * out

    def width(self, labels: np.ndarray, out: np.ndarray) -> float | None:
        """Half the width of an interval that contains the true values of a share
        :data:`COVERAGE` of molecules (split conformal prediction); None if there are too few
        molecules to determine it.
        """
        error = np.abs(out[:, 0] - labels)
        error = error[np.isfinite(error)]
        enough = COVERAGE * (len(error) + 1) <= len(error)
        return self.scale * float(conformal(error)) if enough else None

    def scores(self, labels: np.ndarray, out: np.ndarray) -> dict[str, Any]:
        """Errors over known labels (S,); ``mae_of_mean`` is the MAE of predicting the mean."""
        finite = np.isfinite(labels)
        if not finite.any():
            return {"known": 0}
        true, error = labels[finite], (out[:, 0] - labels)[finite]
        mse, variance = (error**2).mean(), ((true - true.mean()) ** 2).mean()
        return {
            "known": int(finite.sum()),
            "mae": float(self.scale * np.abs(error).mean()),
            "mae_of_mean": float(self.scale * np.abs(true).mean()),
            "rmse": float(self.scale * mse**0.5),
            "r2": float(1 - mse / variance) if variance else None,
        }


@dataclasses.dataclass(frozen=True)
class Classes:
    """A column of classes.

    Args:
      name: the name of the column.
      classes: the names of the classes.
    """

    name: str
    classes: tuple[str, ...]

    @staticmethod
    def of(name: str, texts: np.ndarray, locations: np.ndarray) -> "Classes":
        """The classes of training molecules, sorted as numbers if possible, else as text.

        Raises:
          ValueError: there are fewer than 2 or more than 100 classes.
        """
        values = {_class_name(text) for text in texts.tolist()}
        missing = _missing_texts(values)
        classes = {value for value in values if value.lower() not in missing}
        if not 2 <= len(classes) <= 100:
            raise ValueError(
                f"{name!r} has {len(classes)} classes ({', '.join(sorted(classes)[:5])}) among the "
                "training molecules; expected 2 to 100"
            )
        try:
            ordered = tuple(sorted(classes, key=float))
        except ValueError:
            return Classes(name, tuple(sorted(classes)))
        if fractions := [value for value in ordered if not float(value).is_integer()]:
            raise ValueError(
                f"{name!r} has numbers such as {fractions[0]}; expected words or whole numbers as "
                "classes, or the kind regression"
            )
        return Classes(name, ordered)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the predicted values: the probability of each class."""
        return tuple(f"{self.name} = {class_name}" for class_name in self.classes)

    def labels(self, texts: np.ndarray, locations: np.ndarray) -> np.ndarray:
        """The class index of each text (S,), nan for missing values; for arguments see
        :meth:`Numbers.labels`.

        Raises:
          ValueError: a text is not one of the classes.
        """
        indices, missing = np.full(len(texts), np.nan), _missing_texts(self.classes)
        for k, text in enumerate(texts.tolist()):
            # Runs of earlier versions have classes as they are written.
            spellings = (text.strip(), _class_name(text))
            matches = [spelling for spelling in spellings if spelling in self.classes]
            if matches:
                indices[k] = self.classes.index(matches[0])
            elif text.strip().lower() not in missing:
                raise ValueError(
                    f"{locations[k]}: {self.name} is {text[:50]!r}; expected a class of the "
                    f"training molecules: {', '.join(self.classes)[:200]} (random splits: "
                    "--task.split-seed)"
                )
        return indices

    def loss(self, out: jax.Array, label: jax.Array) -> jax.Array:
        """The cross-entropy (G,) of logits (G, C) and class indices (G,)."""
        index = label.astype(jnp.int32)[:, None]
        return -jnp.take_along_axis(jax.nn.log_softmax(out), index, axis=1)[:, 0]

    def error(self, out: jax.Array, label: jax.Array) -> jax.Array:
        """1 where the most probable class is wrong, else 0 (G,)."""
        return (jnp.argmax(out, axis=1) != label).astype(out.dtype)

    def predicted(self, out: np.ndarray) -> np.ndarray:
        """Logits (S, C) as probabilities (softmax)."""
        weights = np.exp(out - out.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def width(self, labels: np.ndarray, out: np.ndarray) -> None:
        """None: probabilities have no interval."""

    def scores(self, labels: np.ndarray, out: np.ndarray) -> dict[str, Any]:
        """Accuracy over known labels (S,), accuracy of always predicting the most common class and,
        for two classes, the area under the receiver operating characteristic.
        """
        finite = np.isfinite(labels)
        if not finite.any():
            return {"known": 0}
        true, logits = labels[finite].astype(int), out[finite]
        scores: dict[str, Any] = {
            "known": int(finite.sum()),
            "accuracy": float((logits.argmax(axis=1) == true).mean()),
            "accuracy_of_most_common": float(np.bincount(true).max() / len(true)),
        }
        if len(self.classes) == 2 and 0 < true.sum() < len(true):
            scores["roc_auc"] = _roc_auc(true, logits[:, 1] - logits[:, 0])
        return scores


def _missing_texts(classes: Collection[str]) -> tuple[str, ...]:
    """The texts that mark missing values among these classes."""
    try:
        _ = [float(name) for name in classes if name.lower() not in NO_NUMBER]
    except ValueError:
        return MISSING
    return NO_NUMBER


def _class_name(text: str) -> str:
    """The name of a class: 1.0 is the class 1."""
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


COLUMNS = {"regression": Numbers, "classification": Classes}


def _roc_auc(true: np.ndarray, score: np.ndarray) -> float:
    """The probability that a sample of class 1 has a larger score than one of class 0."""
    from scipy.stats import rankdata

    positives = true.sum()
    rank_sum = rankdata(score)[true == 1].sum()
    u_statistic = rank_sum - positives * (positives + 1) / 2
    return float(u_statistic / (positives * (len(true) - positives)))


def conformal(errors: np.ndarray) -> np.ndarray:
    """The quantiles (T,) of errors (S, T) that bound a new error with probability :data:`COVERAGE`.

    The ⌈(S + 1) COVERAGE⌉-th smallest error, or the largest if there are too few.
    """
    index = min(int(np.ceil((len(errors) + 1) * COVERAGE)), len(errors)) - 1
    return np.sort(errors, axis=0)[index]
