"""Parameter names of NMP in its authors' TensorFlow code (brain-research/mpnn)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.interop._names import Entry, pair, width

_NETWORKS = {"A": "EdgeNetwork/adj_in_edge_nn/", "A_out": "EdgeNetwork/adj_out_edge_nn/"}
_OUTPUT_MLP = {"hidden_layer": ("", "0"), "output": ("output_", "")}
_LSTM = "Set2VecOutput/output_LSTMLoopAtt"
_GATES = {"i": "i", "f": "f", "o": "o", "g": "c"}


def entries(path: tuple[str, ...], backbone: Any) -> list[Entry]:
    """The entries that hold a parameter of ``Set2SetReadout(NMP(…))``."""
    module, *layers = path
    letter = "W" if path[-1] == "kernel" else "b"
    leading = 0
    if module == "b":
        name = "EdgeNetwork/message_bias"
    elif module == "gru":
        name = f"GRUUpdate/GRU_{layers[0].lower()}"
    elif module == "att_W_1":
        name, leading = "Set2VecOutput/att_W_1", 2
    elif module == "set2set" and layers[0] in _GATES:
        is_bias = letter == "b"
        name, leading = f"{_LSTM}{_GATES[layers[0]]}{'b' if is_bias else 'm'}", int(is_bias)
    elif module == "set2set":
        name = _LSTM + {"W": "att_W_2", "v": "att_V"}[layers[0]]
    elif module in _OUTPUT_MLP:
        prefix, suffix = _OUTPUT_MLP[module]
        name = f"Set2VecOutput/{prefix}{letter}{suffix}"
    elif len(layers) == 2:
        name = f"{_NETWORKS[module]}{letter}{layers[0].removeprefix('Dense_')}"
    else:
        name = f"{_NETWORKS[module]}output_{letter}"
    return [Entry(name, transposed=False, leading=leading)]


def graph(state_dict: Mapping[str, np.ndarray], backbone: Any) -> GraphsTuple:
    """A graph with the widths of a state dict."""
    features = width(state_dict, "Set2VecOutput/att_W_1", -1, 0) - backbone.features
    return pair(features, width(state_dict, "EdgeNetwork/adj_in_edge_nn/W0", 0, 2) - 2)
