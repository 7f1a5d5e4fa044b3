"""LieConv (Finzi et al. 2020) of Table 3, of the translation group: convolutions with a kernel of
the difference of two positions.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph._validation import require_count
from egnn_jax.graph.graph import (
    GraphsTuple,
    PaddedGraphsTuple,
    edge_mask,
    edge_vectors,
    in_degree,
    node_mask,
    require_geometric,
)
from egnn_jax.nn.batch_norm import BatchNorm
from egnn_jax.nn.heads import MeanReadout
from egnn_jax.nn.mlp import Dense, Symmetry, embed, require_positive, silu, with_attributes
from egnn_jax.nn.products import sum_of_products


class LieConv(nn.Module):
    """h_i' = h_i + Linear σ(BN t_i), t_i = Linear mean_{j ∈ N_i} h̃_j ⊗ w(x_i - x_j).

    N_i are the neighbors of i and i itself, h̃ = σ(BN Linear σ(BN h)) the features in a quarter of
    the width, w = σ BN Linear σ BN Linear σ BN Linear the kernel, BN batch normalisation and σ the
    SiLU. h starts linear in the input, and ends as σ(BN h).

    The kernel reads x_i - x_j as it is. So h' stays under translations, while rotations are to be
    learned: ``task.augment`` turns each molecule at random in training, as the authors do.

    Batch normalisation is a pure function of variables in a collection "batch_stats" beside
    "params": see :class:`egnn_jax.nn.batch_norm.BatchNorm`. By default it takes running
    statistics, and no graph depends on others of its batch.

    Args:
      features: width of h.
      layers: number of convolutions.
      kernel_features: width of the two hidden layers of w.
      kernel_channels: how many numbers w gives.

    Call: a graph with h (N, F) or (N,), x (N, n) and a (E, A) or None, which the kernel reads too,
    to the same with h (N, features); x and v stay as they are.

    Raises:
      ValueError: a size is below 1, or ``features`` below 4.
    """

    symmetry: ClassVar[Symmetry] = "T(n)"
    head: ClassVar[type[nn.Module]] = MeanReadout

    features: int = 1536
    layers: int = 6
    kernel_features: int = 32
    kernel_channels: int = 16

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph)
        require_count("features", self.features, 4)
        require_positive(
            layers=self.layers,
            kernel_features=self.kernel_features,
            kernel_channels=self.kernel_channels,
        )
        real, real_pairs = None, None
        if isinstance(graph, PaddedGraphsTuple):
            real = node_mask(graph)
            real_pairs = jnp.concatenate([edge_mask(graph), real])
        h = embed(graph.nodes.h, self.features)
        r_ij = with_attributes(graph, edge_vectors(graph, graph.nodes.x)).astype(h.dtype)
        pairs = jnp.concatenate([r_ij, jnp.zeros((len(h), r_ij.shape[1]), h.dtype)])  # j = i last
        number = (in_degree(graph) + 1).astype(h.dtype)
        for k in range(self.layers):
            name = f"layer_{k}_{{}}".format
            t = silu(BatchNorm(name=name("norm_in"))(h, real))
            t = Dense(self.features // 4, name=name("down"))(t)
            t = silu(BatchNorm(name=name("norm_down"))(t, real))
            w = pairs
            for part, width in enumerate((*(self.kernel_features,) * 2, self.kernel_channels)):
                w = Dense(width, name=name(f"kernel_{part}"))(w)
                w = silu(BatchNorm(name=name(f"kernel_norm_{part}"))(w, real_pairs))
            t = Dense(self.features // 4, name=name("mix"))(_convolve(graph, t, w)) / number
            t = silu(BatchNorm(name=name("norm_up"))(t, real))
            h += Dense(self.features, name=name("up"))(t)
        h = silu(BatchNorm(name="norm_out")(h, real))
        return graph._replace(nodes=graph.nodes.replace(h=h))


def _convolve(graph: GraphsTuple, t: jax.Array, w: jax.Array) -> jax.Array:
    """Σ_{j ∈ N_i} t_j ⊗ w_ij, (N, C) and (E + N, K) to (N, C · K)."""
    of_edges, of_nodes = w[: -len(t)], w[-len(t) :]
    sums = sum_of_products(graph, of_edges, t) + of_nodes[:, :, None] * t[:, None]
    return jnp.swapaxes(sums, 1, 2).reshape(len(t), -1)
