"""The task of predicting columns of your own table of molecules: regression or classification."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data import property_table
from egnn_jax.data._splits import SPLITS, files, shares
from egnn_jax.data.bonds import Bonds
from egnn_jax.data.dataset import GraphDataset
from egnn_jax.data.property_table import PropertyTable
from egnn_jax.data.structures import Structure
from egnn_jax.experiments import plots
from egnn_jax.experiments._columns import COLUMNS, COVERAGE
from egnn_jax.experiments._inputs import MolecularInputs
from egnn_jax.experiments._trained import Trained, symbols_of
from egnn_jax.experiments.task import Apply, Task, predictions, zeros_of
from egnn_jax.graph.graph import GraphsTuple, graph_mask
from egnn_jax.nn.batch_norm import in_training
from egnn_jax.nn.heads import head_of
from egnn_jax.training.evaluation import Metrics
from egnn_jax.training.step import STATISTICS, Loss


@dataclasses.dataclass(frozen=True)
class Table(MolecularInputs, Task):
    """Predict columns of a table of molecules from the positions of their atoms.

    Numbers are standardized by mean and standard deviation of the training molecules, and the loss
    is L1. For classes, the loss is the cross-entropy. Missing values are ignored.

    Args:
      train: a file of molecules with values: a table with a column of SMILES, an SDF, or an
        extended XYZ; see :func:`egnn_jax.data.property_table.read`.
      targets: the names of the columns to predict.
      kind: "regression", or "classification", where each word or number in a column is a class.
      valid: another file, or the share of the molecules of ``train`` to use for validation.
      test: another file, or the share of the molecules of ``train`` to use for testing.
      split: instead of shares, a column of ``train`` with "train", "valid" or "test".
      split_seed: seed of the random choice of validation and test molecules.
      cutoff: connect only atoms within this distance (Å); all atoms of a molecule if none.
      features: features of an atom: "numbers", Z as an integer, which models embed; "elements", a
        one-hot of the training elements, and Z; "chemistry", these and the traits in
        :data:`egnn_jax.data.chemistry.TRAITS`.
      bonds: "attributes" adds the kind of bond to each edge, a one-hot of single, double, triple
        and aromatic, zeros without a bond; "only" also drops edges without a bond. Bonds and
        chemistry are those of the SMILES or the file; without any, RDKit perceives them.
    """

    train: str = ""
    targets: tuple[str, ...] = ()
    kind: Literal["regression", "classification"] = "regression"
    valid: str = "0.1"
    test: str = "0.1"
    split: str = ""
    split_seed: int = 0
    _: dataclasses.KW_ONLY
    cutoff: float | None = 5.0
    features: Literal["numbers", "elements", "chemistry"] = "numbers"

    metric = "loss"

    def __post_init__(self) -> None:
        """Raise ValueError if an option is invalid."""
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"task.targets is {self.targets}; expected each column once")
        if self.metric in self.targets:
            raise ValueError(
                f"task.targets has {self.metric!r}, the name of the metric that selects the "
                "parameters; expected another name of the column"
            )
        if self.kind not in COLUMNS:
            raise ValueError(f"task.kind is {self.kind!r}; expected one of {', '.join(COLUMNS)}")
        if self.cutoff is not None and not 0 < self.cutoff < np.inf:
            raise ValueError(
                f"task.cutoff is {self.cutoff}; expected a distance above 0 in Å, or none"
            )
        self.require_no_cutoff_of_bonds()
        shares(self.valid, self.test)

    @property
    def elements(self) -> tuple[str, ...]:
        """The elements of the training molecules."""
        return self._trained.elements

    @property
    def element_numbers(self) -> list[int]:
        """The atomic numbers of :attr:`elements`."""
        from ase.data import atomic_numbers

        return [atomic_numbers[symbol] for symbol in self.elements]

    @property
    def units(self) -> Mapping[str, str]:
        """What the metrics of classes are; the units of numbers are not known."""
        classes = self.targets if self.kind == "classification" else ()
        return dict.fromkeys(classes, "share of wrong classes")

    test_set = "the test molecules"
    alike = "molecules drawn like those of the validation split"

    def outside(self, molecule: Structure) -> list[str]:
        """How a molecule differs from all training molecules."""
        return self._trained.outside(molecule)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the predicted values: each target, or the probability of each class."""
        return tuple(name for column in self._trained.columns for name in column.columns)

    @property
    def files(self) -> tuple[str, ...]:
        """The files among ``train``, ``valid`` and ``test``."""
        return files(self.train, self.valid, self.test)

    def samples(self, split: str) -> GraphDataset:
        """The molecules of a split; y (S, 2T) holds the labels, then 1 where these are known."""
        return self._samples[split]

    def network(self, model: nn.Module) -> nn.Module:
        """The model with its readout of the columns."""
        return head_of(model)(model, outputs=len(self.columns))

    def loss(self, apply: Apply) -> Loss:
        """The mean over known values of |ŷ - y| of standardized numbers, or of cross-entropy."""

        def loss(params: Any, batch: GraphsTuple, key: jax.Array) -> tuple[jax.Array, dict]:
            out, batch_stats = in_training(apply, params, self.graph(batch))
            losses, mask = self._masked_values("loss", out, batch)
            return jnp.sum(losses) / jnp.maximum(jnp.sum(mask), 1), {STATISTICS: batch_stats}

        return loss

    def metrics(self, apply: Apply) -> Metrics:
        """The loss, and the mean absolute error or share of wrong classes for each target."""

        def metrics(params: Any, batch: GraphsTuple, key: jax.Array) -> dict[str, Any]:
            out = apply(params, self.graph(batch))
            losses, mask = self._masked_values("loss", out, batch)
            sums: dict[str, Any] = {"loss": (jnp.sum(losses), jnp.sum(mask))}
            errors, _ = self._masked_values("error", out, batch)
            for k, name in enumerate(self.targets):
                sums[name] = jnp.sum(errors[:, k]), jnp.sum(mask[:, k])
            return sums

        return metrics

    def details(self, apply: Apply, params: Any) -> dict[str, Any]:
        """The number of molecules in each split, and the scores of each target on valid and test:
        :meth:`egnn_jax.experiments._columns.Numbers.scores`, or those of ``Classes``; for numbers
        also ``intervals``, as in :meth:`egnn_jax.experiments.molecules.MolecularTask.details`.
        """
        result: dict[str, Any] = {"molecules": {s: len(self._samples[s]) for s in SPLITS}}
        for split in SPLITS[1:]:
            outputs = self._outputs(apply, params, self._samples[split])
            columns = list(zip(self._trained.columns, self._labels[split].T, outputs, strict=True))
            if split == "valid":
                widths = {column.name: column.width(*values) for column, *values in columns}
                sizes = "{} to {}".format(*self._trained.atoms)
                result["intervals"] = {"coverage": COVERAGE, "by_atoms": {sizes: widths}}
            result[split] = {column.name: column.scores(*values) for column, *values in columns}
        return result

    def plot(self, apply: Apply, params: Any, path: Path) -> Path | None:
        """Draw predicted over true numbers of the test molecules, one panel per target."""
        if self.kind != "regression":
            return None
        outputs = self._outputs(apply, params, self._samples["test"])
        columns = zip(self._trained.columns, self._labels["test"].T, outputs, strict=True)
        pairs = {}
        for column, labels, out in columns:
            finite = np.isfinite(labels)
            if finite.any():
                true = column.predicted(labels[finite, None])[:, 0]
                pairs[column.name] = (true, column.predicted(out[finite])[:, 0])
        return plots.parity_and_errors(pairs, path)

    def trivial(self, apply: Apply) -> tuple[str, Apply]:
        """Predict the mean of the training molecules, or equal probabilities of all classes."""
        return "the same prediction for every molecule", zeros_of(apply)

    def properties(
        self,
        apply: Apply,
        params: Any,
        n_atoms: np.ndarray,
        atomic_numbers: np.ndarray,
        positions: np.ndarray,
        bonds: Bonds | None = None,
    ) -> np.ndarray:
        """Predict :attr:`columns` (S, K) of any molecules with the elements of training.

        Args:
          apply, params: the network.
          n_atoms, atomic_numbers: number of atoms of each molecule (S,), and Z (ΣM,).
          positions: (ΣM, 3) in Å.
          bonds: the bonds of the molecules, if the network reads them; by default, those that RDKit
            perceives from positions of neutral molecules.

        Raises:
          ValueError: there is another element, or bonds cannot be perceived.
        """
        symbols = symbols_of(atomic_numbers)
        if unknown := [symbol for symbol in symbols if symbol not in self.elements]:
            raise ValueError(
                f"there are atoms of {', '.join(unknown)}; expected of {', '.join(self.elements)}, "
                "the elements of the training molecules"
            )
        positions = positions.astype(np.float32)
        graphs = self._graphs(n_atoms, atomic_numbers, positions, bonds=bonds)
        outputs = zip(self._trained.columns, self._outputs(apply, params, graphs), strict=True)
        return np.concatenate([column.predicted(out) for column, out in outputs], axis=1)

    def constants(self) -> dict[str, Any]:
        """Facts about the training molecules, with mean and scale, or classes, of each target."""
        return self._trained.plain()

    def with_constants(self, constants: Mapping[str, Any]) -> "Table":
        """This task with the values that :meth:`constants` returned.

        Raises:
          ValueError: the values are invalid.
        """
        task = dataclasses.replace(self)
        vars(task)["_trained"] = Trained.from_plain(self.kind, self.targets, constants)
        return task

    def _masked_values(
        self, method: str, out: GraphsTuple, batch: GraphsTuple
    ) -> tuple[jax.Array, jax.Array]:
        """The "loss" or "error" (``method``) of each label (G, T), 0 if missing, and a mask."""
        count = len(self.targets)
        mask = (batch.globals.y[:, count:] > 0) & graph_mask(batch)[:, None]
        outputs = self._split_outputs(out.globals.y)
        columns = zip(self._trained.columns, outputs, batch.globals.y[:, :count].T, strict=True)
        values = [getattr(column, method)(out, label) for column, out, label in columns]
        return jnp.where(mask, jnp.stack(values, axis=1), 0), mask

    def _outputs(self, apply: Apply, params: Any, graphs: GraphDataset) -> list[np.ndarray]:
        """The network's outputs for each target of all molecules, in float64."""

        def outputs(apply: Apply, params: Any, batch: GraphsTuple) -> jax.Array:
            return apply(params, self.graph(batch)).globals.y

        return self._split_outputs(predictions(outputs, apply, params, graphs, len(self.columns)))

    def _split_outputs(self, outputs: Any) -> list[Any]:
        stops = np.cumsum([len(column.columns) for column in self._trained.columns]).tolist()
        return [outputs[:, a:b] for a, b in zip([0, *stops], stops, strict=False)]

    @cached_property
    def _tables(self) -> dict[str, tuple[PropertyTable, np.ndarray]]:
        """The file and the rows of each split."""
        for name, expected in (("train", "a file"), ("targets", "names of columns")):
            if not getattr(self, name):
                raise ValueError(f"task.{name} is empty; expected {expected}")
        splits = self.valid, self.test, self.split, self.split_seed
        return property_table.splits(self.train, *splits, self.targets, self.reads_bonds)

    @cached_property
    def _trained(self) -> Trained:
        return Trained.of(*self._tables["train"], self.targets, self.kind)

    @cached_property
    def _labels(self) -> dict[str, np.ndarray]:
        """The labels of each split (S, T), nan for unknown values."""
        columns = self._trained.columns
        labels = {
            split: np.stack(
                [c.labels(t.values[c.name][rows], t.locations[rows]) for c in columns], axis=1
            )
            for split, (t, rows) in self._tables.items()
        }
        for split, values in labels.items():
            if not np.isfinite(values).any():
                raise ValueError(
                    f"no {split} molecule has a value of {', '.join(self.targets)}; expected some"
                )
        return labels

    @cached_property
    def _samples(self) -> dict[str, GraphDataset]:
        targets, graphs = {}, {}
        for split, (table, rows) in self._tables.items():
            labels = self._labels[split]
            y = targets.setdefault(id(table), np.zeros((len(table), 2 * labels.shape[1])))
            y[rows] = np.concatenate([np.nan_to_num(labels), np.isfinite(labels)], axis=1)
        for table, _ in self._tables.values():
            if id(table) not in graphs:  # splits may share a table
                molecules = table.n_atoms, table.atomic_numbers, table.positions
                graphs[id(table)] = self._graphs(*molecules, targets[id(table)], table.bonds)
        return {split: graphs[id(table)][rows] for split, (table, rows) in self._tables.items()}
