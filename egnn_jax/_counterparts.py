"""Networks of other authors than EGNN's: what their parameters are called, and how they lie in
memory.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from egnn_jax.graph.build import graph_from_edges
from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.models.nmp import NMP
from egnn_jax.nn.set2set import Set2SetReadout

State = Mapping[str, np.ndarray]


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
    theirs: Callable[[str, np.ndarray], np.ndarray]
    ours: Callable[[str, np.ndarray], np.ndarray]


def counterpart_of(model: nn.Module) -> Counterpart | None:
    """The counterpart of a model, in its readout or without; None if it is not in this file."""
    model = getattr(model, "encoder", model)
    return next((c for cls, c in _COUNTERPARTS.items() if isinstance(model, cls)), None)


def _graph(features: int, attributes: int) -> GraphsTuple:
    """Two nodes and an edge."""
    h, a = np.zeros((2, max(features, 1)), np.float32), np.zeros((1, attributes), np.float32)
    x = np.zeros((2, 3), np.float32)
    return graph_from_edges([1], [0], x=x, h=h, a=a if attributes > 0 else None)


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


def _nmp_theirs(name: str, array: np.ndarray) -> np.ndarray:
    if name.endswith("att_W_1"):
        return array[None, None]
    return array[None] if "LSTMLoopAtt" in name and array.ndim == 1 else array


def _nmp_ours(name: str, array: np.ndarray) -> np.ndarray:
    if name.endswith("att_W_1"):
        return array[0, 0]
    return array[0] if "LSTMLoopAtt" in name and name.endswith("b") else array


_COUNTERPARTS: dict[type, Counterpart] = {
    NMP: Counterpart(_nmp_graph, _nmp_name, _nmp_theirs, _nmp_ours),
}

READOUTS = (Set2SetReadout,)
"""The readouts of these networks."""
