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
    part, *inner = path
    leaf = "bias" if path[-1] == "bias" else "weight"
    if part == "graph_dec":
        return [Entry(f"{head}.{2 * int(inner[0].removeprefix('Dense_'))}.{leaf}")]
    kind, _, k = part.partition("_")
    if kind == "norm":
        return [Entry(f"{block}.{2 * int(k) + 1}.transform.{inner[0]}.0.bn.{leaf}")]
    if kind != "layer":
        raise KeyError(part)
    layer, part = f"{block}.{2 * int(k)}", inner[0]
    if part == "self":
        return [Entry(f"{layer}.kernel_self.{inner[1]}", leading=1)]
    if part in ("q", "project"):
        return [Entry(f"{layer}.{'GMAB.' * (part == 'q')}{part}.transform.{inner[1]}")]
    module, _, place = inner[2].partition("_")
    normalized = module == "LayerNorm"
    net = f"{3 * int(place) + normalized}{'.bn' * normalized}"
    where = f"GMAB.{part}." if part in ("v", "k") else ""
    return [Entry(f"{layer}.{where}kernel_unary.{inner[1]}.rp.net.{net}.{leaf}")]


def graph(given: Mapping[str, np.ndarray], backbone: Any) -> GraphsTuple:
    """A graph with the widths of a state dict: that of h from the first map W h_i, that of a from
    the first radial network.
    """

    def columns(ending: str) -> int:
        return width(given, next((n for n in given if n.endswith(ending)), ""), -1, 1)

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
    last = re.search(r"\((\d+),(\d+)\)\.rp\.net\.6", name)
    if last is None:
        return array
    l_in, l_out = map(int, last.groups())
    own = [signs.get((l_out, l_in, j), 1) for j in range(abs(l_out - l_in), l_out + l_in + 1)]
    factors = np.tile(np.asarray(own, array.dtype), len(array) // len(own))
    return array * factors.reshape(-1, *(1,) * (array.ndim - 1))
