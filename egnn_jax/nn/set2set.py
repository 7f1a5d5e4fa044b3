"""Set2set (Vinyals et al. 2016): a readout that repeatedly attends to all nodes of a graph."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple, graph_of_node, softmax_nodes, sum_nodes
from egnn_jax.nn.heads import Readout
from egnn_jax.nn.mlp import Dense, glorot_bias, require_positive


class Set2Set(nn.Module):
    """Set2set embedding q = [q̂, Σ_j α_j s_j] of a graph with nodes j (Gilmer et al.).

    From q = 0 and c = 0, each step computes the gates i, f, g, o = σ(Linear q), the memory
    c' = f c + i tanh(g), the output q̂ = o tanh(c'), and the attention over the nodes of a graph,
    α = softmax_j(vᵀ tanh(W q̂ + s_j)).

    Args:
      steps: number of steps.

    Call: takes a graph and node features s (N, D); returns q (G, 2 D).
    """

    steps: int

    @nn.compact
    def __call__(self, graph: GraphsTuple, s: jax.Array) -> jax.Array:
        glorot, width = nn.initializers.glorot_uniform(), s.shape[-1]
        gates = [Dense(width, True, glorot, nn.initializers.zeros, name=name) for name in "ifgo"]
        attend = Dense(width, False, glorot, name="W")
        v = Dense(1, False, glorot, name="v")
        graph_index, n_graph = graph_of_node(graph), graph.n_node.shape[0]
        q, c = jnp.zeros((n_graph, 2 * width), s.dtype), jnp.zeros((n_graph, width), s.dtype)
        for _ in range(self.steps):
            i, f, g, o = (nn.sigmoid(gate(q)) for gate in gates)
            c = f * c + i * jnp.tanh(g)
            q_hat = o * jnp.tanh(c)
            alpha = softmax_nodes(graph, v(jnp.tanh(attend(q_hat)[graph_index] + s)))
            q = jnp.concatenate([q_hat, sum_nodes(graph, alpha * s)], axis=-1)
        return q


class Set2SetReadout(Readout):
    """Predict properties of whole graphs by Linear·ReLU·Linear of set2set over s_j = W [h'_j, h_j].

    h' is the encoder's output for h; if h holds node types, s_j = W h'_j.

    Other arguments, call and errors are as in :class:`egnn_jax.Readout`.

    Args:
      steps: number of steps of set2set.
      hidden: width of the last hidden layer.
    """

    steps: int = 12
    hidden: int = 200

    def _read(self, out: GraphsTuple, graph: GraphsTuple) -> jax.Array:
        require_positive(steps=self.steps, hidden=self.hidden)
        glorot = nn.initializers.glorot_uniform()
        s = out.nodes.h
        if jnp.issubdtype(graph.nodes.h.dtype, jnp.floating):
            s = jnp.concatenate([s, graph.nodes.h], axis=-1)
        s = Dense(s.shape[-1], False, glorot, name="att_W_1")(s)
        q = Set2Set(self.steps, name="set2set")(out, s)
        q = nn.relu(Dense(self.hidden, True, glorot, glorot_bias, name="hidden_layer")(q))
        return Dense(self.outputs, True, glorot, glorot_bias, name="output")(q)
