"""The base class of tasks on QM9: molecules as graphs, errors in units, predictions."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data import qm9, structures
from egnn_jax.data._packing import Gather, exclusive_cumsum
from egnn_jax.data.bonds import Bonds
from egnn_jax.data.dataset import GraphDataset
from egnn_jax.data.molecular_graphs import molecular_graphs
from egnn_jax.data.structures import Structure
from egnn_jax.experiments import plots
from egnn_jax.experiments._columns import COVERAGE, conformal
from egnn_jax.experiments.tables import table3_rows, write_table
from egnn_jax.experiments.task import Apply, Task, predictions, zeros_of
from egnn_jax.graph.graph import Globals, GraphsTuple, graph_mask
from egnn_jax.training.evaluation import Metrics

SIZES = ((3, 8), (9, 11), (12, 14), (15, 17), (18, 20), (21, 23), (24, 29))
"""Ranges of the number of atoms, for errors by molecule size."""


@dataclasses.dataclass(frozen=True)
class MolecularTask(Task):
    """Predict properties of QM9's molecules, standardized as (y - baseline) / deviation.

    A subclass defines ``targets``, ``deviation``, :meth:`baseline`, :meth:`predict` and a loss.

    Args:
      train_size: train on the first molecules of the training split, this many.
      cutoff: connect only atoms within this distance (Å); all atoms of a molecule if none.
    """

    train_size: int = dataclasses.field(default=100_000, kw_only=True)
    cutoff: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Raise ValueError if an option is invalid."""
        if not 1 <= self.train_size <= qm9.SPLITS["train"]:
            raise ValueError(
                f"task.train_size is {self.train_size}; expected 1 to {qm9.SPLITS['train']}"
            )
        if self.cutoff is not None and not self.cutoff > 0:
            raise ValueError(
                f"task.cutoff is {self.cutoff}; expected a distance above 0 in Å, or none"
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the properties."""
        raise NotImplementedError  # each task has its own

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the predicted values: the targets."""
        return self.targets

    @property
    def deviation(self) -> np.ndarray:
        """The scale (T,) by which targets are standardized, in their units."""
        raise NotImplementedError  # each task has its own

    def baseline(
        self, n_atoms: np.ndarray, atomic_numbers: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        """The values (S, T), relative to free atoms, that are subtracted to standardize targets."""
        raise NotImplementedError  # each task has its own

    def predict(self, apply: Apply, params: Any, batch: GraphsTuple) -> jax.Array:
        """Predict standardized targets (G, T)."""
        raise NotImplementedError  # each task has its own

    @property
    def units(self) -> dict[str, str]:
        """The units of Table 3."""
        return {name: qm9.UNITS[name] for name in self.targets}

    @property
    def elements(self) -> tuple[str, ...]:
        """H, C, N, O and F."""
        return tuple(qm9.ELEMENTS)

    trained_on, test_set = "QM9", "QM9's test molecules"
    alike = f"{test_set} of the same size"
    geometry = "dft"  # of the training molecules

    def takes(self, molecule: Structure) -> bool:
        """Whether the task supports a molecule: its elements and its size are among QM9's."""
        return super().takes(molecule) and len(molecule.symbols) <= qm9.MAX_ATOMS

    def outside(self, molecule: Structure) -> list[str]:
        """How a molecule differs from QM9's, see :mod:`egnn_jax.data.structures`."""
        reasons = structures.differences_from_qm9(molecule)
        if molecule.geometry != "as given" and self.geometry == "dft":
            reasons.append(f"its geometry is by {molecule.geometry}, not QM9's, by B3LYP")
        if molecule.geometry == "as given" and self.geometry != "dft":
            reasons.append("its geometry is as given; training had MMFF94")
        return reasons

    @cached_property
    def molecules(self) -> qm9.QM9:
        """The data set."""
        return qm9.load()

    @cached_property
    def labels(self) -> np.ndarray:
        """The targets (S, T) in their units, relative to free atoms if references are known."""
        data = self.molecules
        values = np.stack([data.targets[name] for name in self.targets], axis=1)
        return values - self.references(data.n_atoms, data.atomic_numbers)

    @property
    def dataset_bonds(self) -> Bonds | None:
        """The bonds of the data set, if the network reads them."""
        return None

    @cached_property
    def _samples(self) -> dict[str, GraphDataset]:
        return {}

    @cached_property
    def _dataset(self) -> GraphDataset:
        data = self.molecules
        molecules = data.n_atoms, data.atomic_numbers, data.positions
        baseline = self.baseline(*molecules)
        if not np.all(self.deviation > 0):
            raise ValueError(
                f"task.train_size is {self.train_size}, of which a target has a single value; "
                "expected more molecules"
            )
        labels = (self.labels - baseline) / self.deviation
        if len(invalid := np.argwhere(~np.isfinite(labels))):
            row, column = invalid[0]
            raise ValueError(f"{self.targets[column]} of molecule {data.index[row]} is not finite")
        return self._graphs(*molecules, labels, self.dataset_bonds)

    def _graphs(
        self,
        n_atoms: np.ndarray,
        atomic_numbers: np.ndarray,
        positions: np.ndarray,
        labels: np.ndarray | None = None,
        bonds: Bonds | None = None,
    ) -> GraphDataset:
        """Graphs of the data set with labels, or of any molecules without labels."""
        return molecular_graphs(n_atoms, atomic_numbers, positions, labels, self.cutoff)

    def samples(self, split: str) -> GraphDataset:
        """The molecules of a split, with standardized labels."""
        if split not in self._samples:
            self._samples[split] = self._dataset[self._rows(split)]
        return self._samples[split]

    def graph(self, batch: GraphsTuple, key: jax.Array | None = None) -> GraphsTuple:
        """The network's input: h atomic numbers (N,), x in Å; ``key`` is not used."""
        return batch._replace(globals=Globals())

    def metrics(self, apply: Apply) -> Metrics:
        """The mean absolute error of each target in its unit; with several, also ``relative``."""

        def metrics(params: Any, batch: GraphsTuple, key: jax.Array) -> dict[str, Any]:
            error, count = self._error_sums(self.predict(apply, params, batch), batch)
            scaled = [error[k] * d for k, d in enumerate(self.deviation)]
            sums = {name: (e, count) for name, e in zip(self.targets, scaled, strict=True)}
            if len(self.targets) > 1:
                sums["relative"] = (jnp.mean(error), count)
            return sums

        return metrics

    def plot(self, apply: Apply, params: Any, path: Path) -> Path:
        """Draw predicted over true values of the test split, one panel per target."""
        names = {}
        for name in self.targets:
            relative = " (relative to atoms)" if name in qm9.REFERENCES else ""
            names[name] = f"{name}{relative}, {qm9.UNITS[name]}"
        true = self.labels[self._rows("test")]
        return plots.parity(names, true, self.predictions(apply, params, "test"), path)

    def details(self, apply: Apply, params: Any) -> dict[str, Any]:
        """Units, mean absolute errors on valid and test, also by number of atoms, and intervals.

        ``intervals``: half the width of an interval that contains the true values of the share
        ``coverage`` of molecules of a size (split conformal prediction: that quantile of errors on
        the validation samples). ``covered``: the share of test samples it contains.
        """
        by_atoms: dict[str, dict[str, Any]] = {"valid": {}, "test": {}}
        errors = {}
        widths: dict[str, np.ndarray] = {}
        covered = np.zeros(len(self.targets))
        for split, by_size in by_atoms.items():
            rows = self._rows(split)
            error = np.abs(self.predictions(apply, params, split) - self.labels[rows])
            errors[split] = dict(zip(self.targets, error.mean(axis=0).tolist(), strict=True))
            n_atoms = self.molecules.n_atoms[rows]
            for smallest, largest in SIZES:
                mask = (n_atoms >= smallest) & (n_atoms <= largest)
                label = f"{smallest} to {largest}"
                means = error[mask].mean(axis=0).tolist() if mask.any() else []
                by_target = dict(zip(self.targets, means, strict=False))
                by_size[label] = {"molecules": int(mask.sum())} | by_target
                if split == "valid" and mask.any():
                    widths[label] = conformal(error[mask])
                elif label in widths:
                    covered += (error[mask] <= widths[label]).sum(axis=0) / len(rows)
        intervals = {
            "coverage": COVERAGE,
            "by_atoms": {
                label: dict(zip(self.targets, width.tolist(), strict=True))
                for label, width in widths.items()
            },
            "covered": dict(zip(self.targets, covered.tolist(), strict=True)),
        }
        return {
            "units": self.units,
            "errors": errors,
            "by_atoms": by_atoms,
            "intervals": intervals,
        }

    def trivial(self, apply: Apply) -> tuple[str, Apply]:
        """The baseline alone, as from a network that predicts 0."""
        return "the baseline without a network", zeros_of(apply)

    def compare(self, results: Mapping[str, Any], folder: Path) -> list[Path]:
        """Write Table 3 with our rows, one per model and epochs, as ``table3.{md,png}``."""
        return write_table(table3_rows(results), folder / "table3")

    def predictions(self, apply: Apply, params: Any, split: str) -> np.ndarray:
        """Predict the targets (S, T) of a split in their units, relative to free atoms."""
        return self._predict_rows(apply, params, self._rows(split))

    def properties(
        self,
        apply: Apply,
        params: Any,
        n_atoms: np.ndarray,
        atomic_numbers: np.ndarray,
        positions: np.ndarray,
        bonds: Bonds | None = None,
    ) -> np.ndarray:
        """Predict the targets (S, T) of any molecules, in their units.

        Args:
          apply, params: the network.
          n_atoms: number of atoms of each molecule (S,).
          atomic_numbers: (ΣM,), only of H, C, N, O and F.
          positions: (ΣM, 3) in Å.
          bonds: the bonds of the molecules, if the network reads them; by default, those that RDKit
            perceives from positions of neutral molecules.

        Raises:
          ValueError: there is another element, or features that the network needs, for example
            bonds, cannot be determined.
        """
        allowed = sorted(qm9.ELEMENTS.values())
        if unknown := set(atomic_numbers.tolist()) - set(allowed):
            raise ValueError(
                f"atomic_numbers has {sorted(unknown)}; expected of {allowed}, the elements of QM9"
            )
        graphs = self._graphs(n_atoms, atomic_numbers, positions.astype(np.float32), bonds=bonds)
        baseline = self.baseline(n_atoms, atomic_numbers, positions)
        baseline += self.references(n_atoms, atomic_numbers)
        return self._predict_graphs(apply, params, graphs) + baseline

    def references(self, n_atoms: np.ndarray, atomic_numbers: np.ndarray) -> np.ndarray:
        """The targets (S, T) summed over the free atoms of each molecule."""
        sums = [qm9.atomic_references(name, n_atoms, atomic_numbers) for name in self.targets]
        return np.stack(sums, axis=1)

    def _error_sums(
        self, predicted: jax.Array, batch: GraphsTuple, power: int = 1
    ) -> tuple[jax.Array, jax.Array]:
        """|ŷ - y|^power summed over the molecules of a batch (T,), and their number."""
        mask = graph_mask(batch)[:-1]  # the last graph of a batch is always padding
        error = jnp.abs(predicted - batch.globals.y)[:-1] ** power
        return jnp.sum(jnp.where(mask[:, None], error, 0.0), axis=0), jnp.sum(mask)

    def _predict_rows(self, apply: Apply, params: Any, rows: np.ndarray) -> np.ndarray:
        """Predict the targets (S, T) of rows of the data set, relative to free atoms."""
        data = self.molecules
        atoms = Gather(data.n_atoms[rows][None], exclusive_cumsum(data.n_atoms)[rows][None]).source
        baseline = self.baseline(
            data.n_atoms[rows], data.atomic_numbers[atoms], data.positions[atoms]
        )
        return self._predict_graphs(apply, params, self._dataset[rows]) + baseline

    def _predict_graphs(self, apply: Apply, params: Any, graphs: GraphDataset) -> np.ndarray:
        return predictions(self.predict, apply, params, graphs, len(self.targets)) * self.deviation

    def _rows(self, split: str) -> np.ndarray:
        rows = self.molecules.splits[split]
        return rows[: self.train_size] if split == "train" else rows
