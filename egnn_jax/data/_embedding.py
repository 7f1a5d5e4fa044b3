"""Geometries of molecules that are given by their bonds: from SMILES and InChI, by RDKit."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import numpy as np

from egnn_jax.data import _perception, qm9
from egnn_jax.data._structure import Refused, Structure, check_size, shown
from egnn_jax.data._workers import workers

CONFORMERS = 5
"""How many geometries are made of a molecule that is given without one."""
MOST_EMBEDDED = 100
"""The largest number of atoms, hydrogens included, of a molecule that gets a geometry."""
MOST_SMILES = 2_000
"""The largest number of characters of a SMILES or InChI."""
SECONDS = 30
"""How long a geometry is sought."""
MANY = 50
"""From so many molecules without a geometry on, several processes make these."""
_CHUNK = 10
_FORMULAS = {
    "CO": ("methanol", "carbon monoxide is [C-]#[O+]"),
    "NO": ("hydroxylamine", "nitric oxide is [N]=O"),
    "CN": ("methylamine", "the cyano radical is [C]#N"),
}


class NoSmilesError(ValueError):
    """A text is neither a SMILES nor an InChI."""


@dataclasses.dataclass(frozen=True)
class Smiles:
    """A molecule that is to get a geometry.

    Args:
      text: a SMILES or InChI.
      name: of the structure.
      where: its place in a file, for messages.
      remark, values: see :class:`egnn_jax.data.structures.Structure`.
    """

    text: str
    name: str
    where: str = ""
    remark: str = ""
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)


def from_smiles(smiles: str, name: str, conformers: int = CONFORMERS) -> Structure:
    """The molecule of a SMILES in geometries by MMFF94, which depend on the molecule alone.

    Args:
      smiles: of one molecule; or its InChI.
      name: of the structure.
      conformers: at most this many geometries; ``positions`` is the one of lowest energy. A
        molecule of more atoms than any of QM9 gets one.

    Raises:
      ValueError: this is no SMILES, an impossible molecule, several molecules, or too large; or no
        geometry is found in :data:`SECONDS`.
    """
    return _embedded(parsed(smiles), name, conformers)


def parsed(text: str) -> Any:
    """RDKit's molecule of a SMILES or InChI.

    Raises:
      NoSmilesError: it is neither.
      ValueError: the molecule is impossible, with RDKit's reason.
    """
    from rdkit import Chem, rdBase

    if len(text) > MOST_SMILES:
        raise ValueError(
            f"{shown(text)} has {len(text):,} characters; expected a SMILES of at most "
            f"{MOST_SMILES:,}"
        )
    with rdBase.BlockLogs():
        if text.startswith("InChI="):
            molecule = Chem.MolFromInchi(text)
            if molecule is None or not molecule.GetNumAtoms():
                raise NoSmilesError(f"{shown(text)} is no InChI")
            return molecule
        molecule = Chem.MolFromSmiles(text)
        if molecule is None and (reason := problem(Chem.MolFromSmiles(text, sanitize=False))):
            raise ValueError(f"{shown(text)} is no possible molecule: {reason}")
    if molecule is None or not molecule.GetNumAtoms():
        raise NoSmilesError(f"{shown(text)} is no SMILES")
    if not all(bond.GetBondTypeAsDouble() for bond in molecule.GetBonds()):
        raise ValueError(f"{shown(text)} has a bond of no known order; expected one of 1, 2 or 3")
    return molecule


def problem(molecule: Any) -> str:
    """Why RDKit takes a molecule to be impossible; empty where it does not say."""
    from rdkit import Chem

    if molecule is None:
        return ""
    found = Chem.DetectChemistryProblems(molecule)
    return " ".join(found[0].Message().split()) if found else ""


def remark(text: str, formula: str) -> str:
    """What else a typed SMILES could mean: CO is methanol, not carbon monoxide.

    Args:
      text: that was typed.
      formula: of the molecule that it is as a SMILES.
    """
    elements = re.findall("Cl|Br|[BCNOFPSI]", text)
    if len(elements) < 2 or "".join(elements) != text or len(set(elements)) < len(elements):
        return ""
    if text in _FORMULAS:
        name, other = _FORMULAS[text]
        return f"{text} is read as a SMILES, {name} ({formula}), not as a formula: {other}"
    return f"{text} is read as a SMILES, {formula}, not as a formula"


def useful_processes(waiting: int) -> int:
    """How many processes make the geometries of so many molecules the fastest; 1 for no new one."""
    if waiting < MANY:  # in less time than new processes take to start
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 2 * waiting // MANY)


def made(
    entries: Iterable[Any], processes: int = 1, conformers: int = CONFORMERS
) -> Iterator[Structure | Refused]:
    """Entries of files in their order, where each :class:`Smiles` has got a geometry.

    Args:
      entries: of :class:`Smiles`, ``Structure`` and ``Refused``.
      processes: how many new ones make geometries; 1 for none but this one. A molecule that ends
        its process is refused.
      conformers: see :func:`from_smiles`.
    """
    make = partial(_made, conformers=conformers)
    if processes == 1:
        yield from map(make, entries)
        return
    every = list(entries)
    chunks = [every[k : k + _CHUNK] for k in range(0, len(every), _CHUNK)]
    done = 0
    while done < len(chunks):
        try:
            for found in _in_processes(make, chunks[done:], processes):
                done += 1
                yield from found
        except BrokenProcessPool:
            # Which molecule ended its process is not known, and may be of a later chunk.
            for one in chunks[done]:
                yield _alone(make, one)
            done += 1


def _in_processes(
    make: Callable[[Any], Structure | Refused], chunks: list[list[Any]], processes: int
) -> Iterator[list[Structure | Refused]]:
    pool = workers(processes)
    try:
        futures: list[Future[list[Structure | Refused]]] = [
            pool.submit(_made_chunk, make, chunk) for chunk in chunks
        ]
        for future in futures:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(make: Callable[[Any], Structure | Refused], entry: Any) -> Structure | Refused:
    try:
        return next(_in_processes(make, [[entry]], 1))[0]
    except BrokenProcessPool:
        return Refused(entry.name, f"{entry.where}it ended the process that made its geometry")


def _made_chunk(
    make: Callable[[Any], Structure | Refused], entries: list[Any]
) -> list[Structure | Refused]:
    return [make(entry) for entry in entries]


def _made(entry: Any, conformers: int) -> Structure | Refused:
    if not isinstance(entry, Smiles):
        return entry
    try:
        molecule = from_smiles(entry.text, entry.name, conformers)
    except Exception as error:  # RDKit raises RuntimeError where an invariant of its is broken
        return Refused(entry.name, f"{entry.where}{error}")
    return dataclasses.replace(molecule, remark=entry.remark, values=entry.values)


def _embedded(molecule: Any, name: str, conformers: int) -> Structure:
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    if (parts := len(Chem.GetMolFrags(molecule))) > 1:
        raise ValueError(
            f"it is {parts} molecules, whose places are not known; give each alone, or all "
            f"with coordinates"
        )
    size = molecule.GetNumAtoms(onlyExplicit=False)
    check_size(size, MOST_EMBEDDED, " where a geometry is to be made")
    if size > qm9.LARGEST:
        conformers = 1  # no network here takes it
    # One molecule has many SMILES and orders of atoms, which lead to different conformers; and
    # numbers of atoms, as for reactions, change the order.
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
    molecule = Chem.AddHs(Chem.MolFromSmiles(Chem.MolToSmiles(molecule)))
    settings = rdDistGeom.ETKDGv3()
    settings.randomSeed = 0
    settings.enableSequentialRandomSeeds = True  # seed k for conformer k, instead of 0 for all
    settings.useRandomCoords = True  # finds more of the strained cages that QM9 is full of
    settings.timeout = SECONDS
    field, energies = "ETKDG", np.zeros(conformers)
    with rdBase.BlockLogs():
        found = list(rdDistGeom.EmbedMultipleConfs(molecule, conformers, settings))
        if not molecule.GetNumConformers():
            within = f" in {SECONDS} s" if found else ""  # RDKit then returns -1
            raise ValueError(f"no geometry was found{within}; give one as .xyz or .sdf")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
            relaxed = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, maxIters=5_000)
            field, energies = "MMFF94", np.array([energy for _, energy in relaxed])
    each = list(molecule.GetConformers())
    order = np.argsort(energies[: len(each)], kind="stable").tolist()
    positions = np.stack([each[k].GetPositions() for k in order])
    return of_rdkit(molecule, name, field, positions, each[order[0]].GetId())


def of_rdkit(
    molecule: Any,
    name: str,
    geometry: str = "as given",
    conformers: np.ndarray | None = None,
    first: int = -1,
) -> Structure:
    """A structure from RDKit's molecule with all its hydrogens.

    Args:
      molecule: with a conformer.
      name, geometry, conformers: see :class:`egnn_jax.data.structures.Structure`.
      first: RDKit's number of the conformer that is the structure's.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        block = Chem.MolToMolBlock(molecule, confId=first)
    return Structure(
        name,
        symbols=[atom.GetSymbol() for atom in molecule.GetAtoms()],
        positions=molecule.GetConformer(first).GetPositions(),
        charge=Chem.GetFormalCharge(molecule),
        geometry=geometry,
        notes=tuple(_perception.of_rdkit(molecule)),
        conformers=conformers,
        block=block,
    )
