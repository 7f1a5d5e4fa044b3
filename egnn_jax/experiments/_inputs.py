"""What networks read of molecules: options of the tasks ``qm9`` and ``table``."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from egnn_jax.data.bonds import Bonds, of_molecules
from egnn_jax.data.dataset import GraphDataset
from egnn_jax.data.molecular_graphs import molecular_graphs, network_input
from egnn_jax.graph.graph import GraphsTuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class MolecularInputs:
    """Base class of tasks with these options, see :class:`egnn_jax.experiments.qm9.QM9`."""

    cutoff: float | None = None
    features: Literal["powers", "numbers", "elements", "chemistry"] = "numbers"
    bonds: Literal["none", "attributes", "only"] = "none"

    @property
    def element_numbers(self) -> Sequence[int]:
        """The atomic numbers of the elements among which the features tell."""
        raise NotImplementedError  # each task has its own

    def require_no_cutoff_of_bonds(self) -> None:
        """Raise ValueError if there is a cutoff, but all edges are bonds."""
        if self.bonds == "only" and self.cutoff is not None:
            raise ValueError(
                f"task.cutoff is {self.cutoff} where task.bonds is 'only'; expected no cutoff, or "
                "bonds 'attributes'"
            )

    @property
    def reads_bonds(self) -> bool:
        """Whether the input has bonds or chemistry."""
        return self.bonds != "none" or self.features == "chemistry"

    def graph(self, batch: GraphsTuple, key: jax.Array | None = None) -> GraphsTuple:
        """The input: h ``features``, a one-hot of bond types, x in Å; ``key`` is not used."""
        return network_input(batch, self.features, self.bonds, self.element_numbers)

    def _graphs(
        self,
        n_atoms: np.ndarray,
        atomic_numbers: np.ndarray,
        positions: np.ndarray,
        labels: np.ndarray | None = None,
        bonds: Bonds | None = None,
    ) -> GraphDataset:
        """Graphs of molecules; bonds that are needed and not given are perceived."""
        molecules = n_atoms, atomic_numbers, positions
        if not self.reads_bonds:
            bonds = None
        elif bonds is None:
            bonds = of_molecules([None] * len(n_atoms), *molecules)
        return molecular_graphs(*molecules, labels, self.cutoff, bonds, self.bonds == "only")
