"""Parameter names of NMP in its authors' TensorFlow code (brain-research/mpnn)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.interop._names import Entry, pair, width

_NETWORKS = {"A": "EdgeNetwork/adj_in_edge_nn/", "A_out": "EdgeNetwork/adj_out_edge_nn/"}
_LAST = {"hidden_layer": ("", "0"), "output": ("output_", "")}
_LSTM = "Set2VecOutput/output_LSTMLoopAtt"
_GATES = {"i": "i", "f": "f", "o": "o", "g": "c"}


def entries(path: tuple[str, ...], backbone: Any) -> list[Entry]:
    """The entries that hold a parameter of ``Set2SetReadout(NMP(…))``."""
    part, *inner = path
    letter = "W" if path[-1] == "kernel" else "b"
    leading = 0
    if part == "b":
        name = "EdgeNetwork/message_bias"
    elif part == "gru":
        name = f"GRUUpdate/GRU_{inner[0].lower()}"
    elif part == "att_W_1":
        name, leading = "Set2VecOutput/att_W_1", 2
    elif part == "set2set" and inner[0] in _GATES:
        bias = letter == "b"
        name, leading = f"{_LSTM}{_GATES[inner[0]]}{'b' if bias else 'm'}", int(bias)
    elif part == "set2set":
        name = _LSTM + {"W": "att_W_2", "v": "att_V"}[inner[0]]
    elif part in _LAST:
        before, after = _LAST[part]
        name = f"Set2VecOutput/{before}{letter}{after}"
    elif len(inner) == 2:
        name = f"{_NETWORKS[part]}{letter}{inner[0].removeprefix('Dense_')}"
    else:
        name = f"{_NETWORKS[part]}output_{letter}"
    return [Entry(name, transposed=False, leading=leading)]


def graph(given: Mapping[str, np.ndarray], backbone: Any) -> GraphsTuple:
    """A graph with the widths of a state dict."""
    features = width(given, "Set2VecOutput/att_W_1", -1, 0) - backbone.features
    return pair(features, width(given, "EdgeNetwork/adj_in_edge_nn/W0", 0, 2) - 2)
