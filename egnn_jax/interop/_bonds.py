"""The names of parameters of NMP's authors (brain-research/mpnn), and of those of SE(3)-Transformer
(FabianFuchsML/se3-transformer-public), and how these lie in memory.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import numpy as np

from egnn_jax.graph.build import graph_from_edges
from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.models.fuchs import FuchsSE3Transformer, FuchsTFN
from egnn_jax.models.nmp import NMP

State = Mapping[str, np.ndarray]

Signs = Mapping[tuple[int, int, int], float]
"""1 or -1 by the degrees (l, l', J) of a matrix Q_J from l' to l, see
:class:`egnn_jax.nn.kernels.Filters`; 1 where not given.
"""


@dataclasses.dataclass(frozen=True)
class Counterpart:
    """The network that a model is.

    Attributes:
      graph: an input as wide as a state says, for the model without its readout.
      name: theirs of a Flax path.
      theirs: an array under that name in their layout.
      ours: the inverse.
    """

    graph: Callable[[State, Any], GraphsTuple]
    name: Callable[[tuple[str, ...]], str]
    theirs: Callable[[str, np.ndarray, Signs], np.ndarray]
    ours: Callable[[str, np.ndarray, Signs], np.ndarray]


def counterpart_of(model: nn.Module) -> Counterpart | None:
    """The counterpart of a model, in its readout or without; None if it is not in this file."""
    model = getattr(model, "encoder", model)
    return next((c for cls, c in _COUNTERPARTS.items() if isinstance(model, cls)), None)


def _graph(features: int, attributes: int) -> GraphsTuple:
    """Two nodes and an edge."""
    h, x = np.zeros((2, max(features, 1)), np.float32), np.zeros((2, 3), np.float32)
    a = np.zeros((1, attributes), np.float32) if attributes > 0 else None
    return graph_from_edges(np.array([1]), np.array([0]), x=x, h=h, a=a)


_NMP_PARTS = {
    "A": "EdgeNetwork/adj_in_edge_nn/",
    "A_out": "EdgeNetwork/adj_out_edge_nn/",
    "b": "EdgeNetwork/message_bias",
    "gru": "GRUUpdate/GRU_",
    "att_W_1": "Set2VecOutput/att_W_1",
    "set2set": "Set2VecOutput/output_LSTMLoopAtt",
    "hidden_layer": "Set2VecOutput/",
    "output": "Set2VecOutput/output_",
}
_GATES = {"i": "i", "f": "f", "o": "o", "g": "c"}


def _nmp_graph(state: State, model: Any) -> GraphsTuple:
    columns = lambda name, axis: np.shape(state.get(name, np.zeros((1,) * 4)))[axis]
    features = columns("Set2VecOutput/att_W_1", -1) - model.features
    return _graph(features, columns("EdgeNetwork/adj_in_edge_nn/W0", 0) - 2)


def _nmp_name(path: tuple[str, ...]) -> str:
    part, *rest = path[1:] if path[0] == "encoder" else path
    prefix = _NMP_PARTS[part]
    letter = "W" if path[-1] == "kernel" else "b"
    if part in ("b", "att_W_1"):
        return prefix
    if part == "gru":
        return prefix + rest[0].lower()
    if part == "set2set":
        gate = _GATES.get(rest[0])
        return prefix + ({"W": "att_W_2", "v": "att_V"}[rest[0]] if gate is None else
                         gate + ("m" if letter == "W" else "b"))  # fmt: skip
    if part == "output":
        return prefix + letter
    if part == "hidden_layer":
        return f"{prefix}{letter}0"
    layer = rest[0].removeprefix("Dense_")
    return prefix + (f"{letter}{layer}" if len(rest) == 2 else f"output_{letter}")


def _nmp_theirs(name: str, array: np.ndarray, signs: Signs) -> np.ndarray:
    if name.endswith("att_W_1"):
        return array[None, None]
    return array[None] if "LSTMLoopAtt" in name and array.ndim == 1 else array


def _nmp_ours(name: str, array: np.ndarray, signs: Signs) -> np.ndarray:
    if name.endswith("att_W_1"):
        return array[0, 0]
    return array[0] if "LSTMLoopAtt" in name and name.endswith("b") else array


def _fuchs_graph(state: State, model: Any) -> GraphsTuple:
    """The width of h from the first map W h_i, that of a from the first radial network."""
    columns = lambda ending: next(
        (np.shape(a)[-1] for name, a in state.items() if name.endswith(ending) and np.ndim(a)), 1
    )
    first = "q.transform.0" if isinstance(model, FuchsSE3Transformer) else "kernel_self.0"
    return _graph(columns(first), columns("(0,0).rp.net.0.weight") - 1)


def _fuchs_name(path: tuple[str, ...], blocks: tuple[str, str]) -> str:
    block, head = blocks
    part, *rest = path[1:] if path[0] == "encoder" else path
    leaf = "bias" if path[-1] == "bias" else "weight"
    if part == "graph_dec":
        return f"{head}.{2 * int(rest[0].removeprefix('Dense_'))}.{leaf}"
    kind, _, k = part.partition("_")
    if kind == "norm":
        return f"{block}.{2 * int(k) + 1}.transform.{rest[0]}.0.bn.{leaf}"
    prefix = f"{block}.{2 * int(k)}"
    if rest[0] == "self":
        return f"{prefix}.kernel_self.{rest[1]}"
    if rest[0] in ("q", "project"):
        return f"{prefix}.{'GMAB.' * (rest[0] == 'q')}{rest[0]}.transform.{rest[1]}"
    module, _, place = rest[2].partition("_")
    net = f"{3 * int(place) + (module == 'LayerNorm')}{'.bn' * (module == 'LayerNorm')}"
    where = f"GMAB.{rest[0]}." if rest[0] in ("v", "k") else ""
    return f"{prefix}.{where}kernel_unary.{rest[1]}.rp.net.{net}.{leaf}"


def _with_signs(name: str, array: np.ndarray, signs: Signs) -> np.ndarray:
    """Weights (C C' J, …) of the last layer of a radial network, each times the sign of its J."""
    last = re.search(r"\((\d+),(\d+)\)\.rp\.net\.6", name)
    if last is None:
        return array
    l_in, l_out = map(int, last.groups())
    own = [signs.get((l_out, l_in, j), 1) for j in range(abs(l_out - l_in), l_out + l_in + 1)]
    factors = np.tile(np.asarray(own, array.dtype), len(array) // len(own))
    return array * factors.reshape(-1, *(1,) * (array.ndim - 1))


def _fuchs_theirs(name: str, array: np.ndarray, signs: Signs) -> np.ndarray:
    array = array.T[None] if "kernel_self" in name else array.T
    return _with_signs(name, array, signs)


def _fuchs_ours(name: str, array: np.ndarray, signs: Signs) -> np.ndarray:
    array = _with_signs(name, array, signs)
    return array[0].T if "kernel_self" in name else array.T


_COUNTERPARTS: dict[type, Counterpart] = {
    NMP: Counterpart(_nmp_graph, _nmp_name, _nmp_theirs, _nmp_ours),
    FuchsTFN: Counterpart(
        _fuchs_graph, partial(_fuchs_name, blocks=("block0", "block2")), _fuchs_theirs, _fuchs_ours
    ),
    FuchsSE3Transformer: Counterpart(
        _fuchs_graph, partial(_fuchs_name, blocks=("Gblock", "FCblock")), _fuchs_theirs, _fuchs_ours
    ),
}
