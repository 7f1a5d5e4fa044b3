"""The graph autoencoder of section 5.2: any model of Table 1 as encoder, and the decoder of eq.
9.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple, sum_nodes
from egnn_jax.nn.mlp import MLP, Dense, require_positive


class Decoder(nn.Module):
    """The logit of Â_ij from two embeddings (…, n), (…, n) to (…, 1): w ‖z_i − z_j‖² + b, eq. 9,
    from w = -0.1, b = 1.

    Args:
      linear: weigh each squared difference by itself, as the authors do for GNN encoders; starts as
        PyTorch's ``Linear``.
    """

    linear: bool = False

    @nn.compact
    def __call__(self, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
        squared = (z_i - z_j) ** 2
        if self.linear:
            return Dense(1, name="linear")(squared)
        w = self.param("w", nn.initializers.constant(-0.1), (1,), squared.dtype)
        b = self.param("b", nn.initializers.ones, (1,), squared.dtype)
        return w * jnp.sum(squared, axis=-1, keepdims=True) + b


class Autoencoder(nn.Module):
    """Embeds the nodes of a graph, and tells its edges from the embeddings.

    Args:
      encoder: a model.
      embedding: what of the encoder's output is the embedding z (N, n): "x", decoded by eq. 9, or
        "h", decoded by a linear layer.

    Call: a graph whose edges are the pairs to tell, with attributes a_ij = A_ij, to what the
    encoder makes of its nodes, with the logits of Â_ij (E, 1) as edges.
    """

    encoder: nn.Module
    embedding: Literal["x", "h"] = "x"

    def setup(self) -> None:
        """The decoder that belongs to the embedding."""
        if self.embedding not in ("x", "h"):
            raise ValueError(f"embedding is {self.embedding!r}; expected 'x' or 'h'")
        self.decoder = Decoder(linear=self.embedding == "h")

    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        out = self.encoder(graph)
        z = self.embedded(out)
        return out._replace(edges=self.decode(z[graph.receivers], z[graph.senders]))

    def embedded(self, out: GraphsTuple) -> jax.Array:
        """The embedding z (N, n) in the output of the encoder."""
        return out.nodes.x if self.embedding == "x" else out.nodes.h

    def decode(self, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
        """Logits (…, 1) of pairs of embeddings (…, n)."""
        return self.decoder(z_i, z_j)


class Readout(nn.Module):
    """Linear·SiLU·Linear at each node, the sum over the nodes of a graph, and Linear·SiLU·Linear.

    Args:
      encoder: a model.
      outputs: how many numbers to tell of each graph.

    Call: a graph to what the encoder makes of it, with globals (G, outputs).

    Raises:
      ValueError: ``outputs`` is below 1.
    """

    encoder: nn.Module
    outputs: int = 1

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(outputs=self.outputs)
        out = self.encoder(graph)
        width = out.nodes.h.shape[-1]
        of_nodes = MLP(width, width, name="node_dec")(out.nodes.h)
        return out._replace(
            globals=MLP(width, self.outputs, name="graph_dec")(sum_nodes(out, of_nodes))
        )
