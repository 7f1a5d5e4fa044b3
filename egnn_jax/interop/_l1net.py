"""Parameter names of L1Net in its authors' code (bkmi/equivariant-benchmark)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.interop._names import Entry, pair, width

_MLP = {"kernel_0": "0.weight", "bias_0": "0.bias", "kernel_1": "2.weight", "bias_1": "2.bias"}

OPTIONS = {"parity": ("ignored",)}
"""Values of options that the authors' code has; others compute something else."""


def entries(path: tuple[str, ...], backbone: Any) -> list[Entry]:
    """The entries that hold a parameter of ``L1NetReadout(L1Net(…))``."""
    module, leaf = path[0], path[-1]
    if path == ("embedding", "kernel"):  # rows of a lookup table, so not transposed
        return [Entry("net.layers.0.weight", transposed=False)]
    if len(path) == 1:
        return [Entry(f"out.mlp.{_MLP[leaf]}")]
    parameter, _, k = leaf.partition("_")
    if parameter != "W":
        raise KeyError(module)
    index = backbone.layers if module == "out" else int(module.removeprefix("layer_"))
    output_index = index - backbone.layers
    layer = f"net.layers.{index + 1}" if output_index < 0 else f"out.layers.{output_index}"
    return [Entry(f"{layer}.0.R.f.weights.{k}")]


def graph(state_dict: Mapping[str, np.ndarray], backbone: Any) -> GraphsTuple:
    """A graph with the widths of a state dict."""
    columns = width(state_dict, "net.layers.1.0.R.f.weights.0", 1, backbone.num_rbf)
    return pair(width(state_dict, "net.layers.0.weight", 0, 1), columns - backbone.num_rbf)
