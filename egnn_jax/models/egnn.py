"""E(n)-equivariant graph neural networks, Satorras, Hoogeboom and Welling, ICML 2021, section 3."""

from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.geometry import safe_norm
from egnn_jax.graph import GraphsTuple, graph_of_node, in_degree, sum_at_receivers
from egnn_jax.models.mlp import MLP, Dense, EdgeMLP, Symmetry, require_positive, small_kernel


class EGCL(nn.Module):
    """One equivariant graph convolutional layer, eqs. 3 to 8.

    Where the paper and the authors' released code differ, the default is the code's:

    ==============================  ==========================  ============================================
    what                            default                     the other
    ==============================  ==========================  ============================================
    C of eq. 4                      1 / in-degree (code)        ``coordinate_aggregation="all_nodes"``: 1/(M-1)
    h' of eq. 6                     h + φ_h(h, m) (code)        ``residual=False``: φ_h(h, m)
    v of eq. 7                      input v in every layer      ``velocity="carried"``: v' of the layer before
    m_ij in φ_x, edges inferred     e_ij m_ij (code)            the paper weighs only the sum of eq. 8
    r_ij φ_x(m_ij)                  unbounded (paper)           ``clip=100.0``: each component clipped (code),
                                                                which is not equivariant where it acts
    x' of the autoencoder           x' (paper)                  ``shrinkage=1e-3``: (1 - 1e-3) x' (code), which
                                                                is equivariant about the origin only
    ==============================  ==========================  ============================================

    Args:
      features: width of messages, hidden layers and h'.
      velocity: the velocity that eq. 7 multiplies with φ_v(h), used where the graph has one:
        "input" keeps v as given, x' = x + C Σ r φ_x + φ_v(h) v; "carried" returns v' and x' = x + v'.
      infer_edges: weigh messages by e_ij = sigmoid(linear(m_ij)), eq. 8.
      coordinate_aggregation: C of eq. 4: "mean" 1/in-degree, "sum" 1, "all_nodes" 1/(M-1).
      normalize: divide r_ij by its length (held constant in the gradient) plus 1e-8.
      tanh: bound φ_x to (-1, 1).
      clip: bound each component of r_ij φ_x(m_ij) to ±clip.
      update_coordinates: False leaves x and v alone (the invariant network of QM9).
      residual: add h to φ_h.
      shrinkage: multiply x' by 1 - shrinkage.

    Call: a graph with h (N, F), x (N, n), v (N, n) or None and edges (E, A) or None, to the same with h (N, features).

    Raises:
      ValueError: an option is unknown, or ``residual`` where F differs from ``features``.
    """

    features: int
    velocity: Literal["input", "carried"] = "input"
    infer_edges: bool = False
    coordinate_aggregation: Literal["mean", "sum", "all_nodes"] = "mean"
    normalize: bool = False
    tanh: bool = False
    clip: float | None = None
    update_coordinates: bool = True
    residual: bool = True
    shrinkage: float = 0.0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        h, x, v = graph.nodes.h, graph.nodes.x, graph.nodes.v
        require_positive(features=self.features)
        if self.velocity not in ("input", "carried"):
            raise ValueError(f"velocity is {self.velocity!r}; expected 'input' or 'carried'")
        if self.residual and h.shape[-1] != self.features:
            raise ValueError(f"h has {h.shape[-1]} features; expected {self.features}, since residual=True adds h to φ_h(h, m)")

        r_ij = x[graph.receivers] - x[graph.senders]
        s_ij = jnp.sum(r_ij**2, axis=-1, keepdims=True)
        if graph.edges is not None:
            s_ij = jnp.concatenate([s_ij, graph.edges], axis=-1)
        m_ij = EdgeMLP(self.features, name="phi_e")(graph, h, s_ij)  # eq. 3
        if self.infer_edges:
            m_ij *= nn.sigmoid(Dense(1, name="phi_inf")(m_ij))  # eq. 8
        m_i = sum_at_receivers(graph, m_ij)  # eq. 5

        if self.update_coordinates:
            dx = self._displacement(graph, r_ij, m_ij)  # eq. 4
            if v is not None:
                dx += MLP(self.features, 1, name="phi_v")(h) * v  # eq. 7
                v = dx if self.velocity == "carried" else v
            x = x + dx
            if self.shrinkage:
                x *= 1 - self.shrinkage

        dh = MLP(self.features, self.features, name="phi_h")(jnp.concatenate([h, m_i], axis=-1))  # eq. 6
        return graph._replace(nodes=graph.nodes.replace(h=h + dh if self.residual else dh, x=x, v=v))

    def _displacement(self, graph: GraphsTuple, r_ij: jax.Array, m_ij: jax.Array) -> jax.Array:
        """C Σ_j r_ij φ_x(m_ij), (N, n)."""
        weight = MLP(self.features, 1, use_bias=False, kernel_init=small_kernel, name="phi_x")(m_ij)
        if self.tanh:
            weight = jnp.tanh(weight)
        if self.normalize:
            r_ij /= jax.lax.stop_gradient(safe_norm(r_ij, keepdims=True)) + 1e-8
        moves = r_ij * weight
        if self.clip is not None:
            moves = jnp.clip(moves, -self.clip, self.clip)
        total = sum_at_receivers(graph, moves)
        match self.coordinate_aggregation:
            case "mean":
                return total / jnp.maximum(in_degree(graph), 1)
            case "sum":
                return total
            case "all_nodes":
                others = jnp.maximum(jnp.asarray(graph.n_node) - 1, 1).astype(total.dtype)
                return total / others[graph_of_node(graph)][:, None]
            case unknown:
                raise ValueError(f"coordinate_aggregation is {unknown!r}; expected 'mean', 'sum' or 'all_nodes'")


class EGNN(nn.Module):
    """A linear embedding of h and a stack of :class:`EGCL`; E(n)-equivariant in x and v, invariant in h.

    Args:
      features: width of every layer.
      layers: number of EGCLs.
      embed: project h to ``features`` first; otherwise the first layer does, without a residual.
      output_features: project h to this width at the end.
      velocity: see :class:`EGCL`, as for all that follow.
      infer_edges: weigh messages by a learned e_ij, eq. 8.
      coordinate_aggregation: C of eq. 4.
      normalize: divide r_ij by its length.
      tanh: bound φ_x to (-1, 1).
      clip: bound each component of r_ij φ_x(m_ij).
      update_coordinates: False leaves x and v alone.
      residual: add h to φ_h.
      shrinkage: multiply x by 1 - shrinkage after each layer.

    Call: a graph with h (N, F), x (N, n), v (N, n) or None and edges (E, A) or None, to the same graph with
    h (N, output_features or features) and x, v moved.
    """

    symmetry: ClassVar[Symmetry] = "E(n)"

    features: int = 64
    layers: int = 4
    embed: bool = True
    output_features: int | None = None
    velocity: Literal["input", "carried"] = "input"
    infer_edges: bool = False
    coordinate_aggregation: Literal["mean", "sum", "all_nodes"] = "mean"
    normalize: bool = False
    tanh: bool = False
    clip: float | None = None
    update_coordinates: bool = True
    residual: bool = True
    shrinkage: float = 0.0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(features=self.features, layers=self.layers)
        if self.embed:
            graph = graph._replace(nodes=graph.nodes.replace(h=Dense(self.features, name="embedding")(graph.nodes.h)))
        for layer in range(self.layers):
            graph = EGCL(
                features=self.features,
                velocity=self.velocity,
                infer_edges=self.infer_edges,
                coordinate_aggregation=self.coordinate_aggregation,
                normalize=self.normalize,
                tanh=self.tanh,
                clip=self.clip,
                update_coordinates=self.update_coordinates,
                residual=self.residual and graph.nodes.h.shape[-1] == self.features,
                shrinkage=self.shrinkage,
                name=f"layer_{layer}",
            )(graph)
        if self.output_features is not None:
            h = Dense(self.output_features, name="embedding_out")(graph.nodes.h)
            graph = graph._replace(nodes=graph.nodes.replace(h=h))
        return graph
