"""QM9: predict properties of small molecules from atomic positions (section 5.3, Table 3)."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data import qm9, qm9_bonds
from egnn_jax.data.bonds import Bonds
from egnn_jax.experiments import paper
from egnn_jax.experiments._inputs import MolecularInputs
from egnn_jax.experiments.molecules import MolecularTask
from egnn_jax.experiments.task import Apply
from egnn_jax.graph.geometry import random_orthogonal
from egnn_jax.graph.graph import GraphsTuple, graph_of_node
from egnn_jax.nn.batch_norm import COLLECTION, in_training
from egnn_jax.nn.heads import head_of
from egnn_jax.training.step import STATISTICS, Loss

Target = Literal["alpha", "gap", "homo", "lumo", "mu", "Cv", "G", "H", "r2", "U", "U0", "zpve"]


class Statistics(NamedTuple):
    """Mean and mean absolute deviation of each target (T,), relative to free atoms."""

    mean: np.ndarray
    deviation: np.ndarray


@dataclasses.dataclass(frozen=True)
class QM9(MolecularInputs, MolecularTask):
    """Predict properties of molecules, with the mean absolute error as metric.

    Labels are (y - mean) / MAD, with the statistics of the training molecules. Thermochemical
    properties are relative to free atoms.

    Args:
      targets: the properties to predict.
      independent: train one network per target, all at once (vmapped), instead of one network with
        several outputs.
      augment: rotate each molecule at random in training, for models that are not equivariant to
        rotations.
      reflect: with ``augment``, also reflect half of the molecules, for models that are not
        equivariant to reflections.
      objective: the loss: "mae", the mean absolute error, or "mse", the mean squared error, of the
        standardized labels.
      train_size: train on the first molecules of the training split, this many.
      cutoff: connect only atoms within this distance (Å); all atoms of a molecule if none, as in
        the paper.
      features: features of an atom: "powers", the 15 of :func:`atom_features`, as in the paper;
        "numbers", Z as an integer, which models embed; "elements", a one-hot of the element, and
        Z; "chemistry", in addition to these whether it accepts or donates a hydrogen bond, is
        aromatic, sp, sp2 or sp3, and its number of hydrogens.
      bonds: "attributes" adds the kind of bond to each edge, a one-hot of single, double, triple
        and aromatic, zeros without a bond; "only" also drops edges without a bond. Bonds and
        chemistry come from QM9's SMILES, see :mod:`egnn_jax.data.qm9_bonds`; for other molecules,
        from RDKit's perception.
    """

    targets: tuple[Target, ...] = ("homo",)  # pyright: ignore[reportIncompatibleMethodOverride]
    independent: bool = False
    augment: bool = False
    reflect: bool = False
    objective: Literal["mae", "mse"] = "mae"
    _: dataclasses.KW_ONLY
    features: Literal["powers", "numbers", "elements", "chemistry"] = "powers"

    def __post_init__(self) -> None:
        """Raise ValueError if an option is invalid."""
        if len(set(self.targets)) < max(len(self.targets), 1):
            raise ValueError(
                f"task.targets is {self.targets}; expected one or more of {qm9.TARGETS}, each once"
            )
        if self.reflect and not self.augment:
            raise ValueError("task.reflect is true and task.augment false; expected both")
        self.require_no_cutoff_of_bonds()
        super().__post_init__()

    @property
    def element_numbers(self) -> Sequence[int]:
        """The atomic numbers of H, C, N, O and F."""
        return tuple(qm9.ELEMENTS.values())

    @property
    def metric(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The error of the target; with several targets, the mean of error / MAD."""
        target, *others = self.targets
        return "relative" if others else target

    @property
    def paper(self) -> dict[str, float]:
        """Table 3's column of the target, if there is only one."""
        target, *others = self.targets
        if others:
            return {}
        index = paper.TABLE3_TARGETS.index(target)
        networks = {row: paper.TABLE3_NETWORKS.get(row, row) for row in paper.TABLE3}
        column = {networks[name]: row[index] for name, row in paper.TABLE3.items()}
        return {model: error for model, error in column.items() if error is not None}

    @cached_property
    def statistics(self) -> Statistics:
        """The statistics of the labels of the training molecules."""
        labels = self.labels[self._rows("train")]
        mean = labels.mean(axis=0)
        return Statistics(mean, np.abs(labels - mean).mean(axis=0))

    @property
    def deviation(self) -> np.ndarray:
        """The mean absolute deviation of each target (T,)."""
        return self.statistics.deviation

    def baseline(
        self, n_atoms: np.ndarray, atomic_numbers: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        """The mean of each target, repeated for each molecule (S, T)."""
        return np.tile(self.statistics.mean, (len(n_atoms), 1))

    def constants(self) -> dict[str, Any]:
        """Mean and mean absolute deviation of each target, in its unit."""
        mean, deviation = (values.tolist() for values in self.statistics)
        return {"mean": mean, "mean_absolute_deviation": deviation}

    def with_constants(self, constants: Mapping[str, Any]) -> "QM9":
        """This task with the statistics of :meth:`constants`.

        Raises:
          ValueError: they do not fit the targets.
        """
        task, names = dataclasses.replace(self), ("mean", "mean_absolute_deviation")
        try:
            mean, deviation = (np.asarray(constants.get(name), float) for name in names)
            finite = bool(np.isfinite(mean).all() and (deviation > 0).all())
        except (TypeError, ValueError, AttributeError):
            finite, mean, deviation = False, np.zeros(0), np.zeros(0)
        if not finite or mean.shape != (len(self.targets),) or deviation.shape != mean.shape:
            text = repr(constants)[:200]
            raise ValueError(f"constants are {text}; expected those of {self.targets}")
        vars(task)["statistics"] = Statistics(mean, deviation)
        return task

    def network(self, model: nn.Module) -> nn.Module:
        """The model with its readout of the targets; one per target if ``independent``."""
        head = head_of(model)
        if not self.independent:
            return head(model, len(self.targets))
        vmap: Any = nn.vmap
        axes = {"variable_axes": {"params": 0, COLLECTION: 0}, "split_rngs": {"params": True}}
        vmapped = vmap(head, **axes, in_axes=None, out_axes=0, axis_size=len(self.targets))
        return vmapped(model, 1)

    @property
    def dataset_bonds(self) -> Bonds | None:
        """Bonds and atom traits of the data set, if the network reads them."""
        return qm9_bonds.load(self.molecules) if self.reads_bonds else None

    def predict(self, apply: Apply, params: Any, batch: GraphsTuple) -> jax.Array:
        """Predict standardized labels (G, T)."""
        return self._predicted_labels(apply(params, self.graph(batch)))

    def _predicted_labels(self, out: GraphsTuple) -> jax.Array:
        y = out.globals.y
        return jnp.moveaxis(y[..., 0], 0, -1) if self.independent else y

    def loss(self, apply: Apply) -> Loss:
        """The error of the standardized labels, see ``objective``."""
        determinant = None if self.reflect else 1

        def loss(params: Any, batch: GraphsTuple, key: jax.Array) -> tuple[jax.Array, dict]:
            graph = self.graph(batch)
            if self.augment:
                keys = jax.random.split(key, batch.n_node.shape[0])
                q = jax.vmap(lambda key: random_orthogonal(key, 3, determinant))(keys)
                x = jnp.einsum("nij,nj->ni", q[graph_of_node(graph)], graph.nodes.x)
                graph = graph._replace(nodes=graph.nodes.replace(x=x))
            out, batch_stats = in_training(apply, params, graph)
            power = 2 if self.objective == "mse" else 1
            error, count = self._error_sums(self._predicted_labels(out), batch, power)
            # The gradient of an independent network must not depend on the number of networks.
            networks = len(self.targets) if self.independent else 1
            value = jnp.sum(error) / count / (len(self.targets) / networks)
            return value, {STATISTICS: batch_stats}

        return loss
