"""QM9: properties of small molecules from the positions of their atoms. Section 5.3, Table 3."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data import qm9
from egnn_jax.data.dataset import GraphDataset
from egnn_jax.data.qm9_graphs import atom_features, molecular_graphs
from egnn_jax.experiments import paper, plots
from egnn_jax.experiments.tables import table3_rows, write_table
from egnn_jax.experiments.task import Apply, Task
from egnn_jax.graph.graph import Globals, GraphsTuple, graph_mask
from egnn_jax.nn.heads import Readout
from egnn_jax.training.evaluation import Metrics
from egnn_jax.training.step import Loss

Target = Literal["alpha", "gap", "homo", "lumo", "mu", "Cv", "G", "H", "r2", "U", "U0", "zpve"]

SIZES = ((3, 11), (12, 14), (15, 17), (18, 20), (21, 23), (24, 29))
"""Ranges of the number of atoms, for the errors by molecule size."""


class Statistics(NamedTuple):
    """Mean and mean absolute deviation of each target (T,), relative to free atoms."""

    mean: np.ndarray
    deviation: np.ndarray


@dataclasses.dataclass(frozen=True)
class QM9(Task):
    """Predict properties of molecules; mean absolute error.

    Labels are (y - mean) / MAD of the training molecules, thermochemistry relative to free atoms;
    the loss is L1.

    Args:
      targets: the properties to predict.
      independent: a network for each target, all trained at once (vmapped); otherwise one network
        with several outputs.
      train_size: train on the first molecules of the training split, this many.
      cutoff: only atoms within this distance (Å) send to each other; all of a molecule if none, as
        in the paper.
    """

    targets: tuple[Target, ...] = ("homo",)
    independent: bool = False
    train_size: int = 100_000
    cutoff: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where a choice makes no sense."""
        if len(set(self.targets)) < max(len(self.targets), 1):
            raise ValueError(
                f"task.targets is {self.targets}; expected one or more of {qm9.TARGETS}, each once"
            )
        if not 1 <= self.train_size <= qm9.SPLITS["train"]:
            raise ValueError(
                f"task.train_size is {self.train_size}; expected 1 to {qm9.SPLITS['train']}"
            )
        if self.cutoff is not None and not self.cutoff > 0:
            raise ValueError(
                f"task.cutoff is {self.cutoff}; expected a distance above 0 in Å, or none"
            )

    @property
    def metric(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The error of the target; of several the mean of error / MAD."""
        target, *others = self.targets
        return "relative" if others else target

    @property
    def paper(self) -> dict[str, float]:
        """Table 3's column of the one target."""
        target, *others = self.targets
        if others:
            return {}
        place = paper.TABLE3_TARGETS.index(target)
        column = {model: row[place] for model, row in paper.TABLE3.items()}
        return {model: error for model, error in column.items() if error is not None}

    @property
    def units(self) -> dict[str, str]:
        """Those of Table 3."""
        return {name: qm9.UNITS[name] for name in self.targets}

    @property
    def elements(self) -> tuple[str, ...]:
        """H, C, N, O and F."""
        return tuple(qm9.ELEMENTS)

    @cached_property
    def molecules(self) -> qm9.QM9:
        """The data set."""
        return qm9.load()

    @cached_property
    def labels(self) -> np.ndarray:
        """The targets (S, T) in their units, relative to free atoms where references are known."""
        data = self.molecules
        values = np.stack([data.targets[name] for name in self.targets], axis=1)
        return values - self._references(data.n_atoms, data.atomic_numbers)

    @cached_property
    def statistics(self) -> Statistics:
        """Those of the labels of the training molecules."""
        labels = self.labels[self._rows("train")]
        mean = labels.mean(axis=0)
        return Statistics(mean, np.abs(labels - mean).mean(axis=0))

    def constants(self) -> dict[str, Any]:
        """Mean and mean absolute deviation of each target, in its unit."""
        mean, deviation = (values.tolist() for values in self.statistics)
        return {"mean": mean, "mean_absolute_deviation": deviation}

    def with_constants(self, constants: Mapping[str, Any]) -> "QM9":
        """This task with the statistics of :meth:`constants`.

        Raises:
          ValueError: they are not those of these targets.
        """
        task, names = dataclasses.replace(self), ("mean", "mean_absolute_deviation")
        try:
            mean, deviation = (np.asarray(constants.get(name), float) for name in names)
            finite = bool(np.isfinite(mean).all() and (deviation > 0).all())
        except (TypeError, ValueError, AttributeError):
            finite, mean, deviation = False, np.zeros(0), np.zeros(0)
        if not finite or mean.shape != (len(self.targets),) or deviation.shape != mean.shape:
            shown = repr(constants)[:200]
            raise ValueError(f"constants are {shown}; expected those of {self.targets}")
        vars(task)["statistics"] = Statistics(mean, deviation)
        return task

    @cached_property
    def _samples(self) -> dict[str, GraphDataset]:
        return {}

    @cached_property
    def _all(self) -> GraphDataset:
        labels = (self.labels - self.statistics.mean) / self.statistics.deviation
        if len(bad := np.argwhere(~np.isfinite(labels))):
            row, column = bad[0]
            raise ValueError(
                f"{self.targets[column]} of molecule {self.molecules.index[row]} is not finite"
            )
        data = self.molecules
        return molecular_graphs(
            data.n_atoms, data.atomic_numbers, data.positions, labels, self.cutoff
        )

    def samples(self, split: str) -> GraphDataset:
        """The molecules of a split, with standardised labels."""
        if split not in self._samples:
            self._samples[split] = self._all[self._rows(split)]
        return self._samples[split]

    def network(self, model: nn.Module) -> nn.Module:
        """The model with a readout of the targets; one for each where they are independent."""
        if not self.independent:
            return Readout(model, len(self.targets))
        each: Any = nn.vmap
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        vmapped = each(Readout, **axes, in_axes=None, out_axes=0, axis_size=len(self.targets))
        return vmapped(model, 1)

    def graph(self, batch: GraphsTuple, key: jax.Array | None = None) -> GraphsTuple:
        """The input: h the 15 features of :func:`atom_features`, x in Å; ``key`` is not used."""
        nodes = batch.nodes.replace(h=atom_features(batch.nodes.h))
        return batch._replace(nodes=nodes, globals=Globals())

    def predict(self, apply: Apply, params: Any, batch: GraphsTuple) -> jax.Array:
        """Standardised labels (G, T)."""
        y = apply(params, self.graph(batch)).globals.y
        return jnp.moveaxis(y[..., 0], 0, -1) if self.independent else y

    def loss(self, apply: Apply) -> Loss:
        """The mean absolute error of the standardised labels."""

        def loss(params: Any, batch: GraphsTuple, key: jax.Array) -> tuple[jax.Array, dict]:
            error, number = self._errors(apply, params, batch)
            # The gradient of an independent network does not depend on how many there are.
            networks = len(self.targets) if self.independent else 1
            return jnp.sum(error) / number / (len(self.targets) / networks), {}

        return loss

    def metrics(self, apply: Apply) -> Metrics:
        """The mean absolute error of each target in its unit; of several also ``relative``."""

        def metrics(params: Any, batch: GraphsTuple, key: jax.Array) -> dict[str, Any]:
            error, number = self._errors(apply, params, batch)
            scaled = [error[k] * d for k, d in enumerate(self.statistics.deviation)]
            sums = {name: (e, number) for name, e in zip(self.targets, scaled, strict=True)}
            if len(self.targets) > 1:
                sums["relative"] = (jnp.mean(error), number)
            return sums

        return metrics

    def plot(self, apply: Apply, params: Any, path: Path) -> Path:
        """Predicted over true values of the test split, one panel a target."""
        names = {}
        for name in self.targets:
            relative = " (relative to atoms)" if name in qm9.REFERENCES else ""
            names[name] = f"{name}{relative}, {qm9.UNITS[name]}"
        true = self.labels[self._rows("test")]
        return plots.parity(names, true, self.predictions(apply, params, "test"), path)

    def details(self, apply: Apply, params: Any) -> dict[str, Any]:
        """Units, and mean absolute errors on valid and test by number of atoms."""
        by_atoms: dict[str, dict[str, Any]] = {"valid": {}, "test": {}}
        for split, classes in by_atoms.items():
            rows = self._rows(split)
            error = np.abs(self.predictions(apply, params, split) - self.labels[rows])
            n_atoms = self.molecules.n_atoms[rows]
            for least, most in SIZES:
                inside = (n_atoms >= least) & (n_atoms <= most)
                means = error[inside].mean(axis=0).tolist() if inside.any() else []
                errors = dict(zip(self.targets, means, strict=False))
                classes[f"{least} to {most}"] = {"molecules": int(inside.sum())} | errors
        return {"units": self.units, "by_atoms": by_atoms}

    def compare(self, results: Mapping[str, Any], folder: Path) -> list[Path]:
        """Table 3's rows and ours, one a model and number of epochs, as ``table3.{md,png}``."""
        return write_table(table3_rows(results), folder / "table3")

    def predictions(self, apply: Apply, params: Any, split: str) -> np.ndarray:
        """The targets (S, T) of a split in their units, relative to free atoms."""
        return self._predictions(apply, params, self.samples(split))

    def properties(
        self,
        apply: Apply,
        params: Any,
        n_atoms: np.ndarray,
        atomic_numbers: np.ndarray,
        positions: np.ndarray,
    ) -> np.ndarray:
        """The targets (S, T) of any molecules, in their units.

        Args:
          apply, params: the network.
          n_atoms: (S,).
          atomic_numbers: of H, C, N, O and F alone, (ΣM,).
          positions: (ΣM, 3) in Å.

        Raises:
          ValueError: another element.
        """
        known = sorted(qm9.ELEMENTS.values())
        if unknown := set(atomic_numbers.tolist()) - set(known):
            raise ValueError(
                f"atomic_numbers has {sorted(unknown)}; expected of {known}, the elements of QM9"
            )
        graphs = molecular_graphs(
            n_atoms, atomic_numbers, positions.astype(np.float32), cutoff=self.cutoff
        )
        references = self._references(n_atoms, atomic_numbers)
        return self._predictions(apply, params, graphs) + references

    def _errors(self, apply: Apply, params: Any, batch: GraphsTuple) -> tuple[jax.Array, jax.Array]:
        """Absolute errors summed over the molecules of a batch (T,), and how many there are."""
        real = graph_mask(batch)[:-1]  # the last graph of a batch is always padding
        error = jnp.abs(self.predict(apply, params, batch) - batch.globals.y)[:-1]
        return jnp.sum(jnp.where(real[:, None], error, 0.0), axis=0), jnp.sum(real)

    def _predictions(self, apply: Apply, params: Any, graphs: GraphDataset) -> np.ndarray:
        loader = graphs.loader(min(len(graphs), 100))
        predict = jax.jit(lambda params, batch: self.predict(apply, params, batch))
        values = np.zeros((len(graphs), len(self.targets)))
        for k in range(loader.num_batches(None)):
            rows = loader.rows(None)[k, 0]
            rows = rows[rows >= 0]
            batch = jax.tree.map(lambda a: a[0, 0], loader.batches(None, k, 1))
            values[rows] = np.asarray(predict(params, batch))[: len(rows)]
        return values * self.statistics.deviation + self.statistics.mean

    def _rows(self, split: str) -> np.ndarray:
        rows = self.molecules.splits[split]
        return rows[: self.train_size] if split == "train" else rows

    def _references(self, n_atoms: np.ndarray, atomic_numbers: np.ndarray) -> np.ndarray:
        sums = [qm9.free_atoms(name, n_atoms, atomic_numbers) for name in self.targets]
        return np.stack(sums, axis=1)
