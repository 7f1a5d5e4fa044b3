"""Parameter names of LieConv in its authors' code (mfinzi/LieConv): ``MolecLieResNet.net``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.interop._names import Entry, pair, width

_LAYER = {
    "norm_in": "0",
    "down": "2.module",
    "norm_down": "3",
    "kernel_0": "5.weightnet.0.module",
    "kernel_norm_0": "5.weightnet.1",
    "kernel_1": "5.weightnet.3.module",
    "kernel_norm_1": "5.weightnet.4",
    "kernel_2": "5.weightnet.6.module",
    "kernel_norm_2": "5.weightnet.7",
    "linear": "5.linear",
    "norm_up": "6",
    "up": "8.module",
}
_LEAF = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def entries(path: tuple[str, ...], backbone: Any) -> list[Entry]:
    """The entries that hold a variable of ``MeanReadout(LieConv(…))``."""
    module, leaf = path
    rows = None
    last = backbone.layers + 1
    outer_modules = {
        "embedding": "0.module",
        "norm_out": f"{last}",
        "node_dec": f"{last + 2}.module",
    }
    if module in outer_modules:
        torch_module = outer_modules[module]
    else:
        _, layer, name = module.split("_", 2)
        torch_module = f"{int(layer) + 1}.net.{_LAYER[name]}"
        if name == "linear" and leaf == "kernel":  # flattened (C, K) there, (K, C) here
            shape = backbone.kernel_channels, backbone.features // 4
            rows = np.arange(shape[0] * shape[1]).reshape(shape).T.reshape(-1)
    return [Entry(f"net.{torch_module}.{_LEAF[leaf]}", rows)]


def graph(state_dict: Mapping[str, np.ndarray], backbone: Any) -> GraphsTuple:
    """A graph with the widths of a state dict."""
    features = width(state_dict, "net.0.module.weight", 1, 15)
    weight = "net.1.net.5.weightnet.0.module.weight"
    columns = width(state_dict, weight, 1, 6 if backbone.lifts else 3)
    return pair(features, columns - 6) if backbone.lifts else pair(features, n=columns)
