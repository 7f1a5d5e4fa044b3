"""What are a molecule's properties, told from the positions of its atoms? Section 5.3 and Table
3.
"""

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
from egnn_jax.data.dataset import GraphSet, ends_within
from egnn_jax.experiments.task import Apply, OfGraphSets, Sums, save, write_table
from egnn_jax.graph.graph import GraphsTuple, Nodes
from egnn_jax.nn.heads import Readout

Target = Literal["alpha", "gap", "homo", "lumo", "mu", "Cv", "G", "H", "r2", "U", "U0", "zpve"]

TABLE3 = {
    "nmp": (0.092, 69, 43, 38, 0.030, 0.040, 19, 17, 0.180, 20, 20, 1.50),
    "schnet": (0.235, 63, 41, 34, 0.033, 0.033, 14, 14, 0.073, 19, 14, 1.70),
    "cormorant": (0.085, 61, 34, 38, 0.038, 0.026, 20, 21, 0.961, 21, 22, 2.03),
    "l1net": (0.088, 68, 46, 35, 0.043, 0.031, 14, 14, 0.354, 14, 13, 1.56),
    "lieconv": (0.084, 49, 30, 25, 0.032, 0.038, 22, 24, 0.800, 19, 19, 2.28),
    "dimenet++": (0.044, 33, 25, 20, 0.030, 0.023, 8, 7, 0.331, 6, 6, 1.21),
    "tfn": (0.223, 58, 40, 38, 0.064, 0.101, None, None, None, None, None, None),
    "se3_transformer": (0.142, 53, 35, 33, 0.051, 0.054, None, None, None, None, None, None),
    "egnn": (0.071, 48, 29, 25, 0.029, 0.031, 12, 12, 0.106, 12, 11, 1.55),
}
"""The paper's mean absolute errors, by model, in the order and units of
:data:`egnn_jax.data.qm9.TARGETS`.
"""

SIZES = ((3, 11), (12, 14), (15, 17), (18, 20), (21, 23), (24, 29))
"""The least and most atoms of the molecules whose errors are told together."""


class Statistics(NamedTuple):
    """Of each target over the training molecules, atomic references subtracted: mean and mean
    absolute deviation (T,).
    """

    mean: np.ndarray
    deviation: np.ndarray


@dataclasses.dataclass(frozen=True)
class QM9(OfGraphSets):
    """Predict properties of molecules, mean absolute error.

    Labels are (y - mean) / MAD of the training split, thermochemistry relative to its atoms; the
    loss is L1.

    Args:
      targets: the properties to predict.
      independent: a network of its own for each target, all trained at once (vmapped); otherwise
        one with several outputs.
      train_size: train on the first so many molecules of the training split.
      cutoff: only atoms within this distance (Å) send to each other; all of a molecule if none, as
        in the paper.
    """

    targets: tuple[Target, ...] = ("homo",)
    independent: bool = False
    train_size: int = 100_000
    cutoff: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where a choice makes no sense."""
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
    def metric(self) -> str:
        """The target's own error, or the mean of the errors relative to their deviations where
        there are several.
        """
        target, *others = self.targets
        return "relative" if others else target

    @property
    def paper(self) -> dict[str, float]:
        """Table 3's row of the one target."""
        target, *others = self.targets
        if others:
            return {}
        column = {model: row[qm9.TARGETS.index(target)] for model, row in TABLE3.items()}
        return {model: error for model, error in column.items() if error is not None}

    @property
    def units(self) -> dict[str, str]:
        """Table 3's."""
        return {name: qm9.UNITS[name] for name in self.targets}

    @property
    def draws(self) -> int:
        """Nothing is random in evaluation."""
        return 1

    @cached_property
    def molecules(self) -> qm9.QM9:
        """The data set."""
        return qm9.load()

    @cached_property
    def labels(self) -> np.ndarray:
        """The targets (S, T), in their units, relative to free atoms where atomic references
        are.
        """
        return np.stack(
            [self.molecules.targets[name] for name in self.targets], axis=1
        ) - self._references(self.molecules.n_atoms, self.molecules.atomic_numbers)

    def _references(self, n_atoms: np.ndarray, atomic_numbers: np.ndarray) -> np.ndarray:
        return np.stack(
            [qm9.of_free_atoms(name, n_atoms, atomic_numbers) for name in self.targets], axis=1
        )

    @cached_property
    def statistics(self) -> Statistics:
        """Of the labels of the molecules trained on."""
        labels = self.labels[self._rows("train")]
        mean = labels.mean(axis=0)
        return Statistics(mean, np.abs(labels - mean).mean(axis=0))

    @cached_property
    def splits(self) -> dict[str, GraphSet]:
        """The three splits, labels standardised."""
        return {split: self._graphs(self._rows(split)) for split in qm9.SPLITS}

    def _rows(self, split: str) -> np.ndarray:
        rows = self.molecules.splits[split]
        return rows[: self.train_size] if split == "train" else rows

    def _graphs(self, rows: np.ndarray) -> GraphSet:
        n_atoms = self.molecules.n_atoms
        atoms = np.concatenate(
            [
                np.arange(start, start + n)
                for start, n in zip(
                    (np.cumsum(n_atoms) - n_atoms)[rows], n_atoms[rows], strict=True
                )
            ]
        )
        labels = (self.labels[rows] - self.statistics.mean) / self.statistics.deviation
        if len(bad := np.argwhere(~np.isfinite(labels))):
            raise ValueError(
                f"{self.targets[bad[0][1]]} of molecule "
                f"{self.molecules.index[rows[bad[0][0]]]} is not finite"
            )
        return molecular_graphs(
            n_atoms[rows],
            self.molecules.atomic_numbers[atoms],
            self.molecules.positions[atoms],
            labels.astype(np.float32),
            self.cutoff,
        )

    def network(self, model: nn.Module) -> nn.Module:
        """The model with a readout of the targets; as many of them as targets where they are
        independent.
        """
        if not self.independent:
            return Readout(model, len(self.targets))
        each: Any = nn.vmap
        axes = {
            "variable_axes": {"params": 0},
            "split_rngs": {"params": True},
            "in_axes": None,
            "out_axes": 0,
        }
        return each(Readout, **axes, axis_size=len(self.targets))(model, 1)

    def graph(self, batch: GraphsTuple, key: jax.Array | None = None) -> GraphsTuple:
        """The input: h the 15 features of :func:`atom_features`, x in Å; ``key`` is not used."""
        return batch._replace(
            nodes=batch.nodes.replace(h=atom_features(batch.nodes.h)), globals=None
        )

    def predict(self, apply: Apply, params: Any, batch: GraphsTuple) -> jax.Array:
        """Standardised labels (G, T)."""
        told = apply(params, self.graph(batch)).globals
        return jnp.moveaxis(told[..., 0], 0, -1) if self.independent else told

    def loss(self, apply: Apply, params: Any, batch: GraphsTuple, key: jax.Array) -> jax.Array:
        """The mean absolute error of the standardised labels; ``key`` is not used."""
        error, number = self._errors(apply, params, batch)
        # Independent networks are not to see smaller gradients the more of them there are.
        return jnp.sum(error) / number / (1 if self.independent else len(self.targets))

    def metrics(
        self, apply: Apply, params: Any, batch: GraphsTuple, key: jax.Array
    ) -> dict[str, Sums]:
        """The mean absolute error of each target in its unit; with several, also ``relative``, the
        mean over them of error / MAD.
        """
        error, number = self._errors(apply, params, batch)
        sums = {
            name: (error[k] * self.statistics.deviation[k], number)
            for k, name in enumerate(self.targets)
        }
        return sums if len(self.targets) == 1 else sums | {"relative": (jnp.mean(error), number)}

    def _errors(self, apply: Apply, params: Any, batch: GraphsTuple) -> tuple[jax.Array, jax.Array]:
        """Absolute errors summed over the molecules of a batch (T,), and how many there are."""
        real = batch.n_node[:-1] > 0
        error = jnp.abs(self.predict(apply, params, batch) - batch.globals)[:-1]
        return jnp.sum(jnp.where(real[:, None], error, 0.0), axis=0), jnp.sum(real)

    def draw(self, apply: Apply, params: Any, path: Path) -> Path:
        """A picture of predicted over true values of the test split, one panel a target."""
        import matplotlib.pyplot as plt

        told = self.predictions(apply, params, "test")
        true = self.labels[self._rows("test")]
        columns = min(len(self.targets), 4)
        rows = -(-len(self.targets) // columns)
        figure, panels = plt.subplots(
            rows, columns, figsize=(4.5 * columns, 4.5 * rows), squeeze=False
        )
        for axes in panels.flat[len(self.targets) :]:
            axes.axis("off")
        for k, (name, axes) in enumerate(zip(self.targets, panels.flat, strict=False)):
            axes.plot(true[:, k], true[:, k], color="grey", lw=0.8)
            axes.scatter(true[:, k], told[:, k], s=1, alpha=0.3)
            unit, relative = (
                qm9.UNITS[name],
                " (relative to atoms)" if name in qm9.REFERENCES else "",
            )
            axes.set(xlabel=f"true {name}{relative}, {unit}", ylabel=f"predicted, {unit}")
            axes.locator_params(nbins=5)
            axes.set_title(
                f"{name}: mean absolute error {np.abs(told - true)[:, k].mean():.4g} {unit}",
                fontsize=9,
            )
        figure.tight_layout()
        return save(figure, path, dpi=110, tight=False)

    def details(self, apply: Apply, params: Any) -> dict[str, Any]:
        """The targets' units, and on valid and test the mean absolute errors of small to large
        molecules.
        """
        by_atoms: dict[str, dict[str, Any]] = {"valid": {}, "test": {}}
        for split, classes in by_atoms.items():
            rows = self._rows(split)
            error = np.abs(self.predictions(apply, params, split) - self.labels[rows])
            for least, most in SIZES:
                inside = (self.molecules.n_atoms[rows] >= least) & (
                    self.molecules.n_atoms[rows] <= most
                )
                errors = (
                    dict(zip(self.targets, error[inside].mean(axis=0).tolist(), strict=True))
                    if inside.any()
                    else {}
                )
                classes[f"{least} to {most}"] = {"molecules": int(inside.sum())} | errors
        return {"units": self.units, "by_atoms": by_atoms}

    def compare(self, results: Mapping[str, Any], folder: Path) -> list[Path]:
        """Table 3's rows and ours, one for the runs of each model and number of epochs, as
        ``table3.{md,png}``.
        """
        targets = [
            name
            for name in qm9.TARGETS
            if any(name in result["metrics"]["test"] for result in results.values())
        ]
        table: dict[str, dict[str, float | None]] = {
            row: dict(zip(qm9.TARGETS, errors, strict=True)) for row, errors in TABLE3.items()
        }
        for run, result in results.items():
            errors = {
                name: error for name, error in result["metrics"]["test"].items() if name in targets
            }
            row = (
                f"ours: {result['config']['model']['name']}, {result['config']['epochs']:,} epochs"
            )
            if (periods := result["config"]["optimizer"]["half_periods"]) > 1:
                row += f", {periods} half-periods"
            if set(errors) & set(table.get(row, {})):
                row = f"{row} ({run})"
            table.setdefault(row, {}).update(errors)
        shown = lambda error: "–" if error is None else f"{error:.3g}"
        rows = [
            {"model": row}
            | {f"{name} ({qm9.UNITS[name]})": shown(errors.get(name)) for name in targets}
            for row, errors in table.items()
        ]
        return write_table(rows, folder / "table3")

    def predictions(self, apply: Apply, params: Any, split: str) -> np.ndarray:
        """The targets (S, T) of a split's molecules in their units, relative to free atoms where
        atomic references are.
        """
        return self._told(apply, params, self.splits[split])

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
          apply: the model.
          params: its parameters.
          n_atoms: (S,).
          atomic_numbers: of H, C, N, O and F alone, (ΣM,).
          positions: (ΣM, 3) in Å.

        Raises:
          ValueError: another element.
        """
        if len(unknown := set(atomic_numbers.tolist()) - set(qm9.ELEMENTS.values())):
            raise ValueError(
                f"atomic_numbers has {sorted(unknown)}; expected of "
                f"{sorted(qm9.ELEMENTS.values())}, the elements of QM9"
            )
        graphs = molecular_graphs(
            n_atoms, atomic_numbers, positions.astype(np.float32), cutoff=self.cutoff
        )
        return self._told(apply, params, graphs) + self._references(n_atoms, atomic_numbers)

    def _told(self, apply: Apply, params: Any, graphs: GraphSet) -> np.ndarray:
        size = len(graphs)
        width = min(size, 100)
        rows = np.full(-(-size // width) * width, -1)
        rows[:size] = np.arange(size)
        predict = jax.jit(lambda params, batch: self.predict(apply, params, batch)[:-1])
        told = np.zeros((size, len(self.targets)))
        for batch in graphs.deal(rows, len(rows) // width, 1, np.random.default_rng(0))[:, 0]:
            told[batch[batch >= 0]] = np.asarray(predict(params, graphs.pack(batch)))[batch >= 0]
        return told * self.statistics.deviation + self.statistics.mean


def atom_features(atomic_numbers: jax.Array) -> jax.Array:
    """(N,) to (N, 15): which of H, C, N, O, F an atom is, times (Z/9)^0, (Z/9)^1 and (Z/9)^2; zeros
    for padding.
    """
    one_hot = atomic_numbers[:, None] == jnp.array(
        list(qm9.ELEMENTS.values()), atomic_numbers.dtype
    )
    powers = (atomic_numbers[:, None] / max(qm9.ELEMENTS.values())) ** jnp.arange(3)
    return (one_hot[:, :, None] * powers[:, None]).reshape(-1, 15)


def molecular_graphs(
    n_atoms: np.ndarray,
    atomic_numbers: np.ndarray,
    positions: np.ndarray,
    labels: np.ndarray | None = None,
    cutoff: float | None = None,
) -> GraphSet:
    """Molecules with h the atomic number (ΣM,), x (ΣM, 3) in Å, globals the labels (S, T), and the
    edges within the cutoff or all.
    """
    ends = None if cutoff is None else ends_within(n_atoms, positions, cutoff)
    return GraphSet(n_atoms, Nodes(h=atomic_numbers, x=positions), globals_=labels, ends=ends)
