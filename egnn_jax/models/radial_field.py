"""Radial Field network (Köhler et al. 2019), Table 1: E(n)-equivariant, without node features."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from egnn_jax.graph._validation import require_not_negative
from egnn_jax.graph.exchange import exchange
from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import (
    GraphsTuple,
    edge_vectors,
    in_degree,
    require_geometric,
    sum_at_receivers,
)
from egnn_jax.nn.mlp import MLP, Symmetry, require_positive, small_kernel, with_attributes
from egnn_jax.nn.precision import compute_dtype


class RadialField(nn.Module):
    """Radial Field network x_i' = x_i + C Σ_j r_ij φ_rf(‖r_ij‖, a_ij) + φ_v(‖v_i‖) v_i.

    C is 1/in-degree, as in the authors' code.

    Args:
      features: width of the hidden layers.
      layers: number of layers.
      tanh: bound φ_rf to (-1, 1).
      shrinkage: multiply x by 1 - shrinkage after each layer, as the authors' autoencoder does;
        this is equivariant about the origin only.

    Call: takes a graph with x (N, n), v (N, n) or None and a (E, A) or None; returns it with
    updated x. h is not used.

    Raises:
      ValueError: a size is below 1, or ``shrinkage`` is not a finite number of at least 0.
    """

    symmetry: ClassVar[Symmetry] = "E(n)"

    features: int = 64
    layers: int = 4
    tanh: bool = True
    shrinkage: float = 0.0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph)
        require_positive(features=self.features, layers=self.layers)
        require_not_negative(shrinkage=self.shrinkage)
        x, v, dtype = graph.nodes.x, graph.nodes.v, compute_dtype(graph)
        for layer in range(self.layers):
            r_ij = edge_vectors(graph, exchange(graph, x))
            s_ij = with_attributes(graph, safe_norm(r_ij, keepdims=True))
            phi_rf = MLP(
                self.features,
                1,
                use_bias=False,
                kernel_init=small_kernel,
                name=f"layer_{layer}_phi_rf",
            )
            weight = phi_rf(s_ij.astype(dtype)).astype(x.dtype)
            m_ij = r_ij * (jnp.tanh(weight) if self.tanh else weight)
            x = x + sum_at_receivers(graph, m_ij) / jnp.maximum(in_degree(graph), 1)
            if v is not None:
                speed = safe_norm(v, keepdims=True).astype(dtype)
                x += MLP(self.features, 1, name=f"layer_{layer}_phi_v")(speed).astype(x.dtype) * v
            if self.shrinkage:
                x *= 1 - self.shrinkage
        return graph._replace(nodes=graph.nodes.replace(x=x))
