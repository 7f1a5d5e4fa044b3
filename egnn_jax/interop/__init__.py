"""Conversion of parameters from the authors' PyTorch networks, and back.

The names are those of the authors' repository (vgsatorras/egnn): ``nbody_egnn`` (``EGNN_vel``),
``nbody_gnn``, ``nbody_radial_field``, and ``egnn_clean.py``, the file that most other projects
copied.

>>> model, graph = egnn.EGNN(features=8, layers=1), egnn.complete_graph(x=np.eye(3))
>>> params = model.init(jax.random.key(0), graph)
>>> state = egnn.interop.to_torch_state_dict(params, model)
>>> state["gcl_0.edge_mlp.0.weight"].shape  # as torch.save(network.state_dict(), …) has it
(8, 17)
>>> again = egnn.interop.from_torch_state_dict(state, model)

The autoencoder's networks (``AE``, ``AE_EGNN``) are ``egnn.Autoencoder`` around
``GNN(features, layers, coordinates=False, embed=False, output_features=8)`` with ``embedding="h"``,
and around ``EGNN(features, layers, embed=False, clip=100.0, shrinkage=1e-3)``. QM9's (``EGNN``) is
``egnn.Readout(EGNN(features, layers, infer_edges=True, update_coordinates=False))``.

The model must match the network. ``EGNN_vel`` is ``EGNN(features, layers, clip=100.0)`` on graphs
with velocities; ``egnn_clean`` is ``EGNN(features, layers, output_features=out_node_nf)``, with
``infer_edges`` for its ``attention``.

``mean`` and ``scale`` of a head are not part of a state dict: the network in PyTorch predicts y
where the head here predicts mean + scale · y.

Other systems of Table 3, alone or in their heads, have the names of their original code:

- ``SumReadout(DimeNetPP(…), outputs)``: PyTorch Geometric's ``DimeNetPlusPlus``, which also reads
  the weights that DimeNet's authors published. h is the one-hot of the atomic numbers (N, 95).
- ``MeanReadout(LieConv(…), outputs)``: ``MolecLieResNet`` of mfinzi/LieConv, with the group
  T(3), or SE(3) if it has ``lifts``.
- ``CormorantReadout(Cormorant(parity="ignored", self_pairs=True))``: ``CormorantQM9`` of
  risilab/cormorant.
- ``L1NetReadout(L1Net(parity="ignored"))``: L1Net of bkmi/equivariant-benchmark.
- ``Set2SetReadout(NMP(…))``: brain-research/mpnn, with the names and shapes of TensorFlow.
- ``MaxReadout(FuchsTFN(…))`` and ``MaxReadout(FuchsSE3Transformer(…))``:
  FabianFuchsML/se3-transformer-public; see :func:`with_basis_signs`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from egnn_jax.interop import _cormorant, _dimenetpp, _egnn, _fuchs, _l1net, _lieconv, _nmp
from egnn_jax.interop._fuchs import with_basis_signs as with_basis_signs
from egnn_jax.interop._names import Entry, host_array
from egnn_jax.models.cormorant import Cormorant
from egnn_jax.models.dimenetpp import DimeNetPP
from egnn_jax.models.egnn import EGNN
from egnn_jax.models.fuchs import FuchsSE3Transformer, FuchsTFN
from egnn_jax.models.gnn import GNN
from egnn_jax.models.l1net import L1Net
from egnn_jax.models.lieconv import LieConv
from egnn_jax.models.nmp import NMP
from egnn_jax.models.radial_field import RadialField
from egnn_jax.nn.heads import Autoencoder, head_of
from egnn_jax.nn.precision import MixedPrecision, backbone_of

Leaves = dict[tuple[str, ...], Any]
"""The arrays of a model's variables, or their shapes, by path, for example ("params", "embedding",
"kernel").
"""

_NAME_MODULES: dict[type[nn.Module], Any] = {
    EGNN: _egnn,
    GNN: _egnn,
    RadialField: _egnn,
    Cormorant: _cormorant,
    DimeNetPP: _dimenetpp,
    L1Net: _l1net,
    LieConv: _lieconv,
    NMP: _nmp,
    FuchsTFN: _fuchs,
    FuchsSE3Transformer: _fuchs,
}
"""The module with the names of each backbone and its head."""


def from_torch_state_dict(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Convert a state dict with the authors' names into the variables of ``model``, for example
    ``{"params": …}``, as NumPy arrays that share no memory with it.

    Args:
      state_dict: arrays or PyTorch tensors by name; a weight is (out, in).
      model: an ``EGNN``, ``GNN``, ``RadialField`` or another model of Table 3, alone, in an
        ``Autoencoder`` or in its head, with the network's size and options.

    Raises:
      ValueError: entries are missing, left over or misshapen (the message lists all of them), or
        the model has no counterpart.
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"the state dict is a {type(state_dict).__name__}; expected arrays by name, as "
            "state_dict() of a PyTorch module gives them"
        )
    for name in state_dict:
        if not isinstance(name, str):
            raise ValueError(f"the state dict has the key {name!r}; expected names as text")
    arrays = {
        name: host_array(value)
        for name, value in state_dict.items()
        if not name.endswith(".num_batches_tracked")  # PyTorch's, of batch normalization
    }
    shapes = _variable_shapes(arrays, model)
    if problems := _mismatches(arrays, shapes, model):
        raise ValueError(f"the state dict does not fit {type(model).__name__}: {problems}")
    variables = {}
    for path, leaf in shapes.items():
        entries = _entries(path, model)
        variables[path] = np.empty(leaf.shape, arrays[entries[0].name].dtype)
        for entry in entries:
            entry.put(variables[path], arrays[entry.name])
    return unflatten_dict(variables)


def to_torch_state_dict(params: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """The inverse of :func:`from_torch_state_dict`, exactly: NumPy arrays under the authors' names.

    Raises:
      ValueError: the model has no counterpart, or the parameters do not fit it, for example
        because they are those of several seeds.
    """
    _names_module(model)
    if not isinstance(params, Mapping) or not isinstance(params.get("params"), Mapping):
        raise ValueError(
            f"params is a {type(params).__name__} without 'params'; expected all variables of the "
            "model, {'params': …}, as model.init gives them"
        )
    variables: Leaves = flatten_dict(dict(params))
    state = {
        entry.name: entry.of(np.asarray(value))
        for path, value in variables.items()
        for entry in _entries(path, model)
    }
    if problems := _mismatches(state, _variable_shapes(state, model), model):
        raise ValueError(
            f"the parameters are not those of one {type(model).__name__} (of several seeds, take "
            f"one): {problems}"
        )
    return state


def _mismatches(arrays: Mapping[str, np.ndarray], shapes: Leaves, model: nn.Module) -> str:
    """A description of all entries that are missing, left over or misshapen; empty if none."""
    expected = {
        entry.name: entry.shape(leaf.shape)
        for path, leaf in shapes.items()
        for entry in _entries(path, model)
    }
    problems = [
        f"{name} {shape} is missing" for name, shape in expected.items() if name not in arrays
    ]
    problems += [
        f"{name} {array.shape} is left over"
        for name, array in arrays.items()
        if name not in expected
    ]
    problems += [
        f"{name} has shape {arrays[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in arrays and arrays[name].shape != shape
    ]
    return "; ".join(problems)


def _entries(path: tuple[str, ...], model: nn.Module) -> list[Entry]:
    """The entries of the state dict that hold the variable at a path."""
    names = _names_module(model)
    backbone_path = path[2:] if path[1] in ("encoder", "network") else path[1:]
    try:
        return names.entries(backbone_path, _backbone(model))
    except (KeyError, IndexError, ValueError):
        raise ValueError(
            f"{'.'.join(backbone_path)} of {type(model).__name__} has no counterpart in the "
            "authors' code; expected the parameters of this model, with an option or a graph "
            "without it, such as one without velocities"
        ) from None


def _variable_shapes(arrays: Mapping[str, np.ndarray], model: nn.Module) -> Leaves:
    """The shapes of the model's variables on a graph with the widths of the state dict."""
    graph = _names_module(model).graph(arrays, _backbone(model))
    return flatten_dict(jax.eval_shape(model.init, jax.random.key(0), graph))


def _backbone(model: nn.Module) -> nn.Module:
    return backbone_of(getattr(model, "encoder", model))


def _names_module(model: nn.Module) -> Any:
    """The module that knows the names of a model's parameters.

    Raises:
      ValueError: there is none, or the model's head is not the authors' own.
    """
    backbone = _backbone(model)
    names = next(
        (module for cls, module in _NAME_MODULES.items() if isinstance(backbone, cls)), None
    )
    if names is None:
        *classes, last_class = (cls.__name__ for cls in _NAME_MODULES)
        raise ValueError(
            f"{type(backbone).__name__} has no counterpart in the authors' code; expected "
            f"{', '.join(classes)} or {last_class}"
        )
    if type(model) not in (type(backbone), MixedPrecision, head_of(backbone), Autoencoder):
        raise ValueError(
            f"{type(model).__name__} is not how the authors of {type(backbone).__name__} read it "
            f"out; expected {head_of(backbone).__name__}"
        )
    for option, allowed in getattr(names, "OPTIONS", {}).items():
        if (value := getattr(backbone, option, allowed[0])) not in allowed:
            raise ValueError(
                f"{option} is {value!r}, which has no counterpart in the authors' code; "
                f"expected {' or '.join(map(repr, allowed))}"
            )
    return names
