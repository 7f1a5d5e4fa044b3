"""Detailed errors of a potential on labeled structures."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np

from egnn_jax.data.dataset import GraphDataset
from egnn_jax.data.labelled import Labelled
from egnn_jax.experiments import plots
from egnn_jax.experiments.task import prediction_batch_size
from egnn_jax.graph.graph import GraphsTuple, graph_mask, node_mask

SCALES = {"energy": 1e3, "forces": 1e3, "stress": 160.2176634}
"""Factors from eV, eV/Å and eV/Å³ to meV, meV/Å and GPa."""

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]
"""True and predicted energies (S, 1), forces (ΣM, 3) and stress (S, 3, 3), by name."""


def pairs(predict: Callable[[GraphsTuple], GraphsTuple], samples: GraphDataset) -> Pairs:
    """Labels and predictions of all samples, in order, in eV and Å.

    Args:
      predict: a function from a batch to the predictions of a potential.
      samples: labeled graphs, as from :func:`egnn_jax.from_ase`.
    """
    loader = samples.loader(prediction_batch_size(samples, 32))
    atom_ranges = list(pairwise(np.cumsum([0, *samples.n_node]).tolist()))
    result: Pairs = {}
    for k in range(loader.num_batches(None)):
        batch: Any = jax.tree.map(lambda a: a[0, 0], loader.batches(None, k, 1))
        out: Any = predict(batch)
        rows = loader.rows(None)[k, 0]
        rows = rows[rows >= 0]
        real_graphs, real_nodes = np.asarray(graph_mask(batch)), np.asarray(node_mask(batch))
        atoms = np.concatenate([np.arange(*atom_ranges[row]) for row in rows.tolist()])
        for name, label, predicted in (
            ("energy", batch.globals.y, out.globals.y),
            ("forces", batch.nodes.y, out.nodes.y),
            ("stress", batch.globals.stress, out.globals.stress),
        ):
            if label is None:
                continue
            length, indices, mask = len(samples), rows, real_graphs
            if name == "forces":
                length, indices, mask = int(samples.n_node.sum(dtype=np.int64)), atoms, real_nodes
            values = [np.asarray(label), np.asarray(predicted)]
            if name not in result:
                labels, predictions = (np.zeros((length, *a.shape[1:]), a.dtype) for a in values)
                result[name] = labels, predictions
            for array, batch_values in zip(result[name], values, strict=True):
                array[indices] = batch_values[mask]
    return result


def errors(
    predict: Callable[[GraphsTuple], GraphsTuple], samples: GraphDataset
) -> dict[str, np.ndarray]:
    """Predicted minus true values in meV, meV/Å and GPa, with the shapes of :func:`pairs`."""
    return {
        name: SCALES[name] * (predicted - true).astype(np.float64)
        for name, (true, predicted) in pairs(predict, samples).items()
    }


def details(errors: Mapping[str, np.ndarray], structures: Labelled) -> dict[str, Any]:
    """Root mean square errors of all structures, and MAE and RMSE by element and ``config_type``.

    Args:
      errors: the result of :func:`errors`.
      structures: the structures, in the same order.
    """
    from ase.data import chemical_symbols

    n_atoms = structures.graphs.n_node
    all_errors = dict(errors) | {"energy_per_atom": errors["energy"] / n_atoms[:, None]}
    atomic_numbers, config_types = structures.graphs.node_features(), structures.config_type
    atom_config_types = np.repeat(config_types, n_atoms)

    def mae_and_rmse(name: str, mask: np.ndarray) -> dict[str, float]:
        error = all_errors[name][mask]
        return {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean()))}

    return {
        "structures": len(structures),
        "rmse": {name: float(np.sqrt((error**2).mean())) for name, error in all_errors.items()},
        "by_element": {
            symbol: {"forces": mae_and_rmse("forces", atomic_numbers == number)}
            for symbol, number in sorted(
                (chemical_symbols[n], n) for n in np.unique(atomic_numbers)
            )
            if "forces" in all_errors
        },
        "by_config_type": {
            config_type: {
                name: mae_and_rmse(
                    name, (atom_config_types if name == "forces" else config_types) == index
                )
                for name in all_errors
            }
            for config_type, index in sorted(
                (structures.config_types[k], k) for k in np.unique(config_types)
            )
            if config_type
        },
    }


def plot(predict: Callable[[GraphsTuple], GraphsTuple], samples: GraphDataset, path: Path) -> Path:
    """Draw parity plots and errors of energies per atom and force components."""
    result = pairs(predict, samples)
    (true, predicted), n_atoms = result["energy"], samples.n_node[:, None]
    panels = {"energy, eV/atom": (true / n_atoms, predicted / n_atoms)}
    if "forces" in result:
        true, predicted = result["forces"]
        panels["forces, eV/Å"] = (true.ravel(), predicted.ravel())
    return plots.parity_and_errors(panels, path)
