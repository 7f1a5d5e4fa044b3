"""Graphs from ASE's ``Atoms``, and back."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from egnn_jax.graph.build import complete_graph, radius_graph
from egnn_jax.graph.graph import GraphsTuple


def from_ase(atoms: Any, cutoff: float | None = None, y: ArrayLike | None = None) -> GraphsTuple:
    """A graph of the atoms: h the atomic numbers (M,), x the positions (M, 3) in Å.

    In periodic directions images send too, and atoms outside the cell are moved to their images
    inside; ``globals.cell`` holds the cell.

    Args:
      atoms: ASE's ``Atoms``.
      cutoff: atoms at most this far apart (Å) send to each other; all atoms if not given.
      y: targets (T,), such as an energy.

    Raises:
      ValueError: this is no ``Atoms``, the atoms are periodic and there is no cutoff, or as
        :func:`egnn_jax.radius_graph`.
    """
    if not hasattr(atoms, "get_positions"):
        raise ValueError(f"atoms is of type {type(atoms).__name__}; expected ase.Atoms")
    h, x = atoms.get_atomic_numbers(), atoms.get_positions()
    periodic = np.asarray(atoms.get_pbc(), bool).tolist()
    if cutoff is None:
        if any(periodic):
            raise ValueError("the atoms are periodic; expected a cutoff")
        return complete_graph(x.astype(jnp.result_type(float)), h=h, y=y)
    if not any(periodic):
        return radius_graph(x, cutoff, h=h, y=y)
    return radius_graph(x, cutoff, h=h, y=y, cell=np.asarray(atoms.get_cell()), periodic=periodic)


def to_ase(graph: GraphsTuple, periodic: bool | tuple[bool, bool, bool] = True) -> Any:
    """ASE's ``Atoms`` of one graph whose h are atomic numbers.

    Args:
      graph: as :func:`from_ase` makes it, or what a network made of it with h put back.
      periodic: along which lattice vectors space repeats, where the graph has a cell.

    Raises:
      ValueError: the graph is a batch of several, or h are no atomic numbers.
    """
    from ase import Atoms

    if len(graph.n_node) != 1:
        raise ValueError(f"the batch has {len(graph.n_node)} graphs; expected one: see unbatch")
    h = np.asarray(graph.nodes.h)
    if h.ndim != 1 or not np.issubdtype(h.dtype, np.integer):
        raise ValueError(f"h has shape {h.shape} and dtype {h.dtype}; expected atomic numbers (M,)")
    cell = graph.globals.cell
    options = {} if cell is None else {"cell": np.asarray(cell[0]), "pbc": periodic}
    return Atoms(numbers=h, positions=np.asarray(graph.nodes.x), **options)
