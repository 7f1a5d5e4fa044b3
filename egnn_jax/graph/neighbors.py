"""Neighbor search on the host, in open space or in a periodic cell.

Both searches use SciPy's k-d trees in float64. A tree adapts to the points, so its memory and time
depend on the number of points and pairs, not on how far apart the points lie. A periodic cell is
reduced to open space: points are wrapped into a reduced cell, and all images that lie close enough
to matter are added as further points.

:func:`within` and :func:`nearest` return the edges as ``(senders, receivers, steps)``, each int32.
Edge k leads from the image of point ``senders[k]`` that lies ``steps[k] @ cell`` away from it to
point ``receivers[k]``, so r_ij = x_i - x_j - steps @ cell. ``steps`` is (E, n), or None without a
lattice. Edges are sorted by receiver, then by sender, then by step.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scipy.spatial import KDTree

TOLERANCE = 1e-10
"""Points up to cutoff * (1 + TOLERANCE) apart count as within the cutoff.

Float64 coordinates of size L are rounded by up to 1.1e-16 L, so that the computed distance of two
lattice sites can exceed the true one by about 2e-16 L. This covers coordinates up to 10^5 cutoffs.
"""
MAX_EDGES = 10**8
"""Searches that would list more edges, or need more images of points, raise a ValueError."""
MAX_COORDINATE = 1e150
"""Coordinates and lattice vectors are smaller than this, so that their squares are finite."""
_MAX_STEP = 2**28  # sums of products of two such numbers are exact in int64

EdgeList = tuple[np.ndarray, np.ndarray, np.ndarray | None]


class Lattice(NamedTuple):
    """Lattice vectors as rows (n, n), and which of them are periodic (n,)."""

    cell: np.ndarray
    periodic: np.ndarray

    def corners(self, x: np.ndarray) -> np.ndarray:
        """The corner (M, n) of the cell that holds each point (M, n); 0 if nothing is periodic."""
        return np.where(self.periodic, np.floor(x @ np.linalg.inv(self.cell)), 0) @ self.cell


def within(x: np.ndarray, cutoff: float, lattice: Lattice | None = None) -> EdgeList:
    """Find all pairs of points, or of points and images, that are at most ``cutoff`` apart.

    Pairs at exactly the cutoff are included, see :data:`TOLERANCE`. A point is not its own
    neighbor, but its images are, and points at the same place are neighbors of each other. The
    list is symmetric: if it holds (i, j, step), it also holds (j, i, -step).

    Args:
      x: points (M, n), float64, n at least 1, inside or outside the cell.
      cutoff: a distance in the unit of x, which may be longer than the cell.
      lattice: open space if not given.

    Raises:
      ValueError: there would be more than :data:`MAX_EDGES` edges, or a number is too large or too
        small for the edges to be computed.
    """
    from scipy.spatial import KDTree

    cutoff = float(cutoff)
    if not cutoff > 1 / MAX_COORDINATE:
        raise ValueError(f"cutoff is {cutoff}; expected a distance above {1 / MAX_COORDINATE}")
    x, cell_steps, basis = _wrap(x, lattice)
    radius = min(cutoff * (1 + TOLERANCE), MAX_COORDINATE * x.shape[1] * 4)  # over any distance
    images = _images(x, basis, radius)
    # Search only one edge of each pair of opposite edges: j > i without a step, or a positive step.
    positive = _is_positive(images.steps)
    sources, image_steps = images.sources[positive], images.steps[positive] @ basis.steps
    point_tree, image_tree = KDTree(x), KDTree(images.x[positive])
    _refuse_many_edges(point_tree, image_tree, radius)
    receivers, senders = point_tree.query_pairs(radius, output_type="ndarray").T
    steps = np.zeros((len(senders), x.shape[1]), np.int64)
    if len(sources):
        pairs = point_tree.sparse_distance_matrix(image_tree, radius, output_type="ndarray")
        receivers = np.concatenate([receivers, pairs["i"]])
        senders = np.concatenate([senders, sources[pairs["j"]]])
        steps = np.concatenate([steps, image_steps[pairs["j"]]])
    if cell_steps.any():
        steps += cell_steps[receivers] - cell_steps[senders]
    senders, receivers = np.concatenate([senders, receivers]), np.concatenate([receivers, senders])
    return _sorted(senders, receivers, np.concatenate([steps, -steps]) if lattice else None)


def nearest(x: np.ndarray, k: int, lattice: Lattice | None = None) -> EdgeList:
    """Find the ``k`` nearest neighbors of each point, among other points and images of all points.

    Ties in distance are broken arbitrarily.

    Args:
      x: points (M, n), float64, n at least 1, inside or outside the cell.
      k: neighbors of each point, fewer than the points if no direction is periodic.
      lattice: open space if not given.

    Raises:
      ValueError: there would be more than :data:`MAX_EDGES` edges, or a number is too large for
        the edges to be computed.
    """
    from scipy.spatial import KDTree

    if len(x) * k > MAX_EDGES:
        raise ValueError(
            f"k = {k} neighbors of {len(x)} points are {len(x) * k} edges; expected at most "
            f"{MAX_EDGES}"
        )
    x, cell_steps, basis = _wrap(x, lattice)
    indices = np.arange(len(x))
    points, sources, steps = x, indices, np.zeros(x.shape, np.int64)
    if len(x) and len(basis.vectors):
        # A point's own images are among its neighbors, so k of them bound the distance.
        radius = _distance_of_images(basis.vectors, k)
        if len(x) > k:
            radius = min(radius, np.max(KDTree(x).query(x, k + 1)[0][:, -1]))
        images = _images(x, basis, radius)
        points = np.concatenate([x, images.x])
        sources = np.concatenate([indices, images.sources])
        steps = np.concatenate([steps, images.steps @ basis.steps])
    nearest_points = np.asarray(KDTree(points).query(x, k + 1)[1])
    is_self = nearest_points == indices[:, None]
    # If more than k others lie at the same place, a point may be missing among its own nearest.
    is_self[~is_self.any(axis=1), -1] = True
    neighbors, receivers = nearest_points[~is_self], np.repeat(indices, k)
    senders = sources[neighbors]
    steps = steps[neighbors] + cell_steps[receivers] - cell_steps[senders]
    return _sorted(senders, receivers, steps if lattice else None)


class _Basis(NamedTuple):
    """Reduced basis ``vectors`` (p, n) of the p periodic directions: ``steps`` (p, n), int64, times
    the user's cell.
    """

    vectors: np.ndarray
    steps: np.ndarray


class _Images(NamedTuple):
    """Images ``x`` (m, n) of points ``sources`` (m,), moved by ``steps`` (m, p) of the basis."""

    x: np.ndarray
    sources: np.ndarray
    steps: np.ndarray


def _wrap(x: np.ndarray, lattice: Lattice | None) -> tuple[np.ndarray, np.ndarray, _Basis]:
    """Wrap points (M, n) into the reduced cell. Also return the steps of the user's cell (M, n),
    int64, that lead back, and the reduced cell.
    """
    n = x.shape[1]
    periodic = np.flatnonzero(lattice.periodic) if lattice else np.zeros(0, np.int64)
    vectors = lattice.cell[periodic] if lattice else np.zeros((0, n))
    for name, values in (("x", x), ("cell", vectors)):
        if not (largest := np.abs(values).max(initial=0)) < MAX_COORDINATE:
            raise ValueError(f"{name} reaches {largest}; expected below {MAX_COORDINATE}")
    coefficients = _reduce(vectors)
    steps = np.zeros((len(periodic), n), np.int64)
    steps[:, periodic] = coefficients
    basis = _Basis(coefficients @ vectors, steps)
    cells = np.floor(x @ _inverse(basis.vectors))
    too_far = np.abs(cells).max(axis=1, initial=0) >= _MAX_STEP
    if too_far.any():
        row = int(np.argmax(too_far))
        raise ValueError(
            f"x is {x[row].tolist()} at row {row}, {np.abs(cells[row]).max():.1e} cells away from "
            f"the cell; expected fewer than {_MAX_STEP} cells"
        )
    cells = cells.astype(np.int64)
    return x - cells @ basis.vectors, cells @ basis.steps, basis


def _reduce(vectors: np.ndarray) -> np.ndarray:
    """Reduce lattice vectors (p, n) by the algorithm of Lenstra, Lenstra and Lovász.

    Returns integers (p, p) of determinant 1 or -1, whose product with the vectors is a short,
    nearly orthogonal basis of the same lattice. In a skewed cell this avoids most images. Any such
    integers give correct edges, so the algorithm may stop early if rounding keeps it from ending.
    """
    coefficients, row = np.eye(len(vectors), dtype=np.int64), 1
    for _ in range(1_000):
        if row >= len(vectors):
            break
        # Row i holds the coordinates of vector i along the orthogonalized vectors.
        projections = np.asarray(np.linalg.qr((coefficients @ vectors).T, mode="r")).T
        for k in reversed(range(row)):
            multiple = np.rint(projections[row, k] / projections[k, k])
            if not (np.abs(coefficients[row] - multiple * coefficients[k]) < _MAX_STEP).all():
                raise ValueError(
                    f"cell has periodic vectors {vectors.tolist()}; expected vectors whose lengths "
                    f"and angles allow steps below {_MAX_STEP}"
                )
            projections[row] -= multiple * projections[k]
            coefficients[row] -= int(multiple) * coefficients[k]
        length = np.hypot(projections[row, row], projections[row, row - 1])
        if length < 0.99 * abs(projections[row - 1, row - 1]):
            coefficients[[row - 1, row]] = coefficients[[row, row - 1]]
            row = max(row - 1, 1)
        else:
            row += 1
    return coefficients


def _inverse(vectors: np.ndarray) -> np.ndarray:
    """The matrix (n, p) that maps points to their coordinates along the vectors (p, n), with exact
    zeros for directions orthogonal to all vectors.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / lengths
    return (np.linalg.solve(units @ units.T, units) / lengths).T


def _images(x: np.ndarray, basis: _Basis, radius: float) -> _Images:
    """All images that may lie within ``radius`` of a point, excluding the points themselves."""
    inverse = _inverse(basis.vectors)
    coordinates = x @ inverse
    margin = 1e-9 + (1 + 1e-9) * radius * np.linalg.norm(inverse, axis=0)
    first = np.ceil(coordinates.min(axis=0, initial=np.inf) - margin - coordinates)
    last = np.floor(coordinates.max(axis=0, initial=-np.inf) + margin - coordinates)
    with np.errstate(over="ignore"):
        n_images = (last - first + 1).prod(axis=1).sum()
    if not n_images <= MAX_EDGES:
        raise ValueError(
            f"{len(x)} points in this cell have {n_images:.1e} images within {radius:.6g}, for up "
            f"to {len(x) * n_images:.1e} edges; expected at most {MAX_EDGES} images"
        )
    sources, steps = np.arange(len(x)), np.zeros(coordinates.shape, np.int64)
    for axis in range(coordinates.shape[1]):  # replicate all images so far along the next vector
        first_step = first[sources, axis].astype(np.int64)
        counts = last[sources, axis].astype(np.int64) - first_step + 1
        starts = np.cumsum(counts) - counts
        axis_steps = np.arange(counts.sum()) - np.repeat(starts - first_step, counts)
        sources, steps = np.repeat(sources, counts), np.repeat(steps, counts, axis=0)
        steps[:, axis] = axis_steps
    is_image = steps.any(axis=1)
    sources, steps = sources[is_image], steps[is_image]
    return _Images(x[sources] + steps @ basis.vectors, sources, steps)


def _distance_of_images(vectors: np.ndarray, k: int) -> float:
    """A distance within which every point has at least ``k`` images of itself."""
    shortest = vectors[np.argsort(np.linalg.norm(vectors, axis=1))[:3]]  # limits the box below
    lengths = np.linalg.norm(shortest, axis=1)
    radius, largest = lengths[0], np.zeros(1)
    while (2 * largest + 1).prod() <= k:  # grow a box of steps to more than k lattice points
        radius, largest = 1.2 * radius, np.floor(radius / lengths)
    steps = np.indices([int(2 * m + 1) for m in largest]).reshape(len(largest), -1).T - largest
    return float(np.sort(np.linalg.norm(steps @ shortest, axis=1))[k]) * (1 + 1e-9)


def _is_positive(steps: np.ndarray) -> np.ndarray:
    """Whether the first nonzero entry of each row (m, p) is positive: selects one of ±step."""
    sign = np.zeros(len(steps), np.int64)
    for column in steps.T[::-1]:
        sign = np.where(column, np.sign(column), sign)
    return sign > 0


def _refuse_many_edges(point_tree: "KDTree", image_tree: "KDTree", radius: float) -> None:
    """Raise ValueError if points and half of their images give more than MAX_EDGES edges."""
    n, trees = point_tree.n, (point_tree, image_tree)
    if n * (n + 2 * image_tree.n) <= MAX_EDGES:
        return
    # Counting is slow if there are far too many edges, which a sample of the points reveals.
    sample = point_tree.data[:: max(1, n // 1_000)]
    counts = [int(t.query_ball_point(sample, radius, return_length=True).sum()) for t in trees]
    edges = (counts[0] + 2 * counts[1]) * n // len(sample)
    if edges <= 10 * MAX_EDGES:
        counts = [int(point_tree.count_neighbors(t, radius)) for t in trees]
        edges = counts[0] + 2 * counts[1]
    if edges - n > MAX_EDGES:
        raise ValueError(
            f"cutoff {radius:.6g} gives about {edges - n:.1e} edges among {n} points; "
            f"expected at most {MAX_EDGES}"
        )


def _sorted(senders: np.ndarray, receivers: np.ndarray, steps: np.ndarray | None) -> EdgeList:
    """Sort edges by receiver, sender and step, as int32; all edges differ."""
    columns = [receivers, senders, *(() if steps is None else steps.T)]
    if steps is not None and (largest := np.abs(steps).max(initial=0)) >= 2**31:
        raise ValueError(f"an edge leads {largest} steps along the cell; expected fewer than 2^31")
    minima = [int(column.min(initial=0)) for column in columns]
    maxima = [int(column.max(initial=0)) for column in columns]
    bits = [(b - a).bit_length() for a, b in zip(minima, maxima, strict=True)]
    if sum(bits) < 64:  # sorting a single key for each edge is ten times as fast
        key = np.zeros(len(receivers), np.int64)
        for column, minimum, width in zip(columns, minima, bits, strict=True):
            key = (key << width) | (column - minimum)
        key.sort()
        for k in reversed(range(len(columns))):
            columns[k] = ((key & ((1 << bits[k]) - 1)) + minima[k]).astype(np.int32)
            key >>= bits[k]
    else:
        order = np.lexsort(columns[::-1])
        columns = [column[order].astype(np.int32) for column in columns]
    receivers, senders, *step_columns = columns
    return senders, receivers, None if steps is None else np.stack(step_columns, axis=1)
