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
    part, leaf = path
    rows = None
    last = backbone.layers + 1
    outside = {"embedding": "0.module", "norm_out": f"{last}", "node_dec": f"{last + 2}.module"}
    if part in outside:
        place = outside[part]
    else:
        _, layer, name = part.split("_", 2)
        place = f"{int(layer) + 1}.net.{_LAYER[name]}"
        if name == "linear" and leaf == "kernel":  # they flatten (C, K), we (K, C)
            sizes = backbone.kernel_channels, backbone.features // 4
            rows = np.arange(sizes[0] * sizes[1]).reshape(sizes).T.reshape(-1)
    return [Entry(f"net.{place}.{_LEAF[leaf]}", rows)]


def graph(given: Mapping[str, np.ndarray], backbone: Any) -> GraphsTuple:
    """A graph with the widths of a state dict."""
    features = width(given, "net.0.module.weight", 1, 15)
    read = width(given, "net.1.net.5.weightnet.0.module.weight", 1, 6 if backbone.lifts else 3)
    return pair(features, read - 6) if backbone.lifts else pair(features, n=read)
