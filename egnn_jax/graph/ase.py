"""Conversion between ASE's ``Atoms`` and graphs."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from egnn_jax._extras import require
from egnn_jax.graph import _validation
from egnn_jax.graph.build import complete_graph, radius_graph
from egnn_jax.graph.graph import GraphsTuple, require_geometric


def from_ase(
    atoms: Any,
    cutoff: float | None = None,
    y: ArrayLike | None = None,
    *,
    energy: str | None = None,
    forces: str | None = None,
    stress: str | None = None,
    references: Mapping[str, float] | None = None,
) -> GraphsTuple:
    """Build a graph from ASE's ``Atoms``: h the atomic numbers (M,), x the positions (M, 3) in Å.

    In periodic directions, images are senders too, and atoms outside the cell are wrapped into it;
    ``globals.cell`` holds the cell. Labels are looked up by name in the calculator's results, in
    ``atoms.info`` and in ``atoms.arrays``.

    Args:
      atoms: ASE's ``Atoms``.
      cutoff: atoms at most this far apart (Å) are connected; all pairs of atoms if not given.
      y: targets (T,) of the graph.
      energy: name of the energy, which becomes ``globals.y`` (1, 1).
      forces: name of the forces, which become ``nodes.y`` (M, 3).
      stress: name of the stress, with ASE's sign, of shape (3, 3), (9,) or (6,) in Voigt order,
        which becomes ``globals.stress`` (1, 3, 3).
      references: atomic reference energies by symbol, which are subtracted from the energy in
        float64, since float32 would leave few digits of the difference.

    Raises:
      ValueError: ``atoms`` is not an ``Atoms``; the atoms are periodic and there is no cutoff; a
        label is missing, not finite or of another shape, or the calculator computed it for other
        atoms; an element has no reference; atoms with stress have no periodic cell with a volume;
        or as in :func:`egnn_jax.radius_graph`.
    """
    if not hasattr(atoms, "get_positions"):
        raise ValueError(f"atoms is of type {type(atoms).__name__}; expected ase.Atoms")
    if energy is not None:
        if y is not None:
            raise ValueError("both y and energy are given; expected one of them")
        y = label_of(atoms, energy, ()) - _reference_energy(atoms, references)
    elif references is not None:
        raise ValueError("references is given without energy; expected the name of the energy")
    graph = complete_graph(atoms, y=y) if cutoff is None else radius_graph(atoms, cutoff, y=y)
    if forces is not None:
        dtype = graph.nodes.x.dtype
        label = label_of(atoms, forces, (len(atoms), 3)).astype(dtype)
        graph = graph._replace(nodes=graph.nodes.replace(y=jnp.asarray(label, dtype)))
    if stress is not None:
        if not (np.any(atoms.pbc) and atoms.cell.rank == 3):
            raise ValueError(
                f"atoms with stress are periodic along {np.flatnonzero(atoms.pbc).tolist()} and "
                f"have a cell of rank {atoms.cell.rank}; expected a periodic cell with a volume"
            )
        label = as_tensor(label_of(atoms, stress, (3, 3), (9,), (6,)))
        label = jnp.asarray(label, graph.nodes.x.dtype)
        graph = graph._replace(globals=graph.globals.replace(stress=label[None]))
    return graph


def label_of(atoms: Any, name: str, *shapes: tuple[int, ...]) -> np.ndarray:
    """Look up a label in the calculator's results, ``atoms.info`` or ``atoms.arrays``, as float64.

    Raises:
      ValueError: the label is missing, not finite, has none of the given shapes, or is a result of
        the calculator for other atoms.
    """
    sources = [{} if atoms.calc is None else atoms.calc.results, atoms.info, atoms.arrays]
    for source in sources:
        if isinstance(name, str) and name in source:
            label = _validation.host(f"the label {name!r}", source[name])
            if source is sources[0]:
                _require_current(atoms, name)
            break
    else:
        labels = sorted({key for source in sources for key in source} - {"numbers", "positions"})
        names = ", ".join(labels) or "none"
        raise ValueError(f"there is no label {name!r}; found {names}; expected one of these")
    if label.dtype.kind not in "fiu" or label.shape not in shapes:
        raise ValueError(
            f"the label {name!r} has shape {label.shape} and dtype {label.dtype}; expected numbers "
            f"of shape {' or '.join(map(str, shapes))}"
        )
    dtype = jnp.result_type(float)
    with np.errstate(over="ignore"):
        rounded = label.astype(dtype)
    if not np.isfinite(rounded).all():
        raise ValueError(
            f"the label {name!r} has a value that is not finite as {dtype}; expected numbers"
        )
    return label.astype(np.float64)


def _require_current(atoms: Any, name: str) -> None:
    """Raise ValueError if the calculator's results are not those of these atoms."""
    if getattr(atoms.calc, "atoms", None) is None or not hasattr(atoms.calc, "check_state"):
        return
    geometry = ("positions", "numbers", "cell", "pbc")
    if changed := [name for name in atoms.calc.check_state(atoms) if name in geometry]:
        raise ValueError(
            f"the label {name!r} is a result of the calculator for other atoms (of other "
            f"{', '.join(changed)}); expected each structure with its own calculator, such as "
            "ASE's SinglePointCalculator"
        )


def as_tensor(stress: np.ndarray) -> np.ndarray:
    """Convert a stress of shape (3, 3), (9,) or (6,), as ASE stores it, to (3, 3)."""
    order = [0, 5, 4, 5, 1, 3, 4, 3, 2] if stress.size == 6 else slice(None)
    return stress.ravel()[order].reshape(3, 3)


def _reference_energy(atoms: Any, references: Mapping[str, float] | None) -> float:
    """Sum the atomic reference energies of the atoms; 0 without references."""
    if references is None:
        return 0.0
    symbols = atoms.get_chemical_symbols()
    if unknown := sorted(set(symbols) - set(references)):
        raise ValueError(
            f"references has no energy of {', '.join(unknown)}; expected one for each element"
        )
    return float(sum(references[symbol] for symbol in symbols))


def to_ase(graph: GraphsTuple, periodic: bool | tuple[bool, bool, bool] | None = None) -> Any:
    """Convert a graph whose h are atomic numbers to ASE's ``Atoms``.

    Args:
      graph: a graph from :func:`from_ase`, or a network's output for it with h put back.
      periodic: which lattice vectors are periodic; not needed without a cell, or where edges cross
        the cell along all three.

    Raises:
      ValueError: the graph is a batch of several graphs, x is not (M, 3), h does not hold atomic
        numbers, or ``periodic`` is needed, or given without a cell.
    """
    require("ase")
    from ase import Atoms

    require_geometric(graph, dimensions=3)
    if len(graph.n_node) != 1:
        raise ValueError(f"the batch has {len(graph.n_node)} graphs; expected one: see unbatch")
    h = np.asarray(graph.nodes.h)
    if h.ndim != 1 or not np.issubdtype(h.dtype, np.integer):
        raise ValueError(f"h has shape {h.shape} and dtype {h.dtype}; expected atomic numbers (M,)")
    cell, steps = getattr(graph.globals, "cell", None), graph.edges.steps
    if cell is None and np.any(periodic):
        raise ValueError(
            f"periodic is {periodic}, and the graph has no cell; expected one, or None"
        )
    if cell is not None and periodic is None:
        crossed = np.any(np.zeros((1, 3)) if steps is None else np.asarray(steps), axis=0)
        if not crossed.all():
            raise ValueError(
                f"edges cross the cell along {np.flatnonzero(crossed).tolist()} of its vectors 0, "
                "1, 2; expected periodic, such as (True, True, False)"
            )
        periodic = True
    options = {} if cell is None else {"cell": np.asarray(cell[0]), "pbc": periodic}
    return Atoms(numbers=h, positions=np.asarray(graph.nodes.x), **options)
