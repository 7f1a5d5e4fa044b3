"""E(n)-equivariant layer of Satorras, Hoogeboom and Welling, ICML 2021, section 3."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph._arrays import require_embedded
from egnn_jax.graph._validation import require_not_negative, require_positive_number
from egnn_jax.graph.exchange import exchange
from egnn_jax.graph.geometry import above_zero, safe_norm
from egnn_jax.graph.graph import (
    GraphsTuple,
    edge_vectors,
    graph_of_node,
    in_degree,
    max_at_receivers,
    mean_at_receivers,
    require_geometric,
    sum_at_receivers,
    total_nodes,
)
from egnn_jax.nn.edge_blocks import sum_in_blocks
from egnn_jax.nn.mlp import (
    MLP,
    Activation,
    Dense,
    EdgeMLP,
    require_option,
    require_positive,
    small_kernel,
    with_attributes,
)
from egnn_jax.nn.radial import bessel_basis, polynomial_envelope

Velocity = Literal["input", "carried"]
CoordinateAggregation = Literal["mean", "sum", "all_nodes"]
Aggregation = Literal["sum", "mean", "max"]

_AGGREGATIONS = {
    "sum": sum_at_receivers,
    "mean": mean_at_receivers,
    "max": max_at_receivers,
}


class EGCL(nn.Module):
    """Equivariant graph convolutional layer, eqs. 3 to 8.

    Where the paper and the authors' released code differ, the default is:

    =================  ==========================  ================================================
    quantity           default                     alternative
    =================  ==========================  ================================================
    C of eq. 4         1 / in-degree (code)        ``coordinate_aggregation="all_nodes"``: 1/(M-1)
    h' of eq. 6        h + φ_h(h, m) (code)        ``residual=False``: φ_h(h, m)
    v of eq. 7         input v in every layer      ``velocity="carried"``: v' of the previous layer
    eq. 8              e_ij m_ij also in φ_x       the paper weights only the sum m_i
                       (code)
    r_ij φ_x(m_ij)     unbounded (paper)           ``clip=100.0``: each component clipped (code);
                                                   not equivariant where it clips
    x', autoencoder    x' (paper)                  ``shrinkage=1e-3``: (1 - 1e-3) x' (code);
                                                   equivariant about the origin only
    =================  ==========================  ================================================

    Args:
      features: width of messages, hidden layers and h'.
      activation: an elementwise function, or its name in ``jax.nn``, for example "silu".
      aggregation: m_i of eq. 5: "sum", "mean" or "max" of m_ij over j, or a function of a graph
        and m_ij (E, features) that returns (N, features).
      velocity: the velocity that eq. 7 multiplies with φ_v(h), if the graph has velocities:
        "input" keeps v as given, x' = x + C Σ r φ_x + φ_v(h) v; "carried" returns v', x' = x + v'.
      infer_edges: weight messages by e_ij = sigmoid(linear(m_ij)), eq. 8.
      coordinate_aggregation: C of eq. 4: "mean" 1/in-degree, "sum" 1, "all_nodes" 1/(M-1).
      normalize: divide r_ij by its length + 1e-8. Without a cutoff, gradients treat this length as
        constant, as in the authors' code.
      tanh: bound φ_x to (-1, 1).
      clip: bound each component of r_ij φ_x(m_ij) to ±clip.
      update_coordinates: False leaves x and v unchanged (the invariant network of QM9).
      residual: add h to φ_h.
      shrinkage: multiply x' by 1 - shrinkage.
      cutoff: multiply m_ij and r_ij φ_x(m_ij) by an envelope that goes to 0 at this distance (unit
        of x) with two continuous derivatives, as required for forces on a radius graph.
      num_rbf: pass φ_e this many Bessel functions of the distance up to the cutoff, not ‖r_ij‖².
      edge_block: sum messages over blocks of this many edges, recomputed in the backward pass.
        Memory then grows with nodes instead of edges, at the cost of a third more matrix products.
        All edges at once if not given.

    Call: takes a graph with h (N, F), x (N, n), v (N, n) or None and a (E, A) or None; returns it
    with h (N, features). The cutoff applies to distances between the coordinates ``first`` (N, n),
    by default x: pass the x of the network's input if previous layers have moved x.

    Raises:
      ValueError: an option is unknown, ``residual`` is set but F differs from ``features``,
        ``edge_block`` is used without aggregation "sum", ``num_rbf`` without ``cutoff``, or
        ``cutoff`` with a mean or maximum over neighbors, whose number jumps at the cutoff.
    """

    features: int = 64
    activation: Activation = "silu"
    aggregation: Aggregation | Callable[[GraphsTuple, jax.Array], jax.Array] = "sum"
    velocity: Velocity = "input"
    infer_edges: bool = False
    coordinate_aggregation: CoordinateAggregation = "mean"
    normalize: bool = False
    tanh: bool = False
    clip: float | None = None
    update_coordinates: bool = True
    residual: bool = True
    shrinkage: float = 0.0
    cutoff: float | None = None
    num_rbf: int | None = None
    edge_block: int | None = None

    def setup(self) -> None:
        """Create the MLPs: Linear·SiLU·Linear, but φ_inf is linear and φ_e has a second SiLU."""
        self.phi_e = EdgeMLP(self.features, activation=self.activation)
        self.phi_inf = Dense(1)
        self.phi_x = MLP(
            self.features, 1, self.activation, use_bias=False, kernel_init=small_kernel
        )
        self.phi_v = MLP(self.features, 1, self.activation)
        self.phi_h = MLP(self.features, self.features, self.activation)

    def __call__(self, graph: GraphsTuple, first: jax.Array | None = None) -> GraphsTuple:
        self._require_valid(graph)
        h, x, v = graph.nodes.h, graph.nodes.x, graph.nodes.v
        a_ij = graph.edges.a
        n_s = (self.num_rbf or 1) + (0 if a_ij is None else a_ij.shape[-1])
        projected = self.phi_e.at_nodes(graph, h, n_s)
        x_all, first = exchange(graph, jax.tree.map(jnp.asarray, (x, first)))

        def messages(layer: EGCL, graph: GraphsTuple) -> tuple[jax.Array, jax.Array | None]:
            r_ij = edge_vectors(graph, x_all)
            s_ij = with_attributes(graph, layer._distance_features(r_ij))
            m_ij = layer.phi_e.at_edges(graph, projected, s_ij)  # eq. 3
            if layer.infer_edges:
                m_ij *= nn.sigmoid(layer.phi_inf(m_ij))  # eq. 8
            dx_ij = layer._coordinate_messages(r_ij, m_ij) if layer.update_coordinates else None
            if layer.cutoff is not None:
                r_first = r_ij if first is None else edge_vectors(graph, first)
                envelope = polynomial_envelope(safe_norm(r_first, keepdims=True), layer.cutoff)
                m_ij *= envelope.astype(m_ij.dtype)
                dx_ij = None if dx_ij is None else dx_ij * envelope
            return m_ij, dx_ij

        if self.edge_block is None:
            aggregate: Any = self.aggregation
            aggregate = aggregate if callable(aggregate) else _AGGREGATIONS[aggregate]
            m_ij, dx_ij = messages(self, graph)
            m_i = aggregate(graph, m_ij)  # eq. 5
            dx = None if dx_ij is None else sum_at_receivers(graph, dx_ij)
        else:
            dx_zeros = jnp.zeros_like(x) if self.update_coordinates else None
            zeros = jnp.zeros_like(h, shape=(x.shape[0], self.features)), dx_zeros
            m_i, dx = sum_in_blocks(self, messages, graph, self.edge_block, zeros)

        if dx is not None:
            dx *= self._coordinate_scale(graph, x.dtype)  # eq. 4
            if v is not None:
                dx += self.phi_v(h).astype(x.dtype) * v  # eq. 7
                v = dx if self.velocity == "carried" else v
            x = x + dx
            if self.shrinkage:
                x *= 1 - self.shrinkage

        dh = self.phi_h(jnp.concatenate([h, m_i], axis=-1))  # eq. 6
        h = h + dh if self.residual else dh
        return graph._replace(nodes=graph.nodes.replace(h=h, x=x, v=v))

    def _distance_features(self, r_ij: jax.Array) -> jax.Array:
        """‖r_ij‖² (E, 1), or Bessel functions of the distance (E, num_rbf)."""
        if self.num_rbf is None:
            return jnp.sum(r_ij**2, axis=-1, keepdims=True)
        assert self.cutoff is not None
        return bessel_basis(safe_norm(r_ij), self.num_rbf, self.cutoff)

    def _coordinate_messages(self, r_ij: jax.Array, m_ij: jax.Array) -> jax.Array:
        """Coordinate messages r_ij φ_x(m_ij), (E, n)."""
        weight = self.phi_x(m_ij).astype(r_ij.dtype)
        if self.tanh:
            weight = jnp.tanh(weight)
        if self.normalize:
            length = safe_norm(r_ij, keepdims=True)
            # As in the authors' code; with a cutoff, the output may be an energy with forces.
            length = jax.lax.stop_gradient(length) if self.cutoff is None else length
            r_ij /= above_zero(length)
        dx_ij = r_ij * weight
        return dx_ij if self.clip is None else jnp.clip(dx_ij, -self.clip, self.clip)

    def _coordinate_scale(self, graph: GraphsTuple, dtype: jnp.dtype) -> jax.Array:
        """Coefficient C of eq. 4, (N, 1) or a scalar."""
        if self.coordinate_aggregation == "mean":
            return 1 / jnp.maximum(in_degree(graph), 1)
        if self.coordinate_aggregation == "sum":
            return jnp.ones((), dtype)
        other_nodes = jnp.maximum(total_nodes(graph) - 1, 1).astype(dtype)
        return 1 / other_nodes[graph_of_node(graph)][:, None]

    def _require_valid(self, graph: GraphsTuple) -> None:
        require_geometric(graph)
        optional = {"edge_block": self.edge_block, "num_rbf": self.num_rbf}
        require_positive(optional, features=self.features)
        require_option("velocity", self.velocity, Velocity)
        require_option("coordinate_aggregation", self.coordinate_aggregation, CoordinateAggregation)
        if not callable(self.aggregation):
            require_option("aggregation", self.aggregation, Aggregation)
        if self.edge_block is not None and self.aggregation != "sum":
            raise ValueError(f"aggregation is {self.aggregation!r}; edge_block expects 'sum'")
        if self.clip is not None:
            require_positive_number(clip=self.clip)
        require_not_negative(shrinkage=self.shrinkage)
        self._require_smooth()
        h = graph.nodes.h
        require_embedded(h)
        if self.residual and h.shape[-1] != self.features:
            raise ValueError(
                f"h has {h.shape[-1]} features; expected {self.features}, since residual=True adds "
                "h to φ_h(h, m)"
            )

    def _require_smooth(self) -> None:
        """Raise ValueError if the output would not be smooth at the cutoff."""
        if self.cutoff is None:
            if self.num_rbf is not None:
                raise ValueError(f"num_rbf is {self.num_rbf} without a cutoff; expected both")
            return
        require_positive_number(cutoff=self.cutoff)
        aggregations = {"aggregation": self.aggregation}
        if self.update_coordinates:
            aggregations["coordinate_aggregation"] = self.coordinate_aggregation
        for name, value in aggregations.items():
            if value in ("mean", "max"):
                expected = "'sum'" if name == "aggregation" else "'sum' or 'all_nodes'"
                raise ValueError(
                    f"{name} is {value!r} with a cutoff, where the number of neighbors jumps; "
                    f"expected {expected}"
                )
