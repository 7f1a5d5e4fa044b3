"""Parameters from the authors' PyTorch networks, and back.

The names are those of the authors' repository (vgsatorras/egnn): ``nbody_egnn`` (``EGNN_vel``),
``nbody_gnn``, ``nbody_radial_field``, and ``egnn_clean.py``, the file that most other projects
copied::

    params = interop.from_torch_state_dict(torch.load("egnn.pt"), egnn.EGNN(features=64, layers=4))
    state = interop.to_torch_state_dict(params, egnn.EGNN(features=64, layers=4))
    network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})

The autoencoder's networks (``AE``, ``AE_EGNN``) are ``egnn.Autoencoder`` around
``GNN(features, layers, coordinates=False, embed=False, output_features=8)`` with ``embedding="h"``,
and around ``EGNN(features, layers, embed=False, clip=100.0, shrinkage=1e-3)``. QM9's (``EGNN``) is
``egnn.Readout(EGNN(features, layers, infer_edges=True, update_coordinates=False))``.

The model has to be that of the network. ``EGNN_vel`` is ``EGNN(features, layers, clip=100.0)`` on
graphs with velocities; ``egnn_clean`` is ``EGNN(features, layers, output_features=out_node_nf)``,
with ``infer_edges`` for its ``attention``.

Two more systems of Table 3 have counterparts, with the names of the code they come from:

- ``SumReadout(DimeNetPP(…), outputs)`` is PyTorch Geometric's ``DimeNetPlusPlus``, which also reads
  the weights that DimeNet's authors published. h is the one-hot of the atomic numbers (N, 95).
- ``MeanReadout(LieConv(…), outputs)`` is ``MolecLieResNet`` of mfinzi/LieConv with the group T(3).
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from egnn_jax.graph.build import complete_graph
from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.interop import _dimenetpp, _lieconv
from egnn_jax.interop._names import Entry
from egnn_jax.models.dimenetpp import DimeNetPP
from egnn_jax.models.egnn import EGNN
from egnn_jax.models.gnn import GNN
from egnn_jax.models.lieconv import LieConv
from egnn_jax.models.radial_field import RadialField
from egnn_jax.nn.heads import Autoencoder, MeanReadout, Readout, SumReadout

Leaves = dict[tuple[str, ...], Any]
"""The arrays of a model's variables, or their shapes, by path such as ("params", "embedding",
"kernel").
"""

_PARTS = {
    "phi_e": "edge_mlp",
    "phi_x": "coord_mlp",
    "phi_h": "node_mlp",
    "phi_v": "coord_mlp_vel",
    "phi_inf": "att_mlp",
    "phi_rf": "phi",
}
_TABLE3: Any = {(SumReadout, DimeNetPP): _dimenetpp, (MeanReadout, LieConv): _lieconv}
"""Who knows the names, by head and backbone."""


def from_torch_state_dict(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The variables of ``model``, such as ``{"params": …}``, from the authors' parameter names, as
    NumPy arrays that share no memory.

    Args:
      state_dict: arrays or PyTorch tensors by name; a weight is (out, in).
      model: an ``EGNN``, ``GNN``, ``RadialField``, ``Autoencoder`` or ``Readout``, or a model of
        Table 3 in its head, of the network's size and options.

    Raises:
      ValueError: entries are missing, left over or misshapen (all of them are listed), or the model
        has no counterpart.
    """
    given = {name: _numpy(value) for name, value in state_dict.items()}
    leaves = _expected(given, model)
    if problems := _misfits(given, leaves, model):
        raise ValueError(f"the state dict does not fit {model!r}: {problems}")
    variables = {}
    for path, leaf in leaves.items():
        entries = _entries(path, leaf.shape, model)
        variables[path] = np.empty(leaf.shape, given[entries[0].name].dtype)
        for entry in entries:
            entry.put(variables[path], given[entry.name])
    return unflatten_dict(variables)


def to_torch_state_dict(params: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """The inverse of :func:`from_torch_state_dict`, exactly: NumPy arrays under the authors' names.

    Raises:
      ValueError: the model has no counterpart there, or the parameters are not its own, such as
        those of several seeds.
    """
    _require_counterpart(model)
    arrays: Leaves = flatten_dict(dict(params))
    state = {
        entry.name: entry.of(np.asarray(value))
        for path, value in arrays.items()
        for entry in _entries(path, np.shape(value), model)
    }
    if problems := _misfits(state, _expected(state, model), model):
        raise ValueError(
            f"the parameters are not those of one {model!r} (of several seeds, take one): "
            f"{problems}"
        )
    return state


def _misfits(given: Mapping[str, np.ndarray], leaves: Leaves, model: nn.Module) -> str:
    """All that is missing, left over or misshapen, in words; empty where nothing is."""
    wanted = {
        entry.name: entry.shape(leaf.shape)
        for path, leaf in leaves.items()
        for entry in _entries(path, leaf.shape, model)
    }
    problems = [f"{name} {shape} is missing" for name, shape in wanted.items() if name not in given]
    problems += [
        f"{name} {value.shape} is left over" for name, value in given.items() if name not in wanted
    ]
    problems += [
        f"{name} has shape {given[name].shape}, expected {shape}"
        for name, shape in wanted.items()
        if name in given and given[name].shape != shape
    ]
    return "; ".join(problems)


def _kind(model: nn.Module) -> tuple[type, type]:
    """The types of a head and of its backbone."""
    return type(model), type(getattr(model, "encoder", None))


def _entries(path: tuple[str, ...], shape: tuple[int, ...], model: nn.Module) -> list[Entry]:
    """What the array at a path is in the state dict."""
    if names := _TABLE3.get(_kind(model)):
        return names.entries(path, shape, model)
    return [Entry(_torch_name(path[1:], model))]


def _torch_name(path: tuple[str, ...], model: nn.Module) -> str:
    if path[0] == "encoder":
        return _torch_name(path[1:], _encoder(model))
    if isinstance(model, Autoencoder):
        return (
            path[1] if len(path) == 2 else f"fc_dec.{'weight' if path[-1] == 'kernel' else 'bias'}"
        )
    *modules, leaf = path
    dense = modules.pop() if modules[-1].startswith("Dense_") else None
    name = "_".join(modules)
    # Position in the authors' Sequential, whose odd entries are activations. φ_e's first layer is a
    # kernel of its own here.
    position = (
        0 if dense is None else 2 * int(dense.removeprefix("Dense_")) + 2 * name.endswith("phi_e")
    )
    if layer := re.fullmatch(r"layer_(\d+)_(\w+)", name):
        k, part = layer.groups()
        name = f"gcl_{k}.{_PARTS[part]}.{position}"
    elif name in ("decoder", "node_dec", "graph_dec"):
        name = f"{name}.{position}"
    elif name == "embedding" and isinstance(model, GNN):
        name = "embedding.0"
    elif name == "embedding_out" and isinstance(model, GNN):
        name = "fc_emb"
    elif name == "embedding" and isinstance(model, EGNN) and model.output_features is not None:
        name = "embedding_in"
    return f"{name}.{'weight' if leaf == 'kernel' else leaf}"


def _expected(given: Mapping[str, np.ndarray], model: nn.Module) -> Leaves:
    """The shapes of the model's variables on a graph as wide as the state dict says."""
    _require_counterpart(model)
    names = _TABLE3.get(_kind(model))
    graph = _graph(given, model) if names is None else names.graph(given)
    return flatten_dict(jax.eval_shape(model.init, jax.random.key(0), graph))


def _graph(given: Mapping[str, np.ndarray], model: nn.Module) -> GraphsTuple:
    """The graph that the authors' network of the state dict takes."""

    def columns(name: str, less: int, least: int) -> int:
        shape = given[name].shape if name in given else ()
        return max(shape[1] - less, least) if len(shape) == 2 else least

    encoder: Any = _encoder(model)
    velocity = any("coord_mlp_vel" in name for name in given)
    n, features = 3, 1
    if isinstance(encoder, RadialField):
        attributes = columns("gcl_0.phi.0.weight", 1, 0)
    else:
        embedding = _torch_name(("embedding", "kernel"), encoder)
        features = (
            columns(embedding, 0, 1)
            if encoder.embed
            else columns("gcl_0.node_mlp.0.weight", encoder.features, 1)
        )
        if isinstance(encoder, GNN) and encoder.coordinates:
            n = given["decoder.2.weight"].shape[0] if "decoder.2.weight" in given else 3
            velocity = features != n
        width = encoder.features if encoder.embed else features
        attributes = columns("gcl_0.edge_mlp.0.weight", 2 * width + isinstance(encoder, EGNN), 0)
    x = np.zeros((2, n), np.float32)
    return complete_graph(
        x=x,
        h=np.zeros((2, features), np.float32),
        v=x if velocity else None,
        a=np.zeros((2, attributes), np.float32) if attributes else None,
    )


def _encoder(model: nn.Module) -> nn.Module:
    return model.encoder if isinstance(model, Autoencoder | Readout) else model


def _require_counterpart(model: nn.Module) -> None:
    if _kind(model) in _TABLE3:
        return
    counterpart = _encoder(model)
    if not isinstance(counterpart, EGNN | GNN | RadialField):
        raise ValueError(
            f"{type(counterpart).__name__} has no counterpart in the authors' code; expected "
            f"EGNN, GNN or RadialField"
        )


def _numpy(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
