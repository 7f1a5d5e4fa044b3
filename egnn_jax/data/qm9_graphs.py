"""Molecules of QM9's elements as graphs, and the features of their atoms."""

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data._packing import edges_within
from egnn_jax.data.dataset import GraphDataset
from egnn_jax.data.qm9_properties import ELEMENTS
from egnn_jax.graph.graph import Globals, Nodes


def atom_features(atomic_numbers: jax.Array) -> jax.Array:
    """(N,) to (N, 15): one-hot of H, C, N, O, F times (Z/9)^0, (Z/9)^1, (Z/9)^2; 0 for padding."""
    elements = jnp.array(list(ELEMENTS.values()), atomic_numbers.dtype)
    one_hot = atomic_numbers[:, None] == elements
    powers = (atomic_numbers[:, None] / max(ELEMENTS.values())) ** jnp.arange(3)
    return (one_hot[:, :, None] * powers[:, None]).reshape(-1, 15)


def molecular_graphs(
    n_atoms: np.ndarray,
    atomic_numbers: np.ndarray,
    positions: np.ndarray,
    labels: np.ndarray | None = None,
    cutoff: float | None = None,
) -> GraphDataset:
    """Molecules as graphs: h atomic numbers (ΣM,), x (ΣM, 3) in Å, y labels (S, T).

    All atoms of a molecule send to each other, or those within the cutoff (Å).
    """
    edges = None if cutoff is None else edges_within(n_atoms, positions, cutoff)
    y = None if labels is None else labels.astype(np.float32)
    nodes = Nodes(h=atomic_numbers, x=positions)
    return GraphDataset.from_arrays(n_atoms, nodes, globals_=Globals(y=y), edge_lists=edges)
