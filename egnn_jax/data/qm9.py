"""QM9: 130,831 small organic molecules, their geometries and twelve properties (section 5.3).

Two sources give the same arrays: the PyPI package ``qm9pack`` and the original archive of
Ramakrishnan et al. (2014).
Units: Å; bohr³ (alpha), bohr² (r2), debye (mu), cal/(mol K) (Cv), and meV for every energy.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from egnn_jax._files import expanded
from egnn_jax.data.cache import cached_arrays, default_folder
from egnn_jax.data.qm9_properties import (
    ELEMENTS,
    MAX_ATOMS,
    MOLECULES,
    REFERENCES,
    SPLITS,
    TARGETS,
    UNITS,
    atomic_references,
)
from egnn_jax.data.qm9_sources import check_complete, flat_arrays, from_archive, from_package

__all__ = [
    "ELEMENTS",
    "MAX_ATOMS",
    "QM9",
    "REFERENCES",
    "SPLITS",
    "TARGETS",
    "UNITS",
    "atomic_references",
    "load",
    "split_rows",
]


@dataclasses.dataclass(frozen=True)
class QM9:
    """S molecules of ΣM atoms, in the order of ``index``.

    ``index`` (S,) is the original number, from 1. ``n_atoms`` is (S,), ``atomic_numbers`` (ΣM,),
    ``positions`` (ΣM, 3) in Å, and ``targets`` (S,) by name, float64 in :data:`UNITS`. ``splits``
    are rows by name, as of Anderson et al. (2019).
    """

    index: np.ndarray
    n_atoms: np.ndarray
    atomic_numbers: np.ndarray
    positions: np.ndarray
    targets: Mapping[str, np.ndarray]
    splits: Mapping[str, np.ndarray]


def load(
    archive: Path | str | None = None,
    uncharacterized: Path | str | None = None,
    folder: Path | None = None,
) -> QM9:
    """Load all of QM9; the first call reads its source and stores the arrays in ``folder``.

    Args:
      archive: ``dsgdb9nsd.xyz.tar.bz2``; the installed package ``qm9pack`` if not given.
      uncharacterized: ``uncharacterized.txt``, the list of molecules to leave out; in the folder of
        the archive if not given.
      folder: default :func:`egnn_jax.data.cache.default_folder`.

    Raises:
      ValueError: the source is missing, damaged or not all of QM9; the message describes the
        problem and names the molecule.
    """
    folder = default_folder() if folder is None else expanded(folder)
    if archive is None and uncharacterized is not None:
        raise ValueError(
            f"uncharacterized is {uncharacterized} without an archive; expected both, or neither"
        )

    def build() -> dict[str, np.ndarray]:
        if archive is None:
            return check_complete(flat_arrays(from_package()))
        archive_path = expanded(archive)
        uncharacterized_path = (
            archive_path.parent / "uncharacterized.txt"
            if uncharacterized is None
            else expanded(uncharacterized)
        )
        return check_complete(flat_arrays(from_archive(archive_path, uncharacterized_path)))

    cached = cached_arrays(folder / "qm9" / "qm9.npz", build)
    targets = {name: cached.pop(f"targets/{name}") for name in TARGETS}
    return QM9(**cached, targets=targets, splits=split_rows())


def split_rows() -> dict[str, np.ndarray]:
    """The rows of each split: a permutation from seed 0, cut into three parts."""
    order = np.random.RandomState(0).permutation(MOLECULES)
    return dict(zip(SPLITS, np.split(order, np.cumsum(list(SPLITS.values()))[:-1]), strict=True))
