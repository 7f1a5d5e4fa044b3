"""E(n)-equivariant graph neural networks, Satorras, Hoogeboom and Welling, ICML 2021, section 3."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import (
    GraphsTuple,
    add_at_receivers,
    dtype_of_sums,
    edge_attributes,
    edge_vectors,
    graph_of_node,
    in_degree,
    sum_at_receivers,
)
from egnn_jax.nn.mlp import (
    MLP,
    Dense,
    EdgeMLP,
    Symmetry,
    require_positive,
    small_kernel,
    with_attributes,
)


class EGCL(nn.Module):
    """One equivariant graph convolutional layer, eqs. 3 to 8.

    Where the paper and the authors' released code differ, the default is the code's:

    =================  ==========================  =================================================
    what               default                     the other
    =================  ==========================  =================================================
    C of eq. 4         1 / in-degree (code)        ``coordinate_aggregation="all_nodes"``: 1/(M - 1)
    h' of eq. 6        h + φ_h(h, m) (code)        ``residual=False``: φ_h(h, m)
    v of eq. 7         input v in every layer      ``velocity="carried"``: v' of the layer before
    eq. 8              e_ij m_ij also in φ_x       the paper weighs only the sum m_i
                       (code)
    r_ij φ_x(m_ij)     unbounded (paper)           ``clip=100.0``: each component clipped (code);
                                                   not equivariant where it acts
    x', autoencoder    x' (paper)                  ``shrinkage=1e-3``: (1 - 1e-3) x' (code);
                                                   equivariant about the origin only
    =================  ==========================  =================================================

    Args:
      features: width of messages, hidden layers and h'.
      velocity: the velocity that eq. 7 multiplies with φ_v(h), used where the graph has one:
        "input" keeps v as given, x' = x + C Σ r φ_x + φ_v(h) v; "carried" returns v' and x' = x +
        v'.
      infer_edges: weigh messages by e_ij = sigmoid(linear(m_ij)), eq. 8.
      coordinate_aggregation: C of eq. 4: "mean" 1/in-degree, "sum" 1, "all_nodes" 1/(M-1).
      normalize: divide r_ij by its length (held constant in the gradient) plus 1e-8.
      tanh: bound φ_x to (-1, 1).
      clip: bound each component of r_ij φ_x(m_ij) to ±clip.
      update_coordinates: False leaves x and v alone (the invariant network of QM9).
      residual: add h to φ_h.
      shrinkage: multiply x' by 1 - shrinkage.
      edge_block: walk through the edges in blocks of so many, computing each block again in the
        backward pass: memory then grows with the nodes instead of the edges, at the price of a
        third more products. All at once if not given.

    Call: a graph with h (N, F), x (N, n), v (N, n) or None and edges (E, A) or None, to the same
    with h (N, features).

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
    edge_block: int | None = None

    def setup(self) -> None:
        """Linear·SiLU·Linear each, but for φ_inf and the second SiLU of φ_e."""
        self.phi_e = EdgeMLP(self.features)
        self.phi_inf = Dense(1)
        self.phi_x = MLP(self.features, 1, use_bias=False, kernel_init=small_kernel)
        self.phi_v = MLP(self.features, 1)
        self.phi_h = MLP(self.features, self.features)

    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        h, x, v = graph.nodes.h, graph.nodes.x, graph.nodes.v
        require_positive(
            features=self.features,
            **{} if self.edge_block is None else {"edge_block": self.edge_block},
        )
        if self.velocity not in ("input", "carried"):
            raise ValueError(f"velocity is {self.velocity!r}; expected 'input' or 'carried'")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; expected a number above 0, or None")
        if self.residual and h.shape[-1] != self.features:
            raise ValueError(
                f"h has {h.shape[-1]} features; expected {self.features}, since residual=True "
                f"adds h to φ_h(h, m)"
            )
        a_ij = edge_attributes(graph)
        projected = self.phi_e.at_nodes(h, 1 if a_ij is None else 1 + a_ij.shape[-1])

        def messages(layer: EGCL, graph: GraphsTuple) -> tuple[jax.Array, jax.Array | None]:
            r_ij = edge_vectors(graph, x)
            s_ij = with_attributes(graph, jnp.sum(r_ij**2, axis=-1, keepdims=True))
            m_ij = layer.phi_e.at_edges(graph, projected, s_ij)  # eq. 3
            if layer.infer_edges:
                m_ij *= nn.sigmoid(layer.phi_inf(m_ij))  # eq. 8
            return m_ij, layer._moves(r_ij, m_ij) if layer.update_coordinates else None

        if self.edge_block is None:
            m_i, dx = jax.tree.map(partial(sum_at_receivers, graph), messages(self, graph))  # eq. 5
        else:
            sums = (
                jnp.zeros((x.shape[0], self.features), dtype_of_sums(h)),
                jnp.zeros_like(x) if self.update_coordinates else None,
            )
            m_i, dx = sum_in_blocks(self, messages, graph, self.edge_block, sums)
            m_i = m_i.astype(h.dtype)

        if self.update_coordinates:
            dx *= self._mean(graph, x.dtype)  # eq. 4
            if v is not None:
                dx += self.phi_v(h).astype(x.dtype) * v  # eq. 7
                v = dx if self.velocity == "carried" else v
            x = x + dx
            if self.shrinkage:
                x *= 1 - self.shrinkage

        dh = self.phi_h(jnp.concatenate([h, m_i], axis=-1))  # eq. 6
        return graph._replace(
            nodes=graph.nodes.replace(h=h + dh if self.residual else dh, x=x, v=v)
        )

    def _moves(self, r_ij: jax.Array, m_ij: jax.Array) -> jax.Array:
        """r_ij φ_x(m_ij), (E, n)."""
        weight = self.phi_x(m_ij).astype(r_ij.dtype)
        if self.tanh:
            weight = jnp.tanh(weight)
        if self.normalize:
            r_ij /= jax.lax.stop_gradient(safe_norm(r_ij, keepdims=True)) + 1e-8
        moves = r_ij * weight
        return moves if self.clip is None else jnp.clip(moves, -self.clip, self.clip)

    def _mean(self, graph: GraphsTuple, dtype: jnp.dtype) -> jax.Array:
        """C, (N, 1) or a scalar."""
        match self.coordinate_aggregation:
            case "mean":
                return 1 / jnp.maximum(in_degree(graph), 1)
            case "sum":
                return jnp.ones((), dtype)
            case "all_nodes":
                others = jnp.maximum(jnp.asarray(graph.n_node) - 1, 1).astype(dtype)
                return 1 / others[graph_of_node(graph)][:, None]
            case unknown:
                raise ValueError(
                    f"coordinate_aggregation is {unknown!r}; expected 'mean', 'sum' or 'all_nodes'"
                )


def sum_in_blocks(
    layer: nn.Module, messages: Callable[..., Any], graph: GraphsTuple, size: int, sums: Any
) -> Any:
    """Σ_j messages_ij at receivers, ``size`` edges at a time.

    No array over all edges is formed, in the backward pass neither: what a block needs there is
    computed again.

    Args:
      layer: the module whose parameters ``messages`` uses.
      messages: from the layer and a graph with E edges to arrays (E, …).
      graph: all edges.
      size: edges of a block.
      sums: zeros of the shapes of the sums (N, …).
    """
    n_node, n_edge = graph.nodes.x.shape[0], graph.senders.shape[0]
    blocks = -(-n_edge // size)

    def stack(a: jax.Array, padding: int = 0) -> jax.Array:
        filled = jnp.pad(
            a, [(0, blocks * size - n_edge)] + [(0, 0)] * (a.ndim - 1), constant_values=padding
        )
        return filled.reshape(blocks, size, *a.shape[1:])

    def add(layer: nn.Module, sums: Any, block: Any) -> tuple[Any, None]:
        senders, receivers, edges = block
        part = graph._replace(senders=senders, receivers=receivers, edges=edges)
        return jax.tree.map(
            partial(add_at_receivers, part), sums, nn.remat(messages)(layer, part)
        ), None

    # The last block's padding ends at no node, so its sum is dropped.
    ends = (
        stack(jnp.asarray(graph.senders)),
        stack(jnp.asarray(graph.receivers), n_node),
        jax.tree.map(stack, graph.edges),
    )
    return nn.scan(add, variable_broadcast="params", split_rngs={"params": False})(
        layer, sums, ends
    )[0]


class EGNN(nn.Module):
    """A linear embedding of h and a stack of :class:`EGCL`; E(n)-equivariant in x and v, invariant
    in h.

    Args:
      features: width of every layer.
      layers: number of EGCLs.
      embed: project h to ``features`` first; otherwise the first layer does, without a residual
        where the width changes.
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
      edge_block: walk through the edges in blocks of so many, for graphs whose edges do not fit in
        memory.

    Call: a graph with h (N, F), x (N, n), v (N, n) or None and edges (E, A) or None, to the same
    graph with h (N, output_features or features) and x, v moved.
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
    edge_block: int | None = None

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(features=self.features, layers=self.layers)
        if self.embed:
            graph = graph._replace(
                nodes=graph.nodes.replace(h=Dense(self.features, name="embedding")(graph.nodes.h))
            )
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
                edge_block=self.edge_block,
                name=f"layer_{layer}",
            )(graph)
        if self.output_features is not None:
            h = Dense(self.output_features, name="embedding_out")(graph.nodes.h)
            graph = graph._replace(nodes=graph.nodes.replace(h=h))
        return graph
