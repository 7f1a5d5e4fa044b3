"""Generating geometries of molecules from SMILES and InChI with RDKit."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import numpy as np

from egnn_jax._launch import number_of_cores
from egnn_jax.data import _perception, qm9
from egnn_jax.data._structure import Refused, Structure, check_size, quoted
from egnn_jax.data._workers import NoProcessError, workers

CONFORMERS = 5
"""The number of geometries generated for a molecule that has none."""
MAX_EMBEDDED_ATOMS = 100
"""The largest number of atoms, including hydrogens, for which a geometry is generated."""
MAX_SMILES_LENGTH = 2_000
"""The largest number of characters of a SMILES or InChI."""
TIMEOUT_SECONDS = 30
"""The time limit for finding a geometry."""
PARALLEL_THRESHOLD = 50
"""The number of molecules without a geometry from which several processes are used."""
_CHUNK = 10


class NoSmilesError(ValueError):
    """Raised if a text is neither a SMILES nor an InChI."""


class OutOfTimeError(ValueError):
    """Raised if no geometry is found in :data:`TIMEOUT_SECONDS`; another try may find one."""


@dataclasses.dataclass(frozen=True)
class Smiles:
    """A molecule for which a geometry will be generated.

    Args:
      text: a SMILES or InChI.
      name: the name of the structure.
      location: its place in a file, for messages.
      remark, values: see :class:`egnn_jax.data.structures.Structure`.
    """

    text: str
    name: str
    location: str = ""
    remark: str = ""
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)


def from_smiles(smiles: str, name: str, conformers: int = CONFORMERS) -> Structure:
    """Generate MMFF94 geometries from a SMILES; they depend only on the molecule.

    Args:
      smiles: the SMILES or InChI of one molecule.
      name: the name of the structure.
      conformers: the largest number of geometries; ``positions`` is the one of lowest energy. A
        molecule with more atoms than any in QM9 gets one.

    Raises:
      ValueError: this is not a SMILES, the molecule is impossible or too large, there are several
        molecules, or no geometry is found in :data:`TIMEOUT_SECONDS`.
    """
    return _embed_molecule(parsed(smiles), name, conformers)


def parsed(text: str) -> Any:
    """Parse a SMILES or InChI into an RDKit molecule.

    Raises:
      NoSmilesError: the text is neither.
      ValueError: the text is too long, an atom has no element, or the molecule is impossible (with
        RDKit's reason).
    """
    from rdkit import Chem, rdBase

    if len(text) > MAX_SMILES_LENGTH:
        raise ValueError(
            f"{quoted(text)} has {len(text):,} characters; expected a SMILES of at most "
            f"{MAX_SMILES_LENGTH:,}"
        )
    with rdBase.BlockLogs():
        if text.startswith("InChI="):
            molecule = Chem.MolFromInchi(text)
            if molecule is None or not molecule.GetNumAtoms():
                raise NoSmilesError(f"{quoted(text)} is no InChI")
            return molecule
        molecule = Chem.MolFromSmiles(text)
        if molecule is None and (reason := problem(Chem.MolFromSmiles(text, sanitize=False))):
            raise ValueError(f"{quoted(text)} is not a possible molecule: {reason}")
    if molecule is None or not molecule.GetNumAtoms():
        raise NoSmilesError(f"{quoted(text)} is no SMILES")
    require_elements(molecule)
    if not all(bond.GetBondTypeAsDouble() for bond in molecule.GetBonds()):
        raise ValueError(f"{quoted(text)} has a bond of no known order; expected one of 1, 2 or 3")
    return molecule


def canonical(molecule: Any) -> str:
    """The canonical SMILES of an RDKit molecule, or of a SMILES or InChI for :func:`parsed`."""
    from rdkit import Chem

    return Chem.MolToSmiles(parsed(molecule) if isinstance(molecule, str) else molecule)


def require_elements(molecule: Any) -> None:
    """Raise ValueError if an atom of an RDKit molecule has no element, such as ``*`` or ``R``."""
    if unknown := [atom.GetSymbol() for atom in molecule.GetAtoms() if not atom.GetAtomicNum()]:
        raise ValueError(f"it has an atom of no element ({unknown[0]})")


def problem(molecule: Any) -> str:
    """The reason why RDKit considers a molecule impossible; empty if it gives none."""
    from rdkit import Chem

    if molecule is None:
        return ""
    problems = Chem.DetectChemistryProblems(molecule)
    return " ".join(problems[0].Message().split()) if problems else ""


def useful_processes(num_geometries: int) -> int:
    """The fastest number of processes to generate so many geometries; 1 for no new process."""
    if num_geometries < PARALLEL_THRESHOLD:  # starting new processes would take longer
        return 1
    return min(number_of_cores(), 2 * num_geometries // PARALLEL_THRESHOLD)


def generate_geometries(
    entries: Iterable[Any], processes: int = 1, conformers: int = CONFORMERS
) -> Iterator[Structure | Refused]:
    """Generate a geometry for each :class:`Smiles` among entries, keeping their order.

    Args:
      entries: :class:`Smiles`, ``Structure`` and ``Refused`` objects.
      processes: the number of new processes; 1 to use only this one. A molecule that crashes its
        process is refused.
      conformers: see :func:`from_smiles`.
    """
    embed = partial(_embed_entry, conformers=conformers)
    if processes == 1:
        yield from map(embed, entries)
        return
    entry_list = list(entries)
    chunks = [entry_list[k : k + _CHUNK] for k in range(0, len(entry_list), _CHUNK)]
    num_finished = 0
    while num_finished < len(chunks):
        try:
            for results in _in_processes(embed, chunks[num_finished:], processes):
                num_finished += 1
                yield from results
        except BrokenProcessPool as error:
            if isinstance(error, NoProcessError) and not num_finished:
                warnings.warn(f"{error}; geometries are generated in this process", stacklevel=2)
                yield from map(embed, entry_list)
                return
            # Any molecule of this or a later chunk may have crashed its process.
            for entry in chunks[num_finished]:
                yield _embed_alone(embed, entry)
            num_finished += 1


def _in_processes(
    embed: Callable[[Any], Structure | Refused], chunks: list[list[Any]], processes: int
) -> Iterator[list[Structure | Refused]]:
    pool = workers(min(processes, len(chunks)))
    try:
        futures: list[Future[list[Structure | Refused]]] = [
            pool.submit(_embed_chunk, embed, chunk) for chunk in chunks
        ]
        for future in futures:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _embed_alone(embed: Callable[[Any], Structure | Refused], entry: Any) -> Structure | Refused:
    if not isinstance(entry, Smiles):
        return entry
    try:
        return next(_in_processes(embed, [[entry]], 1))[0]
    except BrokenProcessPool:
        reason = f"{entry.location}it ended the process that made its geometry"
        return Refused(entry.name, reason, retryable=True)  # memory may not have sufficed


def _embed_chunk(
    embed: Callable[[Any], Structure | Refused], entries: list[Any]
) -> list[Structure | Refused]:
    return [embed(entry) for entry in entries]


def _embed_entry(entry: Any, conformers: int) -> Structure | Refused:
    if not isinstance(entry, Smiles):
        return entry
    try:
        molecule = from_smiles(entry.text, entry.name, conformers)
    except Exception as error:  # RDKit raises RuntimeError if one of its invariants is violated
        retryable = isinstance(error, OutOfTimeError | MemoryError)
        return Refused(entry.name, f"{entry.location}{error}", retryable)
    return dataclasses.replace(molecule, remark=entry.remark, values=entry.values)


def with_hydrogens(molecule: Any) -> Any:
    """A parsed molecule with its hydrogens, its atoms in the order of its canonical SMILES."""
    from rdkit import Chem

    # Different SMILES and atom orders of one molecule would give different conformers, so use the
    # canonical SMILES; atom map numbers (of reactions) would change its order.
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
    return Chem.AddHs(Chem.MolFromSmiles(Chem.MolToSmiles(molecule)))


def _embed_molecule(molecule: Any, name: str, conformers: int) -> Structure:
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    if (fragments := len(Chem.GetMolFrags(molecule))) > 1:
        raise ValueError(
            f"it is {fragments} molecules, whose relative positions are unknown; give each alone, "
            "or all with coordinates"
        )
    size = molecule.GetNumAtoms(onlyExplicit=False)
    check_size(size, MAX_EMBEDDED_ATOMS, " where a geometry is to be made")
    if size > qm9.MAX_ATOMS:
        conformers = 1  # the networks included here do not take it
    molecule = with_hydrogens(molecule)
    settings = rdDistGeom.ETKDGv3()
    settings.randomSeed = 0
    settings.enableSequentialRandomSeeds = True  # seed k for conformer k, instead of 0 for all
    settings.useRandomCoords = True  # finds more of the strained cages that are common in QM9
    settings.timeout = TIMEOUT_SECONDS
    method, energies = "ETKDG", np.zeros(conformers)
    with rdBase.BlockLogs():
        conformer_ids = list(rdDistGeom.EmbedMultipleConfs(molecule, conformers, settings))
        if not molecule.GetNumConformers():
            # If the time did not suffice, RDKit returns -1.
            time_limit = f" in {TIMEOUT_SECONDS} s" if conformer_ids else ""
            error_class = OutOfTimeError if conformer_ids else ValueError
            raise error_class(f"no geometry was found{time_limit}; give one as .xyz or .sdf")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
            results = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, maxIters=5_000)
            method, energies = "MMFF94", np.array([energy for _, energy in results])
    rdkit_conformers = list(molecule.GetConformers())
    order = np.argsort(energies[: len(rdkit_conformers)], kind="stable").tolist()
    positions = np.stack([rdkit_conformers[k].GetPositions() for k in order])
    return of_rdkit(molecule, name, method, positions, rdkit_conformers[order[0]].GetId())


def of_rdkit(
    molecule: Any,
    name: str,
    geometry: str = "as given",
    conformers: np.ndarray | None = None,
    first: int = -1,
) -> Structure:
    """Make a structure from an RDKit molecule that has all its hydrogens.

    Args:
      molecule: an RDKit molecule with a conformer.
      name, geometry, conformers: see :class:`egnn_jax.data.structures.Structure`.
      first: RDKit's number of the conformer to use for ``positions``.
    """
    from rdkit import Chem, rdBase

    require_elements(molecule)
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
