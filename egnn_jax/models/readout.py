"""Invariant targets of whole graphs, from the features of their nodes (section 5.3)."""

import flax.linen as nn

from egnn_jax.graph import GraphsTuple, sum_nodes
from egnn_jax.models.mlp import MLP, require_positive


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
        return out._replace(globals=MLP(width, self.outputs, name="graph_dec")(sum_nodes(out, of_nodes)))
