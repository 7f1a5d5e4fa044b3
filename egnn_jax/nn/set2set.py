"""Set2set (Vinyals et al. 2016): a readout that looks at all nodes of a graph several times."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple, graph_of_node, softmax_nodes, sum_nodes
from egnn_jax.nn.heads import with_predictions
from egnn_jax.nn.mlp import Dense, glorot_bias, require_positive


class Set2Set(nn.Module):
    """q = [q̂, Σ_v α_v s_v] after ``steps`` steps from q = 0 and c = 0, as Gilmer et al. have it.

    In a step the memory moves, c' = f c + i tanh(g) with i, f, g, o = σ(Linear q), and gives
    q̂ = o tanh(c'); the attention is α = softmax_v(vᵀ tanh(W q̂ + s_v)) over the nodes of a graph.

    Args:
      steps: number of steps.

    Call: a graph and s (N, D) of its nodes to q (G, 2 D).
    """

    steps: int

    @nn.compact
    def __call__(self, graph: GraphsTuple, s: jax.Array) -> jax.Array:
        glorot, width = nn.initializers.glorot_uniform(), s.shape[-1]
        gates = [Dense(width, True, glorot, glorot_bias, name=name) for name in "ifgo"]
        attend = Dense(width, False, glorot, name="W")
        v = Dense(1, False, glorot, name="v")
        of, number = graph_of_node(graph), graph.n_node.shape[0]
        q, c = jnp.zeros((number, 2 * width), s.dtype), jnp.zeros((number, width), s.dtype)
        for _ in range(self.steps):
            i, f, g, o = (nn.sigmoid(gate(q)) for gate in gates)
            c = f * c + i * jnp.tanh(g)
            q_hat = o * jnp.tanh(c)
            alpha = softmax_nodes(graph, v(jnp.tanh(attend(q_hat)[of] + s)))
            q = jnp.concatenate([q_hat, sum_nodes(graph, alpha * s)], axis=-1)
        return q


class Set2SetReadout(nn.Module):
    """Predictions for whole graphs: Linear ReLU Linear of set2set over s_v = W [h'_v, h_v].

    h' is what the encoder makes of h; where h is kinds of nodes, s_v = W h'_v.

    Args:
      encoder: a backbone, such as :class:`egnn_jax.NMP`.
      outputs: how many numbers are predicted for each graph, T.
      mean, scale: as in :class:`egnn_jax.Readout`.
      steps: of :class:`Set2Set`.
      hidden: width of the last hidden layer.

    Call: a graph to what the encoder makes of it, with ``globals.y`` the predictions (G, T).

    Raises:
      ValueError: an option is below 1.
    """

    encoder: nn.Module
    outputs: int = 1
    mean: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0
    steps: int = 12
    hidden: int = 200

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(outputs=self.outputs, steps=self.steps, hidden=self.hidden)
        out, glorot = self.encoder(graph), nn.initializers.glorot_uniform()
        s = out.nodes.h
        if jnp.issubdtype(graph.nodes.h.dtype, jnp.floating):
            s = jnp.concatenate([s, graph.nodes.h], axis=-1)
        s = Dense(s.shape[-1], False, glorot, name="att_W_1")(s)
        q = Set2Set(self.steps, name="set2set")(out, s)
        q = nn.relu(Dense(self.hidden, True, glorot, glorot_bias, name="hidden_layer")(q))
        y = Dense(self.outputs, True, glorot, glorot_bias, name="output")(q)
        return with_predictions(out, y, self.mean, self.scale)
