"""Parameter names of Cormorant in its authors' code (risilab/cormorant)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.interop._names import Entry, pair, width

_MODULES = {
    "R": "input_func_atom.rad_filts.0",
    "w": "input_func_atom.rad_filts.0.linear.0",
    "embedding": "input_func_atom.mlps.0",
    "node_dec": "output_layer_atom.mlp1",
    "graph_dec": "output_layer_atom.mlp2",
}
_LEVEL = {
    "scales": "rad_funcs.rad_funcs.{k}.scales",
    "phases": "rad_funcs.rad_funcs.{k}.phases",
    "rho": "cormorant_cg.edge_levels.{k}.mask_layer.soft_cut_rad",
    "omega": "cormorant_cg.edge_levels.{k}.mask_layer.soft_cut_width",
    "W": "cormorant_cg.edge_levels.{k}.cat_mix.mix_reps.weights.{l}",
    "U": "cormorant_cg.atom_levels.{k}.cat_mix.mix_reps.weights.{l}",
}
_DISTANCES = ("scales", "phases", "rho", "omega")

OPTIONS = {"parity": ("ignored",), "self_pairs": (True,)}
"""Values of options that the authors' code has; others compute something else."""


def entries(path: tuple[str, ...], backbone: Any) -> list[Entry]:
    """The entries that hold a parameter of ``CormorantReadout(Cormorant(…))``."""
    *modules, leaf = path
    module, _, level = modules[0].partition("_") if modules else ("", "", "")
    if module == "level":
        parameter, _, l = leaf.partition("_")
        name = _LEVEL[parameter].format(k=level, l=l)
    else:
        layers = [f"linear.{name.removeprefix('Dense_')}" for name in modules[1:]]
        names = [_MODULES[modules[0] if modules else leaf], *layers]
        name = ".".join([*names, "weight" if leaf == "kernel" else leaf])
    return [Entry(name, leading=3 if leaf in _DISTANCES else 0)]


def graph(state_dict: Mapping[str, np.ndarray], backbone: Any) -> GraphsTuple:
    """A graph with the widths of a state dict."""
    weight = "input_func_atom.rad_filts.0.linear.0.weight"
    return pair(width(state_dict, weight, 0, 1), width(state_dict, weight, 1, 32) - 32)
