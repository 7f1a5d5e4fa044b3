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
_EMBEDDING = {"rbf": "emb.lin_rbf", "messages": "emb.lin"}


def entries(path: tuple[str, ...], backbone: Any) -> list[Entry]:
    """The entries that hold a parameter of ``SumReadout(DimeNetPP(…))``."""
    module, *layer = path
    if layer == ["table"]:  # of 119 node types, 95 there
        raise KeyError("table")
    leaf = "bias" if layer[-1:] == ["bias"] else "weight"
    if module == "frequencies":
        return [Entry("rbf.freq")]
    if module == "embedding":
        return [Entry("emb.emb.weight", transposed=False)]
    if module == "node_dec":  # there, a separate matrix for each part of h'
        rows = backbone.output_features
        return [
            Entry(f"output_blocks.{k}.lin.weight", slice(k * rows, (k + 1) * rows))
            for k in range(backbone.layers + 1)
        ]
    block, _, number = module.partition("_")
    if block == "output":
        return [Entry(f"output_blocks.{number}.{_OUTPUT[layer[0]]}.{leaf}")]
    if block == "layer":
        return [Entry(f"interaction_blocks.{number}.{_LAYER[layer[0]]}.{leaf}")]
    return [Entry(f"{_EMBEDDING[module]}.{leaf}")]


def graph(state_dict: Mapping[str, np.ndarray], backbone: Any) -> GraphsTuple:
    """A graph with the widths of a state dict: h is the one-hot of its elements."""
    return pair(width(state_dict, "emb.emb.weight", 0, 95))
