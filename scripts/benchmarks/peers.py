"""PyTorch peers of ``make benchmark``: our rewrite of the authors' EGNN, and egnn-pytorch.

The rewrite concatenates [h_i, h_j, ‖r_ij‖², a_ij], gathers by index and sums by scatter_add. Its
parameters have the authors' names, so their state dicts load unchanged. i is the receiver;
``edges`` is (receivers, senders).
"""

from collections.abc import Mapping
from typing import Any
from unittest import mock

import egnn_pytorch
import torch
from benchmarks.inputs import Unavailable
from torch import Tensor, nn

Edges = tuple[Tensor, Tensor]


def sum_at(i: Tensor, values: Tensor, nodes: int) -> Tensor:
    return values.new_zeros(nodes, values.shape[1]).scatter_add_(
        0, i[:, None].expand_as(values), values
    )


def mlp(inputs: int, width: int, out: int, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, out, bias=bias))


class Layer(nn.Module):
    """Eqs. 3 to 8, as in the authors' ``E_GCL``, ``E_GCL_vel`` and ``E_GCL_mask``."""

    def __init__(
        self,
        inputs: int,
        width: int,
        attributes: int,
        velocity=False,
        attention=False,
        coordinates=True,
    ) -> None:
        super().__init__()
        self.residual = inputs == width
        self.edge_mlp = mlp(2 * inputs + 1 + attributes, width, width).append(nn.SiLU())
        self.node_mlp = mlp(inputs + width, width, width)
        self.coord_mlp = mlp(width, width, 1, bias=False) if coordinates else None
        self.coord_mlp_vel = mlp(inputs, width, 1) if velocity else None
        self.att_mlp = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid()) if attention else None

    def forward(
        self, h: Tensor, x: Tensor, edges: Edges, a=None, v=None, edge_mask=None
    ) -> tuple[Tensor, Tensor]:
        i, j = edges
        r = x[i] - x[j]
        m = self.edge_mlp(
            torch.cat([h[i], h[j], (r**2).sum(1, keepdim=True), *([] if a is None else [a])], dim=1)
        )
        if self.att_mlp is not None:
            m = m * self.att_mlp(m)
        if edge_mask is not None:
            m = m * edge_mask
        if self.coord_mlp is not None:
            dx_ij = torch.clamp(r * self.coord_mlp(m), -100, 100)
            dx = sum_at(i, dx_ij, len(x)) / sum_at(i, torch.ones_like(dx_ij), len(x)).clamp(min=1)
            x = x + dx if self.coord_mlp_vel is None else x + dx + self.coord_mlp_vel(h) * v
        dh = self.node_mlp(torch.cat([h, sum_at(i, m, len(h))], dim=1))
        return h + dh if self.residual else dh, x


class Stack(nn.Module):
    """A stack of layers with the authors' names gcl_0, gcl_1, …"""

    def __init__(
        self, inputs: int, width: int, layers: int, attributes: int, **options: bool
    ) -> None:
        super().__init__()
        for k in range(layers):
            self.add_module(f"gcl_{k}", Layer(width if k else inputs, width, attributes, **options))

    def stacked(self) -> list[nn.Module]:
        return [module for name, module in self.named_children() if name.startswith("gcl_")]


class NBodyEGNN(Stack):
    """The authors' ``EGNN_vel``."""

    def __init__(self, width: int = 64, layers: int = 4) -> None:
        super().__init__(width, width, layers, attributes=2, velocity=True)
        self.embedding = nn.Linear(1, width)

    def forward(self, h: Tensor, x: Tensor, edges: Edges, v: Tensor, a: Tensor) -> Tensor:
        h = self.embedding(h)
        for layer in self.stacked():
            h, x = layer(h, x, edges, a, v)
        return x


class AutoencoderEGNN(Stack):
    """The authors' ``AE_EGNN``, which receives its noise as ``x``.

    It decodes the pairs of ``edges`` instead of a full matrix, so that graphs can be batched.
    """

    def __init__(self, width: int = 64, layers: int = 4) -> None:
        super().__init__(1, width, layers, attributes=1)
        self.w, self.b = nn.Parameter(torch.full((1,), -0.1)), nn.Parameter(torch.ones(1))

    def encode(self, h: Tensor, x: Tensor, edges: Edges, a: Tensor) -> Tensor:
        for layer in self.stacked():
            h, x = layer(h, x, edges, a)
            x = x - 1e-3 * x
        return x

    def forward(self, h: Tensor, x: Tensor, edges: Edges, a: Tensor) -> Tensor:
        z, (i, j) = self.encode(h, x, edges, a), edges
        return torch.sigmoid(self.w * ((z[i] - z[j]) ** 2).sum(1, keepdim=True) + self.b)


class QM9EGNN(Stack):
    """The authors' ``EGNN`` for QM9, on molecules padded to the largest of the batch.

    It computes and masks all n² pairs of atoms.
    """

    def __init__(self, width: int = 128, layers: int = 7) -> None:
        super().__init__(width, width, layers, attributes=0, attention=True, coordinates=False)
        self.embedding, self.node_dec, self.graph_dec = (
            nn.Linear(15, width),
            mlp(width, width, width),
            mlp(width, width, 1),
        )

    def forward(
        self,
        h0: Tensor,
        x: Tensor,
        edges: Edges,
        edge_attr: None,
        node_mask: Tensor,
        edge_mask: Tensor,
        n_nodes: int,
    ) -> Tensor:
        h = self.embedding(h0)
        for layer in self.stacked():
            h, _ = layer(h, x, edges, edge_mask=edge_mask)
        h = self.node_dec(h) * node_mask
        return self.graph_dec(h.view(-1, n_nodes, h.shape[1]).sum(1)).squeeze(1)


class Dense(nn.Module):
    """egnn-pytorch of the same width and depth, with the authors' decoders, on graphs (B, M, …).

    It has no velocities, wider hidden layers, and also computes the pairs (i, i).
    """

    def __init__(self, inputs: int, width: int, layers: int, **options: Any) -> None:
        super().__init__()
        self.embedding, self.node_dec, self.graph_dec = (
            nn.Linear(inputs, width),
            mlp(width, width, width),
            mlp(width, width, 1),
        )
        self.layers = nn.ModuleList(
            egnn_pytorch.EGNN(dim=width, m_dim=width, **options) for _ in range(layers)
        )
        self.w, self.b = nn.Parameter(torch.full((1,), -0.1)), nn.Parameter(torch.ones(1))

    def forward(
        self, h: Tensor, x: Tensor, a: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        h = self.embedding(h)
        for layer in self.layers:
            h, x = layer(h, x, edges=a, mask=mask)
        return h, x

    def pairs(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.w * ((x[:, :, None] - x[:, None]) ** 2).sum(-1) + self.b)

    def molecules(self, h: Tensor, mask: Tensor) -> Tensor:
        return self.graph_dec((self.node_dec(h) * mask[..., None]).sum(1)).squeeze(1)


class TheirAutoencoder(nn.Module):
    """``AE_EGNN`` of a checkout, adapted to take the noise ``x`` and return the pairs of ``edges``.

    The original draws its noise itself and returns the full matrix of one graph.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def load_state_dict(self, state: Mapping[str, Any], **options: Any) -> Any:
        return self.network.load_state_dict(state, **options)

    def forward(self, h: Tensor, x: Tensor, edges: Edges, a: Tensor) -> Tensor:
        if len(a) != len(h) * (len(h) - 1):
            raise Unavailable("the authors' autoencoder takes one graph at a time")
        with mock.patch.object(torch, "randn", return_value=x.clone()):
            return self.network(h, edges, a)[0][edges][:, None]
