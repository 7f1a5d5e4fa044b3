"""Parameter names of TFN and SE(3)-Transformer in FabianFuchsML/se3-transformer-public."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.interop._names import Entry, host_array, pair, width
from egnn_jax.models.fuchs import FuchsTFN

OPTIONS = {"parity": ("ignored",)}
"""Values of options that the authors' code has; others compute something else."""


def entries(path: tuple[str, ...], backbone: Any) -> list[Entry]:
    """The entries that hold a parameter of a ``MaxReadout`` of one of these two networks."""
    block, head = ("block0", "block2") if isinstance(backbone, FuchsTFN) else ("Gblock", "FCblock")
    module, *layers = path
    leaf = "bias" if path[-1] == "bias" else "weight"
    if module == "graph_dec":
        return [Entry(f"{head}.{2 * int(layers[0].removeprefix('Dense_'))}.{leaf}")]
    prefix, _, k = module.partition("_")
    if prefix == "norm":
        return [Entry(f"{block}.{2 * int(k) + 1}.transform.{layers[0]}.0.bn.{leaf}")]
    if prefix != "layer":
        raise KeyError(module)
    layer, submodule = f"{block}.{2 * int(k)}", layers[0]
    if submodule == "self":
        return [Entry(f"{layer}.kernel_self.{layers[1]}", leading=1)]
    if submodule in ("q", "project"):
        return [Entry(f"{layer}.{'GMAB.' * (submodule == 'q')}{submodule}.transform.{layers[1]}")]
    radial_layer, _, number = layers[2].partition("_")
    is_norm = radial_layer == "LayerNorm"
    net = f"{3 * int(number) + is_norm}{'.bn' * is_norm}"
    attention = f"GMAB.{submodule}." if submodule in ("v", "k") else ""
    return [Entry(f"{layer}.{attention}kernel_unary.{layers[1]}.rp.net.{net}.{leaf}")]


def graph(state_dict: Mapping[str, np.ndarray], backbone: Any) -> GraphsTuple:
    """A graph with the widths of a state dict: that of h from the first map W h_i, that of a from
    the first radial network.
    """

    def columns(suffix: str) -> int:
        name = next((name for name in state_dict if name.endswith(suffix)), "")
        return width(state_dict, name, -1, 1)

    first = "kernel_self.0" if isinstance(backbone, FuchsTFN) else "q.transform.0"
    return pair(columns(first), columns("(0,0).rp.net.0.weight") - 1)


def with_basis_signs(
    state_dict: Mapping[str, Any], signs: Mapping[tuple[int, int, int], float]
) -> dict[str, np.ndarray]:
    """Adapt a state dict of TFN or SE(3)-Transformer by Fuchs et al. to other signs of Q_J.

    Their code computes Q_J by a singular value decomposition, whose signs depend on the machine.
    For each Q_J that is the negative of the one in :class:`egnn_jax.nn.kernels.Filters`, the
    weights must change sign before :func:`from_torch_state_dict` or after
    :func:`to_torch_state_dict`. Applying this twice changes nothing.

    Args:
      state_dict: arrays or PyTorch tensors by name.
      signs: 1 or -1 by the degrees (l, l', J) of Q_J from l' to l; 1 if not given.
    """
    return {name: _signed(name, host_array(array), signs) for name, array in state_dict.items()}


def _signed(
    name: str, array: np.ndarray, signs: Mapping[tuple[int, int, int], float]
) -> np.ndarray:
    """Multiply the rows (C C' J, …) of the last layer of a radial network by the signs of J."""
    match = re.search(r"\((\d+),(\d+)\)\.rp\.net\.6", name)
    if match is None:
        return array
    l_in, l_out = map(int, match.groups())
    degrees = range(abs(l_out - l_in), l_out + l_in + 1)
    degree_signs = [signs.get((l_out, l_in, j), 1) for j in degrees]
    factors = np.tile(np.asarray(degree_signs, array.dtype), len(array) // len(degrees))
    return array * factors.reshape(-1, *(1,) * (array.ndim - 1))
