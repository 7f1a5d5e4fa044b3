"""Generating training frames of a molecule by simulation with GFN2-xTB."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np

from egnn_jax._extras import require
from egnn_jax._files import expanded, write_atomically
from egnn_jax._progress import progress_bar
from egnn_jax.data import frames, structures
from egnn_jax.data.cache import default_folder

TEMPERATURE = 500.0
"""The temperature in K, as in rMD17."""
EVERY = 10
"""The number of steps of 1 fs between two frames."""
_WARM_UP = 1_000


def simulated_frames(
    smiles: str, num_frames: int = 2_000, seed: int = 0, folder: Path | str | None = None
) -> Path:
    """Simulate frames with energies (eV) and forces (eV/Å), and cache them as extended XYZ.

    Runs Langevin dynamics at :data:`TEMPERATURE` with the tight-binding method GFN2-xTB (Bannwarth,
    Ehlert and Grimme 2019). 2,000 frames of ethanol take a minute.

    Args:
      smiles: the SMILES of the molecule.
      num_frames: the number of frames, :data:`EVERY` fs apart.
      seed: seed of velocities and noise.
      folder: the folder of the file; default ``frames`` in
        :func:`egnn_jax.data.cache.default_folder`.

    Raises:
      ImportError: tblite is not installed.
      ValueError: no geometry can be generated from the SMILES.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before tblite is loaded: threads slow it down
    require("tblite")
    from ase import Atoms, units
    from ase.io.extxyz import write_xyz
    from ase.md.langevin import Langevin
    from tblite.ase import TBLite

    folder = default_folder() / "frames" if folder is None else expanded(folder)
    path = folder / name_of(smiles, num_frames, seed)
    if path.is_file():
        return path
    molecule = structures.from_smiles(smiles, smiles, conformers=1)
    atoms = Atoms(molecule.symbols, molecule.positions)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    rng = np.random.default_rng(seed)
    momentum_std = np.sqrt(atoms.get_masses() * units.kB * TEMPERATURE)
    atoms.set_momenta(momentum_std[:, None] * rng.standard_normal((len(atoms), 3)))
    dynamics = Langevin(
        atoms, units.fs, temperature_K=TEMPERATURE, friction=0.01 / units.fs, fixcm=False, rng=rng
    )
    dynamics.run(_WARM_UP)
    text = io.StringIO()
    for _ in progress_bar(range(num_frames), unit="frame", desc=f"{smiles}, GFN2-xTB"):
        dynamics.run(EVERY)
        write_xyz(text, [atoms], columns=["symbols", "positions", "forces"])
    write_atomically(path, text.getvalue().encode())
    return path


def name_of(smiles: str, num_frames: int = 2_000, seed: int = 0) -> str:
    """The name of the file of :func:`simulated_frames`."""
    name = "".join(c if c.isalnum() else "_" for c in smiles)[:40]
    if name != smiles:  # other SMILES have the same name: C=C and C#C are both C_C
        name += f"-{hashlib.sha256(smiles.encode()).hexdigest()[:8]}"
    return f"xtb-{name}-{num_frames}-{seed}.extxyz"


def substitute(name: str, simulate: str) -> str:
    """The SMILES of ``simulate``, NAME=SMILES, if it is for this file and there is none; or ""."""
    file, _, smiles = simulate.partition("=")
    if name == file:
        try:
            frames.find(name)
        except ValueError:
            return smiles
    return ""
