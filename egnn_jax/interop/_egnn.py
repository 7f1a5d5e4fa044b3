"""Parameter names of EGNN, GNN and Radial Field in the authors' code (vgsatorras/egnn)."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.interop._names import Entry, pair
from egnn_jax.models.egnn import EGNN
from egnn_jax.models.gnn import GNN
from egnn_jax.models.radial_field import RadialField

_MLPS = {
    "phi_e": "edge_mlp",
    "phi_x": "coord_mlp",
    "phi_h": "node_mlp",
    "phi_v": "coord_mlp_vel",
    "phi_inf": "att_mlp",
    "phi_rf": "phi",
}

OPTIONS = {
    "cutoff": (None,),
    "num_rbf": (None,),
    "velocity": ("input",),
    "aggregation": ("sum",),
    "coordinate_aggregation": ("mean", "sum"),
}
"""Values of options of the backbone that the authors' code has; others compute something else."""


def entries(path: tuple[str, ...], backbone: Any) -> list[Entry]:
    """The entries that hold a parameter of the backbone, ``Readout`` or ``Autoencoder``."""
    return [Entry(_name(path, backbone))]


def _name(path: tuple[str, ...], backbone: Any) -> str:
    if path[0] == "decoder" and not path[1].startswith("Dense_"):  # of an autoencoder
        return (
            path[1] if len(path) == 2 else f"fc_dec.{'weight' if path[-1] == 'kernel' else 'bias'}"
        )
    *modules, leaf = path
    if leaf == "table":
        raise KeyError(leaf)  # of node types; the authors' code has one-hot features
    dense = modules.pop() if modules[-1].startswith("Dense_") else None
    name = "_".join(modules)
    # Position in the authors' Sequential, whose odd entries are activations. Here, the first layer
    # of φ_e is a separate kernel.
    position = (
        0 if dense is None else 2 * int(dense.removeprefix("Dense_")) + 2 * name.endswith("phi_e")
    )
    if match := re.fullmatch(r"layer_(\d+)_(\w+)", name):
        k, mlp = match.groups()
        name = f"gcl_{k}.{_MLPS[mlp]}.{position}"
    elif name in ("decoder", "node_dec", "graph_dec"):
        name = f"{name}.{position}"
    elif name == "embedding" and isinstance(backbone, GNN):
        name = "embedding.0"
    elif name == "embedding_out" and isinstance(backbone, GNN):
        name = "fc_emb"
    elif (
        name == "embedding" and isinstance(backbone, EGNN) and backbone.output_features is not None
    ):
        name = "embedding_in"
    return f"{name}.{'weight' if leaf == 'kernel' else leaf}"


def graph(state_dict: Mapping[str, np.ndarray], backbone: Any) -> GraphsTuple:
    """A graph with the widths of a state dict."""

    def columns(name: str, offset: int, minimum: int) -> int:
        shape = state_dict[name].shape if name in state_dict else ()
        return max(shape[1] - offset, minimum) if len(shape) == 2 else minimum

    velocity = any("coord_mlp_vel" in name for name in state_dict)
    if isinstance(backbone, RadialField):
        return pair(1, columns("gcl_0.phi.0.weight", 1, 0), velocity=velocity)
    features = (
        columns(_name(("embedding", "kernel"), backbone), 0, 1)
        if backbone.embed
        else columns("gcl_0.node_mlp.0.weight", backbone.features, 1)
    )
    n = 3
    if isinstance(backbone, GNN) and backbone.coordinates:
        n = state_dict["decoder.2.weight"].shape[0] if "decoder.2.weight" in state_dict else 3
        velocity = features != n
    width = backbone.features if backbone.embed else features
    attributes = columns("gcl_0.edge_mlp.0.weight", 2 * width + isinstance(backbone, EGNN), 0)
    return pair(features, attributes, n, velocity)
