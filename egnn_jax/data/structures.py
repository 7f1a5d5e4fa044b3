"""Molecules of your own: from ``.xyz`` files (read by ASE), ``.sdf``, ``.mol`` and ``.smi`` files
and SMILES (by RDKit).
"""

import dataclasses
import importlib.util
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from egnn_jax.data import _perception, qm9

HEAVY = 9
"""The largest number of atoms other than hydrogen of a molecule of QM9."""
FEW = 9
"""QM9 has few molecules with fewer atoms than this, so that networks err more on them."""
SMALLEST = 3
"""The smallest number of atoms of a molecule of QM9."""
NEAREST = (0.9, 1.6)
"""How far the atom nearest to another is, Å; in QM9 it is 0.959 to 1.568."""
CONFORMERS = 5
"""How many geometries are made of a molecule that is given without one."""
_DEUTERIUM = "egnn_jax: deuterium"
READ = (".xyz", ".sdf", ".mol", ".smi")


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """A molecule and its geometry.

    Args:
      name: from its file.
      symbols: of its M elements.
      positions: (M, 3) in Å.
      charge: in elementary charges; 0 where the file does not say.
      geometry: "as given", or the force field it was made with.
      notes: in what it is unlike a molecule of QM9 by its bonds.
      conformers: (C, M, 3) all geometries that were made, of lowest energy first; None where it is
        as given.
    """

    name: str
    symbols: list[str]
    positions: np.ndarray
    charge: int = 0
    geometry: str = "as given"
    notes: tuple[str, ...] = ()
    conformers: np.ndarray | None = None

    @property
    def formula(self) -> str:
        """In Hill's order: C, H, then the others by letter."""
        first = [symbol for symbol in ("C", "H") if "C" in self.symbols]
        order = first + sorted(set(self.symbols) - set(first))
        counts = [
            (symbol, self.symbols.count(symbol)) for symbol in order if symbol in self.symbols
        ]
        return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in counts)


@dataclasses.dataclass(frozen=True)
class Refused:
    """A molecule that cannot be used: its name, and why."""

    name: str
    reason: str


def read(source: str) -> list[Structure | Refused]:
    """The molecules of a file or, where there is no such file, of a SMILES.

    SMILES, and files without coordinates in space, get hydrogens and a geometry (ETKDG, then
    MMFF94). A molecule that has no geometry, lacks hydrogens, is periodic, is several, or cannot be
    read is refused; the others of its file are not.

    Raises:
      ValueError: the source is neither, cannot be read as a whole, or is empty.
    """
    for package in ("ase", "rdkit"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"your own molecules need {package}: pip install -e '.[chem]'")
    path = Path(source)
    suffix, exists = (
        path.suffix.lower(),
        os.path.isfile(source),
    )  # Path.is_file fails for a long SMILES
    if suffix in READ and not exists:
        raise ValueError(f"{path} is no file")
    if exists and suffix not in READ:
        raise ValueError(f"{path} is a file of an unknown kind; expected one of {', '.join(READ)}")
    if suffix not in READ:
        try:
            molecule = _parsed(source)
        except ValueError as error:
            raise ValueError(f"{error}, nor a file ({', '.join(READ)})") from None
        return [_attempt(_embedded, molecule, source)]
    found = list({".xyz": _from_xyz, ".smi": _from_smi}.get(suffix, _from_sdf)(path))
    if not found:
        raise ValueError(f"{path} holds no molecules")
    return found


def outside(molecule: Structure) -> list[str]:
    """In what a molecule differs from all of QM9's, so that what a network learnt there may not
    hold; empty where it does not.
    """
    reasons = []
    if unknown := sorted(set(molecule.symbols) - set(qm9.ELEMENTS)):
        reasons.append(f"it has {', '.join(unknown)}; QM9 has {', '.join(qm9.ELEMENTS)}")
    size, heavy = len(molecule.symbols), sum(symbol != "H" for symbol in molecule.symbols)
    if not SMALLEST <= size <= qm9.LARGEST:
        reasons.append(f"it has {size} atoms; QM9's have {SMALLEST} to {qm9.LARGEST}")
    if heavy > HEAVY:
        reasons.append(f"it has {heavy} atoms other than H; QM9's have at most {HEAVY}")
    if molecule.charge:
        reasons.append(f"its charge is {molecule.charge:+d}; QM9's are neutral")
    elif not unknown and sum(qm9.ELEMENTS[symbol] for symbol in molecule.symbols) % 2:
        reasons.append("its number of electrons is odd; QM9's are even")
    if size > 1 and not unknown:
        distances = np.linalg.norm(molecule.positions[:, None] - molecule.positions, axis=-1)
        nearest = np.min(distances, axis=1, where=~np.eye(size, dtype=bool), initial=np.inf)
        for value in sorted({nearest.min(), nearest.max()}):
            if not NEAREST[0] <= value <= NEAREST[1]:
                reasons.append(
                    f"an atom is {value:.2f} Å from its nearest; in QM9 it is {NEAREST[0]} to "
                    f"{NEAREST[1]} Å"
                )
    if SMALLEST <= size < FEW:
        reasons.append(f"it has {size} atoms; only 108 of QM9's molecules have fewer than {FEW}")
    return [*reasons, *molecule.notes]


def _attempt(
    make: Callable[[Any, str], Structure], given: Any, name: str, where: str = ""
) -> Structure | Refused:
    try:
        return make(given, name)
    except ValueError as error:
        return Refused(name, f"{where}{error}")


def _from_xyz(path: Path) -> Iterator[Structure | Refused]:
    import ase.io

    text = path.read_text(encoding="utf-8", errors="replace")
    # ASE knows no symbols of isotopes, and would refuse the whole file for one.
    heavy = re.compile(r"^(\s*)[DT](\s)", re.MULTILINE)
    try:
        frames: Any = ase.io.read(
            io.StringIO(heavy.sub(r"\1H\2", text)), index=":", format="extxyz"
        )
        if heavy.search(text):
            for atoms in frames:
                atoms.info[_DEUTERIUM] = True
    except Exception as error:  # ASE's readers raise whatever they stumble over
        raise ValueError(f"{path} cannot be read as .xyz ({error})") from error
    for k, atoms in enumerate(frames, 1):
        name = path.stem if len(frames) == 1 else f"{path.stem} {k}"
        yield _attempt(_from_ase, atoms, name)


def _from_ase(atoms: Any, name: str) -> Structure:
    if atoms.pbc.any():
        raise ValueError("it is periodic; expected a molecule")
    if not len(atoms):
        raise ValueError("it has no atoms")
    results = {} if atoms.calc is None else atoms.calc.results
    charges = atoms.arrays.get("initial_charges", results.get("charges"))
    charge = _perception.charge(atoms.info, charges)
    notes = []
    if (multiplicity := _perception.multiplicity(atoms.info)) != 1:
        notes.append(f"its spin multiplicity is {multiplicity}; QM9's is 1")
    if atoms.info.get(_DEUTERIUM):
        notes.append("it has deuterium or tritium, which the network takes for hydrogen")
    symbols = atoms.get_chemical_symbols()
    return checked(Structure(name, symbols, atoms.get_positions(), charge, notes=tuple(notes)))


def _from_sdf(path: Path) -> Iterator[Structure | Refused]:
    from rdkit import Chem, rdBase

    if not path.read_bytes().strip():
        return
    with rdBase.BlockLogs():
        molecules = list(Chem.SDMolSupplier(str(path), removeHs=False))
    for k, molecule in enumerate(molecules, 1):
        if molecule is None:
            yield Refused(f"{path.stem} {k}", f"{path}: molecule {k} cannot be read")
        else:
            name = (
                molecule.GetProp("_Name") if molecule.HasProp("_Name") else ""
            ) or f"{path.stem} {k}"
            yield _attempt(_from_block, molecule, name)


def _from_block(molecule: Any, name: str) -> Structure:
    if not (molecule.GetNumConformers() and molecule.GetConformer().Is3D()):
        return _embedded(molecule, name)
    if missing := sum(atom.GetNumImplicitHs() for atom in molecule.GetAtoms()):
        raise ValueError(f"it lacks {missing} hydrogens; expected every atom with its coordinates")
    return checked(_structure(molecule, name, "as given"))


def _from_smi(path: Path) -> Iterator[Structure | Refused]:
    for k, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            smiles, *names = line.split(maxsplit=1)
            name = names[0].strip() if names else smiles
            yield _attempt(from_smiles, smiles, name, f"{path}, line {k}: ")


def from_smiles(smiles: str, name: str, conformers: int = CONFORMERS) -> Structure:
    """The molecule of a SMILES in geometries by MMFF94, which depend on the molecule alone.

    Args:
      smiles: of one molecule.
      name: of the structure.
      conformers: at most this many geometries; ``positions`` is the one of lowest energy.

    Raises:
      ValueError: this is no SMILES, or of several molecules, or no geometry is found.
    """
    return _embedded(_parsed(smiles), name, conformers)


def _parsed(smiles: str) -> Any:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        raise ValueError(f"{smiles!r} is no SMILES")
    return molecule


def _embedded(molecule: Any, name: str, conformers: int = CONFORMERS) -> Structure:
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    if (parts := len(Chem.GetMolFrags(molecule))) > 1:
        raise ValueError(
            f"it is {parts} molecules, whose places are not known; give each alone, or all "
            f"with coordinates"
        )
    # One molecule has many SMILES and orders of atoms, which lead to different conformers.
    molecule = Chem.AddHs(Chem.MolFromSmiles(Chem.MolToSmiles(molecule)))
    settings = rdDistGeom.ETKDGv3()
    settings.randomSeed = 0
    settings.enableSequentialRandomSeeds = True  # seed k for conformer k, instead of 0 for all
    settings.useRandomCoords = True  # finds more of the strained cages that QM9 is full of
    field, energies = "ETKDG", np.zeros(conformers)
    with rdBase.BlockLogs():
        if not rdDistGeom.EmbedMultipleConfs(molecule, conformers, settings):
            raise ValueError("no geometry was found; give one as .xyz or .sdf")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
            found = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, maxIters=5_000)
            field, energies = "MMFF94", np.array([energy for _, energy in found])
    positions = np.stack([one.GetPositions() for one in molecule.GetConformers()])
    order = np.argsort(energies[: len(positions)], kind="stable")
    return _structure(molecule, name, field, positions[order])


def _structure(
    molecule: Any, name: str, geometry: str, conformers: np.ndarray | None = None
) -> Structure:
    from rdkit import Chem

    return Structure(
        name,
        symbols=[atom.GetSymbol() for atom in molecule.GetAtoms()],
        positions=molecule.GetConformer().GetPositions() if conformers is None else conformers[0],
        charge=Chem.GetFormalCharge(molecule),
        geometry=geometry,
        notes=tuple(_perception.of_rdkit(molecule)),
        conformers=conformers,
    )


def checked(molecule: Structure) -> Structure:
    """A molecule in a given geometry, with what its distances say of its bonds."""
    if not np.isfinite(molecule.positions).all():
        raise ValueError("it has a coordinate that is not finite")
    known = set(molecule.symbols) <= set(qm9.ELEMENTS)
    if not known or not 1 < len(molecule.symbols) <= qm9.LARGEST:
        return molecule  # no network here takes it
    numbers = np.array([qm9.ELEMENTS[symbol] for symbol in molecule.symbols])
    found = _perception.of_geometry(numbers, molecule.positions, molecule.charge)
    return dataclasses.replace(molecule, notes=(*molecule.notes, *found))
