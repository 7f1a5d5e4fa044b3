"""Checks of structures and graphs that a trained network is applied to."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egnn_jax._extras import require
from egnn_jax.data.structures import Refused, Structure, read
from egnn_jax.experiments._options import short_repr
from egnn_jax.graph import _validation
from egnn_jax.graph.graph import GraphsTuple

MAX_REASONS = 5
"""The largest number of reasons in a warning."""


def as_list(structures: Any, task: Any) -> list[Any]:
    """One or several structures as a list; text is read as by ``egnn predict``.

    Args:
      structures: one or several molecules.
      task: the trained task. For molecules given as text, a warning says how they differ from the
        training molecules.

    Raises:
      ValueError: there are none, one is not a structure, or text cannot be read.
    """
    single = not np.iterable(structures) or isinstance(structures, str | bytes | Mapping)
    single = single or hasattr(structures, "positions") or hasattr(structures, "nodes")
    result, from_text = [], []
    for item in [structures] if single else structures:
        if isinstance(item, str | os.PathLike):
            molecules = read(os.fspath(item))
            from_text += molecules
            result += molecules
        else:
            result.append(item)
    if not result:
        raise ValueError("structures is empty; expected at least one")
    for k, structure in enumerate(result):
        if isinstance(structure, Refused):
            raise ValueError(f"structure {k}, {structure.name}: {structure.reason}")
        if not hasattr(structure, "positions"):
            raise ValueError(
                f"structure {k} is {short_repr(structure)}; expected a SMILES, a file, ASE's "
                "Atoms, or an object with positions, and with numbers or symbols"
            )
    if all(set(molecule.symbols) <= set(task.elements) for molecule in from_text):
        _warn_outside(from_text, task)
    return result  # with another element, the network raises an error


def _warn_outside(molecules: Sequence[Structure], task: Any) -> None:
    """Warn of molecules unlike those of the training, once for each reason."""
    names_by_reason: dict[str, list[str]] = {}
    for structure in molecules:
        for reason in task.outside(structure):
            names_by_reason.setdefault(reason, []).append(structure.name)
    if names_by_reason:
        messages = []
        for reason, names in names_by_reason.items():
            more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
            messages.append(f"{names[0]}{more} ({reason})")
        omitted = len(messages) - MAX_REASONS
        suffix = f"; and {omitted:,} more" if omitted > 0 else ""
        warnings.warn(
            "predictions may be inaccurate for molecules unlike those of the training: "
            f"{'; '.join(messages[:MAX_REASONS])}{suffix}",
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
        numbers = _atomic_numbers(getattr(structure, "symbols", None), k)
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
    if not ((numbers >= 0) & (numbers < _validation.NUM_NODE_TYPES)).all():
        raise ValueError(
            f"structure {k} has numbers {short_repr(numbers.tolist())}; expected 0 to 118"
        )
    if np.any(getattr(structure, "pbc", False)):
        raise ValueError(f"structure {k} is periodic; expected a molecule")
    return numbers.astype(np.int32), positions


def _atomic_numbers(symbols: Any, k: int) -> list[int]:
    require("ase")
    from ase.data import atomic_numbers

    if not np.iterable(symbols):
        raise ValueError(f"structure {k} has neither numbers nor symbols; expected one of them")
    if unknown := [s for s in symbols if not isinstance(s, str) or s not in atomic_numbers]:
        raise ValueError(
            f"structure {k} has the symbol {short_repr(unknown[0])}; expected an element"
        )
    return [atomic_numbers[symbol] for symbol in symbols]


def require_fitting(graph: GraphsTuple, trained: GraphsTuple | None) -> None:
    """Raise ValueError if a graph has other features, attributes or dimensions than one that the
    network was trained on, or no velocities although that one has some.
    """
    if trained is None:
        return
    for part, name in (("nodes", "h"), ("nodes", "x"), ("edges", "a")):
        arrays = [getattr(getattr(g, part), name, None) for g in (trained, graph)]
        expected, shape = (None if a is None else a.shape[1:] for a in arrays)
        if expected != shape and (expected is not None or part == "edges"):
            raise ValueError(
                f"{part}.{name} of the graph is {_shape_text(shape)}; expected "
                f"{_shape_text(expected)}, as in training"
            )
    if trained.nodes.v is not None and graph.nodes.v is None:
        raise ValueError("nodes.v of the graph is None; expected velocities, as in training")


def _shape_text(widths: tuple[int, ...] | None) -> str:
    return "None" if widths is None else f"({', '.join(['…', *map(str, widths)])})"
