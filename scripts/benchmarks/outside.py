"""Measure how often ``egnn predict`` notices that a molecule is unlike those of QM9.

    PYTHONPATH=scripts python -m benchmarks.outside --molecules 300

The molecules are derived from QM9's test molecules: unchanged; two joined by a bond that replaces
two hydrogens; protonated at a nitrogen; with Cl, Br, S or P in place of F, O or N; with a hydrogen
removed. Geometries are generated from SMILES, as in ``egnn predict``. Prints how many are refused,
how many are reported as outside QM9, and how many pass without a warning. Then, judged by
distances, the same for QM9's own geometries, without some hydrogens, and with two more at bond
length.
"""

import argparse
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from egnn_jax.data import qm9, qm9_sources, structures
from egnn_jax.data._perception import of_geometry
from egnn_jax.experiments.tables import markdown

HEAVIER = {"F": ("Cl", "Br"), "O": ("S",), "N": ("P",)}


def _bonding_atoms(molecule: Any) -> list[int]:
    """Atoms with a hydrogen that a bond can replace."""
    return [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetTotalNumHs() > 0]


def joined(molecule: Any, other: Any, rng: random.Random) -> str | None:
    """SMILES of two molecules joined by a bond that replaces two hydrogens."""
    from rdkit import Chem

    candidates = _bonding_atoms(molecule), _bonding_atoms(other)
    if not all(candidates):
        return None
    combined = Chem.RWMol(Chem.CombineMols(molecule, other))
    first, second = rng.choice(candidates[0]), molecule.GetNumAtoms() + rng.choice(candidates[1])
    combined.AddBond(first, second, Chem.BondType.SINGLE)
    for index in (first, second):
        atom = combined.GetAtomWithIdx(index)
        atom.SetNumExplicitHs(max(atom.GetNumExplicitHs() - 1, 0))
    return _smiles(combined)


def charged(molecule: Any, _: Any, rng: random.Random) -> str | None:
    """Protonate a molecule at a nitrogen."""
    from rdkit import Chem

    pattern = Chem.MolFromSmarts("[NX3;+0;!$(N=*);!$(N-*=*)]")
    candidates = [index for (index,) in molecule.GetSubstructMatches(pattern)]
    if not candidates:
        return None
    edited = Chem.RWMol(molecule)
    atom = edited.GetAtomWithIdx(rng.choice(candidates))
    atom.SetFormalCharge(1)
    atom.SetNumExplicitHs(atom.GetTotalNumHs() + 1)
    return _smiles(edited)


def heavier(molecule: Any, _: Any, rng: random.Random) -> str | None:
    """Replace an element by a heavier one."""
    from rdkit import Chem

    candidates = [a.GetIdx() for a in molecule.GetAtoms() if a.GetSymbol() in HEAVIER]
    if not candidates:
        return None
    edited = Chem.RWMol(molecule)
    atom = edited.GetAtomWithIdx(rng.choice(candidates))
    number = Chem.GetPeriodicTable().GetAtomicNumber(rng.choice(HEAVIER[atom.GetSymbol()]))
    atom.SetAtomicNum(number)
    return _smiles(edited)


def radical(molecule: Any, _: Any, rng: random.Random) -> str | None:
    """Remove a hydrogen."""
    from rdkit import Chem

    candidates = _bonding_atoms(molecule)
    if not candidates:
        return None
    edited = Chem.RWMol(molecule)
    atom = edited.GetAtomWithIdx(rng.choice(candidates))
    atom.SetNumExplicitHs(atom.GetTotalNumHs() - 1)
    atom.SetNoImplicit(True)
    atom.SetNumRadicalElectrons(1)
    return _smiles(edited)


def _smiles(molecule: Any) -> str | None:
    from rdkit import Chem

    return None if Chem.SanitizeMol(molecule, catchErrors=True) else Chem.MolToSmiles(molecule)


DERIVATIONS: dict[str, Callable[[Any, Any, random.Random], str | None]] = {
    "QM9's own": lambda molecule, _, __: _smiles(molecule),
    "two joined by a bond": joined,
    "a proton more": charged,
    "Cl, Br, S or P": heavier,
    "a hydrogen less": radical,
}


def derived_smiles(kind: str, test: list[str], rng: random.Random) -> Iterator[str]:
    """SMILES of one kind, derived from test molecules."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        while True:
            molecule, other = (Chem.MolFromSmiles(rng.choice(test)) for _ in range(2))
            if molecule is not None and other is not None:
                smiles = DERIVATIONS[kind](molecule, other, rng)
                if smiles is not None:
                    yield smiles


def without(num_hydrogens: int, z: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> Any:
    """Remove a number of hydrogens from atoms; None if there are fewer."""
    hydrogens = np.flatnonzero(z == 1)
    if len(hydrogens) < num_hydrogens:
        return None
    indices = np.setdiff1d(np.arange(len(z)), rng.choice(hydrogens, num_hydrogens, replace=False))
    return z[indices], x[indices]


def with_two_more(z: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> Any:
    """Add two hydrogens at random heavy atoms; None if no place is found."""
    heavy, size = np.flatnonzero(z > 1), len(z) + 2
    for _ in range(1_000):
        center, direction = rng.choice(heavy), rng.normal(size=3)
        position = x[center] + 1.05 * direction / np.linalg.norm(direction)
        if np.delete(np.linalg.norm(x - position, axis=1), center).min(initial=np.inf) > 1.25:
            z, x = np.append(z, 1), np.vstack([x, position])
            if len(z) == size:
                return z, x
    return None


GEOMETRIES: dict[str, Callable[..., Any]] = {
    "QM9's own": lambda z, x, _: (z, x),
    "without a hydrogen": partial(without, 1),
    "without two hydrogens": partial(without, 2),
    "without all hydrogens": lambda z, x, _: (z[z > 1], x[z > 1]) if np.any(z == 1) else None,
    "with two hydrogens more": with_two_more,
}


def recognized_geometries(data: qm9.QM9, count: int) -> list[dict[str, str]]:
    """Tabulate how many geometries are recognized as unlike QM9's."""
    end_offsets, rows = np.cumsum(data.n_atoms), []
    for name, change in GEOMETRIES.items():
        rng, n_made, n_warned = np.random.default_rng(0), 0, 0
        for k in rng.choice(data.splits["test"], count, replace=False):
            atom_slice = slice(end_offsets[k] - data.n_atoms[k], end_offsets[k])
            changed_atoms = change(
                data.atomic_numbers[atom_slice], data.positions[atom_slice].astype(float), rng
            )
            if changed_atoms is not None:
                n_made, n_warned = n_made + 1, n_warned + bool(of_geometry(*changed_atoms, 0))
        rows.append({"geometries": name, "made": str(n_made), "noticed": str(n_warned)})
    return rows


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--molecules", type=int, default=300, help="of each kind (300)")
    arguments = parser.parse_args()
    smiles, data = qm9_sources.smiles_of_package(), qm9.load()
    test = [smiles[int(index)] for index in data.index[data.splits["test"]]]
    rows = []
    for kind in DERIVATIONS:
        counts = {"refused": 0, "outside QM9": 0, "no warning": 0}
        for _, text in zip(
            range(arguments.molecules), derived_smiles(kind, test, random.Random(0)), strict=False
        ):
            (molecule,) = structures.read(text)
            if isinstance(molecule, structures.Refused):
                counts["refused"] += 1
            else:
                counts[
                    "outside QM9" if structures.differences_from_qm9(molecule) else "no warning"
                ] += 1
        rows.append({"molecules": kind} | {name: str(number) for name, number in counts.items()})
    print(f"{markdown(rows)}\n\n{markdown(recognized_geometries(data, arguments.molecules))}")


if __name__ == "__main__":
    main()
