"""Build graphs from coordinates: complete, from an adjacency matrix, edge list or neighbors."""

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
    """Senders and receivers (M(M-1),) of a complete graph without self-loops, sorted by receiver.

    Warns if the graph takes more than 1 GiB of memory.

    Raises:
      ValueError: ``n_node`` is not an integer of at least 0, or the machine has too little memory.
    """
    _validation.require_count("n_node", n_node, 0)
    n_edge = int(n_node) * max(int(n_node) - 1, 0)
    name = f"the complete graph of {n_node:,} nodes with {n_edge:,} edges"
    require_memory(f"{name} (see radius_graph and knn_graph for fewer)", 33 * n_edge)
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
    """Build a graph with an edge from every node to every other node.

    Args:
      x: coordinates (M, n), in any unit; or non-periodic ASE ``Atoms``, whose atomic numbers
        become h if h is not given.
      h: features (M, F), or node types (M,) as integers from 0 to 118, for example atomic numbers;
        a constant 1 per node if not given.
      v: velocities (M, n).
      a: edge attributes (M(M-1), A) in the order of :func:`complete_edges`.
      y: targets (T,) of the graph, for training.

    Raises:
      ValueError: a shape does not match, or a value is not finite.
    """
    x, h, cell, _ = _unpack_atoms(x, h, None, False)
    if cell is not None:
        raise ValueError("the atoms are periodic; expected a cutoff: radius_graph or from_ase")
    rounded = _validation.matrix("x", x)
    _warn_of_rounding(*_points_and_extent(x), rounded.dtype)
    return graph_from_edges(*complete_edges(rounded.shape[0]), x=rounded, h=h, v=v, a=a, y=y)


def graph_from_adjacency(
    adjacency: ArrayLike,
    x: ArrayLike,
    h: ArrayLike | None = None,
    v: ArrayLike | None = None,
    y: ArrayLike | None = None,
) -> GraphsTuple:
    """Build a graph with an edge from j to i wherever ``adjacency[i, j]`` (M, M) is not zero.

    Other arguments and errors are as in :func:`complete_graph`.
    """
    rounded = _validation.matrix("x", x)
    _warn_of_rounding(*_points_and_extent(x), rounded.dtype)
    receivers, senders = np.nonzero(_validation.adjacency(adjacency, rounded.shape[0]))
    return graph_from_edges(senders, receivers, x=rounded, h=h, v=v, y=y)


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
    """Build a graph from an edge list; edge k goes from ``senders[k]`` to ``receivers[k]``.

    Edges (and their attributes) are stably sorted by receiver.

    Args:
      senders, receivers: node indices (E,).
      x, h, v, y: as in :func:`complete_graph`. x, h, v, a and y may be traced; their values are
        then not checked.
      a: edge attributes (E, A), in the order of ``senders``.
      steps: integer lattice steps from each sender to its periodic image (E, n).
      cell: lattice vectors as rows (n, n), in the unit of x; required with ``steps``.

    Raises:
      ValueError: a shape does not match, an index is out of range, or a value is not finite.
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
        senders=jnp.asarray(senders[order], senders.dtype),  # a dtype avoids a compile per length
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
    """Build a graph that connects all pairs of nodes at most ``cutoff`` apart.

    In a periodic cell, every pair of images within the cutoff is an edge, even if the cutoff is
    longer than the cell; nodes outside the cell are wrapped into it. Neighbors are found once, on
    the host, in float64: the edges stay fixed if you move ``graph.nodes.x`` under ``jit``. Time is
    linear in M for points of bounded density. Nodes keep their order; very large graphs are faster
    if neighbors are close to each other in that order.

    An EGNN's output jumps where a node crosses the cutoff, unless its messages go to zero there.

    Args:
      x: coordinates (M, n), or ASE's ``Atoms``, whose cell is used and whose atomic numbers become
        h if h is not given. Float types of up to 32 bits are kept; others become the default float
        type. Center large coordinates: at 10⁶, float32 does not resolve distances of order one.
      cutoff: a distance in the unit of x; pairs at exactly the cutoff are edges.
      h, v, y: as in :func:`complete_graph`.
      cell: lattice vectors as rows (n, n), in the unit of x; open space if not given. Rows of
        non-periodic directions may be zero.
      periodic: whether the lattice vectors are periodic, one flag for all or one for each.

    Raises:
      ValueError: as in :func:`complete_graph`; or the cutoff is not a distance, the cell has no
        volume, or there would be more than 10⁸ edges.
    """
    _validation.require_positive_number(cutoff=cutoff)
    x, h, cell, periodic = _unpack_atoms(x, h, cell, periodic)
    x = _validation.host("x", x)
    points, lattice = _points(x, cell, periodic)
    edges = neighbors.within(points, cutoff, lattice)
    _warn_of_rounding(points, cutoff, _validation.float_dtype(x))
    return _from_neighbors(edges, points, lattice, cell, x, h, v, y)


def knn_graph(
    x: ArrayLike,
    k: int,
    h: ArrayLike | None = None,
    v: ArrayLike | None = None,
    y: ArrayLike | None = None,
    cell: ArrayLike | None = None,
    periodic: bool | Sequence[bool] = True,
) -> GraphsTuple:
    """Build a graph in which each node receives from its ``k`` nearest neighbors, or their images.

    Ties in distance are broken arbitrarily, so prefer :func:`radius_graph` for crystals. The edges
    stay fixed if x moves.

    Args:
      x: coordinates (M, n), in any unit and dimension, or ASE's ``Atoms``, as in
        :func:`radius_graph`.
      k: the in-degree of every node.
      h, v, y, cell, periodic: as in :func:`radius_graph`.

    Raises:
      ValueError: as in :func:`complete_graph`; or k is below 1, there are too few nodes, or the
        cell has no volume.
    """
    x, h, cell, periodic = _unpack_atoms(x, h, cell, periodic)
    x = _validation.host("x", x)
    points, lattice = _points(x, cell, periodic)
    max_k = len(points) - 1 if lattice is None or not lattice.periodic.any() else np.inf
    _validation.require_count("k", k, -(10**30))
    if not 1 <= k <= max_k:
        raise ValueError(f"k is {k}; expected 1 to {max_k}, the number of other nodes")
    edges = neighbors.nearest(points, k, lattice)
    _warn_of_rounding(points, _smallest_radius(edges, points, lattice), _validation.float_dtype(x))
    return _from_neighbors(edges, points, lattice, cell, x, h, v, y)


def _unpack_atoms(
    x: Any, h: ArrayLike | None, cell: ArrayLike | None, periodic: bool | Sequence[bool]
) -> tuple[Any, Any, Any, Any]:
    """x, h, cell and periodic as given, or taken from x if it is an ASE ``Atoms``."""
    if not hasattr(x, "get_positions"):
        return x, h, cell, periodic
    if cell is not None:
        raise ValueError("a cell is given with ASE's Atoms; expected that of the atoms alone")
    pbc = np.asarray(x.get_pbc(), bool).tolist()
    cell = np.asarray(x.get_cell()) if any(pbc) else None
    return x.get_positions(), x.get_atomic_numbers() if h is None else h, cell, pbc


def _points(
    x: ArrayLike, cell: ArrayLike | None, periodic: bool | Sequence[bool]
) -> tuple[np.ndarray, neighbors.Lattice | None]:
    """Coordinates in float64, wrapped into the cell in periodic directions, and the lattice."""
    points = _validation.points("x", x)
    if cell is None:
        return points, None
    lattice = _validation.lattice(cell, periodic, points.shape[1])
    return points - lattice.corners(points), lattice


def _warn_of_rounding(points: np.ndarray, distance: float, dtype: jnp.dtype) -> None:
    """Warn if coordinates in ``dtype`` are too coarse for neighbors up to ``distance``."""
    largest = np.abs(points).max(initial=0.0)
    spacing = float(jnp.finfo(dtype).eps) * largest
    if spacing > 1e-3 * distance:
        warnings.warn(
            f"x reaches {largest:.3g}, where numbers of this type are {spacing:.2g} apart, while "
            f"neighbors are up to {distance:.3g} apart: distances are rounded; subtract the mean "
            "of x first",
            stacklevel=3,
        )


def _points_and_extent(x: ArrayLike) -> tuple[np.ndarray, float]:
    """Coordinates, empty if traced, and the longest side of their box, infinite if it is 0."""
    points = np.zeros((1, 0)) if isinstance(x, Tracer) else np.asarray(x, np.float64)
    sides = points.max(axis=0, initial=-np.inf) - points.min(axis=0, initial=np.inf)
    return points, float(sides.max(initial=0)) or np.inf


def _smallest_radius(
    edges: neighbors.EdgeList, points: np.ndarray, lattice: neighbors.Lattice | None
) -> float:
    """The smallest distance from a node to its farthest neighbor; infinite if all are 0."""
    senders, receivers, steps = edges
    if not len(points):
        return np.inf
    r_ij = points[receivers] - points[senders]
    if lattice is not None:
        r_ij -= steps @ lattice.cell
    distances = np.linalg.norm(r_ij, axis=1).reshape(len(points), len(senders) // len(points))
    farthest = distances.max(axis=1)
    return float(farthest[farthest > 0].min(initial=np.inf))


def _from_neighbors(
    edges: neighbors.EdgeList,
    points: np.ndarray,
    lattice: neighbors.Lattice | None,
    cell: ArrayLike | None,
    x: ArrayLike,
    h: ArrayLike | None,
    v: ArrayLike | None,
    y: ArrayLike | None,
) -> GraphsTuple:
    senders, receivers, steps = edges
    x = x if lattice is None else points.astype(_validation.float_dtype(x))
    return graph_from_edges(senders, receivers, x=x, h=h, v=v, y=y, steps=steps, cell=cell)
