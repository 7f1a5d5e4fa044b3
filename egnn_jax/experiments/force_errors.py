"""Errors of a potential on labelled structures, in detail."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from egnn_jax.data.dataset import GraphDataset
from egnn_jax.experiments import plots
from egnn_jax.graph.graph import GraphsTuple, graph_mask, node_mask

SCALES = {"energy": 1e3, "forces": 1e3, "stress": 160.2176634}
"""From eV, eV/Å and eV/Å³ to meV, meV/Å and GPa."""

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]
"""True and predicted energies (S, 1), forces (ΣM, 3) and stress (S, 3, 3), by name."""


def pairs(predict: Callable[[GraphsTuple], GraphsTuple], samples: GraphDataset) -> Pairs:
    """Labels and predictions of all samples, in order, in eV and Å.

    Args:
      predict: a potential and its parameters, as a function of a batch.
      samples: with labels, as :func:`egnn_jax.from_ase` gives them.
    """
    loader = samples.loader(min(len(samples), 32))
    each: list[Pairs] = [{} for _ in range(len(samples))]
    for k in range(loader.num_batches(None)):
        batch: Any = jax.tree.map(lambda a: a[0, 0], loader.batches(None, k, 1))
        out: Any = predict(batch)
        rows = [row for row in loader.rows(None)[k, 0].tolist() if row >= 0]
        of_graphs, of_nodes = np.asarray(graph_mask(batch)), np.asarray(node_mask(batch))
        ends = np.cumsum(np.asarray(batch.n_node)[of_graphs])[:-1]
        for name, label, predicted in (
            ("energy", batch.globals.y, out.globals.y),
            ("forces", batch.nodes.y, out.nodes.y),
            ("stress", batch.globals.stress, out.globals.stress),
        ):
            if label is None:
                continue
            both = [np.asarray(label), np.asarray(predicted)]
            if name == "forces":
                parts = [np.split(array[of_nodes], ends) for array in both]
            else:
                parts = [array[of_graphs] for array in both]
            for row, true, found in zip(rows, *parts, strict=True):
                each[row][name] = true, found
    join = {"energy": np.stack, "forces": np.concatenate, "stress": np.stack}
    return {
        name: (join[name]([p[name][0] for p in each]), join[name]([p[name][1] for p in each]))
        for name in each[0]
    }


def errors(
    predict: Callable[[GraphsTuple], GraphsTuple], samples: GraphDataset
) -> dict[str, np.ndarray]:
    """Predicted less true in meV, meV/Å and GPa, with the shapes of :func:`pairs`."""
    return {
        name: SCALES[name] * (predicted - true).astype(np.float64)
        for name, (true, predicted) in pairs(predict, samples).items()
    }


def details(errors: Mapping[str, np.ndarray], structures: Sequence[Any]) -> dict[str, Any]:
    """Root mean square errors of all, and both errors by element and ``config_type``.

    Args:
      errors: as the function of that name gives them.
      structures: ASE's ``Atoms`` in the same order, whose ``info`` may have ``config_type``.
    """
    n_atoms = np.array([len(atoms) for atoms in structures])
    every = dict(errors) | {"energy_per_atom": errors["energy"] / n_atoms[:, None]}
    kinds = np.array([str(atoms.info.get("config_type", "")) for atoms in structures])
    symbols = np.concatenate([atoms.get_chemical_symbols() for atoms in structures])
    of_atom = np.repeat(kinds, n_atoms)

    def both(name: str, chosen: np.ndarray) -> dict[str, float]:
        error = every[name][chosen]
        return {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean()))}

    return {
        "structures": len(structures),
        "rmse": {name: float(np.sqrt((error**2).mean())) for name, error in every.items()},
        "by_element": {
            symbol: {"forces": both("forces", symbols == symbol)}
            for symbol in sorted(set(symbols.tolist()))
            if "forces" in every
        },
        "by_config_type": {
            kind: {
                name: both(name, (of_atom if name == "forces" else kinds) == kind) for name in every
            }
            for kind in sorted(set(kinds.tolist()) - {""})
        },
    }


def plot(predict: Callable[[GraphsTuple], GraphsTuple], samples: GraphDataset, path: Path) -> Path:
    """Energies an atom and components of forces, predicted over true, and their errors."""
    found = pairs(predict, samples)
    (true, predicted), n_atoms = found["energy"], samples.n_node[:, None]
    shown = {"energy, eV/atom": (true / n_atoms, predicted / n_atoms)}
    if "forces" in found:
        true, predicted = found["forces"]
        shown["forces, eV/Å"] = (true.ravel(), predicted.ravel())
    return plots.parity_and_errors(shown, path)
