"""The task of training potentials on energies, forces and stress of your own structures."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax import losses
from egnn_jax.data import labelled, xtb
from egnn_jax.data._splits import SPLITS, files, shares
from egnn_jax.data.dataset import GraphDataset
from egnn_jax.data.frames import Energy, Labels, Length
from egnn_jax.data.labelled import Labelled
from egnn_jax.experiments import force_errors
from egnn_jax.experiments.task import Apply, Task, zeros_of
from egnn_jax.graph.graph import Globals, GraphsTuple, graph_mask, node_mask
from egnn_jax.potentials.potential import Potential
from egnn_jax.training.evaluation import Metrics
from egnn_jax.training.step import Loss


@dataclasses.dataclass(frozen=True)
class Forces(Task):
    """Predict energies, forces and, if given, stress of structures with ``Potential``.

    Energies are relative to those of free atoms, which are given or fitted by least squares to the
    training structures (:meth:`egnn_jax.data.labelled.Labelled.fit_e0s`).

    Args:
      train: a file of structures that ASE reads, rMD17's .npz, or a folder of ``egnn pack``.
      valid: another file, or the share of the structures of ``train`` to use for validation.
      test: another file, or the share of the structures of ``train`` to use for testing.
      simulate: NAME=SMILES; if ``train`` is this name and no such file exists, simulate and label
        frames of the molecule, see :func:`egnn_jax.data.xtb.simulated_frames`.
      split_seed: seed of the random choice of validation and test structures.
      energy: the name of the energies in the files.
      forces: the name of the forces; "" to train on energies only.
      stress: the name of the stress, if any, with ASE's sign.
      virial: the name of the virial -V·stress, instead of the stress.
      energy_unit: energy unit of all labels in the files.
      length_unit: length unit of positions, cells and labels.
      e0s: energies of free atoms (E0s) in eV, one per element, for example H=-13.57; fitted by
        least squares if none.
      cutoff: distance (Å) within which atoms are connected. The model needs the same cutoff.
      energy_weight: weight of the mean squared error of the energy per atom (1/eV²).
      forces_weight: weight of the mean squared error of the forces (Å²/eV²).
      stress_weight: weight of the mean squared error of the stress (Å⁶/eV²).
    """

    train: str = ""
    valid: str = "0.1"
    test: str = "0.1"
    simulate: str = ""
    split_seed: int = 0
    energy: str = "energy"
    forces: str = "forces"
    stress: str = ""
    virial: str = ""
    energy_unit: Energy = "eV"
    length_unit: Length = "Å"
    e0s: tuple[str, ...] = ()
    cutoff: float = 5.0
    energy_weight: float = 1.0
    forces_weight: float = 1.0
    stress_weight: float = 100.0

    metric = "loss"

    def __post_init__(self) -> None:
        """Raise ValueError if an option is invalid."""
        _ = self._labels, self._given_e0s
        if not 0 < self.cutoff < np.inf:
            raise ValueError(f"task.cutoff is {self.cutoff}; expected a distance above 0 in Å")
        for name in ("energy_weight", "forces_weight", "stress_weight"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"task.{name} is {getattr(self, name)}; expected 0 or above")
        shares(self.valid, self.test)
        if not any(self._weights.values()):
            raise ValueError("all weights of the loss are 0; expected one above 0")

    @property
    def units(self) -> dict[str, str]:
        """The units of the metrics: meV, meV/Å and GPa."""
        units = {"energy": "meV", "energy_per_atom": "meV/atom"}
        if self.forces:
            units["forces"] = "meV/Å"
        return units | ({"stress": "GPa"} if self._has_stress else {})

    @property
    def elements(self) -> tuple[str, ...]:
        """The elements of the training structures, or those with a given free-atom energy."""
        return tuple(self.references)

    @property
    def references(self) -> dict[str, float]:
        """The energies of free atoms in eV, by symbol."""
        return self._statistics["e0s"]

    @property
    def files(self) -> tuple[str, ...]:
        """The files among ``train``, ``valid`` and ``test``, or that of the simulated frames."""
        if self._simulated_smiles:
            return (xtb.name_of(self._simulated_smiles),)
        return files(self.train, self.valid, self.test)

    def samples(self, split: str) -> GraphDataset:
        """The structures of a split as graphs."""
        return self._samples[split]

    def network(self, model: nn.Module) -> nn.Module:
        """The model wrapped in :class:`egnn_jax.Potential`.

        Raises:
          ValueError: the model's cutoff differs from the task's.
        """
        cutoff = getattr(model, "cutoff", None)
        if cutoff != self.cutoff:
            raise ValueError(
                f"the model's cutoff is {cutoff} and the task's {self.cutoff}; expected the same, "
                "where messages go to zero: --model.cutoff and --task.cutoff"
            )
        return Potential(
            model,
            scale=self._statistics["scale"],
            shift=self._statistics["shift"],
            stress=self._has_stress,
        )

    def graph(self, batch: GraphsTuple, key: jax.Array | None = None) -> GraphsTuple:
        """The input: atomic numbers and positions, without labels; ``key`` is not used."""
        unlabelled = Globals(cell=batch.globals.cell)
        return batch._replace(nodes=batch.nodes.replace(y=None), globals=unlabelled)

    def loss(self, apply: Apply) -> Loss:
        """Weighted mean squared errors, see :func:`egnn_jax.losses.energy_forces`."""
        return losses.energy_forces(
            lambda params, batch: apply(params, self.graph(batch)), **self._weights
        )

    def metrics(self, apply: Apply) -> Metrics:
        """The loss and mean absolute errors, in :attr:`units`."""
        loss = self.loss(apply)

        def metrics(params: Any, batch: GraphsTuple, key: jax.Array) -> dict[str, Any]:
            out = apply(params, self.graph(batch))
            real_graphs, real_nodes = graph_mask(batch), node_mask(batch)
            result: dict[str, Any] = {"loss": loss(params, batch, key)[0]}
            error = jnp.where(real_graphs, jnp.abs(out.globals.y - batch.globals.y)[:, 0], 0)
            n_graph, n_node = jnp.sum(real_graphs), jnp.maximum(jnp.asarray(batch.n_node), 1)
            result["energy"] = (1e3 * jnp.sum(error), n_graph)
            result["energy_per_atom"] = (1e3 * jnp.sum(error / n_node), n_graph)
            if self.forces:
                error = jnp.where(real_nodes[:, None], jnp.abs(out.nodes.y - batch.nodes.y), 0)
                result["forces"] = (1e3 * jnp.sum(error), 3 * jnp.sum(real_nodes))
            if self._has_stress:
                error = jnp.abs(out.globals.stress - batch.globals.stress)
                error = jnp.where(real_graphs[:, None, None], error, 0)
                result["stress"] = (force_errors.SCALES["stress"] * jnp.sum(error), 9 * n_graph)
            return result

        return metrics

    def details(self, apply: Apply, params: Any) -> dict[str, Any]:
        """Root mean square errors, errors by element and ``config_type``, and the reference
        energies, see :func:`egnn_jax.experiments.force_errors.details`.
        """
        result: dict[str, Any] = {"units": self.units} | self._statistics
        predict = self._predictor(apply, params)
        for split in ("valid", "test"):
            errors = force_errors.errors(predict, self.samples(split))
            result[split] = force_errors.details(errors, self._structures[split])
        return result

    def trivial(self, apply: Apply) -> tuple[str, Apply]:
        """Predict the mean energy per atom, no forces and no stress."""
        zeros = zeros_of(apply)

        def mean(params: Any, graph: GraphsTuple) -> GraphsTuple:
            out = zeros(params, graph)
            y = self._statistics["shift"] * jnp.asarray(graph.n_node, graph.nodes.x.dtype)
            return out._replace(globals=out.globals.replace(y=y[:, None]))

        return "the mean energy of an atom, no forces", mean

    def plot(self, apply: Apply, params: Any, path: Path) -> Path:
        """Draw parity plots and errors of energies per atom and forces of the test split."""
        return force_errors.plot(self._predictor(apply, params), self.samples("test"), path)

    def constants(self) -> dict[str, Any]:
        """Energies of free atoms, and scale and shift of the energy per atom."""
        return self._statistics

    def with_constants(self, constants: Mapping[str, Any]) -> "Forces":
        """This task with the values that :meth:`constants` returned.

        Raises:
          ValueError: the values are invalid.
        """
        try:
            statistics = {
                "e0s": {str(k): float(v) for k, v in constants["e0s"].items()},
                "determined": bool(constants["determined"]),
                "scale": float(constants["scale"]),
                "shift": float(constants["shift"]),
            }
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"constants are {str(constants)[:200]}; expected e0s, determined, scale and shift"
            ) from error
        task = dataclasses.replace(self)
        vars(task)["_statistics"] = statistics
        return task

    @property
    def _weights(self) -> dict[str, float]:
        """The weights of the loss, 0 without such labels."""
        return {
            "energy": self.energy_weight,
            "forces": self.forces_weight if self.forces else 0.0,
            "stress": self.stress_weight if self._has_stress else 0.0,
        }

    @property
    def _has_stress(self) -> bool:
        return bool(self.stress or self.virial)

    def _predictor(self, apply: Apply, params: Any) -> Callable[[GraphsTuple], GraphsTuple]:
        return partial(jax.jit(lambda params, batch: apply(params, self.graph(batch))), params)

    @cached_property
    def _labels(self) -> Labels:
        names = (field.name for field in dataclasses.fields(Labels))
        return Labels(**{name: getattr(self, name) for name in names})

    @cached_property
    def _given_e0s(self) -> dict[str, float]:
        energies = {}
        for text in self.e0s:
            symbol, equals, energy = text.partition("=")
            try:
                value = float(energy)
            except ValueError:
                value = np.nan
            if not (equals and np.isfinite(value)) or symbol in energies:
                raise ValueError(
                    f"task.e0s has {text!r}; expected an entry such as H=-13.57 for each element"
                )
            energies[symbol] = value
        return energies

    @cached_property
    def _simulated_smiles(self) -> str:
        """The SMILES whose frames are simulated, since ``train`` is not a file; else empty."""
        return xtb.substitute(self.train, self.simulate)

    @cached_property
    def _structures(self) -> dict[str, Labelled]:
        """The structures of each split, in eV and Å."""
        if not self.train:
            raise ValueError("task.train is empty; expected a file of structures")
        if smiles := self._simulated_smiles:
            warnings.warn(
                f"{self.train} is not a file; {smiles} is simulated and labelled by GFN2-xTB "
                "instead, half of the frames for the test; no other file is used",
                stacklevel=2,
            )
            path = str(xtb.simulated_frames(smiles).absolute())
            return labelled.splits(path, "0.025", "0.5", self.split_seed, Labels(), self.cutoff)
        return labelled.splits(
            self.train, self.valid, self.test, self.split_seed, self._labels, self.cutoff
        )

    @cached_property
    def _statistics(self) -> dict[str, Any]:
        train = self._structures["train"]
        references, determined = (self._given_e0s, True) if self._given_e0s else train.fit_e0s()
        n_node = train.graphs.n_node
        energies = train.relative(references) / n_node
        scale = float(np.std(energies))
        if self.forces:
            scale = float(np.sqrt(train.squared_forces.sum() / (3 * n_node.sum(dtype=np.int64))))
        return {
            "e0s": references,
            "determined": determined,
            "scale": scale or 1.0,
            "shift": float(np.mean(energies)),
        }

    @cached_property
    def _samples(self) -> dict[str, GraphDataset]:
        return {split: self._structures[split].samples(self.references) for split in SPLITS}
