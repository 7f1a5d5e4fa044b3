"""Molecular dynamics of a structure with a trained potential, run by ASE."""

import contextlib
import csv
import dataclasses
import io
import re
import time
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egnn_jax._extras import require
from egnn_jax._files import expanded, make_folder
from egnn_jax._progress import progress_bar
from egnn_jax.data import _xyz
from egnn_jax.data.frames import is_xyz
from egnn_jax.experiments import plots
from egnn_jax.graph._validation import require_count
from egnn_jax.potentials.calculator import ASECalculator
from egnn_jax.potentials.ensemble import Ensemble, Uncertain
from egnn_jax.training.signals import Interrupted, stop_requested

_COLUMNS = ("step", "time_ps", "potential_eV", "kinetic_eV", "total_eV", "temperature_K")


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """The settings of a simulation.

    Args:
      ensemble: "nvt" for Langevin dynamics at the temperature, "nve" for constant energy.
      temperature: temperature in K, also of the initial velocities if the structure has none.
      steps: the number of steps.
      timestep: the time step in fs.
      friction: friction of Langevin dynamics, in 1/fs.
      every: steps between two frames of the trajectory.
      seed: seed of the velocities and of Langevin dynamics.
      max_spread: simulate with all seeds of the run, and stop if their forces differ by more than
        this, in eV/Å, see :class:`egnn_jax.Ensemble`; only the first seed if none.

    Raises:
      ValueError: a setting is out of range.
    """

    ensemble: Literal["nvt", "nve"] = "nvt"
    temperature: float = 300.0
    steps: int = 10_000
    timestep: float = 0.5
    friction: float = 0.01
    every: int = 10
    seed: int = 0
    max_spread: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if a setting is out of range."""
        if self.ensemble not in ("nvt", "nve"):
            raise ValueError(f"ensemble is {self.ensemble!r}; expected 'nvt' or 'nve'")
        for name in ("steps", "every"):
            require_count(name, getattr(self, name))
        require_count("seed", self.seed, 0)
        for name, zero_allowed in (("temperature", True), ("timestep", False), ("friction", True)):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or (value == 0 and not zero_allowed):
                expected = "0 or above" if zero_allowed else "a number above 0"
                raise ValueError(f"{name} is {value}; expected {expected}")


def simulate(structure: str, model: Any, folder: Path, dynamics: Dynamics) -> dict[str, float]:
    """Simulate a structure and write the trajectory to a new folder during the simulation.

    The folder receives ``trajectory.xyz``, frames with momenta, forces and energies in ASE's
    format, ``dynamics.csv`` with one line per frame, and ``dynamics.png``.

    Args:
      structure: a file that ASE reads, for its first structure, or ``file@-1`` for its last one;
        momenta in the file are used.
      model: the potential, as for :class:`egnn_jax.ASECalculator`; with ``max_spread``, a run with
        several seeds.
      folder: a new or empty folder.
      dynamics: the settings of the simulation.

    Returns:
      ``steps_per_second``, the mean ``temperature`` (K), and the ``drift`` of the total energy, the
      slope of a straight line fitted to it (meV per atom and ps).

    Raises:
      ValueError: the structure cannot be read, the model does not support it, or the folder is not
        empty.
      FloatingPointError: the simulation explodes; the frames so far are kept.
      Uncertain: the potentials differ by more than ``max_spread``; the frames so far are kept, and
        the last one, without forces, is the geometry where they differ.
      Interrupted: Ctrl-C, SIGTERM or SIGHUP; the frames so far are kept.
    """
    atoms = _read(structure)
    if dynamics.max_spread is None:
        atoms.calc = ASECalculator(model)
    else:
        atoms.calc = ASECalculator(Ensemble.load(model), max_spread=dynamics.max_spread)
    with contextlib.suppress(Uncertain):  # handled below, where its frame is written
        atoms.get_potential_energy()  # raises other errors before anything is written
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; expected a new folder")
    integrator = _integrator(atoms, dynamics)
    make_folder(folder)
    rows: list[tuple[float, ...]] = []
    start_time = time.monotonic()
    try:
        with (
            (folder / "trajectory.xyz").open("w", encoding="utf-8") as xyz_file,
            (folder / "dynamics.csv").open("w", encoding="utf-8", newline="") as csv_file,
            stop_requested() as stop_reason,
        ):
            csv.writer(csv_file).writerow(_COLUMNS)
            for step in _progress(folder.name, dynamics):
                try:
                    if step:
                        integrator.run(step - int(rows[-1][0]))
                    rows.append(_row(atoms, step, dynamics))
                except FloatingPointError as error:
                    raise _explosion(f"{error} before step {step:,}", folder) from error
                except Uncertain as error:
                    _write(atoms.copy(), xyz_file)
                    moment = f"before step {step:,}" if step else "at the start"
                    message = f"{error}, {moment}; the frames so far, this one as the last, are in"
                    raise Uncertain(f"{message} {folder}") from error
                _write(atoms, xyz_file)
                csv.writer(csv_file).writerow([f"{value:.10g}" for value in rows[-1]])
                for file in (xyz_file, csv_file):
                    file.flush()
                _require_stable(rows[-1], dynamics, folder)
                if reason := stop_reason():
                    raise Interrupted(
                        f"{reason} at step {step:,} of {dynamics.steps:,}; the frames so far are "
                        f"in {folder}",
                        reason,
                    )
    finally:
        if len(rows) > 1:
            plots.dynamics(np.array(rows), folder / "dynamics.png")
    seconds = time.monotonic() - start_time
    table = np.array(rows)
    slope = np.polyfit(table[:, 1], table[:, 4], 1)[0] if len(table) > 1 else 0.0
    return {
        "steps_per_second": dynamics.steps / seconds,
        "temperature": float(table[:, 5].mean()),
        "drift": 1e3 * float(slope) / len(atoms),
    }


def _read(structure: str) -> Any:
    require("ase")
    import ase.io
    from ase.utils import string2index

    name, _, index = structure.rpartition("@")
    if not name or expanded(structure).is_file():  # the file name may contain an @
        name, index = structure, "0"
    path = expanded(name)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected a structure that ASE reads")
    if not re.fullmatch(r"[-+\d:]+", index):
        raise ValueError(f"{structure} ends with {index!r}; expected a number, such as {name}@-1")
    try:
        if is_xyz(path):  # ASE stops at the first blank line
            index_or_slice: Any = string2index(index)
            frames = _xyz.stream(path)
            if isinstance(index_or_slice, int) and index_or_slice >= 0:
                atoms = next(islice(frames, index_or_slice, None))
            else:
                atoms = list(frames)[index_or_slice]
        else:
            atoms = ase.io.read(path, index=index, do_not_split_by_at_sign=True)
    except Exception as error:  # ASE's readers raise exceptions of any type
        reason = str(error) or "there is no such structure"
        raise ValueError(f"{structure} cannot be read: {reason}") from error
    if isinstance(atoms, list):
        raise ValueError(f"{structure} is {len(atoms)} structures; expected one, such as {name}@-1")
    atoms.info.clear()  # its labels are not those of other geometries
    momenta, masses = atoms.get_momenta(), atoms.get_masses()
    for quantity, values, valid in (
        ("momentum", momenta, np.isfinite(momenta)),
        ("mass", masses, np.isfinite(masses) & (masses > 0)),
    ):
        if len(invalid := np.argwhere(~valid)):
            k = invalid[0][0]
            raise ValueError(f"atom {k} of {structure} has the {quantity} {values[k]}")
    return atoms


def _integrator(atoms: Any, dynamics: Dynamics) -> Any:
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import Stationary, ZeroRotation
    from ase.md.verlet import VelocityVerlet

    rng = np.random.default_rng(dynamics.seed)
    if not atoms.has("momenta"):
        std = np.sqrt(atoms.get_masses() * units.kB * dynamics.temperature)
        atoms.set_momenta(std[:, None] * rng.standard_normal((len(atoms), 3)))
        if len(atoms) > 1:
            Stationary(atoms)
        if len(atoms) > 2 and not atoms.pbc.any():
            ZeroRotation(atoms)
    timestep = dynamics.timestep * units.fs
    if dynamics.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    return Langevin(
        atoms, timestep, temperature_K=dynamics.temperature, friction=dynamics.friction / units.fs,
        fixcm=False, rng=rng,
    )  # fmt: skip


def _progress(name: str, dynamics: Dynamics) -> Any:
    """Iterate over the steps of frames, including 0 and the last one, with a progress bar."""
    with progress_bar(total=dynamics.steps, unit="step", desc=name) as bar:
        for step in [*range(0, dynamics.steps, dynamics.every), dynamics.steps]:
            yield step
            bar.update(step - bar.n)


def _row(atoms: Any, step: int, dynamics: Dynamics) -> tuple[float, ...]:
    potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
    time_ps = step * dynamics.timestep / 1e3
    return step, time_ps, potential, kinetic, potential + kinetic, atoms.get_temperature()


def _write(atoms: Any, file: Any) -> None:
    from ase.constraints import FixAtoms
    from ase.io.extxyz import write_xyz

    buffer = io.StringIO()
    columns = ["symbols", "positions", "momenta"]
    # To continue from a frame; ASE writes which atoms are fixed as move_mask.
    columns += [name for name in ("masses", "tags") if atoms.has(name)]
    if any(isinstance(constraint, FixAtoms) for constraint in atoms.constraints):
        columns.append("move_mask")
    if atoms.calc is not None:
        columns.append("forces")
    write_xyz(buffer, [atoms], columns=columns)
    file.write(buffer.getvalue())


def _require_stable(row: tuple[float, ...], dynamics: Dynamics, folder: Path) -> None:
    max_temperature = 1_000 + 20 * dynamics.temperature
    if not (np.isfinite(row).all() and row[-1] < max_temperature):
        raise _explosion(f"{row[-1]:.0f} K at step {row[0]:,}", folder)


def _explosion(symptom: str, folder: Path) -> FloatingPointError:
    return FloatingPointError(
        f"the simulation explodes: {symptom}; a smaller timestep may help, or a potential trained "
        f"on such geometries. The frames so far are in {folder}"
    )
