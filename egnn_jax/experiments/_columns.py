"""What is predicted of a molecule: a number, or one of several classes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data.structures import Structure
from egnn_jax.experiments.molecules import COVERAGE, conformal

MISSING = ("", "na", "nan", "n/a", "none", "null", "-", "?")
"""What stands for a value that is not known, in small letters."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A column of numbers, standardised by mean and scale.

    Args:
      name: of the column.
      mean, scale: mean and standard deviation of the training molecules.
    """

    name: str
    mean: float
    scale: float

    @staticmethod
    def of(name: str, texts: np.ndarray) -> "Numbers":
        """The column with the statistics of training values (S,), which are text.

        Raises:
          ValueError: a text is no number, or all are missing.
        """
        values = Numbers(name, 0.0, 1.0).labels(texts)
        if not np.isfinite(values).any():
            raise ValueError(f"no training molecule has a value of {name!r}")
        return Numbers(name, float(np.nanmean(values)), float(np.nanstd(values)) or 1.0)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what is predicted."""
        return (self.name,)

    def labels(self, texts: np.ndarray) -> np.ndarray:
        """Texts (S,) as standardised numbers, nan where they are missing.

        Raises:
          ValueError: one is neither a finite number nor in :data:`MISSING`.
        """
        found = np.full(len(texts), np.nan)
        for k, text in enumerate(texts.tolist()):
            if text.strip().lower() in MISSING:
                continue
            try:
                found[k] = float(text)
            except ValueError:
                found[k] = np.inf
            if not np.isfinite(found[k]):
                raise ValueError(
                    f"{self.name} of a molecule is {text[:50]!r}; expected a finite number, or "
                    "nothing where it is not known"
                )
        return (found - self.mean) / self.scale

    def loss(self, out: jax.Array, label: jax.Array) -> jax.Array:
        """|ŷ - y| of standardised values, (G, 1) and (G,) to (G,)."""
        return jnp.abs(out[:, 0] - label)

    def error(self, out: jax.Array, label: jax.Array) -> jax.Array:
        """The absolute error in the unit of the column (G,)."""
        return self.scale * self.loss(out, label)

    def predicted(self, out: np.ndarray) -> np.ndarray:
        """Outputs (S, 1) in the unit of the column."""
        return self.mean + self.scale * out

    def width(self, labels: np.ndarray, out: np.ndarray) -> float | None:
        """Half the width of an interval that holds
        :data:`egnn_jax.experiments.molecules.COVERAGE` of molecules (split conformal prediction);
        none where there are too few molecules to know it.
        """
        error = np.abs(out[:, 0] - labels)
        error = error[np.isfinite(error)]
        enough = COVERAGE * (len(error) + 1) <= len(error)
        return self.scale * float(conformal(error)) if enough else None

    def scores(self, labels: np.ndarray, out: np.ndarray) -> dict[str, Any]:
        """Errors where labels (S,) are known; ``mae_of_mean`` is that of the training mean."""
        known = np.isfinite(labels)
        if not known.any():
            return {"known": 0}
        true, error = labels[known], (out[:, 0] - labels)[known]
        mse, spread = (error**2).mean(), ((true - true.mean()) ** 2).mean()
        return {
            "known": int(known.sum()),
            "mae": float(self.scale * np.abs(error).mean()),
            "mae_of_mean": float(self.scale * np.abs(true).mean()),
            "rmse": float(self.scale * mse**0.5),
            "r2": float(1 - mse / spread) if spread else None,
        }


@dataclasses.dataclass(frozen=True)
class Classes:
    """A column of classes.

    Args:
      name: of the column.
      classes: their names.
    """

    name: str
    classes: tuple[str, ...]

    @staticmethod
    def of(name: str, texts: np.ndarray) -> "Classes":
        """The classes of training molecules, of numbers by size and of words by letter.

        Raises:
          ValueError: they are fewer than 2 or more than 100.
        """
        found = {t.strip() for t in texts.tolist() if t.strip().lower() not in MISSING}
        if not 2 <= len(found) <= 100:
            raise ValueError(
                f"{name!r} has {len(found)} classes ({', '.join(sorted(found)[:5])}) among the "
                "training molecules; expected 2 to 100"
            )
        try:
            return Classes(name, tuple(sorted(found, key=float)))
        except ValueError:
            return Classes(name, tuple(sorted(found)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what is predicted: the probability of each class."""
        return tuple(f"{self.name} = {one}" for one in self.classes)

    def labels(self, texts: np.ndarray) -> np.ndarray:
        """The place of the class of each text (S,), nan where it is missing.

        Raises:
          ValueError: one is no class.
        """
        found = np.full(len(texts), np.nan)
        for k, text in enumerate(texts.tolist()):
            if text.strip() in self.classes:
                found[k] = self.classes.index(text.strip())
            elif text.strip().lower() not in MISSING:
                raise ValueError(
                    f"{self.name} of a molecule is {text[:50]!r}; expected a class of the training "
                    f"molecules: {', '.join(self.classes)[:200]}"
                )
        return found

    def loss(self, out: jax.Array, label: jax.Array) -> jax.Array:
        """The cross-entropy of logits (G, C) and places (G,), (G,)."""
        place = label.astype(jnp.int32)[:, None]
        return -jnp.take_along_axis(jax.nn.log_softmax(out), place, axis=1)[:, 0]

    def error(self, out: jax.Array, label: jax.Array) -> jax.Array:
        """1 where the most probable class is another (G,)."""
        return (jnp.argmax(out, axis=1) != label).astype(out.dtype)

    def predicted(self, out: np.ndarray) -> np.ndarray:
        """Logits (S, C) as probabilities."""
        weights = np.exp(out - out.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def width(self, labels: np.ndarray, out: np.ndarray) -> None:
        """None: probabilities have no interval."""

    def scores(self, labels: np.ndarray, out: np.ndarray) -> dict[str, Any]:
        """Accuracy where labels (S,) are known, that of the most common class, and of two classes
        the area under the receiver operating characteristic.
        """
        known = np.isfinite(labels)
        if not known.any():
            return {"known": 0}
        true, found = labels[known].astype(int), out[known]
        scores: dict[str, Any] = {
            "known": int(known.sum()),
            "accuracy": float((found.argmax(axis=1) == true).mean()),
            "accuracy_of_most_common": float(np.bincount(true).max() / len(true)),
        }
        if len(self.classes) == 2 and 0 < true.sum() < len(true):
            scores["roc_auc"] = _roc_auc(true, found[:, 1] - found[:, 0])
        return scores


KINDS = {"regression": Numbers, "classification": Classes}


class Trained(NamedTuple):
    """The molecules that were trained on: their elements, the least and the largest number of
    atoms, the columns, their charges, and whether any is odd by its bonds.
    """

    elements: tuple[str, ...]
    atoms: tuple[int, int]
    columns: tuple[Numbers | Classes, ...]
    charges: tuple[int, ...] = (0,)
    noted: bool = False

    def outside(self, molecule: Structure) -> list[str]:
        """In what a molecule differs from all of these."""
        reasons, (least, most) = [], self.atoms
        if unknown := sorted(set(molecule.symbols) - set(self.elements)):
            reasons.append(f"it has {', '.join(unknown)}; training had {', '.join(self.elements)}")
        if not least <= (size := len(molecule.symbols)) <= most:
            reasons.append(f"it has {size} atoms; training had {least} to {most}")
        if molecule.charge not in self.charges:
            had = ", ".join(f"{charge:+d}" for charge in self.charges)
            reasons.append(f"its charge is {molecule.charge:+d}; training had {had}")
        return reasons if self.noted else [*reasons, *molecule.notes]

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        columns = [dataclasses.asdict(column) for column in self.columns]
        lists = {name: list(getattr(self, name)) for name in ("elements", "atoms", "charges")}
        return {**lists, "columns": columns, "noted": self.noted}

    @staticmethod
    def of_plain(kind: str, names: Sequence[str], values: Mapping[str, Any]) -> "Trained":
        """What :meth:`plain` made plain values of.

        Raises:
          ValueError: they are not such.
        """
        columns: list[Numbers | Classes] = []
        try:
            for name, own in zip(names, values["columns"], strict=True):
                if kind == "regression":
                    columns.append(Numbers(name, float(own["mean"]), float(own["scale"])))
                else:
                    columns.append(Classes(name, tuple(str(one) for one in own["classes"])))
            least, most = values["atoms"]
            elements = tuple(str(symbol) for symbol in values["elements"])
            # Of a run of an earlier version these are not known.
            charges = tuple(int(charge) for charge in values.get("charges", (0,)))
            noted = bool(values.get("noted", False))
            return Trained(elements, (int(least), int(most)), tuple(columns), charges, noted)
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"constants are {str(values)[:200]}; expected elements, atoms and columns"
            ) from error


def _roc_auc(true: np.ndarray, score: np.ndarray) -> float:
    """The chance that one of class 1 has a larger score than one of class 0."""
    from scipy.stats import rankdata

    ones = true.sum()
    ranks = rankdata(score)[true == 1].sum()
    return float((ranks - ones * (ones + 1) / 2) / (ones * (len(true) - ones)))
