"""Molecules as graphs, and their atom and bond features."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.data._packing import edges_within, exclusive_cumsum
from egnn_jax.data.bonds import Bonds
from egnn_jax.data.chemistry import BOND_TYPES
from egnn_jax.data.dataset import EdgeLists, GraphDataset
from egnn_jax.data.qm9_properties import ELEMENTS
from egnn_jax.graph.graph import Edges, Globals, GraphsTuple, Nodes


def atom_features(atomic_numbers: jax.Array) -> jax.Array:
    """Map Z (N,) to (N, 15): one-hot of H, C, N, O, F times (Z/9)^0, ^1 and ^2; 0 for padding."""
    elements = jnp.array(list(ELEMENTS.values()), atomic_numbers.dtype)
    one_hot = atomic_numbers[:, None] == elements
    powers = (atomic_numbers[:, None] / max(ELEMENTS.values())) ** jnp.arange(3)
    return (one_hot[:, :, None] * powers[:, None]).reshape(-1, 15)


def element_features(atomic_numbers: jax.Array, elements: Sequence[int]) -> jax.Array:
    """Map Z (N,) to (N, K + 1): one-hot of K elements, and Z; 0 for padding."""
    one_hot = atomic_numbers[:, None] == jnp.array(elements, atomic_numbers.dtype)
    return jnp.concatenate([one_hot, atomic_numbers[:, None]], axis=1).astype(jnp.float32)


def bond_features(bond_types: jax.Array) -> jax.Array:
    """Map (E,) to (E, 4): one-hot of :data:`~egnn_jax.data.chemistry.BOND_TYPES`; 0 for no bond."""
    types = jnp.arange(1, len(BOND_TYPES) + 1, dtype=bond_types.dtype)
    return (bond_types[:, None] == types).astype(jnp.float32)


def network_input(
    batch: GraphsTuple, features: str, bonds: str, elements: Sequence[int]
) -> GraphsTuple:
    """A batch of :func:`molecular_graphs` as the input of a network, without labels.

    Args:
      batch: the batch.
      features: what h is. "powers": :func:`atom_features`; "numbers": Z, as an integer;
        "elements": :func:`element_features`; "chemistry": the same, and the traits of the atoms.
      bonds: "none"; otherwise, a is :func:`bond_features`.
      elements: the atomic numbers of the one-hot of "elements" and "chemistry".
    """
    values = jnp.asarray(batch.nodes.h)
    numbers = h = values if values.ndim == 1 else values[:, 0]
    if features == "powers":
        h = atom_features(numbers)
    elif features != "numbers":
        h = element_features(numbers, elements)
    if features == "chemistry":
        h = jnp.concatenate([h, values[:, 1:].astype(h.dtype)], axis=1)
    a = None if bonds == "none" else bond_features(batch.edges.a)
    nodes, edges = batch.nodes.replace(h=h), batch.edges.replace(a=a)
    return batch._replace(nodes=nodes, edges=edges, globals=Globals())


def molecular_graphs(
    n_atoms: np.ndarray,
    atomic_numbers: np.ndarray,
    positions: np.ndarray,
    labels: np.ndarray | None = None,
    cutoff: float | None = None,
    bonds: Bonds | None = None,
    only_bonds: bool = False,
) -> GraphDataset:
    """Make graphs of molecules: h atomic numbers (ΣM,), x (ΣM, 3) in Å, y labels (S, T).

    Edges connect all atoms of a molecule, those within the cutoff (Å), or those with a bond. If
    bonds are given, a is their kinds (ΣE,), and h (ΣM, 8) also has the traits of the atoms.
    """
    y = None if labels is None else labels.astype(np.float32)
    h, bond_types, edges = atomic_numbers, None, None
    if cutoff is not None:
        edges = edges_within(n_atoms, positions, cutoff)
    if bonds is not None:
        h = np.column_stack([atomic_numbers, bonds.traits])
        edges, bond_types = _edge_bond_types(n_atoms, bonds, edges, only_bonds)
    nodes = Nodes(h=h, x=positions)
    return GraphDataset.from_arrays(
        n_atoms, nodes, edges=Edges(a=bond_types), globals_=Globals(y=y), edge_lists=edges
    )


def _edge_bond_types(
    n_atoms: np.ndarray, bonds: Bonds, edges: EdgeLists | None, only_bonds: bool
) -> tuple[EdgeLists | None, np.ndarray]:
    """The edges, or only those with a bond, and the kind of bond of each (ΣE,)."""
    n_atoms = n_atoms.astype(np.int64)
    bond_types = _pair_bond_types(n_atoms, bonds)
    molecule_indices = np.arange(len(n_atoms))
    first_pair = exclusive_cumsum(n_atoms**2)
    if only_bonds:
        pairs = np.flatnonzero(bond_types)
        molecule = np.repeat(molecule_indices, 2 * bonds.n_bond.astype(int))
        receivers, senders = np.divmod(pairs - first_pair[molecule], n_atoms[molecule])
        edges = 2 * bonds.n_bond, senders.astype(np.int32), receivers.astype(np.int32)
        return edges, bond_types[pairs]
    if edges is not None:
        n_edge, senders, receivers = edges
        molecule = np.repeat(molecule_indices, n_edge)
        return edges, bond_types[first_pair[molecule] + receivers * n_atoms[molecule] + senders]
    # Without its diagonal, a matrix of all pairs is in the order of complete_edges.
    molecule = np.repeat(molecule_indices, n_atoms)
    atom = np.arange(len(molecule)) - exclusive_cumsum(n_atoms)[molecule]
    return None, np.delete(bond_types, first_pair[molecule] + atom * (n_atoms[molecule] + 1))


def _pair_bond_types(n_atoms: np.ndarray, bonds: Bonds) -> np.ndarray:
    """The kind of bond of each pair of atoms: a matrix (M, M) for each molecule, flat (ΣM²,)."""
    squares = n_atoms**2
    bond_types = np.zeros(squares.sum(), np.int8)
    molecule = np.repeat(np.arange(len(n_atoms)), bonds.n_bond)
    for i, j in (bonds.bond_atoms.T, bonds.bond_atoms.T[::-1]):
        bond_types[exclusive_cumsum(squares)[molecule] + i * n_atoms[molecule] + j] = (
            bonds.bond_types
        )
    return bond_types
