"""The elements, properties, units and splits of QM9."""

import numpy as np

EV = 27.2114
"""One hartree in eV, as in the paper's tables."""
ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
MAX_ATOMS = 29
"""The largest number of atoms of a molecule."""
TARGETS = ("alpha", "gap", "homo", "lumo", "mu", "Cv", "G", "H", "r2", "U", "U0", "zpve")
"""The properties, in the order of Table 3."""
UNITS = dict.fromkeys(TARGETS, "meV") | {
    "alpha": "bohr³",
    "mu": "D",
    "Cv": "cal/(mol K)",
    "r2": "bohr²",
}
IN_MEV = {name: 1e3 * EV if unit == "meV" else 1.0 for name, unit in UNITS.items()}
"""Factors from the units of the sources (atomic units, except mu and Cv) to :data:`UNITS`."""
REFERENCES = {
    name: {
        element: energy * IN_MEV[name] for element, energy in zip(ELEMENTS, energies, strict=True)
    }
    for name, energies in {
        "zpve": (0.0, 0.0, 0.0, 0.0, 0.0),
        "U0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
        "U": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
        "H": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
        "G": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
        "Cv": (2.981, 2.981, 2.981, 2.981, 2.981),
    }.items()
}
"""The value of each property for a free atom of each element, in the property's unit;
thermochemical properties are learned relative to it.
"""
SPLITS = {"train": 100_000, "valid": 17_748, "test": 13_083}
MOLECULES = 130_831


def atomic_references(name: str, n_atoms: np.ndarray, atomic_numbers: np.ndarray) -> np.ndarray:
    """The sum of a target over the free atoms of each molecule (S,), from :data:`REFERENCES`; 0 for
    targets without references.

    Args:
      name: the target.
      n_atoms: number of atoms of each molecule (S,).
      atomic_numbers: (ΣM,).
    """
    if name not in REFERENCES:
        return np.zeros(len(n_atoms))
    element_values = np.zeros(max(ELEMENTS.values()) + 1)
    element_values[list(ELEMENTS.values())] = [REFERENCES[name][symbol] for symbol in ELEMENTS]
    return np.add.reduceat(element_values[atomic_numbers], np.cumsum(n_atoms) - n_atoms)
