"""Structures with energies, forces and stress as graphs, in memory or memory-mapped."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egnn_jax._files import expanded, resolved
from egnn_jax._progress import progress_bar
from egnn_jax.data import frames, storage
from egnn_jax.data._flat import arrays_of
from egnn_jax.data._splits import draw_splits
from egnn_jax.data.dataset import GraphDataset
from egnn_jax.data.frames import Labels
from egnn_jax.graph.ase import from_ase
from egnn_jax.graph.graph import GraphsTuple

BLOCK = 10_000
"""The number of structures to process at once, to bound the memory."""
MAX_CONFIG_TYPES = 10_000
"""The largest number of values of ``config_type`` that are distinguished."""

_ELEMENTS = 119
_COLUMNS = ("energy", "squared_forces", "config_type")


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """S structures as graphs without energies, and data on each structure.

    Args:
      graphs: the structures, with atomic numbers as h.
      energy: energies (S,) in eV, float64.
      squared_forces: the sum of squares of all force components (S,) in eV²/Å².
      config_type: the index of the structure's value in ``config_types`` (S,).
      row: its index among all structures of the files (S,).
      config_types: the values of ``config_type``; "" if missing, and for those after 10,000.
      files: the name of each file and its number of structures.
    """

    graphs: GraphDataset
    energy: np.ndarray
    squared_forces: np.ndarray
    config_type: np.ndarray
    row: np.ndarray
    config_types: tuple[str, ...]
    files: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.graphs)

    @property
    def periodic(self) -> bool:
        """Whether the structures have a cell."""
        return self.graphs[0].globals.cell is not None

    def __getitem__(self, rows: slice | np.ndarray) -> "Labelled":
        names = ("graphs", "energy", "squared_forces", "config_type", "row")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})

    def name(self, k: int) -> str:
        """The name of structure ``k``, for example "frame 3 of mine.xyz"."""
        frame = int(self.row[k])
        for name, count in self.files:
            if frame < count:
                return f"frame {frame} of {name}"
            frame -= count
        raise IndexError(k)

    def compositions(self) -> Iterator[np.ndarray]:
        """Yield blocks (b, 119) of the number of atoms of each element, by atomic number."""
        for first in range(0, len(self), BLOCK):
            graphs = self.graphs[first : first + BLOCK]
            graph_of_atom = np.repeat(np.arange(len(graphs)), graphs.n_node)
            bins = graph_of_atom * _ELEMENTS + graphs.node_features()
            counts = np.bincount(bins, minlength=len(graphs) * _ELEMENTS)
            yield counts.reshape(len(graphs), _ELEMENTS)

    def fit_e0s(self) -> tuple[dict[str, float], bool]:
        """Fit energies of free atoms to those of the structures, E ≈ Σ_i E0_i.

        This is a least-squares fit over all structures. If they do not determine the energies, for
        example with only one molecule, it is the solution with the smallest sum of squares.

        Returns:
          The energies in eV by symbol, and whether the structures determine them.
        """
        present = np.any([counts.any(axis=0) for counts in self.compositions()], axis=0)
        elements = sorted(np.flatnonzero(present).tolist(), key=_symbol)
        system = np.zeros((0, len(elements) + 1))
        for block, counts in enumerate(self.compositions()):
            if block:  # replace all rows so far by a triangle with the same least squares
                system = np.linalg.qr(system, mode="r")
            energies = self.energy[block * BLOCK :][: len(counts)]
            system = np.concatenate([system, np.column_stack([counts[:, elements], energies])])
        tolerance = np.finfo(float).eps * max(len(self), len(elements))
        solution, _, rank, _ = np.linalg.lstsq(system[:, :-1], system[:, -1], rcond=tolerance)
        atom_energies = dict(zip(map(_symbol, elements), solution.tolist(), strict=True))
        return atom_energies, int(rank) == len(elements)

    def relative(self, references: Mapping[str, float]) -> np.ndarray:
        """The energies (S,) minus those of free atoms; elements without a reference count as 0."""
        energies = _by_atomic_number(references, 0.0)
        return self.energy - np.concatenate([counts @ energies for counts in self.compositions()])

    def samples(self, references: Mapping[str, float]) -> GraphDataset:
        """The graphs with energies relative to free atoms as targets (S, 1).

        Raises:
          ValueError: a structure has an element without reference, or its energy is not finite;
            the message names it.
        """
        has_reference = ~np.isnan(_by_atomic_number(references, np.nan))
        for block, counts in enumerate(self.compositions()):
            if len(missing := np.argwhere((counts > 0) & ~has_reference)):
                row, number = missing[0]
                raise ValueError(
                    f"{self.name(block * BLOCK + row)} has {_symbol(number)}; expected elements "
                    f"that are trained on or have a free-atom energy, {', '.join(references)}"
                )
        with np.errstate(over="ignore"):
            y = self.relative(references).astype(self.graphs[0].nodes.x.dtype)
        if len(invalid := np.flatnonzero(~np.isfinite(y))):
            k = invalid[0]
            raise ValueError(f"{self.name(k)}: its energy less that of free atoms is {y[k]}")
        return self.graphs.with_targets(y[:, None])


def read(name: str, labels: Labels, cutoff: float | None) -> Labelled:
    """Read the structures of a file, or of a folder that :func:`pack` wrote.

    Args:
      name: see :func:`egnn_jax.data.frames.find`.
      labels: the labels in the file, or in the files from which a folder was packed.
      cutoff: distance (Å) within which atoms are connected; all atoms if None.

    Raises:
      ValueError: the file cannot be read, a structure lacks a label, or only some are periodic (the
        message names file and structure); or a folder was packed with other labels or another
        cutoff.
    """
    path = frames.find(name)
    if path.is_dir():
        return _open_folder(path, labels, cutoff)
    counts, config_types = dict[str, int](), dict[str, int]()
    graphs, rows = zip(*_stream([path], labels, cutoff, counts, config_types), strict=True)
    columns = {name: np.concatenate([row[name] for row in rows]) for name in _COLUMNS}
    row, types, files = np.arange(len(graphs)), tuple(config_types), tuple(counts.items())
    return Labelled(GraphDataset(graphs), **columns, row=row, config_types=types, files=files)


def pack(
    files: Sequence[str], folder: Path | str, labels: Labels | None = None, cutoff: float = 5.0
) -> int:
    """Write the structures of files as graphs to a new folder, one at a time.

    Args:
      files: files that :func:`egnn_jax.data.frames.read` can read.
      folder: a new folder, written atomically; training reads it instead of the files.
      labels: the labels in the files.
      cutoff: distance (Å) within which atoms are connected.

    Returns:
      The number of structures.

    Raises:
      ValueError: the folder exists, or as for :func:`read`.
      OSError: writing fails, for example because the disk is full.
    """
    labels = labels or Labels()
    paths = [frames.find(name) for name in files]
    if folders := [path for path in paths if path.is_dir()]:
        raise ValueError(f"{folders[0]} is a folder; expected files of structures")
    if len({resolved(path) for path in paths}) < len(paths):
        raise ValueError(f"files are {', '.join(map(str, paths))}; expected each once")
    if not 0 < cutoff < np.inf:
        raise ValueError(f"cutoff is {cutoff}; expected a distance above 0 in Å")
    counts: dict[str, int] = {}
    config_types: dict[str, int] = {}
    with storage.writing(expanded(folder)) as writer:
        stream = _stream(paths, labels, cutoff, counts, config_types)
        for graph, row in progress_bar(stream, unit="structure", desc=str(folder)):
            writer.append(arrays_of(graph) | {f"frames.{name}": row[name] for name in _COLUMNS})
        writer.about = {
            "packed_with": _options(labels, cutoff),
            "config_types": list(config_types),
            "files": list(counts.items()),
        }
    return sum(counts.values())


def splits(
    train: str, valid: str, test: str, seed: int, labels: Labels, cutoff: float
) -> dict[str, Labelled]:
    """Read the structures of "train", "valid" and "test".

    Args:
      train: the name of a file or folder, see :func:`read`.
      valid, test: other files or folders, or shares of the structures of ``train`` to draw.
      seed: seed of the random draw.
      labels, cutoff: as for :func:`read`.

    Raises:
      ValueError: as for :func:`read` and :func:`egnn_jax.data._splits.draw_splits`, or only some
        structures are periodic.
    """
    dataset = read(train, labels, cutoff)
    split_rows = draw_splits(len(dataset), valid, test, seed)
    datasets = {split: dataset[rows] for split, rows in split_rows.items()}
    for split, source in (("valid", valid), ("test", test)):
        if split not in datasets:
            held_out = read(source, labels, cutoff)
            _require_alike(held_out.name(0), held_out.periodic, dataset.name(0), dataset.periodic)
            datasets[split] = held_out
    return datasets


def _stream(
    paths: Iterable[Path],
    labels: Labels,
    cutoff: float | None,
    files: dict[str, int],
    config_types: dict[str, int],
) -> Iterator[tuple[GraphsTuple, dict[str, np.ndarray]]]:
    """Yield graphs without energies, and their rows of the columns of :class:`Labelled`.

    Also count the structures of each file in ``files``, and number their ``config_types``.
    """
    first_name, periodic = "", False
    config_types[""] = 0
    for path in paths:
        for name, atoms in frames.named(path, labels):
            first_name = first_name or name
            periodic = bool(atoms.pbc.any()) if first_name == name else periodic
            _require_alike(name, atoms.pbc.any(), first_name, periodic)
            stress = "stress" if labels.stress or labels.virial else None
            try:
                graph = from_ase(
                    atoms, cutoff, forces="forces" if labels.forces else None, stress=stress
                )
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            config_type, results = str(atoms.info.get("config_type", ""))[:200], atoms.calc.results
            if len(config_types) < MAX_CONFIG_TYPES:
                config_types.setdefault(config_type, len(config_types))
            squares = np.square(results.get("forces", 0.0))
            files[str(path)] = files.get(str(path), 0) + 1
            row = {
                "energy": np.array([results["energy"]], np.float64),
                "squared_forces": np.array([np.sum(squares)], np.float64),
                "config_type": np.array([config_types.get(config_type, 0)], np.int32),
            }
            yield graph, row


def _open_folder(folder: Path, labels: Labels, cutoff: float | None) -> Labelled:
    about, arrays = storage.about(folder), storage.read_arrays(folder, verify=True)
    if not isinstance(about.get("packed_with"), dict):
        raise ValueError(f"{folder} is a data set without labels; expected what egnn pack writes")
    for name, value in _options(labels, cutoff).items():
        if (packed := about["packed_with"].get(name)) != value:
            raise ValueError(
                f"{folder} was packed with {name} {packed!r}, not {value!r}; expected the same"
            )
    graphs = GraphDataset.open(folder)
    if missing := [name for name in _COLUMNS if f"frames.{name}" not in arrays]:
        raise ValueError(f"{folder} is damaged: it has no frames.{missing[0]}.npy")
    columns = {name: np.array(arrays[f"frames.{name}"]) for name in _COLUMNS}
    row, types, files = np.arange(len(graphs)), tuple(about["config_types"]), tuple(about["files"])
    return Labelled(graphs, **columns, row=row, config_types=types, files=files)


def _options(labels: Labels, cutoff: float | None) -> dict[str, Any]:
    return dataclasses.asdict(labels) | {"cutoff": cutoff}


def _require_alike(name: str, periodic: bool, first: str, expected: bool) -> None:
    if periodic != expected:
        kind = "periodic" if periodic else "not periodic"
        raise ValueError(f"{name} is {kind}, unlike {first}; expected all alike")


def _by_atomic_number(values: Mapping[str, float], default: float) -> np.ndarray:
    """An array of the values of elements, indexed by atomic number."""
    from ase.data import atomic_numbers

    array = np.full(_ELEMENTS, default)
    for symbol, value in values.items():
        if symbol in atomic_numbers:
            array[atomic_numbers[symbol]] = value
    return array


def _symbol(number: int) -> str:
    from ase.data import chemical_symbols

    return chemical_symbols[number]
