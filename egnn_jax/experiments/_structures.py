"""Checks of structures and graphs that a trained network is applied to."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egnn_jax._extras import require
from egnn_jax.data.structures import Refused, Structure, read
from egnn_jax.experiments._options import shown
from egnn_jax.graph import _validation
from egnn_jax.graph.graph import GraphsTuple

MOST_REASONS = 5
"""The largest number of reasons in a warning."""


def listed(structures: Any, task: Any) -> list[Any]:
    """One or several structures as a list; text is read as by ``egnn predict``.

    Args:
      structures: one or several molecules.
      task: the task, which knows how molecules differ from those of the training; a warning tells
        this of molecules given as text.

    Raises:
      ValueError: there are none, one is not a structure, or text cannot be read.
    """
    one = not np.iterable(structures) or isinstance(structures, str | bytes | Mapping)
    one = one or hasattr(structures, "positions") or hasattr(structures, "nodes")
    several, from_text = [], []
    for given in [structures] if one else structures:
        if isinstance(given, str | os.PathLike):
            from_text += (found := read(os.fspath(given)))
            several += found
        else:
            several.append(given)
    if not several:
        raise ValueError("structures is empty; expected at least one")
    for k, structure in enumerate(several):
        if isinstance(structure, Refused):
            raise ValueError(f"structure {k}, {structure.name}: {structure.reason}")
        if not hasattr(structure, "positions"):
            raise ValueError(
                f"structure {k} is {shown(structure)}; expected a SMILES, a file, ASE's Atoms, or "
                "an object with positions, and with numbers or symbols"
            )
    if all(set(molecule.symbols) <= set(task.elements) for molecule in from_text):
        _warn_outside(from_text, task)
    return several  # with another element, the network raises an error


def _warn_outside(molecules: Sequence[Structure], task: Any) -> None:
    """Warn of molecules unlike those of the training, once for each reason."""
    names: dict[str, list[str]] = {}
    for one in molecules:
        for reason in task.outside(one):
            names.setdefault(reason, []).append(one.name)
    if names:
        told = [
            f"{first} and {len(others):,} more ({reason})" if others else f"{first} ({reason})"
            for reason, (first, *others) in names.items()
        ]
        further = f"; and {len(told) - MOST_REASONS:,} more" if len(told) > MOST_REASONS else ""
        warnings.warn(
            "predictions may be inaccurate for molecules unlike those of the training: "
            f"{'; '.join(told[:MOST_REASONS])}{further}",
            stacklevel=4,
        )


def molecule(structure: Any, positions: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (M,) and positions (M, 3) of structure ``k``.

    Raises:
      ValueError: there are no atoms, they are periodic, or numbers or positions are invalid.
    """
    positions = _validation.points(f"positions of structure {k}", positions)
    numbers = getattr(structure, "numbers", None)
    if numbers is None:
        numbers = _numbers_of(getattr(structure, "symbols", None), k)
    numbers = _validation.host(f"numbers of structure {k}", numbers)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(
            f"numbers of structure {k} have shape {numbers.shape} and dtype {numbers.dtype}; "
            "expected atomic numbers (M,)"
        )
    if not len(numbers) or positions.shape != (len(numbers), 3):
        raise ValueError(
            f"structure {k} has positions {positions.shape} of {len(numbers)} atoms; expected "
            "(M, 3) of at least one"
        )
    if not ((numbers >= 0) & (numbers < _validation.NUM_KINDS)).all():
        raise ValueError(f"structure {k} has numbers {shown(numbers.tolist())}; expected 0 to 118")
    if np.any(getattr(structure, "pbc", False)):
        raise ValueError(f"structure {k} is periodic; expected a molecule")
    return numbers.astype(np.int32), positions


def _numbers_of(symbols: Any, k: int) -> list[int]:
    require("ase")
    from ase.data import atomic_numbers

    if not np.iterable(symbols):
        raise ValueError(f"structure {k} has neither numbers nor symbols; expected one of them")
    if unknown := [s for s in symbols if not isinstance(s, str) or s not in atomic_numbers]:
        raise ValueError(f"structure {k} has the symbol {shown(unknown[0])}; expected an element")
    return [atomic_numbers[symbol] for symbol in symbols]


def require_fitting(graph: GraphsTuple, trained: GraphsTuple | None) -> None:
    """Raise ValueError if a graph has other features, attributes or dimensions than one that the
    network was trained on, or no velocities where that has some.
    """
    if trained is None:
        return
    for part, name in (("nodes", "h"), ("nodes", "x"), ("edges", "a")):
        wanted, given = (getattr(getattr(g, part), name, None) for g in (trained, graph))
        expected, found = (None if a is None else a.shape[1:] for a in (wanted, given))
        if expected != found and (wanted is not None or part == "edges"):
            raise ValueError(
                f"{part}.{name} of the graph is {_of_shape(found)}; expected "
                f"{_of_shape(expected)}, as in training"
            )
    if trained.nodes.v is not None and graph.nodes.v is None:
        raise ValueError("nodes.v of the graph is None; expected velocities, as in training")


def _of_shape(widths: tuple[int, ...] | None) -> str:
    return "None" if widths is None else f"({', '.join(['…', *map(str, widths)])})"
