"""Reading structures with energies and forces from any format of ASE and rMD17's ``.npz``."""

import dataclasses
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from egnn_jax._files import expanded
from egnn_jax.data import _xyz, storage
from egnn_jax.data.cache import default_folder
from egnn_jax.graph.ase import as_tensor, label_of

Energy = Literal["eV", "meV", "kcal/mol", "kJ/mol", "Hartree"]
Length = Literal["Å", "nm", "Bohr"]

_RMD17 = ("nuclear_charges", "coords", "energies", "forces")


@dataclasses.dataclass(frozen=True)
class Labels:
    """The names and units of the labels of frames.

    Args:
      energy, forces, stress, virial: the names of the labels in the file; "" if not used. A virial
        W gives the stress -W / V.
      energy_unit: the unit of energies; forces are in this unit per unit of length.
      length_unit: the length unit of positions, cells and forces.
    """

    energy: str = "energy"
    forces: str = "forces"
    stress: str = ""
    virial: str = ""
    energy_unit: Energy = "eV"
    length_unit: Length = "Å"

    def __post_init__(self) -> None:
        """Raise ValueError if a unit is unknown, or both stress and virial are given."""
        for name, value, units in (
            ("energy_unit", self.energy_unit, Energy),
            ("length_unit", self.length_unit, Length),
        ):
            if value not in get_args(units):
                raise ValueError(f"{name} is {value!r}; expected one of {get_args(units)}")
        if self.stress and self.virial:
            raise ValueError(
                f"stress is {self.stress!r} and virial {self.virial!r}; expected one of them"
            )

    def in_ev(self, atoms: Any) -> Any:
        """A copy of ASE's ``Atoms`` in eV and Å, with the labels "energy", "forces" and "stress".

        Raises:
          ValueError: a label is missing, not finite or has the wrong shape, or an atom is not an
            element.
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
        energy_unit = energy_units[self.energy_unit]
        length_unit = {"Å": 1.0, "nm": units.nm, "Bohr": units.Bohr}[self.length_unit]
        converted = atoms.copy()
        converted.set_constraint()  # set_positions would not move fixed atoms to the new unit
        converted.set_cell(atoms.cell * length_unit)
        converted.set_positions(atoms.get_positions() * length_unit)
        labels = {"energy": energy_unit * label_of(atoms, self.energy, ())}
        if self.forces:
            labels["forces"] = (
                energy_unit / length_unit * label_of(atoms, self.forces, (len(atoms), 3))
            )
        if name := self.stress or self.virial:
            tensor = energy_unit * as_tensor(label_of(atoms, name, (3, 3), (9,), (6,)))
            labels["stress"] = (
                tensor / length_unit**3 if self.stress else -tensor / converted.get_volume()
            )
        converted.calc = SinglePointCalculator(converted)
        converted.calc.results = labels
        return converted


def find(name: str) -> Path:
    """Find a file, or a folder that :func:`egnn_jax.data.labelled.pack` wrote, by name: the path
    itself, or in the folder ``frames`` of :func:`egnn_jax.data.cache.default_folder`, or in
    ``../shared/data`` of a clone.

    Raises:
      ValueError: there is none.
    """
    clone = Path(__file__).parents[2]
    folders = [Path(), default_folder() / "frames", clone.parent / "shared" / "data"]
    for folder in folders:
        path = folder / expanded(name)
        if path.is_file() or (path / storage.MANIFEST).is_file():
            return path
    searched = ", ".join(str(folder.absolute()) for folder in folders)
    raise ValueError(f"{name} is not a file; expected one of structures, looked for in {searched}")


def read(path: Path) -> Iterator[Any]:
    """Iterate over the structures of a file as ASE's ``Atoms``.

    Args:
      path: a file in any format of ASE, also compressed; or an ``.npz`` with the arrays of rMD17,
        whose energies and forces are converted from kcal/mol to eV.

    Raises:
      ValueError: a frame cannot be read (the message names it), or there are no structures.
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
    except Exception as error:  # ASE's readers raise exceptions of any type
        raise ValueError(f"{path}: frame {number} cannot be read ({error})") from error
    if not number:
        raise ValueError(f"{path} holds no structures")


def is_xyz(path: Path) -> bool:
    """Whether a file is an extended ``.xyz`` by its name; ASE may guess another format from its
    first lines.
    """
    name = path.with_suffix("") if path.suffix.lower() in _xyz.OPENERS else path
    return name.suffix.lower() in (".xyz", ".extxyz")


def named(path: Path, labels: Labels) -> Iterator[tuple[str, Any]]:
    """Iterate over the structures of a file in eV and Å, each with its name.

    Raises:
      ValueError: as for :func:`read` and :meth:`Labels.in_ev`; the message names the file and the
        number of the structure.
    """
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


def _of_rmd17(path: Path) -> Iterator[Any]:
    from ase import Atoms, units
    from ase.calculators.singlepoint import SinglePointCalculator

    if not zipfile.is_zipfile(path):
        raise ValueError("it is no .npz, which is a zip archive")
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in _RMD17 if name not in file]:
                raise ValueError(f"it has no array {missing[0]!r}; expected {', '.join(_RMD17)}")
            numbers, x, energies, forces = (file[name] for name in _RMD17)
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is no .npz: {error}") from error
    if numbers.ndim != 1 or not np.array_equal(numbers, np.round(numbers)):
        raise ValueError(f"nuclear_charges are {numbers.tolist()}; expected atomic numbers (M,)")
    if len({len(x), len(energies), len(forces)}) > 1:
        raise ValueError(
            f"coords, energies and forces have {len(x)}, {len(energies)} and {len(forces)} rows; "
            "expected one number of structures"
        )
    unit = units.kcal / units.mol
    for position, energy, force in zip(x, energies, forces, strict=True):
        atoms = Atoms(numbers=numbers, positions=position)
        labels = {"energy": float(energy) * unit, "forces": force * unit}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        yield atoms
