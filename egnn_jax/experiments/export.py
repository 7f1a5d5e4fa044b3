"""Exporting a run to one file, and loading a trained network from a run or a file."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from egnn_jax._files import expanded
from egnn_jax.experiments import pretrained
from egnn_jax.experiments.pretrained import Pretrained
from egnn_jax.experiments.run import load, network_input, read_stored
from egnn_jax.experiments.start import data_files
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.parameters import named


def export(run_folder: Path | str, path: Path | str, seed: int | None = None) -> Path:
    """Write the best parameters of a complete run to a self-contained file for predictions.

    The file contains one set of parameters and, as JSON in its metadata, all that predictions
    need: options of task and model, constants (for example means), units, elements, cutoff, dtype,
    versions, and the errors on the validation and test samples. :func:`load_pretrained` reads it
    without the run and without the data set.

    Args:
      run_folder: the folder of a complete run.
      path: the file, ``NAME.safetensors``; an existing one is replaced atomically.
      seed: for a run with several seeds, which one to export; ``config.seed`` by default.

    Returns:
      The path.

    Raises:
      ValueError: the run is not complete, has no such seed, a parameter is not finite, or the
        path has another suffix.
    """
    path = expanded(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} ends in {path.suffix!r}; expected a name.safetensors")
    RunFolder(run_folder).result()  # raises if the run is not complete
    model = _from_run(run_folder, seed)
    model = dataclasses.replace(model, card={**model.card, "seeds": 1})  # a file holds only one
    if model.input is None:
        model = dataclasses.replace(model, input=network_input(model.config))
    pretrained.write(path, model)
    return path


def load_pretrained(path: Path | str, seed: int | None = None) -> Pretrained:
    """Load a trained network from an exported file or from the folder of a run.

    "qm9" and "qm9-smiles" are networks included in this library. They predict all twelve
    properties of QM9: the first for geometries like QM9's own (relaxed by DFT), the second for
    those that RDKit makes from SMILES with the force field MMFF94.

    Nothing in a file is executed: it contains only numbers and JSON. The names of task and model
    are looked up in :data:`egnn_jax.TASKS` and :data:`egnn_jax.MODELS`, so register your own
    first.

    Args:
      path: the file or folder, or the name of a network included in this library.
      seed: for a run with several seeds, which one to load; the first by default.

    Raises:
      ValueError: there is no such file, run or seed, it is damaged, its task or model is not
        registered, or its parameters do not fit its network; the message names the path.
    """
    path = pretrained.find(path)
    if path.is_dir():
        return _from_run(path, seed)
    if seed is not None:
        raise ValueError(f"seed is {seed} of {path}; expected none, since a file holds one network")
    return pretrained.read(path)


def _from_run(folder: Path | str, seed: int | None) -> Pretrained:
    config, network, params = load(folder)
    seed = config.seed if seed is None else seed
    if not 0 <= (index := seed - config.seed) < config.seeds:
        last = config.seed + config.seeds - 1
        raise ValueError(f"seed is {seed}; expected {config.seed} to {last}, the seeds of {folder}")
    run = RunFolder(folder)
    result = run.result() if run.result_file.exists() else {}
    metrics, best_epoch = result.get("metrics", {}), result.get("best_epoch")
    if config.seeds > 1:
        params = jax.tree.map(lambda a: a[index], params)
        best_epoch = best_epoch and best_epoch[index]
        metrics = {
            split: {name: values[index] for name, values in by_name.items()}
            for split, by_name in result.get("seeds", {}).items()
        }
    dtypes = sorted({np.asarray(leaf).dtype.name for leaf in named(params).values()})
    card: dict[str, Any] = {
        "units": dict(config.task.units),
        "elements": list(config.task.elements),
        "cutoff": _cutoff(config),
        "dtype": "+".join(dtypes),
        "seed": seed,
        "seeds": config.seeds,
        "best_epoch": best_epoch,
        "metrics": metrics,
        "versions": result.get("versions", {}),
        "details": result.get("details", {}) if index == 0 else {},  # of the first seed
        "data_files": data_files(run),
        "parameters": result.get("parameters"),
        "seconds": result.get("seconds"),
    }
    card |= {"exploded": True} if result.get("exploded") else {}
    config = dataclasses.replace(config, seed=seed, seeds=1)
    file, graph = run.path / "input.json", None
    if file.is_file():
        graph = read_stored(file, pretrained.abstract)
    return Pretrained(network, params, config, card, graph)


def _cutoff(config: Any) -> float | None:
    """The cutoff distance of the task or, if it has none, of the model."""
    cutoffs = (getattr(options, "cutoff", None) for options in (config.task, config.model))
    return next((cutoff for cutoff in cutoffs if isinstance(cutoff, int | float)), None)
