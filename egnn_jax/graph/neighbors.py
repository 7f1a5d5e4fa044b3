"""Which points are near which, on the host, in open space or in a periodic cell.

Each function returns senders (E,), receivers (E,) and, in a cell, shifts (E, n): edge k comes from
the image of its sender that is ``shifts[k]`` away from it. Edges are sorted by receiver, then by
sender, then by lattice vector.
"""

import itertools
from typing import NamedTuple

import numpy as np

EdgeList = tuple[np.ndarray, np.ndarray, np.ndarray | None]


class Lattice(NamedTuple):
    """``cell`` (n, n), lattice vectors as rows, and ``periodic`` (n,), in which of their directions
    space repeats.
    """

    cell: np.ndarray
    periodic: np.ndarray


def within(x: np.ndarray, cutoff: float, lattice: Lattice | None = None) -> EdgeList:
    """All pairs at most ``cutoff`` apart, by vesin's cell lists: O(M) for points of bounded
    density.

    Args:
      x: points (M, n) for n from 1 to 3.
      cutoff: a distance, which may be longer than the cell.
      lattice: open space if not given.
    """
    import vesin  # brings torch or cupy along where they are installed

    n = x.shape[1]
    points, box, repeats = np.zeros((len(x), 3)), np.eye(3), np.zeros(3, bool)
    points[:, :n] = x
    if lattice is not None:
        box[:n, :n], repeats[:n] = lattice
    search = vesin.NeighborList(cutoff=cutoff, full_list=True)
    receivers, senders, *steps = search.compute(
        points, box, repeats, quantities="ij" if lattice is None else "ijS"
    )
    return _sorted(senders, receivers, lattice, *(step[:, :n] for step in steps))


def nearest(x: np.ndarray, k: int, lattice: Lattice | None = None) -> EdgeList:
    """The ``k`` points nearest to each, itself left out (but not its images), by a k-d tree.

    Arguments are those of :func:`within`, for any n. Without a periodic direction there have to be
    more than ``k`` points.
    """
    from scipy.spatial import KDTree

    reach, cells = 0.0, np.zeros(x.shape, np.int64)
    if (
        lattice is not None
    ):  # points far from their cell, as of a long simulation, would need all the images in between
        cells = np.where(lattice.periodic, np.floor(x @ np.linalg.inv(lattice.cell)), 0).astype(
            np.int64
        )
        x = x - cells @ lattice.cell
    while True:
        points, owners, steps = _images(x, reach, lattice)
        distances, places = KDTree(points).query(x, k + 1)
        farthest = distances[:, -1].max(initial=0.0)
        if lattice is None or farthest <= reach:
            break
        # What was found bounds what there is; where too little was, the cell is small and one more
        # shell costs little.
        reach = (
            farthest
            if np.isfinite(farthest)
            else reach + np.linalg.norm(lattice.cell, axis=1).max()
        )
    near = np.asarray(places)
    own = (owners[near] == np.arange(len(x))[:, None]) & ~steps[near].any(axis=-1)
    own[~own.any(axis=1), -1] = (
        True  # a point that coincides with k others or more may be missing among its nearest
    )
    near, receivers = near[~own], np.repeat(np.arange(len(x)), k)
    return _sorted(
        owners[near], receivers, lattice, steps[near] + cells[receivers] - cells[owners[near]]
    )


def _images(
    x: np.ndarray, reach: float, lattice: Lattice | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points within ``reach`` of the parallelepiped around x, whose images they are, and how many
    lattice steps away.
    """
    owners, still = np.arange(len(x)), np.zeros((1, x.shape[1]), np.int64)
    if lattice is None:
        return x, owners, np.broadcast_to(still, x.shape)
    inverse = np.linalg.inv(lattice.cell)
    fractions = x @ inverse
    margin = reach * np.linalg.norm(inverse, axis=0)
    low, high = fractions.min(axis=0) - margin, fractions.max(axis=0) + margin
    most = np.where(lattice.periodic, np.floor(high - fractions.min(axis=0)), 0).astype(int)
    parts = []
    for step in itertools.product(*(range(-m, m + 1) for m in most)):
        moved = fractions + step
        inside = ((low <= moved) & (moved <= high)).all(axis=1) | (not any(step))
        parts.append(
            (
                x[inside] + np.array(step) @ lattice.cell,
                owners[inside],
                np.broadcast_to(step, x.shape)[inside],
            )
        )
    points, owners, steps = (np.concatenate(part) for part in zip(*parts, strict=True))
    return points, owners, steps


def _sorted(
    senders: np.ndarray,
    receivers: np.ndarray,
    lattice: Lattice | None,
    steps: np.ndarray | None = None,
) -> EdgeList:
    if lattice is None or steps is None:
        order = np.lexsort((senders, receivers))
        return senders[order], receivers[order], None
    order = np.lexsort((*steps.T[::-1], senders, receivers))
    return senders[order], receivers[order], steps[order].astype(np.int32)
