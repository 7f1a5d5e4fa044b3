"""Message-passing network without symmetry, the first column of Table 1: coordinates are ordinary
features.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from egnn_jax.graph._arrays import require_embedded
from egnn_jax.graph.graph import GraphsTuple, require_geometric, sum_at_receivers
from egnn_jax.nn.mlp import MLP, Dense, EdgeMLP, Symmetry, embed, require_positive
from egnn_jax.nn.precision import compute_dtype


class GNN(nn.Module):
    """Message-passing network m_ij = φ_e(h_i, h_j, a_ij), h_i' = h_i + φ_h(h_i, Σ_j m_ij).

    Args:
      features: width of every layer.
      layers: number of message-passing layers.
      coordinates: embed [x, v] instead of h, and decode x from the last h (the N-body network of
        section 5.1); False uses h and leaves x and v unchanged.
      embed: project the input to ``features`` first; otherwise the first layer does, without a
        residual if the width changes.
      output_features: project h to this width at the end.

    Call: takes a graph with h (N, F), or node types (N,) that are embedded, x (N, n), v (N, n) or
    None and a (E, A) or None; returns it with h (N, output_features or features) and, with
    ``coordinates``, x (N, n) = Linear·SiLU·Linear(h).

    Raises:
      ValueError: a size is not an integer of at least 1.
    """

    symmetry: ClassVar[Symmetry] = "none"

    features: int = 64
    layers: int = 4
    coordinates: bool = True
    embed: bool = True
    output_features: int | None = None

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph)
        optional = {"output_features": self.output_features}
        require_positive(optional, features=self.features, layers=self.layers)
        h, x, v = graph.nodes.h, graph.nodes.x, graph.nodes.v
        if self.coordinates:
            h = (x if v is None else jnp.concatenate([x, v], axis=-1)).astype(compute_dtype(graph))
        if self.embed:
            h = embed(graph.nodes.replace(h=h), self.features)
        require_embedded(h)
        for layer in range(self.layers):
            m_ij = EdgeMLP(self.features, name=f"layer_{layer}_phi_e")(graph, h, graph.edges.a)
            m_i = sum_at_receivers(graph, m_ij)
            dh = MLP(self.features, self.features, name=f"layer_{layer}_phi_h")(
                jnp.concatenate([h, m_i], axis=-1)
            )
            h = h + dh if h.shape[-1] == self.features else dh
        if self.coordinates:
            x = MLP(self.features, x.shape[-1], name="decoder")(h).astype(x.dtype)
        if self.output_features is not None:
            h = Dense(self.output_features, name="embedding_out")(h)
        return graph._replace(nodes=graph.nodes.replace(h=h, x=x))
