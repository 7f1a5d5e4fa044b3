"""Perception of charge, bonds, fragments, radicals and isotopes of a molecule."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egnn_jax.data import qm9

_CHARGE = re.compile(
    r"(?:(?:tot(?:al)?|net|mol(?:ecul(?:e|ar))?|formal)[_-]?)?"
    r"(?:charge|chrg|chg)(?:[_-]?tot(?:al)?)?|q",
    re.IGNORECASE,
)
"""Names for the charge of a whole molecule."""
_CHARGE_MENTION = re.compile(
    r"(?<![^\s=:,;(\"'])(?:[^\s=:,;(\"']*(?:charge|chrg|chg)[^\s=:,;(\"']*"
    r"|q(?=[\"']?\s*[=:]))",
    re.IGNORECASE,
)
_MULTIPLICITY = re.compile(r"(?:spin_)?mult(?:iplicity)?", re.IGNORECASE)
_MULTIPLICITY_MENTION = re.compile(
    r"\b(?:spin_)?(?:multiplicity\b|mult(?=[\"']?\s*[=:]))", re.IGNORECASE
)
_VALUE = r"[\"']?\s*[=:,;(]?\s*(\"[^\"]*\"|'[^']*'|[^\s\"',;)}]*)"
_RADII = np.zeros(10)
_RADII[[1, 6, 7, 8, 9]] = 0.34, 0.76, 0.71, 0.67, 0.62
"""Half the length (Å) of a single bond between two atoms of an element, by atomic number."""
_VALENCES = np.zeros(10)
_VALENCES[[1, 6, 7, 8, 9]] = 1, 4, 3, 2, 1
_MIN_BOND_ORDERS = np.zeros(10)
_MIN_BOND_ORDERS[[1, 6, 7, 8, 9]] = 0.5, 3.45, 2.1, 1.35, 0.7
_MAX_BOND_ORDERS = np.zeros(10)
_MAX_BOND_ORDERS[[1, 6, 7, 8, 9]] = 1.25, 4.85, 4.6, 2.85, 1.4
_NONMETALS = {"H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Se", "Br", "I"}
_FEW_BONDS = "few bonds ({}): hydrogens are missing"
_PLANE_TOLERANCE = 0.02
"""A molecule is flat if all atoms are closer than this (Å) to one plane."""


def charge(comment: str, columns: Mapping[str, np.ndarray]) -> int:
    """The total charge stated in the comment and columns of a frame; 0 if there is none.

    Args:
      comment: the comment of the frame, without the names of its columns.
      columns: values of the atoms, by name; columns of charges are summed.

    Raises:
      ValueError: it is not a whole number, may not be the total charge, or two statements differ.
    """
    statements = _statements(comment, _CHARGE_MENTION, _CHARGE)
    for name, column in columns.items():
        if not re.search("charge|chrg|chg|^q$", name, re.IGNORECASE) or "nuclear" in name.lower():
            continue
        if column.ndim > 1 or column.dtype.kind not in "iuf":
            raise ValueError(f"its column {name!r} holds no numbers; expected charge=…")
        total = float(np.sum(column))
        if not (np.isfinite(total) and abs(total - round(total)) < 0.1):
            raise ValueError(
                f"the charges of its atoms ({name}) add up to {total:g}; expected a whole number"
            )
        statements.append((f"sum of {name}", round(total)))
    return _agreed_value(statements, "charge", 0)


def multiplicity(comment: str) -> int:
    """The spin multiplicity stated in a comment; 1 if there is none.

    Raises:
      ValueError: it is not a whole number, or two statements differ.
    """
    return _agreed_value(
        _statements(comment, _MULTIPLICITY_MENTION, _MULTIPLICITY), "multiplicity", 1
    )


def of_rdkit(molecule: Any) -> list[str]:
    """How an RDKit molecule differs from QM9's: radicals, carbocations and isotopes."""
    reasons = []
    if radicals := sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
        electrons = "electron" if radicals == 1 else "electrons"
        reasons.append(f"it has {radicals} unpaired {electrons}")
    if any(a.GetSymbol() == "C" and a.GetFormalCharge() > 0 for a in molecule.GetAtoms()):
        reasons.append("it has a positive carbon")
    if isotopes := [a.GetSymbol() for a in molecule.GetAtoms() if a.GetIsotope()]:
        reasons.append(
            f"it has isotopes (of {', '.join(sorted(set(isotopes)))}), which the network does not "
            "tell apart"
        )
    return reasons


def of_geometry(numbers: np.ndarray, positions: np.ndarray, charge: int) -> list[str]:
    """How the bonds suggested by distances differ from those of QM9's molecules.

    The order of a bond of length d is exp((d₁ - d) / 0.3 Å), d₁ for a single bond (Pauling 1947).
    In QM9, the orders of an atom sum to 3.5 to 4.8 for C, 2.15 to 4.5 for N and 1.4 to 2.75 for O.

    Args:
      numbers: atomic numbers of H, C, N, O and F (M,).
      positions: (M, 3) in Å.
      charge: the charge of the molecule.
    """
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    single_lengths = _RADII[numbers][:, None] + _RADII[numbers]
    bonded = (distances < single_lengths + 0.35) & ~np.eye(len(numbers), dtype=bool)
    if (fragments := _fragments(bonded)) > 1:
        return [f"it is {fragments} molecules by its distances"]
    reasons = []
    thickness = np.linalg.svd(positions - positions.mean(axis=0), compute_uv=False)[-1]
    if thickness < _PLANE_TOLERANCE and bonded.sum(axis=1).max() > 3:
        reasons.append("it is flat, as a drawing, though an atom has four neighbors")
    valences = np.where(bonded, np.exp((single_lengths - distances) / 0.3), 0).sum(axis=1)
    symbols = dict(zip(qm9.ELEMENTS.values(), qm9.ELEMENTS, strict=True))
    for mask, template in (
        (valences < _MIN_BOND_ORDERS[numbers], _FEW_BONDS),
        (
            valences > _MAX_BOND_ORDERS[numbers],
            "many or too short bonds ({}): there are too many atoms",
        ),
    ):
        if mask.any():
            labels = [f"{symbols[int(numbers[k])]} {k + 1}" for k in np.flatnonzero(mask)]
            reasons.append(_unusual_bonds(template, labels))
    short = distances < single_lengths + 0.2
    if not (reasons or charge or _has_integer_bonds(numbers, bonded, short)):
        reasons.append(
            "its atoms cannot be bonded as in a neutral molecule without unpaired electrons: "
            "there are too few or too many hydrogens, or it is a radical or charged"
        )
    return reasons


def of_carbons(symbols: Sequence[str], positions: np.ndarray) -> list[str]:
    """A reason if carbon atoms have too few bonds, as where hydrogens are missing, in a molecule of
    any nonmetals; bond orders are as in :func:`of_geometry`.
    """
    from ase.data import atomic_numbers, covalent_radii

    carbons = np.flatnonzero(np.array(symbols) == "C")
    if not set(symbols) <= _NONMETALS or not len(carbons):
        return []
    radii = covalent_radii[[atomic_numbers[symbol] for symbol in symbols]]
    single_lengths = radii[carbons][:, None] + radii
    distances = np.linalg.norm(positions[carbons][:, None] - positions, axis=-1)
    bonded = (distances < single_lengths + 0.35) & (carbons[:, None] != np.arange(len(symbols)))
    orders = np.where(bonded, np.exp((single_lengths - distances) / 0.3), 0).sum(axis=1)
    few = carbons[orders < 3.3]
    return [_unusual_bonds(_FEW_BONDS, [f"C {k + 1}" for k in few])] if len(few) else []


def _unusual_bonds(template: str, atoms: Sequence[str]) -> str:
    labels = ", ".join(atoms[:3])
    return f"atoms have too {template.format(labels)}, or it is a radical or charged"


def _fragments(bonded: np.ndarray) -> int:
    """The number of connected components of an adjacency matrix (M, M)."""
    connected = (bonded | np.eye(len(bonded), dtype=bool)).astype(np.float32)
    for _ in range(len(bonded).bit_length()):  # squaring doubles the length of paths
        connected = np.minimum(connected @ connected, 1)
    return len(set(connected.argmax(axis=1).tolist()))  # the first atom of each component


def _has_integer_bonds(numbers: np.ndarray, bonded: np.ndarray, short: np.ndarray) -> bool:
    """Whether integer bond orders exist with which each atom has its valence.

    N and O may have a charge of +1 and one more bond. The same number of N, O, or C next to such an
    atom then have a charge of -1 and one bond less, as in amino acids, N-oxides or isocyanides.

    Args:
      numbers: atomic numbers (M,).
      bonded: pairs that may have a bond (M, M).
      short: pairs that must have a bond (M, M).
    """
    i, j = np.nonzero(np.triu(bonded))
    free_valences = _VALENCES[numbers] - short.sum(axis=1, where=bonded)
    capacities = {
        (a, b): 2 if short[a, b] else 3 for a, b in zip(i.tolist(), j.tolist(), strict=True)
    }
    if _search_bond_orders(free_valences.astype(int).tolist(), capacities, 200):
        return True
    from scipy.optimize import Bounds, LinearConstraint, milp  # half a second, rarely needed

    num_atoms, num_bonds = len(numbers), len(i)
    incidence, identity = np.zeros((num_atoms, num_bonds)), np.eye(num_atoms)
    incidence[i, np.arange(num_bonds)] = incidence[j, np.arange(num_bonds)] = 1
    valences: Any = _VALENCES[numbers]
    # The unknowns are the order of each bond, and whether each atom is positive or negative.
    balance = np.concatenate([np.zeros(num_bonds), np.ones(num_atoms), -np.ones(num_atoms)])
    carbanions = np.hstack([0 * incidence, -1.0 * bonded, identity])[numbers == 6]
    negative_pairs = np.hstack([np.zeros((num_bonds, num_bonds + num_atoms)), incidence.T])
    lower: Any = np.concatenate([short[i, j], np.zeros(2 * num_atoms)])
    may_be_charged = [np.isin(numbers, (7, 8)), np.isin(numbers, (6, 7, 8))]
    upper: Any = np.concatenate([np.full(num_bonds, 3), *may_be_charged])
    return milp(
        np.zeros(num_bonds + 2 * num_atoms),
        constraints=[
            LinearConstraint(np.hstack([incidence, -identity, identity]), valences, valences),
            LinearConstraint(balance[None], 0, 0),
            LinearConstraint(carbanions, -np.inf, 0),  # each next to a positive atom
            LinearConstraint(negative_pairs, 0, 1),  # no two negative atoms in one bond
        ],
        bounds=Bounds(lower, upper),
        integrality=np.ones(num_bonds + 2 * num_atoms),
    ).success


def _search_bond_orders(
    free_valences: list[int], capacities: dict[tuple[int, int], int], steps: int
) -> bool:
    """Whether a search finds bond orders that use up the remaining valences.

    For most molecules a few steps suffice, which take a tenth of a millisecond; the caller decides
    the others with an integer program, which takes some milliseconds.

    Args:
      free_valences: for each atom, its valence minus its bonds so far.
      capacities: by how much the order of each bond may grow.
      steps: the largest number of steps; then the search gives up.
    """
    stack = [(free_valences, capacities)]
    while stack and steps:
        steps -= 1
        free, capacities = stack.pop()
        capacities = {(a, b): min(n, free[a], free[b]) for (a, b), n in capacities.items()}
        capacities = {bond: n for bond, n in capacities.items() if n > 0}
        totals = [0] * len(free)
        for (a, b), n in capacities.items():
            totals[a] += n
            totals[b] += n
        if not all(0 <= valence <= total for valence, total in zip(free, totals, strict=True)):
            continue
        if not capacities:
            return True
        # Branch on the bond whose atoms have the least slack; with none, its order is known.
        slack = {(a, b): min(totals[a] - free[a], totals[b] - free[b]) for a, b in capacities}
        bond = min(slack, key=slack.__getitem__)
        capacity = capacities.pop(bond)
        for order in range(max(capacity - slack[bond], 0), capacity + 1):
            remaining = list(free)
            for atom in bond:
                remaining[atom] -= order
            stack.append((remaining, capacities))
    return False


def _statements(
    comment: str, mention: re.Pattern[str], exact: re.Pattern[str]
) -> list[tuple[str, int]]:
    """The names that match ``mention`` and their whole numbers; each must match ``exact`` too."""
    statements = []
    for name, value in re.findall(f"({mention.pattern}){_VALUE}", comment, re.IGNORECASE):
        if not exact.fullmatch(name):
            raise ValueError(f"it states {name[:50]!r}; expected charge=… of the whole molecule")
        text = value.strip("\"'")
        number = float(text) if re.fullmatch(r"[+-]?\d{1,4}(\.\d*)?", text) else np.nan
        if not abs(number - np.rint(number)) < 1e-6:
            raise ValueError(f"its {name} is {text[:50]!r}; expected a whole number")
        statements.append((name, round(number)))
    return statements


def _agreed_value(statements: list[tuple[str, int]], quantity: str, default: int) -> int:
    """The number on which all statements agree."""
    if len(values := {value for _, value in statements}) > 1:
        names = ", ".join(dict.fromkeys(name for name, _ in statements))
        raise ValueError(f"its {quantity} is given as {sorted(values)} ({names}); expected one")
    return values.pop() if values else default
