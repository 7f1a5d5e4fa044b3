"""ASE calculator for potentials, for use with ASE's dynamics, optimizers and phonons."""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

import egnn_jax
from egnn_jax.graph import _validation, neighbors
from egnn_jax.graph._forks import require_usable_jax
from egnn_jax.potentials._padding import padded_graph
from egnn_jax.potentials.ensemble import Ensemble, mean_and_spread, require_certain, require_finite
from egnn_jax.potentials.potential import Potential, cutoff_of

_MAX_NEIGHBORS = 10_000
"""Maximum neighbors of an atom in a crystal; more mean that the cell has collapsed."""


class ASECalculator(Calculator):
    """ASE calculator of energy, forces, stress and atomic energies.

    ::

        atoms.calc = egnn.ASECalculator("runs/forces/ethanol")
        atoms.calc = egnn.ASECalculator(potential, params, references={"H": -13.57, "C": -1025.28})

    Neighbors are listed up to the cutoff plus a skin, and listed again when an atom has moved by
    half the skin or the cell has changed; energies do not depend on the skin. Edges are padded, so
    that the geometries of a system compile once, and again only if they get many more neighbors.
    Units are those of ASE: eV, eV/Å and eV/Å³; ``energies`` are those of atoms. Stress is computed
    for periodic cells with a volume. A calculator can be pickled, and shared by several threads.

    For an :class:`egnn_jax.Ensemble`, all results are means, and ``results`` also has
    ``energy_spread`` (eV) and ``forces_spread`` (M,) in eV/Å.

    Args:
      model: the folder of a run or an exported file of the task ``forces``, or the result of
        :func:`egnn_jax.load_pretrained` for it; or a :class:`egnn_jax.Potential` or
        :class:`egnn_jax.Ensemble`.
      params: the parameters, if ``model`` is a potential.
      references: atomic reference energies in eV by symbol, added to the energies; other elements
        are rejected. By default, those of the run or ensemble; for a potential, 0 for any element.
      skin: distance beyond the cutoff up to which neighbors are listed, in Å.
      max_spread: for an ensemble, the largest ``forces_spread`` of an atom to accept, in eV/Å; a
        simulation stops if it is exceeded.

    Raises:
      ValueError: the model does not predict energies or has no cutoff, the skin is below 0, or
        ``max_spread`` is not above 0 or is given without an ensemble. In a calculation: there are
        no atoms, an element is unknown to the model, or a position is not finite.
      FloatingPointError: a result is not finite.
      Uncertain: the potentials of an ensemble differ by more than ``max_spread``.
    """

    # ASE declares it without ClassVar, so type checkers do not let subclasses add it.
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self,
        model: Any,
        params: Any = None,
        *,
        references: Mapping[str, float] | None = None,
        skin: float = 0.5,
        max_spread: float | None = None,
    ) -> None:
        super().__init__()
        self._ensemble = isinstance(model, Ensemble)
        if max_spread is not None and not (self._ensemble and max_spread > 0):
            raise ValueError(
                f"max_spread is {max_spread} with a {type(model).__name__}; expected a force above "
                "0 in eV/Å, with an Ensemble"
            )
        if (params is None) == isinstance(model, Potential):
            actual = "None" if params is None else "given"
            raise ValueError(f"params is {actual}; expected it with a Potential, and only then")
        if not isinstance(model, Potential):
            model, params, model_references = _load_potential(model)
            references = model_references if references is None else references
        self._cutoff = cutoff_of(model)
        _validation.require_not_negative(skin=skin)
        self._potential, self._params = model, jax.device_get(params)
        self._references = None if references is None else _check_references(references)
        self._skin, self._max_spread = float(skin), max_spread
        self._neighbor_list: _NeighborList | None = None
        self._capacities: dict[int, int] = {}  # maximum edges by number of atoms
        self._lock = threading.RLock()

    def get_property(self, name: str, atoms: Any = None, allow_calculation: bool = True) -> Any:
        """Get a property, see ASE's ``Calculator``; one thread at a time."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: Any = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute all properties of the atoms."""
        require_usable_jax()
        with self._lock:
            super().calculate(atoms, list(properties), list(system_changes))
            self.results = {}  # not those of the previous atoms if this fails
            self.results = self._compute(self.atoms)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: everything except the lock and the neighbors."""
        return vars(self) | {"_lock": None, "_neighbor_list": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled calculator."""
        vars(self).update(state | {"_lock": threading.RLock()})

    def _compute(self, atoms: Any) -> dict[str, Any]:
        reference_energies = self._reference_energies(atoms.get_chemical_symbols())
        neighbor_list = self._neighbors(atoms)
        x = atoms.get_positions() - neighbor_list.origin
        periodic = neighbor_list.shift is not None
        cell = atoms.cell.array if periodic else None
        potential = self._potential.clone(stress=periodic and atoms.cell.rank == 3)
        edges = self._padded_edges(neighbor_list, x)
        try:
            outputs = jax.device_get(
                _evaluate(
                    potential, self._ensemble, self._params, atoms.numbers.astype(np.int32),
                    np.asarray(x, jnp.result_type(float)), cell, *edges,
                )
            )  # fmt: skip
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(
                f"{len(x)} atoms with {len(edges[0])} pairs within {self._cutoff:g} Å take more "
                "memory than there is; expected a smaller or less dense structure"
            ) from error
        self._capacities[len(x)] = len(edges[0])  # only after success
        energies = np.asarray(outputs["energies"], np.float64) + reference_energies
        results: dict[str, Any] = {
            "energy": float(energies.sum()),
            "energies": energies,
            "forces": np.asarray(outputs["forces"], np.float64),
        }
        results["free_energy"] = results["energy"]
        if potential.stress:
            results["stress"] = full_3x3_to_voigt_6_stress(outputs["stress"].astype(np.float64))
        spread_names = {"energy_spread", "forces_spread"} & set(outputs)
        results |= {name: np.asarray(outputs[name], np.float64)[()] for name in spread_names}
        require_finite(results)
        if self._max_spread is not None:
            require_certain(results["forces_spread"], self._max_spread, atoms.symbols)
        return results

    def _reference_energies(self, symbols: Sequence[str]) -> np.ndarray:
        if not symbols:
            raise ValueError("there are no atoms; expected at least one")
        if self._references is None:
            return np.zeros(len(symbols))
        if unknown := sorted(set(symbols) - set(self._references)):
            raise ValueError(
                f"the potential knows no {', '.join(unknown)}; expected atoms of "
                f"{', '.join(sorted(self._references))}"
            )
        return np.array([self._references[symbol] for symbol in symbols])

    def _neighbors(self, atoms: Any) -> "_NeighborList":
        """Return the neighbor list; the last one if no unlisted pair can be within the cutoff."""
        state = _State(atoms.get_positions(), atoms.cell.array.copy(), atoms.pbc.copy())
        if not np.isfinite(state.x).all():
            bad = int(np.flatnonzero(~np.isfinite(state.x).all(axis=1))[0])
            raise ValueError(f"atom {bad} is at {state.x[bad]}; expected finite positions")
        last = self._neighbor_list
        if last is not None and state.is_near(last.state, self._skin / 2):
            return last
        lattice, origin = None, np.zeros_like(state.x)
        if state.pbc.any():
            lattice = _validation.lattice(state.cell, state.pbc.tolist(), 3)
            self._require_few_neighbors(atoms)
            origin = lattice.corners(state.x)
        # Far from the origin, float32 would leave few digits of distances.
        origin = origin + (state.x - origin).mean(axis=0)
        list_cutoff = self._cutoff + self._skin
        senders, receivers, steps = neighbors.within(state.x - origin, list_cutoff, lattice)
        shift = None if steps is None else steps @ state.cell
        self._neighbor_list = _NeighborList(state, senders, receivers, shift, origin)
        return self._neighbor_list

    def _require_few_neighbors(self, atoms: Any) -> None:
        """Raise ValueError for a crystal so dense that its neighbors would exhaust memory."""
        if not (atoms.pbc.all() and atoms.cell.rank == 3):
            return
        density = len(atoms) / atoms.get_volume()
        n_neighbors = density * 4 / 3 * np.pi * (self._cutoff + self._skin) ** 3
        if n_neighbors > _MAX_NEIGHBORS:
            raise ValueError(
                f"the cell has a volume of {atoms.get_volume():.3g} Å³ for {len(atoms)} atoms, of "
                f"which each has {n_neighbors:.2g} neighbors; expected at most {_MAX_NEIGHBORS:,}"
            )

    def _padded_edges(
        self, neighbor_list: "_NeighborList", x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Select the edges within the cutoff, and pad them."""
        _, senders, receivers, shift, _ = neighbor_list
        r_ij = x[receivers] - x[senders]
        if shift is not None:
            r_ij -= shift
        within = (r_ij**2).sum(axis=1) <= (self._cutoff * (1 + neighbors.TOLERANCE)) ** 2
        senders, receivers = senders[within], receivers[within]
        capacity = self._capacities.get(len(x), 0)
        if len(senders) > capacity:
            capacity = int(1.15 * len(senders)) + 8
        padding = capacity - len(senders)
        pad = lambda nodes: np.pad(nodes, (0, padding), constant_values=len(x))
        if shift is not None:
            shift = np.pad(shift[within], ((0, padding), (0, 0)))
        return pad(senders), pad(receivers), shift


def _check_references(references: Mapping[str, float]) -> dict[str, float]:
    from ase.data import atomic_numbers

    if not isinstance(references, Mapping):
        raise ValueError(f"references is {references!r}; expected energies in eV by element")
    for symbol, value in references.items():
        if symbol not in atomic_numbers:
            raise ValueError(f"references has {symbol!r}; expected symbols of elements")
        if not (isinstance(value, int | float | np.number) and np.isfinite(value)):
            raise ValueError(f"references has {value!r} for {symbol!r}; expected an energy in eV")
    return {symbol: float(value) for symbol, value in references.items()}


class _State(NamedTuple):
    x: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray

    def is_near(self, other: "_State", distance: float) -> bool:
        """Whether all atoms are within ``distance`` of their positions in another state."""
        same = self.x.shape == other.x.shape and np.array_equal(self.pbc, other.pbc)
        same = same and (not self.pbc.any() or np.array_equal(self.cell, other.cell))
        return same and float(((self.x - other.x) ** 2).sum(axis=1).max()) <= distance**2


class _NeighborList(NamedTuple):
    """Pairs within the cutoff plus skin, and the origin subtracted from positions (M, 3) first."""

    state: _State
    senders: np.ndarray
    receivers: np.ndarray
    shift: np.ndarray | None
    origin: np.ndarray


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
    potential: Potential,
    ensemble: bool,
    params: Any,
    numbers: jax.Array,
    x: jax.Array,
    cell: jax.Array | None,
    senders: jax.Array,
    receivers: jax.Array,
    shift: jax.Array | None,
) -> dict[str, jax.Array]:
    """Compute energies (M,), forces (M, 3) and stress (3, 3) of atoms with padded edges."""
    graph = padded_graph(numbers, x, senders, receivers, shift, cell)
    n, outputs = x.shape[0], {}
    if ensemble:
        predictions, spread = mean_and_spread(potential, params, graph)
        outputs = {"energy_spread": spread.energy[0], "forces_spread": spread.forces[:n]}
    else:
        predictions: Any = potential.apply(params, graph)
    outputs |= {"energies": predictions.nodes.h[:n, 0], "forces": predictions.nodes.y[:n]}
    if potential.stress:
        outputs["stress"] = predictions.globals.stress[0]
    return outputs


def _load_potential(model: Any) -> tuple[Potential, Any, Mapping[str, float] | None]:
    """Load a potential, its parameters and reference energies from a run, file or ensemble."""
    if isinstance(model, Ensemble):
        return model.potential, model.params, model.references
    if isinstance(model, str | Path):
        model = egnn_jax.load_pretrained(model)
    network = getattr(model, "network", model)
    if not isinstance(network, Potential):
        raise ValueError(
            f"the model is a {type(network).__name__}; expected a Potential, an Ensemble, or a run "
            "or a file of the task forces"
        )
    return network, model.params, model.config.task.references
