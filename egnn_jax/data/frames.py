"""Structures with energies and forces from files: whatever ASE reads, and rMD17's ``.npz``."""

import dataclasses
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egnn_jax._files import expanded
from egnn_jax.data import _xyz
from egnn_jax.data._splits import drawn
from egnn_jax.data.cache import default_folder
from egnn_jax.graph.ase import as_tensor, from_ase, label_of
from egnn_jax.graph.graph import GraphsTuple

Energy = Literal["eV", "meV", "kcal/mol", "kJ/mol", "Hartree"]
Length = Literal["Å", "nm", "Bohr"]

_RMD17 = ("nuclear_charges", "coords", "energies", "forces")


@dataclasses.dataclass(frozen=True)
class Labels:
    """The names and units of the labels of frames.

    Args:
      energy, forces, stress, virial: the names that the labels have in the file; an empty one is
        not used. A virial W gives the stress -W / V.
      energy_unit: of energies; forces are in this a unit of length.
      length_unit: of positions, cells and forces.
    """

    energy: str = "energy"
    forces: str = "forces"
    stress: str = ""
    virial: str = ""
    energy_unit: Energy = "eV"
    length_unit: Length = "Å"

    def __post_init__(self) -> None:
        """Raise ValueError where the stress has two sources."""
        if self.stress and self.virial:
            raise ValueError(
                f"stress is {self.stress!r} and virial {self.virial!r}; expected one of them"
            )

    def in_ev(self, atoms: Any) -> Any:
        """A copy of ASE's ``Atoms`` in eV and Å, with "energy", "forces" and "stress" as its
        labels.

        Raises:
          ValueError: a label is missing, not finite or of another shape, or an atom is no element.
        """
        from ase import units
        from ase.calculators.singlepoint import SinglePointCalculator

        energy_units = {
            "eV": 1.0,
            "meV": 1e-3,
            "kcal/mol": units.kcal / units.mol,
            "kJ/mol": units.kJ / units.mol,
            "Hartree": units.Hartree,
        }
        if len(dummies := np.flatnonzero(atoms.numbers == 0)):
            raise ValueError(f"atom {dummies[0]} is X; expected a chemical element")
        energy = energy_units[self.energy_unit]
        length = {"Å": 1.0, "nm": units.nm, "Bohr": units.Bohr}[self.length_unit]
        copy = atoms.copy()
        copy.set_constraint()  # fixed atoms would stay where they were in the file's unit
        copy.set_cell(atoms.cell * length)
        copy.set_positions(atoms.get_positions() * length)
        labels = {"energy": energy * label_of(atoms, self.energy, ())}
        if self.forces:
            labels["forces"] = energy / length * label_of(atoms, self.forces, (len(atoms), 3))
        if name := self.stress or self.virial:
            tensor = energy * as_tensor(label_of(atoms, name, (3, 3), (9,), (6,)))
            labels["stress"] = tensor / length**3 if self.stress else -tensor / copy.get_volume()
        copy.calc = SinglePointCalculator(copy)
        copy.calc.results = labels
        return copy


def find(name: str) -> Path:
    """The file of that name: as it stands, or else in the folder ``frames`` of
    :func:`egnn_jax.data.cache.default_folder`, or in ``../shared/data`` of a clone.

    Raises:
      ValueError: there is none.
    """
    clone = Path(__file__).parents[2]
    places = [Path(), default_folder() / "frames", clone.parent / "shared" / "data"]
    for place in places:
        path = place / expanded(name)
        if path.is_file():
            return path
    shown = ", ".join(str(place.absolute()) for place in places)
    raise ValueError(f"{name} is no file; expected one of structures, looked for in {shown}")


def read(path: Path) -> Iterator[Any]:
    """The structures of a file, one after the other, as ASE's ``Atoms``.

    Args:
      path: any format of ASE, also compressed; or an ``.npz`` with the arrays of rMD17,
        whose energies and forces are taken from kcal/mol to eV.

    Raises:
      ValueError: the file cannot be read, at the frame that is named, or holds no structures.
    """
    import ase.io

    number = 0
    try:
        if path.suffix == ".npz":
            frames = _of_rmd17(path)
        elif is_xyz(path):
            frames = _xyz.stream(path)
        else:
            frames = ase.io.iread(str(path), index=":", do_not_split_by_at_sign=True)
        for atoms in frames:
            yield atoms
            number += 1
    except Exception as error:  # ASE's readers raise whatever they stumble over
        raise ValueError(f"{path}: frame {number} cannot be read ({error})") from error
    if not number:
        raise ValueError(f"{path} holds no structures")


def is_xyz(path: Path) -> bool:
    """Whether the name of a file says that it is an extended ``.xyz``; ASE may guess another kind
    from its first lines.
    """
    name = path.with_suffix("") if path.suffix.lower() in _xyz.OPENERS else path
    return name.suffix.lower() in (".xyz", ".extxyz")


def splits(
    train: str, valid: str, test: str, seed: int, labels: Labels
) -> dict[str, list[tuple[str, Any]]]:
    """Structures in eV and Å with the name of each, by "train", "valid" and "test".

    Args:
      train: the name of a file, see :func:`find`.
      valid, test: others, or the shares of the structures of ``train`` that are drawn at random.
      seed: of the draw.
      labels: what the files hold.

    Raises:
      ValueError: as :func:`find`, :func:`read`, :func:`drawn` and :meth:`Labels.in_ev`; the file
        and the number of the structure are named.
    """
    every = list(_named(train, labels))
    rows = drawn(len(every), valid, test, seed)
    found = {split: [every[k] for k in own] for split, own in rows.items()}
    for split, source in (("valid", valid), ("test", test)):
        if split not in found:
            found[split] = list(_named(source, labels))
    first, *others = [own[0] for own in found.values() if own]
    for name, atoms in others:
        if atoms.pbc.any() != first[1].pbc.any():
            kind = "periodic" if atoms.pbc.any() else "not periodic"
            raise ValueError(f"{name} is {kind}, unlike {first[0]}; expected all alike")
    return found


def _named(name: str, labels: Labels) -> Iterator[tuple[str, Any]]:
    path = find(name)
    if path.suffix == ".npz" and (labels.energy_unit, labels.length_unit) != ("eV", "Å"):
        raise ValueError(
            f"the units of {path} are given as {labels.energy_unit} and {labels.length_unit}; "
            "expected none for an .npz, which has the units of rMD17, kcal/mol and Å"
        )
    for k, atoms in enumerate(read(path)):
        try:
            yield f"frame {k} of {path}", labels.in_ev(atoms)
        except ValueError as error:
            raise ValueError(f"frame {k} of {path}: {error}") from error


def graphs(
    frames: Iterable[tuple[str, Any]],
    cutoff: float | None,
    references: Mapping[str, float],
    forces: bool,
    stress: bool,
) -> Iterator[GraphsTuple]:
    """Graphs of named structures in eV and Å with their labels, see :meth:`Labels.in_ev`.

    Raises:
      ValueError: as :func:`egnn_jax.from_ase`, where only some structures have a cell, or where one
        has an element without reference; the structure is named.
    """
    periodic = None
    for name, atoms in frames:
        if periodic is not None and bool(atoms.pbc.any()) != periodic:
            kind, first = ("not periodic", "is") if periodic else ("periodic", "is not")
            raise ValueError(f"{name} is {kind} and the first {first}; expected all alike")
        periodic = bool(atoms.pbc.any())
        if unknown := sorted(set(atoms.get_chemical_symbols()) - set(references)):
            raise ValueError(
                f"{name} has {', '.join(unknown)}; expected elements that are trained on, "
                f"{', '.join(references)}"
            )
        try:
            yield from_ase(
                atoms,
                cutoff,
                energy="energy",
                forces="forces" if forces else None,
                stress="stress" if stress else None,
                references=references,
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def free_atoms(frames: Iterable[Any]) -> tuple[dict[str, float], bool]:
    """Energies of free atoms by symbol that explain the energies of structures best, E ≈ Σ_i E0_i.

    Least squares over all structures; where these do not determine them, as those of one molecule
    do not, those with the smallest sum of squares.

    Returns:
      The energies in eV, and whether the structures determine them.
    """
    frames = list(frames)
    symbols = [atoms.get_chemical_symbols() for atoms in frames]
    known = sorted({symbol for each in symbols for symbol in each})
    counts = np.array([[each.count(symbol) for symbol in known] for each in symbols], float)
    energies = np.array([atoms.calc.results["energy"] for atoms in frames])
    found, _, rank, _ = np.linalg.lstsq(counts, energies, rcond=None)
    return dict(zip(known, found.tolist(), strict=True)), int(rank) == len(known)


def _of_rmd17(path: Path) -> Iterator[Any]:
    from ase import Atoms, units
    from ase.calculators.singlepoint import SinglePointCalculator

    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in _RMD17 if name not in file]:
                raise ValueError(f"it has no array {missing[0]!r}; expected {', '.join(_RMD17)}")
            numbers, x, energies, forces = (file[name] for name in _RMD17)
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is no .npz: {error}") from error
    unit = units.kcal / units.mol
    for position, energy, force in zip(x, energies, forces, strict=True):
        atoms = Atoms(numbers=numbers, positions=position)
        labels = {"energy": float(energy) * unit, "forces": force * unit}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        yield atoms
