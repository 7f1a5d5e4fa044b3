"""One graph from coordinates: complete, from an adjacency matrix, an edge list or neighbors."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from egnn_jax.graph import _validation, neighbors
from egnn_jax.graph._forks import require_usable_jax
from egnn_jax.graph._memory import require_memory
from egnn_jax.graph.graph import Edges, Globals, GraphsTuple, Nodes


def complete_edges(n_node: int) -> tuple[np.ndarray, np.ndarray]:
    """Senders and receivers (M(M-1),) of the complete graph without self-loops, by receiver.

    Warns of more than a GB of memory.

    Raises:
      ValueError: ``n_node`` is no whole number of at least 0, or the machine has too little memory.
    """
    _validation.require_count("n_node", n_node, 0)
    n_edge = int(n_node) * max(int(n_node) - 1, 0)
    what = f"the complete graph of {n_node:,} nodes with {n_edge:,} edges"
    require_memory(f"{what} (see radius_graph and knn_graph for fewer)", 33 * n_edge)
    nodes = np.arange(n_node, dtype=np.int32)
    senders = nodes[None, :-1] + (nodes[None, :-1] >= nodes[:, None])
    return senders.ravel().astype(np.int32), np.repeat(nodes, max(n_node - 1, 0))


def complete_graph(
    x: ArrayLike,
    h: ArrayLike | None = None,
    v: ArrayLike | None = None,
    a: ArrayLike | None = None,
    y: ArrayLike | None = None,
) -> GraphsTuple:
    """One graph in which every node sends to every other.

    Args:
      x: coordinates (M, n), in any unit; or ASE's ``Atoms``, not periodic, whose atomic numbers
        are h if that is not given.
      h: features (M, F), or kinds of nodes (M,) as integers from 0 to 118, such as atomic numbers;
        a single constant 1 per node if not given.
      v: velocities (M, n).
      a: edge attributes (M(M-1), A) in the order of :func:`complete_edges`.
      y: targets (T,) of the graph, for training.

    Raises:
      ValueError: a shape does not fit, or a value is not finite.
    """
    x, h, cell, _ = _of_atoms(x, h, None, False)
    if cell is not None:
        raise ValueError("the atoms are periodic; expected a cutoff: radius_graph or from_ase")
    given, x = x, _validation.matrix("x", x)
    _warn_of_rounding(*_extent(given), x.dtype)
    return graph_from_edges(*complete_edges(x.shape[0]), x=x, h=h, v=v, a=a, y=y)


def graph_from_adjacency(
    adjacency: ArrayLike,
    x: ArrayLike,
    h: ArrayLike | None = None,
    v: ArrayLike | None = None,
    y: ArrayLike | None = None,
) -> GraphsTuple:
    """One graph with an edge from j to i wherever ``adjacency[i, j]`` (M, M) is not zero.

    Arguments and errors are otherwise those of :func:`complete_graph`.
    """
    given, x = x, _validation.matrix("x", x)
    _warn_of_rounding(*_extent(given), x.dtype)
    receivers, senders = np.nonzero(_validation.adjacency(adjacency, x.shape[0]))
    return graph_from_edges(senders, receivers, x=x, h=h, v=v, y=y)


def graph_from_edges(
    senders: ArrayLike,
    receivers: ArrayLike,
    x: ArrayLike,
    h: ArrayLike | None = None,
    v: ArrayLike | None = None,
    a: ArrayLike | None = None,
    y: ArrayLike | None = None,
    steps: ArrayLike | None = None,
    cell: ArrayLike | None = None,
) -> GraphsTuple:
    """One graph from an edge list; edge k goes from node ``senders[k]`` to ``receivers[k]``.

    Edges (and their attributes) are sorted by receiver, keeping their order otherwise.

    Args:
      senders, receivers: node indices (E,).
      x, h, v, y: as in :func:`complete_graph`. x, h, v, a and y may be traced, which skips the
        check of their values.
      a: edge attributes (E, A), in the order of ``senders``.
      steps: whole lattice vectors from each sender to its periodic image (E, n), integers.
      cell: lattice vectors as rows (n, n), in the unit of x; needed where there are ``steps``.

    Raises:
      ValueError: a shape does not fit, an index is out of range, or a value is not finite.
    """
    require_usable_jax()
    x = _validation.matrix("x", x)
    n_node, n_dim = x.shape
    h = jnp.ones((n_node, 1), x.dtype) if h is None else _validation.features("h", h, n_node)
    v = None if v is None else _validation.matrix("v", v, rows=n_node, columns=n_dim)
    senders, receivers = (
        _validation.indices(name, index, n_node)
        for name, index in (("senders", senders), ("receivers", receivers))
    )
    if senders.shape != receivers.shape:
        raise ValueError(
            f"senders has {senders.size} entries but receivers has {receivers.size}; expected one "
            "pair per edge"
        )
    order = np.argsort(receivers, kind="stable")
    n_edge = len(order)
    edges = Edges(a=None if a is None else _validation.matrix("a", a, rows=n_edge)[order])
    lattice = None
    if steps is not None:
        if cell is None:
            raise ValueError("steps are given without a cell; expected both, or neither")
        cell = _validation.host("cell", cell)
        lattice = _validation.matrix("cell", cell, n_dim, n_dim)
        steps = _validation.lattice_steps(steps, n_edge, n_dim)[order]
        shift = _validation.matrix("steps @ cell", steps @ cell.astype(np.float64))
        edges = edges.replace(shift=shift.astype(x.dtype), steps=jnp.asarray(steps, steps.dtype))
    elif cell is not None:
        raise ValueError("a cell is given without steps; expected both, or neither")
    return GraphsTuple(
        nodes=Nodes(h=h, x=x, v=v),
        edges=edges,
        senders=jnp.asarray(senders[order], senders.dtype),  # without it, a program a length
        receivers=jnp.asarray(receivers[order], receivers.dtype),
        n_node=jnp.asarray([n_node], jnp.int32),
        n_edge=jnp.asarray([n_edge], jnp.int32),
        globals=Globals(
            y=None if y is None else _validation.targets("y", y),
            cell=None if lattice is None else lattice[None],
        ),
    )


def radius_graph(
    x: ArrayLike,
    cutoff: float,
    h: ArrayLike | None = None,
    v: ArrayLike | None = None,
    y: ArrayLike | None = None,
    cell: ArrayLike | None = None,
    periodic: bool | Sequence[bool] = True,
) -> GraphsTuple:
    """One graph in which nodes at most ``cutoff`` apart send to each other.

    In a periodic cell these are images of nodes: every pair of images within the cutoff is an
    edge, also where the cutoff is longer than the cell, and nodes outside the cell are moved to
    their images inside. Neighbors are found on the host, in float64, once: as x moves under
    ``jit``, in ``graph.nodes``, the edges stay. Time is linear in M for points of bounded density;
    nodes keep their order, and where there are very many, an order in which neighbors follow each
    other is faster.

    An EGNN's output jumps where a node crosses the cutoff, unless its messages go to zero there.

    Args:
      x: coordinates (M, n), or ASE's ``Atoms``, whose atomic numbers are h if that is not given
        and whose cell is taken. What is stored has the default float type: beside
        coordinates of 10⁶, float32 does not hold distances of order one, so centre them.
      cutoff: a distance in the unit of x; pairs at exactly the cutoff are edges.
      h, v, y: as in :func:`complete_graph`.
      cell: lattice vectors as rows (n, n), in the unit of x; open space if not given. Rows of
        zeros are allowed where space is not periodic.
      periodic: whether space repeats along the lattice vectors, for all or for each.

    Raises:
      ValueError: as in :func:`complete_graph`; the cutoff is no distance, the cell has no
        volume, or there would be more than 10⁸ edges.
    """
    _validation.require_cutoff(cutoff)
    x, h, cell, periodic = _of_atoms(x, h, cell, periodic)
    x = _validation.host("x", x)
    points, lattice = _points(x, cell, periodic)
    found = neighbors.within(points, cutoff, lattice)
    _warn_of_rounding(points, cutoff, _validation.float_dtype(x))
    return _from_neighbors(found, points, lattice, x, h, v, y)


def knn_graph(
    x: ArrayLike,
    k: int,
    h: ArrayLike | None = None,
    v: ArrayLike | None = None,
    y: ArrayLike | None = None,
    cell: ArrayLike | None = None,
    periodic: bool | Sequence[bool] = True,
) -> GraphsTuple:
    """One graph in which each node receives from the ``k`` nearest others, or from their images.

    Of nodes equally far away any may be taken, so prefer :func:`radius_graph` in a crystal. Edges
    stay as x moves.

    Args:
      x: coordinates (M, n), in any unit and any dimension, or ASE's ``Atoms``, as in
        :func:`radius_graph`.
      k: the in-degree of every node.
      h, v, y, cell, periodic: as in :func:`radius_graph`.

    Raises:
      ValueError: as in :func:`complete_graph`; k is below 1 or there are too few nodes, or the
        cell has no volume.
    """
    x, h, cell, periodic = _of_atoms(x, h, cell, periodic)
    x = _validation.host("x", x)
    points, lattice = _points(x, cell, periodic)
    others = len(points) - 1 if lattice is None or not lattice.periodic.any() else np.inf
    _validation.require_count("k", k, -(10**30))
    if not 1 <= k <= others:
        raise ValueError(f"k is {k}; expected 1 to {others}, the number of other nodes")
    found = neighbors.nearest(points, k, lattice)
    _warn_of_rounding(points, _shortest(found, points, lattice), _validation.float_dtype(x))
    return _from_neighbors(found, points, lattice, x, h, v, y)


def _of_atoms(
    x: Any, h: ArrayLike | None, cell: ArrayLike | None, periodic: bool | Sequence[bool]
) -> tuple[Any, Any, Any, Any]:
    """x, h, cell and periodic as given; of ASE's ``Atoms`` as x their own."""
    if not hasattr(x, "get_positions"):
        return x, h, cell, periodic
    if cell is not None:
        raise ValueError("a cell is given with ASE's Atoms; expected that of the atoms alone")
    repeats = np.asarray(x.get_pbc(), bool).tolist()
    cell = np.asarray(x.get_cell()) if any(repeats) else None
    return x.get_positions(), x.get_atomic_numbers() if h is None else h, cell, repeats


def _points(
    x: ArrayLike, cell: ArrayLike | None, periodic: bool | Sequence[bool]
) -> tuple[np.ndarray, neighbors.Lattice | None]:
    """Coordinates in float64, inside the cell in periodic directions, and the lattice."""
    points = _validation.points("x", x)
    if cell is None:
        return points, None
    lattice = _validation.lattice(cell, periodic, points.shape[1])
    cells = np.where(lattice.periodic, np.floor(points @ np.linalg.inv(lattice.cell)), 0)
    return points - cells @ lattice.cell, lattice


def _warn_of_rounding(points: np.ndarray, distance: float, dtype: jnp.dtype) -> None:
    """Warn where coordinates of a type are too coarse for neighbors up to a distance."""
    largest = np.abs(points).max(initial=0.0)
    spacing = float(jnp.finfo(dtype).eps) * largest
    if spacing > 1e-3 * distance:
        warnings.warn(
            f"x reaches {largest:.3g}, where numbers of this type are {spacing:.2g} apart, while "
            f"neighbors are up to {distance:.3g} apart: distances are rounded; subtract the mean "
            "of x first",
            stacklevel=3,
        )


def _extent(x: ArrayLike) -> tuple[np.ndarray, float]:
    """Coordinates and the longest side of their box, infinite where it is 0; none if traced."""
    points = np.zeros((1, 0)) if isinstance(x, Tracer) else np.asarray(x, np.float64)
    sides = points.max(axis=0, initial=-np.inf) - points.min(axis=0, initial=np.inf)
    return points, float(sides.max(initial=0)) or np.inf


def _shortest(
    found: neighbors.EdgeList, points: np.ndarray, lattice: neighbors.Lattice | None
) -> float:
    """The smallest distance of a node to its farthest neighbor; infinite where all are 0."""
    senders, receivers, steps = found
    if not len(points):
        return np.inf
    offsets = points[receivers] - points[senders]
    if lattice is not None:
        offsets -= steps @ lattice.cell
    lengths = np.linalg.norm(offsets, axis=1).reshape(len(points), len(senders) // len(points))
    farthest = lengths.max(axis=1)
    return float(farthest[farthest > 0].min(initial=np.inf))


def _from_neighbors(
    found: neighbors.EdgeList,
    points: np.ndarray,
    lattice: neighbors.Lattice | None,
    x: ArrayLike,
    h: ArrayLike | None,
    v: ArrayLike | None,
    y: ArrayLike | None,
) -> GraphsTuple:
    senders, receivers, steps = found
    cell = None if lattice is None else lattice.cell
    x = x if lattice is None else points.astype(_validation.float_dtype(x))
    return graph_from_edges(senders, receivers, x=x, h=h, v=v, y=y, steps=steps, cell=cell)
