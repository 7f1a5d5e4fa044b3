"""Parameter names of DimeNet++ in PyTorch Geometric (``torch_geometric.nn.DimeNetPlusPlus``)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.interop._names import Entry, pair, width

_LAYER = {
    "rbf_1": "lin_rbf1",
    "rbf_2": "lin_rbf2",
    "sbf_1": "lin_sbf1",
    "sbf_2": "lin_sbf2",
    "ji": "lin_ji",
    "kj": "lin_kj",
    "down": "lin_down",
    "up": "lin_up",
    "before_1": "layers_before_skip.0.lin1",
    "before_2": "layers_before_skip.0.lin2",
    "skip": "lin",
    "after_0_1": "layers_after_skip.0.lin1",
    "after_0_2": "layers_after_skip.0.lin2",
    "after_1_1": "layers_after_skip.1.lin1",
    "after_1_2": "layers_after_skip.1.lin2",
}
_OUTPUT = {"rbf": "lin_rbf", "up": "lin_up"} | {f"dense_{k}": f"lins.{k}" for k in range(3)}
_FIRST = {"rbf": "emb.lin_rbf", "messages": "emb.lin"}


def entries(path: tuple[str, ...], backbone: Any) -> list[Entry]:
    """The entries that hold a parameter of ``SumReadout(DimeNetPP(…))``."""
    part, *inner = path
    if inner == ["table"]:  # of 119 node types, 95 there
        raise KeyError("table")
    leaf = "bias" if inner[-1:] == ["bias"] else "weight"
    if part == "frequencies":
        return [Entry("rbf.freq")]
    if part == "embedding":
        return [Entry("emb.emb.weight", transposed=False)]
    if part == "node_dec":  # a separate matrix there for each part of h'
        rows = backbone.output_features
        return [
            Entry(f"output_blocks.{k}.lin.weight", slice(k * rows, (k + 1) * rows))
            for k in range(backbone.layers + 1)
        ]
    kind, _, number = part.partition("_")
    if kind == "output":
        return [Entry(f"output_blocks.{number}.{_OUTPUT[inner[0]]}.{leaf}")]
    if kind == "layer":
        return [Entry(f"interaction_blocks.{number}.{_LAYER[inner[0]]}.{leaf}")]
    return [Entry(f"{_FIRST[part]}.{leaf}")]


def graph(given: Mapping[str, np.ndarray], backbone: Any) -> GraphsTuple:
    """A graph with the widths of a state dict: h is the one-hot of its elements."""
    return pair(width(given, "emb.emb.weight", 0, 95))
