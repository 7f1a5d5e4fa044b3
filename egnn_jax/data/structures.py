"""Reading your own molecules from files and from SMILES."""

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from egnn_jax._extras import missing
from egnn_jax._files import expanded, printable
from egnn_jax.data import _embedding, _structure_files, qm9
from egnn_jax.data._embedding import CONFORMERS as CONFORMERS
from egnn_jax.data._embedding import PARALLEL_THRESHOLD as PARALLEL_THRESHOLD
from egnn_jax.data._embedding import OutOfTimeError as OutOfTimeError
from egnn_jax.data._embedding import Smiles as Smiles
from egnn_jax.data._embedding import canonical as canonical
from egnn_jax.data._embedding import from_smiles as from_smiles
from egnn_jax.data._embedding import generate_geometries as generate_geometries
from egnn_jax.data._embedding import useful_processes as useful_processes
from egnn_jax.data._structure import MAX_READ_ATOMS
from egnn_jax.data._structure import Refused as Refused
from egnn_jax.data._structure import Structure as Structure
from egnn_jax.data._structure import checked as checked

MAX_HEAVY_ATOMS = 9
"""The largest number of atoms other than hydrogen in a molecule of QM9."""
MIN_COMMON_ATOMS = 9
"""QM9 has few molecules with fewer atoms than this, so predictions for them are less accurate."""
MIN_ATOMS = 3
"""The smallest number of atoms in a molecule of QM9."""
NEAREST_RANGE = (0.9, 1.6)
"""The expected range of nearest-neighbor distances in Å; in QM9, they are 0.959 to 1.568."""
SUFFIXES = tuple(_structure_files.READERS)
"""The supported kinds of files, by suffix; each may be followed by ``.gz``."""
_FORMULAS = {
    "CO": ("methanol", "carbon monoxide is [C-]#[O+]"),
    "NO": ("hydroxylamine", "nitric oxide is [N]=O"),
    "CN": ("methylamine", "the cyano radical is [C]#N"),
}


def read(source: str) -> list[Structure | Refused]:
    """Read the molecules of a file or, if there is no such file, of a SMILES or InChI.

    For SMILES and files without 3-D coordinates, hydrogens and a geometry (ETKDG, then MMFF94) are
    generated. An entry is refused, without affecting others, if it cannot be read, lacks hydrogens,
    is periodic, is too large, consists of several molecules, or no geometry is found.

    Raises:
      ValueError: the source is neither, cannot be read as a whole, or is empty.
    """
    return list(generate_geometries(entries(source)))


def entries(source: str) -> list[Structure | Refused | Smiles]:
    """Read a source like :func:`read`, but leave geometries to :func:`generate_geometries`.

    Raises:
      ValueError: as for :func:`read`.
    """
    for package in ("ase", "rdkit"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(missing(package))
    try:
        return _entries(source)
    except ValueError as error:
        raise ValueError(printable(str(error))) from error


def _entries(source: str) -> list[Structure | Refused | Smiles]:
    path = Path(source)
    suffix = _structure_files.kind(path)[0]
    if source.startswith("~") and suffix in SUFFIXES:
        path = expanded(path)
        source = str(path)
    if not os.path.isfile(source):  # Path.is_file fails for a long SMILES
        if os.path.isdir(source):
            raise ValueError(f"{path} is a folder; expected a file of molecules, or a SMILES")
        if suffix in SUFFIXES:
            raise ValueError(f"{path} is not a file")
        return [_from_text(source)]
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path} is a file of an unknown kind; expected one of {', '.join(SUFFIXES)}, or one "
            "of these with .gz after it"
        )
    molecules = _structure_files.entries(path)
    if not molecules:
        raise ValueError(f"{path} holds no molecules")
    return molecules


def _from_text(text: str) -> Smiles | Refused:
    from rdkit.Chem import rdMolDescriptors

    try:
        molecule = _embedding.parsed(text.strip())
    except _embedding.NoSmilesError as error:
        raise ValueError(f"{error}, nor a file ({', '.join(SUFFIXES)})") from None
    except ValueError as error:
        return Refused(text, str(error))
    formula = rdMolDescriptors.CalcMolFormula(molecule)
    return Smiles(text.strip(), text, remark=_remark(text.strip(), formula))


def _remark(text: str, formula: str) -> str:
    """A remark if a typed SMILES could be meant as a formula: CO is methanol, not carbon monoxide.

    Args:
      text: the text that was typed.
      formula: the formula of the molecule if the text is read as a SMILES.
    """
    elements = re.findall("Cl|Br|[BCNOFPSI]", text)
    if len(elements) < 2 or "".join(elements) != text or len(set(elements)) < len(elements):
        return ""
    if text in _FORMULAS:
        name, hint = _FORMULAS[text]
        return f"{text} is read as a SMILES, {name} ({formula}), not as a formula: {hint}"
    return f"{text} is read as a SMILES, {formula}, not as a formula"


def differences_from_qm9(molecule: Structure) -> list[str]:
    """How a molecule differs from all of QM9's, so that networks trained there may be inaccurate;
    empty if it does not.
    """
    return [*_differences_from_qm9(molecule), *molecule.notes]


def _differences_from_qm9(molecule: Structure) -> Iterator[str]:
    if unknown := sorted(set(molecule.symbols) - set(qm9.ELEMENTS)):
        yield f"it has {', '.join(unknown)}; QM9 has {', '.join(qm9.ELEMENTS)}"
    num_atoms = len(molecule.symbols)
    num_heavy = sum(symbol != "H" for symbol in molecule.symbols)
    if not MIN_ATOMS <= num_atoms <= qm9.MAX_ATOMS:
        atoms = "1 atom" if num_atoms == 1 else f"{num_atoms} atoms"
        yield f"it has {atoms}; QM9's have {MIN_ATOMS} to {qm9.MAX_ATOMS}"
    if num_heavy > MAX_HEAVY_ATOMS:
        yield f"it has {num_heavy} atoms other than H; QM9's have at most {MAX_HEAVY_ATOMS}"
    if molecule.charge:
        yield f"its charge is {molecule.charge:+d}; QM9's are neutral"
    elif not unknown and sum(qm9.ELEMENTS[symbol] for symbol in molecule.symbols) % 2:
        yield "its number of electrons is odd; QM9's are even"
    if num_atoms > 1 and not unknown:
        nearest = _nearest_distances(molecule.positions)
        for value in sorted({nearest.min(), nearest.max()}):
            if not NEAREST_RANGE[0] <= value <= NEAREST_RANGE[1]:
                yield (
                    f"an atom is {value:.3f} Å from its nearest; in QM9 it is "
                    f"{NEAREST_RANGE[0]} to {NEAREST_RANGE[1]} Å"
                )
    if MIN_ATOMS <= num_atoms < MIN_COMMON_ATOMS:
        yield (
            f"it has {num_atoms} atoms; only 108 of QM9's molecules have fewer than "
            f"{MIN_COMMON_ATOMS}"
        )


def _nearest_distances(positions: np.ndarray) -> np.ndarray:
    """The distance (M,) from each of M > 1 atoms to its nearest neighbor."""
    if len(positions) > MAX_READ_ATOMS:
        from scipy.spatial import KDTree

        return KDTree(positions).query(positions, k=2)[0][:, 1]
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    return np.min(distances, axis=1, where=~np.eye(len(positions), dtype=bool), initial=np.inf)
