"""What kind of molecule a structure is: its charge, bonds, fragments, radicals and isotopes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from egnn_jax.data import qm9

_CHARGES = ("charge", "total_charge", "net_charge")
_MULTIPLICITIES = ("multiplicity", "spin_multiplicity")
_RADII = np.zeros(10)
_RADII[[1, 6, 7, 8, 9]] = 0.34, 0.76, 0.71, 0.67, 0.62
"""Half the length of a single bond between atoms of an element (Å), by atomic number."""
_LEAST = np.zeros(10)
_LEAST[[1, 6, 7, 8, 9]] = 0.5, 3.45, 2.1, 1.35, 0.7
_FLAT = 0.02
"""A molecule whose atoms are closer than this (Å) to one plane is flat."""


def charge(info: Mapping[str, Any], charges: np.ndarray | None = None) -> int:
    """The total charge that the comment or the columns of a frame state, 0 where they do not.

    Args:
      info: the keys of the comment. A plain comment such as "charge -1 multiplicity 1" becomes one
        key a word, in order.
      charges: of the atoms, where there is such a column.

    Raises:
      ValueError: it is no whole number.
    """
    found = _stated(info, _CHARGES)
    if found is not None:
        return found
    total = 0.0 if charges is None else float(np.sum(charges))
    if not abs(total - round(total)) < 0.1:
        raise ValueError(f"the charges of its atoms add up to {total:g}; expected a whole number")
    return round(total)


def multiplicity(info: Mapping[str, Any]) -> int:
    """The spin multiplicity that a comment states, 1 where it does not.

    Raises:
      ValueError: it is no whole number.
    """
    found = _stated(info, _MULTIPLICITIES)
    return 1 if found is None else found


def of_rdkit(molecule: Any) -> list[str]:
    """In what a molecule with bonds is unlike QM9's: radicals and isotopes."""
    reasons = []
    if radicals := sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
        electrons = "electron" if radicals == 1 else "electrons"
        reasons.append(f"it has {radicals} unpaired {electrons}; QM9's have none")
    if isotopes := [a.GetSymbol() for a in molecule.GetAtoms() if a.GetIsotope()]:
        reasons.append(
            f"it has isotopes (of {', '.join(sorted(set(isotopes)))}), which the network does not "
            "tell apart"
        )
    return reasons


def of_geometry(numbers: np.ndarray, positions: np.ndarray, charge: int) -> list[str]:
    """In what the bonds that distances suggest are unlike those of QM9's molecules.

    The order of a bond of length d is exp((d₁ - d) / 0.3 Å), d₁ a single bond's (Pauling 1947). In
    QM9 the orders of an atom add up to at least 3.5 for C, 2.15 for N and 1.4 for O.

    Args:
      numbers: atomic numbers of H, C, N, O and F (M,).
      positions: (M, 3) in Å.
      charge: of the molecule.
    """
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    single = _RADII[numbers][:, None] + _RADII[numbers]
    bonded = (distances < single + 0.35) & ~np.eye(len(numbers), dtype=bool)
    if (fragments := connected_components(csr_array(bonded))[0]) > 1:
        return [f"it is {fragments} molecules by its distances; QM9's are one each"]
    reasons = []
    flat = np.linalg.svd(positions - positions.mean(axis=0), compute_uv=False)[-1] < _FLAT
    if flat and bonded.sum(axis=1).max() > 3:
        reasons.append("it is flat, as a drawing, though an atom has four neighbors")
    valences = np.where(bonded, np.exp((single - distances) / 0.3), 0).sum(axis=1)
    if len(few := np.flatnonzero(valences < _LEAST[numbers])):
        symbols = dict(zip(qm9.ELEMENTS.values(), qm9.ELEMENTS, strict=True))
        named = ", ".join(f"{symbols[int(numbers[k])]} {k + 1}" for k in few[:3])
        reasons.append(
            f"atoms have too few bonds ({named}): hydrogens are missing, or it is a radical or "
            "charged; QM9's are whole and neutral"
        )
    neighbors = bonded.sum(axis=1)
    cations = ((numbers == 7) & (neighbors == 4)) | ((numbers == 8) & (neighbors == 3))
    # Of a zwitterion, such as an amino acid, these have the other charge.
    anions = ((numbers == 8) & (neighbors == 1)) | ((numbers == 7) & (neighbors < 3))
    if charge < 1 and cations.sum() > anions.sum():
        reasons.append(
            f"{cations.sum()} of its N and O have a bond too many, as in a cation; its charge is "
            f"given as {charge}"
        )
    return reasons


def _stated(info: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The whole number that one of several names has in a comment, if any has one."""
    words = list(info)
    for place, word in enumerate(words):
        if str(word).lower() in names:
            value = info[word]
            if isinstance(value, bool | np.bool_):  # a plain comment: the number is the next word
                value = words[place + 1] if place + 1 < len(words) else ""
            try:
                number = float(value)
                if abs(number - round(number)) < 1e-6:
                    return round(number)
            except (TypeError, ValueError, OverflowError):
                pass
            raise ValueError(f"its {word} is {str(value)[:50]!r}; expected a whole number")
    return None
