"""PyTorch cases of ``make benchmark``: batches, networks and losses."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import torch
from benchmarks.peers import QM9EGNN, AutoencoderEGNN, Dense, NBodyEGNN, TheirAutoencoder
from torch import Tensor, nn
from torch.nn import functional as F

from egnn_jax.data.molecular_graphs import atom_features
from egnn_jax.experiments.autoencoder import GraphAutoencoder
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.qm9 import QM9
from egnn_jax.graph.build import complete_edges
from egnn_jax.graph.graph import GraphsTuple

DEVICE = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
"""Device of the peers, the same kind as our network's."""


@dataclass(frozen=True)
class Case:
    """Functions that build and call the networks of a case, and compute their loss.

    Attributes:
      load: converts one of our batches to tensors.
      authors: builds our rewrite of the authors' network.
      predict: calls that network, or one of a checkout.
      dense: builds the network of egnn-pytorch.
      predict_dense: calls the network of egnn-pytorch.
      checkout: builds the network of a checkout of the authors' repository.
      loss: computes the loss of predictions.
    """

    load: Callable[[Any], SimpleNamespace]
    authors: Callable[[], nn.Module]
    predict: Callable[[nn.Module, SimpleNamespace], Tensor]
    dense: Callable[[], nn.Module]
    predict_dense: Callable[[nn.Module, SimpleNamespace], Tensor]
    checkout: Callable[[], nn.Module]
    loss: Callable[[Tensor, SimpleNamespace], Tensor]


def tensor(a: Any) -> Tensor:
    return torch.from_numpy(np.array(a)).to(DEVICE)


def nbody(task: NBody) -> Case:
    """N-body: speeds and squared distances are computed in each step, as in the authors' code."""

    def load(batch: Any) -> SimpleNamespace:
        n_graph, n_node, _ = batch.x.shape
        offsets = np.arange(n_graph)[:, None] * n_node
        senders, receivers = ((offsets + nodes).reshape(-1) for nodes in complete_edges(n_node))
        charges = batch.charges.reshape(-1, 1)
        return SimpleNamespace(
            **{name: tensor(getattr(batch, name).reshape(-1, 3)) for name in ("x", "v", "target")},
            edges=(tensor(receivers), tensor(senders)),
            a=tensor(charges[receivers] * charges[senders]),
            products=tensor((batch.charges[:, :, None] * batch.charges[:, None])[..., None]),
        )

    def predict(network: nn.Module, b: SimpleNamespace) -> Tensor:
        i, j = b.edges
        squared = ((b.x[i] - b.x[j]) ** 2).sum(1, keepdim=True)
        return network(
            b.v.norm(dim=1, keepdim=True), b.x, b.edges, b.v, torch.cat([b.a, squared], dim=1)
        )

    def predict_dense(network: nn.Module, b: SimpleNamespace) -> Tensor:
        x, speed = (a.view(*b.products.shape[:2], -1) for a in (b.x, b.v.norm(dim=1)))
        squared = ((x[:, :, None] - x[:, None]) ** 2).sum(-1, keepdim=True)
        return network(speed, x, torch.cat([b.products, squared], dim=-1))[1].view(-1, 3)

    def checkout() -> nn.Module:
        return importlib.import_module("n_body_system.model").EGNN_vel(
            1, 2, 64, device=DEVICE, n_layers=4, recurrent=True
        )

    def loss(predicted: Tensor, b: SimpleNamespace) -> Tensor:
        return F.mse_loss(predicted, b.target)

    return Case(
        load, NBodyEGNN, predict, lambda: Dense(1, 64, 4, edge_dim=2), predict_dense, checkout, loss
    )


def autoencoder(task: GraphAutoencoder) -> Case:
    """Autoencoder: complete graphs, a = A; a batch's ``noise`` (N, 8), if any, is not redrawn."""

    def load(batch: GraphsTuple) -> SimpleNamespace:
        n_node, n_edge = batch.n_node[:-1], batch.n_edge[:-1].sum()
        i, j, a = (values[:n_edge] for values in (batch.receivers, batch.senders, batch.edges.a))
        mask = node_mask(n_node)
        pairs = pair_mask(mask)
        matrices = np.zeros((*pairs.shape, 1), np.float32)
        matrices[pairs] = a
        nodes = torch.ones(int(n_node.sum()), 1, device=DEVICE)
        return SimpleNamespace(
            h=nodes,
            edges=(tensor(i.astype(int)), tensor(j.astype(int))),
            a=tensor(a),
            graphs=len(n_node),
            noise=None,
            mask=tensor(mask),
            pairs=tensor(pairs),
            matrices=tensor(matrices),
        )

    def predict(network: nn.Module, b: SimpleNamespace) -> Tensor:
        noise = (
            torch.randn(len(b.h), task.dimensions, device=DEVICE) if b.noise is None else b.noise
        )
        return network(b.h, noise, b.edges, b.a)

    def predict_dense(network: nn.Module, b: SimpleNamespace) -> Tensor:
        x = torch.randn(*b.mask.shape, task.dimensions, device=DEVICE)
        return network.pairs(network(torch.ones_like(x[..., :1]), x, b.matrices, b.mask)[1])[
            b.pairs
        ][:, None]

    def checkout() -> nn.Module:
        network = importlib.import_module("models").AE_EGNN(
            64, K=task.dimensions, device=DEVICE, n_layers=4, reg=1e-3, clamp=1
        )
        return TheirAutoencoder(network)

    def loss(predicted: Tensor, b: SimpleNamespace) -> Tensor:
        return F.binary_cross_entropy(predicted, b.a, reduction="sum") / b.graphs

    return Case(
        load,
        AutoencoderEGNN,
        predict,
        lambda: Dense(1, 64, 4, edge_dim=1),
        predict_dense,
        checkout,
        loss,
    )


def qm9(task: QM9) -> Case:
    """QM9: molecules padded to the largest of their batch."""

    def load(batch: GraphsTuple) -> SimpleNamespace:
        n_node = batch.n_node[:-1]
        h, x = (
            np.asarray(a)[: n_node.sum()] for a in (atom_features(batch.nodes.h), batch.nodes.x)
        )
        return molecules(n_node, h, x, batch.globals.y[:-1, 0])

    def predict(network: nn.Module, b: SimpleNamespace) -> Tensor:
        return network(b.h, b.x, b.edges, None, b.node_mask, b.edge_mask, b.n_nodes)

    def predict_dense(network: nn.Module, b: SimpleNamespace) -> Tensor:
        h, x, mask = (a.view(len(b.label), b.n_nodes, -1) for a in (b.h, b.x, b.node_mask))
        return network.molecules(network(h, x, mask=mask[..., 0] > 0)[0], mask[..., 0])

    def checkout() -> nn.Module:
        return importlib.import_module("qm9.models").EGNN(
            15, 0, 128, device=DEVICE, n_layers=7, attention=1, node_attr=0
        )

    def loss(predicted: Tensor, b: SimpleNamespace) -> Tensor:
        return F.l1_loss(predicted, b.label)

    return Case(
        load,
        QM9EGNN,
        predict,
        lambda: Dense(15, 128, 7, soft_edges=True, update_coors=False),
        predict_dense,
        checkout,
        loss,
    )


def node_mask(n_node: np.ndarray) -> np.ndarray:
    """Mask (B, M), True at the first ``n_node[b]`` nodes of graph b."""
    return np.arange(n_node.max()) < n_node[:, None]


def pair_mask(mask: np.ndarray) -> np.ndarray:
    """Mask (B, M, M), True at pairs of different nodes that are True in ``mask`` (B, M)."""
    return mask[:, :, None] & mask[:, None] & ~np.eye(mask.shape[1], dtype=bool)


def molecules(
    n_node: np.ndarray, h: np.ndarray, x: np.ndarray, label: np.ndarray
) -> SimpleNamespace:
    """Create a batch for :class:`QM9EGNN` from concatenated nodes (N, …)."""
    mask = node_mask(n_node)
    pairs = pair_mask(mask)
    graph, i, j = np.indices(pairs.shape).reshape(3, -1)

    def fill(values: np.ndarray) -> Tensor:
        out = np.zeros((*mask.shape, values.shape[1]), values.dtype)
        out[mask] = values
        return tensor(out.reshape(mask.size, -1))

    return SimpleNamespace(
        h=fill(h),
        x=fill(x),
        label=tensor(label),
        n_nodes=mask.shape[1],
        edges=(tensor(graph * mask.shape[1] + i), tensor(graph * mask.shape[1] + j)),
        node_mask=tensor(mask.reshape(-1, 1).astype(h.dtype)),
        edge_mask=tensor(pairs.reshape(-1, 1).astype(h.dtype)),
    )
