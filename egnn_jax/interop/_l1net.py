"""The names that the authors of L1Net (bkmi/equivariant-benchmark) give to its parameters."""

from collections.abc import Mapping

import numpy as np

from egnn_jax.models.l1net import L1Net

AS_THEY_ARE = frozenset({("embedding", "kernel")})
"""Parameters whose axes have the same order in both, such as the rows of an embedding."""


def torch_name(path: tuple[str, ...], model: L1Net) -> str:
    """The authors' name of the parameter of an :class:`egnn_jax.L1Net` or its readout."""
    module, leaf = path[0], path[-1]
    kind, _, k = leaf.rpartition("_")
    if path == ("embedding", "kernel"):
        return "net.layers.0.weight"
    if module in ("kernel_0", "kernel_1", "bias_0", "bias_1"):
        return f"out.mlp.{2 * int(k)}.{'weight' if kind == 'kernel' else 'bias'}"
    if kind != "W":
        raise ValueError(
            f"{'.'.join(path)} has no counterpart in the authors' code; expected a model without "
            "update_coordinates, of graphs without velocities"
        )
    number = int(module.removeprefix("layer_")) if module != "out" else model.layers
    layer = f"net.layers.{number + 1}"  # the embedding is the first
    if number >= model.layers:
        layer = f"out.layers.{number - model.layers}"
    return f"{layer}.0.R.f.weights.{k}"


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The authors' shape of a parameter."""
    return shape if path[-2:] in AS_THEY_ARE else shape[::-1]


def widths(given: Mapping[str, np.ndarray], model: L1Net) -> tuple[int, int]:
    """The numbers of features and of edge attributes that a state dict is for."""
    rows, columns = (
        given[name].shape if name in given else ()
        for name in ("net.layers.0.weight", "net.layers.1.0.R.f.weights.0")
    )
    features = max(rows[0], 1) if len(rows) == 2 else 1
    return features, max(columns[1] - model.basis, 0) if len(columns) == 2 else 0
