"""E(n)-equivariant graph neural networks (Satorras, Hoogeboom and Welling, ICML 2021) for JAX."""

from egnn_jax.geometry import random_orthogonal, safe_norm, transform
from egnn_jax.graph import (
    Budget,
    Nodes,
    batch,
    complete_edges,
    complete_graph,
    edge_mask,
    graph_from_adjacency,
    graph_from_edges,
    graph_mask,
    mean_nodes,
    node_mask,
    sum_nodes,
    unbatch,
)
from egnn_jax.models import EGCL, EGNN, GNN, MODELS, TFN, Linear, RadialField, SchNet, SE3Transformer

__all__ = [
    "EGCL",
    "EGNN",
    "GNN",
    "MODELS",
    "TFN",
    "Budget",
    "Linear",
    "Nodes",
    "RadialField",
    "SE3Transformer",
    "SchNet",
    "batch",
    "complete_edges",
    "complete_graph",
    "edge_mask",
    "graph_from_adjacency",
    "graph_from_edges",
    "graph_mask",
    "mean_nodes",
    "node_mask",
    "random_orthogonal",
    "safe_norm",
    "sum_nodes",
    "transform",
    "unbatch",
]
