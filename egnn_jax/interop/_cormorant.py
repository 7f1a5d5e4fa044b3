"""The names that the authors of Cormorant (risilab/cormorant) give to its parameters."""

import re
from collections.abc import Mapping

import numpy as np

from egnn_jax.models.cormorant import Cormorant

AS_THEY_ARE: frozenset[tuple[str, ...]] = frozenset()
"""Parameters whose axes have the same order in both."""

_MODULES = {
    "R": "input_func_atom.rad_filts.0",
    "w": "input_func_atom.rad_filts.0.linear.0",
    "embedding": "input_func_atom.mlps.0",
    "node_dec": "output_layer_atom.mlp1",
    "graph_dec": "output_layer_atom.mlp2",
}
_OF_LEVELS = {
    "scales": "rad_funcs.rad_funcs.{k}.scales",
    "phases": "rad_funcs.rad_funcs.{k}.phases",
    "rho": "cormorant_cg.edge_levels.{k}.mask_layer.soft_cut_rad",
    "omega": "cormorant_cg.edge_levels.{k}.mask_layer.soft_cut_width",
    "W": "cormorant_cg.edge_levels.{k}.cat_mix.mix_reps.weights.{l}",
    "U": "cormorant_cg.atom_levels.{k}.cat_mix.mix_reps.weights.{l}",
}


def torch_name(path: tuple[str, ...], model: Cormorant) -> str:
    """The authors' name of the parameter of a :class:`egnn_jax.Cormorant` or its readout."""
    *modules, leaf = path
    if level := re.fullmatch(r"level_(\d+)", modules[0] if modules else ""):
        name, _, l = leaf.partition("_")
        return _OF_LEVELS[name].format(k=level[1], l=l)
    if not modules or modules[0] not in _MODULES:
        raise ValueError(
            f"{'.'.join(path)} has no counterpart in the authors' code; expected a model without "
            "update_coordinates, of graphs without velocities"
        )
    names = [_MODULES[modules[0]]]
    names += [f"linear.{name.removeprefix('Dense_')}" for name in modules[1:]]
    return ".".join([*names, {"kernel": "weight"}.get(leaf, leaf)])


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The authors' shape of a parameter."""
    return (1, 1, 1, *shape) if path[-1] in ("scales", "phases", "rho", "omega") else shape[::-1]


def widths(given: Mapping[str, np.ndarray], model: Cormorant) -> tuple[int, int]:
    """The numbers of features and of edge attributes that a state dict is for."""
    weight = given.get("input_func_atom.rad_filts.0.linear.0.weight")
    shape = () if weight is None else weight.shape
    return (max(shape[0], 1), max(shape[1] - 32, 0)) if len(shape) == 2 else (1, 0)
