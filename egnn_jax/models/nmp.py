"""NMP (Gilmer et al. 2017, "enn-s2s"), Table 3: messages through a matrix that a network computes
from each edge, and a gated recurrent unit at each node.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import GraphsTuple, Nodes, edge_vectors, require_geometric
from egnn_jax.nn.dense import checked_layout
from egnn_jax.nn.mlp import Dense, Symmetry, glorot_bias, node_features, require_positive
from egnn_jax.nn.set2set import Set2SetReadout


class EdgeNetwork(nn.Module):
    """Edge network A(e) = Linear·(ReLU·Linear)^hidden_layers, in factored form: the input φ(e) of
    its last layer, and the weights of that layer.

    Call: takes e (E, A); returns [φ, 1] (E, K + 1) and W (d, K + 1, d), with
    A(e)_ab = Σ_k [φ, 1]_k W_bka.
    """

    features: int
    hidden: int
    hidden_layers: int

    @nn.compact
    def __call__(self, e: jax.Array) -> tuple[jax.Array, jax.Array]:
        d, glorot = self.features, nn.initializers.glorot_uniform()
        phi = e
        for _ in range(self.hidden_layers):
            phi = nn.relu(Dense(self.hidden, True, glorot, glorot_bias)(phi))
        kernel = self.param("kernel", glorot, (phi.shape[-1], d * d), e.dtype)
        bias = self.param("bias", glorot_bias, (d * d,), e.dtype)
        ones = jnp.ones((len(e), 1), e.dtype)
        matrices = jnp.concatenate([kernel, bias[None]]).reshape(-1, d, d)
        return jnp.concatenate([phi, ones], axis=1), matrices.transpose(2, 0, 1)


class GRU(nn.Module):
    """Gated recurrent unit without biases h' = (1 − z) h + z h̃ (Cho et al. 2014), for h (…, d) and
    m (…, 2 d).
    """

    @nn.compact
    def __call__(self, h: jax.Array, m: jax.Array) -> jax.Array:
        def linear(x: jax.Array, name: str) -> jax.Array:
            glorot = nn.initializers.glorot_uniform()
            return Dense(h.shape[-1], False, glorot, name=name)(x)

        z = nn.sigmoid(linear(m, "W_z") + linear(h, "U_z"))  # the update gate
        r = nn.sigmoid(linear(m, "W_r") + linear(h, "U_r"))  # the reset gate
        candidate = jnp.tanh(linear(m, "W") + linear(r * h, "U"))  # h̃
        return (1 - z) * h + z * candidate


class NMP(nn.Module):
    """NMP: m_i = [Σ_j A(e_ij) h_j, Σ_j A'(e_ji) h_j] + b and h_i' = GRU(h_i, m_i), ``layers`` times
    with shared parameters.

    e_ij = [1 − Σ a_ij, a_ij, ‖r_ij‖] for the edge from j to i, so its first entry is 1 if a pair
    has none of the bond types a_ij. The sums include j = i, with a = 0 and r = 0; the second sum is
    over the edges that leave i. Self-loops of the graph count in addition. h⁰ is h, padded with
    zeros.

    A(e) = Σ_k φ_k(e) W_k, where the last of the K + 1 φ_k is 1 and its W_k the bias, is never
    formed: Σ_j A(e_ij) h_j = Σ_jk φ_k(e_ij) (W_k h_j) is one matrix product for each graph,
    (M, M (K + 1)) by (M (K + 1), d), with space for M = ``max_nodes`` nodes.

    Args:
      features: width d of h, at least that of the graph's h.
      layers: number of steps T.
      edge_features: width K of the hidden layers of A.
      edge_layers: number of hidden layers of A.
      max_nodes: maximum number of nodes M of a graph; 29 is QM9's largest molecule.

    Call: takes a graph with h (N, F) or (N,), x (N, n) and a (E, A) or None; returns it with h
    (N, features).

    Raises:
      ValueError: a graph has more than ``max_nodes`` (under ``jit`` its h is NaN instead), h is
        wider than ``features``, or an option is below 1.
    """

    symmetry: ClassVar[Symmetry] = "E(n)"
    head: ClassVar[type[nn.Module]] = Set2SetReadout

    features: int = 50
    layers: int = 6
    edge_features: int = 50
    edge_layers: int = 4
    max_nodes: int = 29

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph)
        require_positive(
            features=self.features,
            layers=self.layers,
            edge_features=self.edge_features,
            edge_layers=self.edge_layers,
            max_nodes=self.max_nodes,
        )
        layout, too_large = checked_layout(graph, self.max_nodes)
        # As rows (G M, d): XLA would transpose further axes in the gradients of products.
        h, mask = layout.to_dense(self._padded_features(graph.nodes)), layout.mask[:, None]
        h = h.reshape(len(mask), -1)
        e = self._edge_inputs(graph, h.dtype)
        sizes = self.features, self.edge_features, self.edge_layers
        phi, w = EdgeNetwork(*sizes, name="A")(e)
        phi_out, w_out = EdgeNetwork(*sizes, name="A_out")(e)
        pairs = _merge_last_axes(layout.pair_matrices(graph.receivers, graph.senders, phi[:-1]))
        pairs_out = _merge_last_axes(
            layout.pair_matrices(graph.senders, graph.receivers, phi_out[:-1])
        )
        loop = jnp.einsum("k,dkf->df", phi[-1], w)  # A(e_ii), transposed
        loop_out = jnp.einsum("k,dkf->df", phi_out[-1], w_out)
        b, gru = self.param("b", glorot_bias, (2 * self.features,), h.dtype), GRU(name="gru")
        for _ in range(self.layers):
            m_in = _messages(pairs, w, h) + h @ loop  # Σ_j A(e_ij) h_j
            m_out = _messages(pairs_out, w_out, h) + h @ loop_out  # Σ_j A'(e_ji) h_j
            m = jnp.concatenate([m_in, m_out], axis=-1) + b  # m_i
            h = jnp.where(mask, gru(h, m), 0)  # h_i'
        h_nodes = layout.to_nodes(h.reshape(*layout.shape, -1))
        h = jnp.where(too_large[:, None], jnp.nan, h_nodes).astype(h.dtype)
        return graph._replace(nodes=graph.nodes.replace(h=h))

    def _padded_features(self, nodes: Nodes) -> jax.Array:
        """Initial features h⁰ (N, features): h padded with zeros, or embedded node types."""
        h = node_features(nodes, self.features)
        if h.shape[-1] > self.features:
            raise ValueError(
                f"h has {h.shape[-1]} features; expected at most {self.features}, the width of "
                "NMP, which has no embedding"
            )
        return jnp.pad(h, [(0, 0), (0, self.features - h.shape[-1])])

    def _edge_inputs(self, graph: GraphsTuple, dtype: jnp.dtype) -> jax.Array:
        """Edge inputs e_ij of each edge, and e_ii last, (E + 1, A + 2)."""
        distance = safe_norm(edge_vectors(graph, graph.nodes.x), keepdims=True)
        a = graph.edges.a if graph.edges.a is not None else distance[:, :0]
        e = jnp.concatenate([1 - jnp.sum(a, axis=1, keepdims=True), a, distance], axis=1)
        return jnp.concatenate([e, jnp.eye(1, e.shape[1], dtype=e.dtype)]).astype(dtype)


def _merge_last_axes(pairs: jax.Array) -> jax.Array:
    """Merge the last two axes, (G, M, M, K) to (G, M, M K)."""
    return pairs.reshape(*pairs.shape[:2], -1)


def _messages(pairs: jax.Array, w: jax.Array, h: jax.Array) -> jax.Array:
    """Messages Σ_jk φ_k(e_ij) (W_k h_j) (G M, d) of φ (G, M, M K), W (d, K, d) and h (G M, d)."""
    w_h = h @ w.reshape(len(w), -1)  # W_k h_j
    return (pairs @ w_h.reshape(len(pairs), -1, h.shape[-1])).reshape(h.shape)
