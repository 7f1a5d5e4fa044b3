"""Bonds and atom traits from RDKit, for a SMILES with positions or for positions alone."""

import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from egnn_jax._extras import missing
from egnn_jax.data import _embedding

BOND_TYPES = ("single", "double", "triple", "aromatic")
"""The kinds of bonds, numbered from 1 in arrays; 0 is no bond."""

TRAITS = ("acceptor", "donor", "aromatic", "sp", "sp2", "sp3", "hydrogens")
"""The traits of an atom: hydrogen bond acceptor or donor, aromatic, hybridization (each 0 or 1),
and its number of bonded hydrogens.
"""

SOURCES = ("in order", "reordered", "by positions", "none")
"""The possible sources of the bonds of a molecule with a SMILES, in the order of ``source``.

"in order": the bonds of the SMILES agree with the distances, atom by atom. "reordered": they agree
after reordering the atoms of the SMILES. "by positions": they do not agree, and the bonds are from
:func:`perceived`. "none": that fails as well.
"""

BOUND, LONGEST, CLOSEST = 1.16, 1.25, 1.1
"""Distances in units of the sum of two covalent radii. Atoms closer than ``BOUND`` count as bonded
if nothing else is known; this separates bonds from other pairs in all but some forty molecules of
QM9. A SMILES disagrees with the distances if a bond is longer than ``LONGEST``, or two atoms
without a bond are closer than ``CLOSEST``.
"""
IMPOSSIBLE = 1.6
"""A distance, in units of the sum of RDKit's covalent radii, above which there is no bond."""
_MAX_ORDERS = 8
"""The number of orders of the atoms in which bonds are perceived until that succeeds."""

_RADII = np.zeros(10)
_RADII[[1, 6, 7, 8, 9]] = 0.31, 0.76, 0.71, 0.66, 0.57
"""Covalent radii (Å) by Cordero et al. (2008), by atomic number."""


class Chemistry(NamedTuple):
    """Bonds and traits of a molecule of M atoms.

    Attributes:
      bond_atoms: indices of the atoms of each bond (B, 2), the lower one first.
      bond_types: kinds of the bonds (B,), 1 to 4 in the order of :data:`BOND_TYPES`.
      traits: traits of the atoms (M, 7), in the order of :data:`TRAITS`.
    """

    bond_atoms: np.ndarray
    bond_types: np.ndarray
    traits: np.ndarray


def of_smiles(smiles: str, numbers: np.ndarray, positions: np.ndarray) -> tuple[Chemistry, int]:
    """Determine bonds and traits of a molecule from its SMILES and positions.

    Args:
      smiles: the SMILES of the molecule.
      numbers: atomic numbers of H, C, N, O and F (M,).
      positions: (M, 3) in Å.

    Returns:
      The chemistry in the order of ``numbers`` (no bonds and zero traits if it cannot be
      determined), and the index of its source in :data:`SOURCES`.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is not None:
        molecule = Chem.AddHs(molecule)
        smiles_numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
        distances = _relative_distances(numbers, positions)
        if smiles_numbers == numbers.tolist() and _agrees(molecule, distances):
            return _of_rdkit(molecule), SOURCES.index("in order")
        if order := _matching_atoms(molecule, numbers, distances < BOUND):
            molecule = Chem.RenumberAtoms(molecule, order)
            return _of_rdkit(molecule), SOURCES.index("reordered")
    try:
        return perceived(numbers, positions), SOURCES.index("by positions")
    except ValueError:
        no_bonds = np.zeros((0, 2), np.int32), np.zeros(0, np.int8)
        traits = np.zeros((len(numbers), len(TRAITS)), np.int8)
        return Chemistry(*no_bonds, traits), SOURCES.index("none")


def of_molecule(molecule: Any, numbers: np.ndarray, positions: np.ndarray) -> tuple[Chemistry, int]:
    """Determine bonds and traits of any molecule.

    Args:
      molecule: where the bonds are from: :class:`egnn_jax.data.structures.Smiles`, an object with a
        mol block ``block``, or else the positions; then the charge is ``molecule.charge``, or
        ``molecule.info["charge"]`` as in ASE, or 0.
      numbers: atomic numbers (M,).
      positions: (M, 3) in Å.

    Returns:
      The chemistry, and the index of its source in :data:`SOURCES`.

    Raises:
      ValueError: there are other atoms in the molecule than in ``numbers``; or as
        :func:`perceived`.
    """
    if isinstance(molecule, _embedding.Smiles):
        found = _embedding.with_hydrogens(_embedding.parsed(molecule.text))
    elif block := getattr(molecule, "block", ""):
        from rdkit import Chem, rdBase

        with rdBase.BlockLogs():
            found = Chem.MolFromMolBlock(block, removeHs=False)
    else:
        return perceived(numbers, positions, _charge(molecule)), SOURCES.index("by positions")
    if found is None:
        raise ValueError("its mol block cannot be read")
    atoms = [atom.GetAtomicNum() for atom in found.GetAtoms()]
    if atoms != numbers.tolist():
        raise ValueError(f"its bonds are between atoms {atoms}; expected {numbers.tolist()}")
    result = _of_rdkit(found)
    _require_short(result, numbers, positions)
    return result, SOURCES.index("in order")


def _require_short(found: Chemistry, numbers: np.ndarray, positions: np.ndarray) -> None:
    """Raise ValueError if a bond is so long that it must be between others of the atoms, as if
    another version of RDKit stored the positions, with its atoms in another order.
    """
    from rdkit import Chem

    i, j = found.bond_atoms.T
    radii = np.array([Chem.GetPeriodicTable().GetRcovalent(int(z)) for z in numbers])
    lengths = np.linalg.norm(positions[i] - positions[j], axis=-1) / (radii[i] + radii[j])
    if len(lengths) and lengths.max() > IMPOSSIBLE:
        k = lengths.argmax()
        raise ValueError(
            f"its bond between atoms {i[k] + 1} and {j[k] + 1} is {lengths[k]:.1f} times as long "
            f"as their radii; expected at most {IMPOSSIBLE}"
        )


def _charge(molecule: Any) -> int:
    charge: Any = getattr(molecule, "charge", None)
    info = getattr(molecule, "info", None)
    if charge is None and isinstance(info, Mapping):
        charge = info.get("charge")
    if charge is None:
        return 0
    is_number = isinstance(charge, int | float | np.integer | np.floating)
    if not is_number or not np.isfinite(charge) or charge != np.rint(charge):
        raise ValueError(f"its charge is {charge!r}; expected a whole number")
    return int(charge)


def perceived(numbers: np.ndarray, positions: np.ndarray, charge: int = 0) -> Chemistry:
    """Determine bonds and traits of a molecule by RDKit's perception from positions.

    Args:
      numbers: atomic numbers (M,).
      positions: (M, 3) in Å.
      charge: the charge of the molecule, in elementary charges.

    Raises:
      ValueError: rdkit is not installed, or finds no bonds that fit the valences.
    """
    try:
        from rdkit import Chem
    except ImportError as error:
        raise ValueError(missing("rdkit")) from error
    # In some orders of the atoms, RDKit finds no bonds of nitroarenes, and in others it does.
    rng = np.random.default_rng(0)
    size = len(numbers)
    orders = [np.arange(size), *(rng.permutation(size) for _ in range(_MAX_ORDERS - 1))]
    failure = None
    for order in orders:
        try:
            molecule = _bonded(numbers[order], positions[order], charge)
            return _of_rdkit(Chem.RenumberAtoms(molecule, np.argsort(order).tolist()))
        except ValueError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _bonded(numbers: np.ndarray, positions: np.ndarray, charge: int) -> Any:
    """An RDKit molecule with the bonds that RDKit perceives, see :func:`perceived`."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDetermineBonds

    kind = f"whole molecule of charge {charge:+d}" if charge else "whole, neutral molecule"
    hint = "" if charge else "; of an ion, state the charge"
    expected = f"expected a {kind} with all of its hydrogens{hint}"
    symbol_of = Chem.GetPeriodicTable().GetElementSymbol
    lines = [
        f"{symbol_of(int(number))} {x:.6f} {y:.6f} {z:.6f}"
        for number, (x, y, z) in zip(numbers, positions, strict=True)
    ]
    with rdBase.BlockLogs():
        molecule = Chem.MolFromXYZBlock("\n".join([str(len(lines)), "", *lines, ""]))
        try:
            rdDetermineBonds.DetermineBonds(molecule, charge=charge, useHueckel=False)
            molecule = Chem.Mol(molecule)
            for atom in molecule.GetAtoms():
                atom.SetNoImplicit(True)  # RDKit would add hydrogens to an atom without bonds
                if len(numbers) == 1:
                    atom.SetFormalCharge(charge)
            Chem.SanitizeMol(molecule)
        except (ValueError, RuntimeError) as error:
            message = f"its bonds cannot be derived from its positions; {expected}"
            raise ValueError(message) from error
    if radicals := sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
        raise ValueError(f"its positions leave {radicals} electrons unpaired; {expected}")
    return molecule


def _relative_distances(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Distances (M, M) in units of the sum of two covalent radii; infinite on the diagonal."""
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    distances /= _RADII[numbers][:, None] + _RADII[numbers]
    np.fill_diagonal(distances, np.inf)
    return distances


def _agrees(molecule: Any, distances: np.ndarray) -> bool:
    """Whether the bonds of an RDKit molecule are short, and all other distances are not."""
    from rdkit import Chem

    bonded = Chem.GetAdjacencyMatrix(molecule).astype(bool)
    longest = distances[bonded].max(initial=0)
    return bool(longest < LONGEST and distances[~bonded].min() > CLOSEST)


def _matching_atoms(molecule: Any, numbers: np.ndarray, adjacent: np.ndarray) -> list[int]:
    """For each atom of ``adjacent``, the matching atom of the molecule; empty without a match."""
    from rdkit import Chem

    molecule_numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    skeleton = _skeleton(molecule_numbers, Chem.GetAdjacencyMatrix(molecule))
    target = _skeleton(numbers, adjacent)
    if skeleton.GetNumBonds() != target.GetNumBonds() or len(molecule_numbers) != len(numbers):
        return []
    return list(skeleton.GetSubstructMatch(target))


def _skeleton(numbers: np.ndarray, adjacent: np.ndarray) -> Any:
    """An RDKit molecule of only elements and single bonds, for matching."""
    from rdkit import Chem

    molecule = Chem.RWMol()
    for number in numbers:
        atom = Chem.Atom(int(number))
        atom.SetNoImplicit(True)
        molecule.AddAtom(atom)
    for i, j in np.argwhere(np.triu(adjacent)).tolist():
        molecule.AddBond(i, j, Chem.BondType.SINGLE)
    molecule.UpdatePropertyCache(strict=False)
    Chem.FastFindRings(molecule)
    return molecule


def _of_rdkit(molecule: Any) -> Chemistry:
    """The chemistry of a sanitized RDKit molecule with all of its hydrogens."""
    kind_numbers = {"SINGLE": 1, "DOUBLE": 2, "TRIPLE": 3, "AROMATIC": 4}
    bond_atoms, bond_types = [], []
    for bond in molecule.GetBonds():
        bond_atoms.append(sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())))
        kind = "AROMATIC" if bond.GetIsAromatic() else str(bond.GetBondType())
        if kind not in kind_numbers:
            raise ValueError(
                f"it has a bond of the kind {kind.lower()}; expected {', '.join(BOND_TYPES)}"
            )
        bond_types.append(kind_numbers[kind])
    traits = np.zeros((molecule.GetNumAtoms(), len(TRAITS)), np.int8)
    for feature in _feature_factory().GetFeaturesForMol(molecule):
        if (family := feature.GetFamily().lower()) in TRAITS:
            traits[list(feature.GetAtomIds()), TRAITS.index(family)] = 1
    for k, atom in enumerate(molecule.GetAtoms()):
        traits[k, TRAITS.index("aromatic")] = atom.GetIsAromatic()
        if (hybridization := str(atom.GetHybridization()).lower()) in TRAITS:
            traits[k, TRAITS.index(hybridization)] = 1
        traits[k, TRAITS.index("hydrogens")] = atom.GetTotalNumHs(includeNeighbors=True)
    order = np.lexsort(np.array(bond_atoms, int).reshape(-1, 2).T[::-1])
    return Chemistry(
        np.array(bond_atoms, np.int32).reshape(-1, 2)[order],
        np.array(bond_types, np.int8)[order],
        traits,
    )


@functools.cache
def _feature_factory() -> Any:
    """RDKit's definitions of hydrogen bond donors and acceptors."""
    from rdkit import RDConfig
    from rdkit.Chem import ChemicalFeatures

    features: Any = ChemicalFeatures  # its type stubs lack the function
    return features.BuildFeatureFactory(os.path.join(RDConfig.RDDataDir, "BaseFeatures.fdef"))
