"""The simplest baseline of Table 2: every particle moves in a straight line."""

from typing import ClassVar

import flax.linen as nn

from egnn_jax.graph.graph import GraphsTuple, require_geometric
from egnn_jax.nn.mlp import Symmetry


class Linear(nn.Module):
    """Linear dynamics x' = x + t v with one learnable time t, initialized to 1.

    Call: takes a graph with x (N, n) and v (N, n); returns it with updated x.

    Raises:
      ValueError: the graph has no velocities.
    """

    symmetry: ClassVar[Symmetry] = "E(n)"

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph)
        nodes = graph.nodes
        if nodes.v is None:
            raise ValueError("the graph has v=None; expected velocities (N, n)")
        t = self.param("time", nn.initializers.ones, (), nodes.x.dtype)
        return graph._replace(nodes=nodes.replace(x=nodes.x + t.astype(nodes.x.dtype) * nodes.v))
