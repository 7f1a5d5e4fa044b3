"""Predicting all twelve properties of QM9 with one network that builds in their physics."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data import qm9, qm9_mmff94
from egnn_jax.data.dataset import GraphDataset
from egnn_jax.experiments.molecules import MolecularTask
from egnn_jax.experiments.task import Apply
from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import Globals, GraphsTuple, graph_mask, graph_of_node, sum_nodes
from egnn_jax.nn.batch_norm import in_training
from egnn_jax.nn.mlp import MLP
from egnn_jax.training.step import STATISTICS, Loss

OUTPUTS = ("homo", "lumo", "mu", "r2", "alpha", "zpve", "Cv", "U0", "U - U0", "G - H")
"""The network's outputs; gap = lumo - homo, U = U0 + (U - U0), H = U + RT, G = H + (G - H)."""

_LOSS_WEIGHTS = dict.fromkeys((*OUTPUTS, "gap"), 1.0) | {
    "U0": 2.0,
    "U - U0": 0.25,
    "G - H": 0.5,
    "r2": 0.5,
}
_DIFFERENCES = {"U - U0": ("U", "U0"), "G - H": ("G", "H")}


class Statistics(NamedTuple):
    """Statistics of training molecules: a linear model (11, T) of the targets in the features of
    :func:`composition`, and the mean absolute deviation from it of targets (T,) and outputs.
    """

    coefficients: np.ndarray
    deviation: np.ndarray
    output_deviation: np.ndarray


class MolecularReadout(nn.Module):
    """Compute :data:`OUTPUTS` of molecules from h (and v) of their atoms.

    Size-extensive outputs are sums over atoms of MLP(h_i). Orbital energies are an MLP of a mean
    over atoms with learned weights. The dipole moment is ‖Σ_i q(h_i) (x_i - x̄) + v_i‖, and
    ⟨R²⟩ = Σ_i q'(h_i) ‖x_i - c‖² + s(h_i) with the center of nuclear charge c.

    Args:
      encoder: a backbone; its v, if any, are added to the dipole moment.
      heads: heads of the weighted mean, each with its own weights.

    Call: maps a graph with h atomic numbers (N,) and x (N, 3) in Å to the encoder's output, with
    ``globals.y`` the outputs (G, 10), each in units of its scale.
    """

    encoder: nn.Module
    heads: int = 8

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        """Compute the graph with its predictions, see the class."""
        out = self.encoder(graph)
        h, x, graph_index = out.nodes.h, graph.nodes.x, graph_of_node(graph)
        width = h.shape[-1]
        sums = sum_nodes(out, MLP(width, 6, name="extensive")(h))
        orbitals = MLP(width, 2, name="orbitals")(self._weighted_mean(out, h))

        moments = MLP(width, 3, name="moments")(h)
        n_node = jnp.maximum(jnp.asarray(graph.n_node), 1).astype(x.dtype)[:, None]
        dipoles = moments[:, :1] * (x - (sum_nodes(graph, x) / n_node)[graph_index])
        if out.nodes.v is not None:
            dipoles += out.nodes.v
        charge = graph.nodes.h.astype(x.dtype)[:, None]
        total_charge = jnp.maximum(sum_nodes(graph, charge), 1)
        center = (sum_nodes(graph, charge * x) / total_charge)[graph_index]
        squared = jnp.sum((x - center) ** 2, axis=-1, keepdims=True)
        extent = sum_nodes(graph, moments[:, 1:2] * squared / 10 + moments[:, 2:])
        mu = safe_norm(sum_nodes(graph, dipoles), keepdims=True)
        y = jnp.concatenate([orbitals, mu, extent, sums], axis=-1)
        return out._replace(globals=Globals(y=y))

    def _weighted_mean(self, graph: GraphsTuple, h: jax.Array) -> jax.Array:
        """Map (N, F) to (G, F + heads): for each head, Σ_i w_i h'_i / Σ_i w_i and ln Σ_i w_i."""
        width = h.shape[-1]
        node_outputs = MLP(width, self.heads + width, name="orbital_nodes")(h)
        # Bounded, so that exp is safe without subtracting the maximum over atoms.
        weights = jnp.exp(10 * jnp.tanh(node_outputs[:, : self.heads] / 10))[:, :, None]
        values = node_outputs[:, self.heads :].reshape(len(h), self.heads, -1)
        total = jnp.maximum(sum_nodes(graph, weights), 1e-6)
        mean = sum_nodes(graph, weights * values) / total
        features = [a.reshape(len(a), -1) for a in (mean, jnp.log(total))]
        return nn.silu(jnp.concatenate(features, axis=-1))


@dataclasses.dataclass(frozen=True)
class QM9Properties(MolecularTask):
    """Predict all twelve properties of molecules with one network.

    Targets are relative to a linear model of the composition (for ⟨R²⟩ also of the distances of
    each element from the center). The loss is Σ_k w_k ln(mean |error_k|) over a batch, so that
    every property counts by its relative error, independent of its scale.

    Args:
      geometry: "dft" for QM9's own positions (B3LYP), or "mmff94" for positions that RDKit makes
        from QM9's SMILES, for predictions from SMILES; see :mod:`egnn_jax.data.qm9_mmff94`.
      conformers: the number of geometries per molecule for "mmff94"; training uses all of them,
        and predictions are the mean over them.
    """

    geometry: Literal["dft", "mmff94"] = "dft"
    conformers: int = 1

    metric = "relative"

    def __post_init__(self) -> None:
        """Raise ValueError if an option is invalid."""
        super().__post_init__()
        if not 1 <= self.conformers <= (1 if self.geometry == "dft" else 100):
            raise ValueError(
                f"task.conformers is {self.conformers} of geometry {self.geometry}; expected 1 of "
                "dft, 1 to 100 of mmff94"
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """The twelve properties, in the order of Table 3."""
        return qm9.TARGETS

    @cached_property
    def molecules(self) -> qm9.QM9:
        """The data set with the chosen geometries; molecules without one are in no split."""
        molecules = qm9.load()
        if self.geometry == "dft":
            return molecules
        return qm9_mmff94.replace(molecules, self.conformers)

    def samples(self, split: str) -> GraphDataset:
        """The molecules of a split; the training split has all of their conformers."""
        if split == "train" and split not in self._samples:
            self._samples[split] = self._dataset[self._conformer_rows(self._rows(split))[0]]
        return super().samples(split)

    def predictions(self, apply: Apply, params: Any, split: str) -> np.ndarray:
        """Predict the targets (S, T) of a split in their units, relative to free atoms, as the mean
        over the conformers of each molecule.
        """
        rows, counts = self._conformer_rows(self._rows(split))
        values = self._predict_rows(apply, params, rows)
        return np.add.reduceat(values, np.cumsum(counts) - counts) / counts[:, None]

    def _conformer_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of all conformers of molecules, given their first rows, and the number of
        conformers of each.
        """
        index = self.molecules.index
        counts = np.searchsorted(index, index[rows], side="right") - rows
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(rows, counts) + offsets, counts

    @cached_property
    def statistics(self) -> Statistics:
        """The statistics of the labels of the training molecules."""
        data, rows = self.molecules, self._rows("train")
        features = composition(data.n_atoms, data.atomic_numbers, data.positions)
        labels = self.labels[rows]
        num_features = dict.fromkeys(qm9.TARGETS, 6) | {"homo": 1, "lumo": 1, "gap": 1, "mu": 0}
        num_features["r2"] = features.shape[1]
        coefficients = np.zeros((features.shape[1], len(qm9.TARGETS)))
        for k, name in enumerate(qm9.TARGETS):
            if n := num_features[name]:
                solution = np.linalg.lstsq(features[rows, :n], labels[:, k], rcond=None)
                coefficients[:n, k] = solution[0]
        residuals = labels - features[rows] @ coefficients
        return Statistics(
            coefficients,
            np.abs(residuals).mean(axis=0),
            np.abs(residuals @ _selection_matrix(OUTPUTS)).mean(axis=0),
        )

    @property
    def deviation(self) -> np.ndarray:
        """The mean absolute deviation of each target from the linear model (T,)."""
        return self.statistics.deviation

    def baseline(
        self, n_atoms: np.ndarray, atomic_numbers: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        """The linear model of each target (S, T)."""
        return composition(n_atoms, atomic_numbers, positions) @ self.statistics.coefficients

    def constants(self) -> dict[str, Any]:
        """The linear model and the scales of targets and outputs."""
        return {name: values.tolist() for name, values in self.statistics._asdict().items()}

    def with_constants(self, constants: Mapping[str, Any]) -> "QM9Properties":
        """This task with the statistics of :meth:`constants`.

        Raises:
          ValueError: the values are invalid.
        """
        shapes = {
            "coefficients": (11, len(qm9.TARGETS)),
            "deviation": (len(qm9.TARGETS),),
            "output_deviation": (len(OUTPUTS),),
        }
        try:
            arrays = {name: np.asarray(constants[name], float) for name in shapes}
            valid = all(np.isfinite(a).all() and a.shape == shapes[n] for n, a in arrays.items())
        except (TypeError, ValueError, KeyError):
            valid, arrays = False, {}
        if not valid:
            raise ValueError(f"constants are {str(constants)[:200]}; expected {shapes}")
        task = dataclasses.replace(self)
        vars(task)["statistics"] = Statistics(**arrays)
        return task

    def network(self, model: nn.Module) -> nn.Module:
        """The model wrapped in :class:`MolecularReadout`."""
        return MolecularReadout(model)

    def predict(self, apply: Apply, params: Any, batch: GraphsTuple) -> jax.Array:
        """Predict standardized targets (G, 12)."""
        return self._targets(apply(params, self.graph(batch)).globals.y)

    def _targets(self, outputs: jax.Array) -> jax.Array:
        scales = self.statistics.output_deviation[:, None] * _combination_matrix() / self.deviation
        return outputs @ jnp.asarray(scales, outputs.dtype)

    def loss(self, apply: Apply) -> Loss:
        """Σ_k w_k ln(mean |error_k|), where the w_k sum to 1."""
        weights = np.array(list(_LOSS_WEIGHTS.values()))
        names = tuple(_LOSS_WEIGHTS)
        scales = np.append(self.statistics.output_deviation, self.deviation[_target_index("gap")])
        selection = self.deviation[:, None] * _selection_matrix(names) / scales

        def loss(params: Any, batch: GraphsTuple, key: jax.Array) -> tuple[jax.Array, dict]:
            mask = graph_mask(batch)[:-1, None]
            out, batch_stats = in_training(apply, params, self.graph(batch))
            residuals = (self._targets(out.globals.y) - batch.globals.y)[:-1]
            errors = jnp.abs(residuals @ jnp.asarray(selection, residuals.dtype))
            mean = jnp.sum(jnp.where(mask, errors, 0), axis=0) / jnp.maximum(jnp.sum(mask), 1)
            value = jnp.sum(jnp.log(mean + 1e-4) * (weights / weights.sum()))
            return value, {STATISTICS: batch_stats}

        return loss


def composition(
    n_atoms: np.ndarray, atomic_numbers: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Features (S, 11): 1, the number of atoms of H, C, N, O and F, and Σ ‖x - c‖² over the atoms
    of each, with the center of nuclear charge c.

    Args:
      n_atoms: number of atoms of each molecule (S,).
      atomic_numbers: (ΣM,).
      positions: (ΣM, 3) in Å.
    """
    count = len(n_atoms)
    molecule_index = np.repeat(np.arange(count), n_atoms)
    z, x = atomic_numbers.astype(float), positions.astype(float)
    total_charge = np.maximum(np.bincount(molecule_index, z, count), 1)
    center = np.stack([np.bincount(molecule_index, z * x[:, k], count) for k in range(3)], axis=1)
    squared = ((x - (center / total_charge[:, None])[molecule_index]) ** 2).sum(axis=1)
    elements = [(atomic_numbers == element).astype(float) for element in qm9.ELEMENTS.values()]
    counts = [np.bincount(molecule_index, is_element, count) for is_element in elements]
    extents = [np.bincount(molecule_index, is_element * squared, count) for is_element in elements]
    return np.stack([np.ones(count), *counts, *extents], axis=1)


def _target_index(name: str) -> int:
    return qm9.TARGETS.index(name)


def _selection_matrix(names: tuple[str, ...]) -> np.ndarray:
    """The matrix (12, K) that maps targets to the named outputs."""
    matrix = np.zeros((len(qm9.TARGETS), len(names)))
    for k, name in enumerate(names):
        minuend, *subtrahends = _DIFFERENCES.get(name, (name,))
        matrix[_target_index(minuend), k] = 1
        for subtrahend in subtrahends:
            matrix[_target_index(subtrahend), k] = -1
    return matrix


def _combination_matrix() -> np.ndarray:
    """The matrix (10, 12) that maps outputs, in their units, to targets."""
    terms = {name: {name} for name in qm9.TARGETS} | {
        "U": {"U0", "U - U0"},
        "H": {"U0", "U - U0"},
        "G": {"U0", "U - U0", "G - H"},
        "gap": {"lumo"},
    }
    matrix = np.array([[float(out in terms[name]) for name in qm9.TARGETS] for out in OUTPUTS])
    matrix[OUTPUTS.index("homo"), _target_index("gap")] = -1
    return matrix
