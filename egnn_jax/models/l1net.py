"""L1Net (Miller, Geiger, Smidt and Noé 2020), Table 3: convolutions of scalars and vectors."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph._validation import require_count, require_positive_number
from egnn_jax.graph.geometry import above_zero, length_and_direction
from egnn_jax.graph.graph import GraphsTuple, edge_vectors, graph_of_node, require_geometric
from egnn_jax.nn.edge_rows import EdgeRows, edge_rows, pairs_of, sum_over_rows
from egnn_jax.nn.heads import L1NetReadout
from egnn_jax.nn.mlp import Dense, Parity, Symmetry, embed, require_option, require_positive
from egnn_jax.nn.radial import bessel_basis, cosine_cutoff

GATE = 1.84623  # 1 / √(mean of σ(z)²) over normal z
SHARPNESS = 5.0  # β
LN2 = 0.6931471805599453
EdgeInputs = tuple[jax.Array, jax.Array, jax.Array]
"""b (E, K), u (E, 3) and the multiplicity of each edge, (E, 1) or ()."""
normal = nn.initializers.normal


def softplus(z: jax.Array) -> jax.Array:
    """Elementwise softplus ln(1 + exp(βz)) / β."""
    return nn.softplus(SHARPNESS * z) / SHARPNESS


class Convolution(nn.Module):
    """Convolution of scalars s_j and vectors V_j over neighbors j, with a weight R(d_ij) for each
    pair of channels and each product with the direction u = -r_ij/‖r_ij‖:

    - s_i' = (Σ_j R s_j - √3 R V_j·u) / √n_0
    - V_i' = (Σ_j -R s_j u + R V_j + √(3/2) R u × V_j - √(1/2) R (3 u (u·V_j) - V_j)) / √n_1

    Here n_0 and n_1 are the numbers of terms in one channel of s' and of V'. The weights
    R = W_2 φ / √hidden are linear in φ = act(W_1 act(W_0 b(d_ij)) / √hidden), so the outer products
    of φ and the terms that R multiplies are summed over j first, and W_2 is applied at nodes.

    Args:
      scalars, vectors, gates: number of s', of V', and of further scalars.
      hidden: width of φ.
      scale: scale of act = scale · (softplus - ln 2 / β).
      parity: see :class:`L1Net`.
      stddev: initial standard deviation of W_2.
    """

    scalars: int
    vectors: int
    gates: int
    hidden: int
    scale: float
    parity: Parity
    stddev: float = 1.0

    @nn.compact
    def __call__(
        self, graph: GraphsTuple, rows: EdgeRows, edges: EdgeInputs, s: jax.Array, v: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Map s (N, S) and v (N, 3, V) to (N, scalars + gates) and (N, 3, vectors)."""
        b, u, multiplicity = edges
        phi, n_node = multiplicity * self._phi(b), graph.nodes.x.shape[0]

        def sums(rows: EdgeRows) -> jax.Array:
            sender = graph.senders[rows.edges]
            terms = self._terms(u[rows.edges][..., None], s[sender], v[sender])
            phi_ij = jnp.where(rows.mask[..., None], phi[rows.edges], 0)
            return jnp.einsum("rtk,rtq->rkq", phi_ij, terms)

        phi_terms = sum_over_rows(rows, sums, n_node)  # Σ_j φ times what R multiplies
        w_s, w_v = self._weights(s.shape[-1], v.shape[-1], s.dtype)
        scalar_terms, vector_terms = jnp.split(phi_terms, [w_s.shape[1]], axis=-1)
        new_s = scalar_terms.reshape(n_node, -1) @ w_s.reshape(-1, w_s.shape[-1])
        if not self.vectors:
            return new_s, jnp.zeros((n_node, 3, 0), s.dtype)
        components = vector_terms.reshape(n_node, self.hidden, 3, -1).transpose(0, 2, 1, 3)
        return new_s, components.reshape(n_node, 3, -1) @ w_v.reshape(-1, w_v.shape[-1])

    def _phi(self, b: jax.Array) -> jax.Array:
        """Compute φ (E, hidden) from b (E, K)."""
        act = lambda z: self.scale * (softplus(z) - LN2 / SHARPNESS)
        w_0 = self.param("W_0", normal(1.0), (b.shape[-1], self.hidden), b.dtype)
        w_1 = self.param("W_1", normal(1.0), (self.hidden, self.hidden), b.dtype)
        return act(act(b @ w_0) @ w_1 / self.hidden**0.5)

    def _terms(self, u: jax.Array, s: jax.Array, v: jax.Array) -> jax.Array:
        """Terms that R multiplies, (…, terms), from u (…, 3, 1), s (…, S) and V (…, 3, V): s, V·u,
        and the x, y and z components of s u, V, u × V and 3 u (u·V) - V.
        """
        dots = jnp.sum(u * v, axis=-2)
        terms = [s, dots]
        if self.vectors:
            cross = [] if self.parity == "natural" else [jnp.cross(u, v, axis=-2)]
            products = [s[..., None, :] * u, v, *cross, 3 * u * dots[..., None, :] - v]
            products = jnp.concatenate(products, axis=-1)
            terms.append(products.reshape(*products.shape[:-2], -1))
        return jnp.concatenate(terms, axis=-1)

    def _weights(self, n_s: int, n_v: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """W_2 for s' and gates (hidden, terms, scalars + gates), for V' (hidden, terms, vectors).
        The parameter has the authors' order of columns: for s', V' and gates, and in each for the
        inputs s and V, (outputs, inputs, products) in row-major order.
        """
        cross = [] if self.parity == "natural" else [1.5**0.5]
        outputs = (self.scalars, self.vectors, self.gates)
        scalar_factors, vector_factors = ([1.0], [-(3**0.5)]), ([-1.0], [1.0, *cross, -(0.5**0.5)])
        factors = (scalar_factors, vector_factors, scalar_factors)
        blocks = [
            [(n, width, f) for width, f in zip((n_s, n_v), output_factors, strict=True)]
            for n, output_factors in zip(outputs, factors, strict=True)
        ]
        n_columns = sum(n * width * len(f) for block in blocks for n, width, f in block)
        kernel = self.param("W_2", normal(self.stddev), (self.hidden, n_columns), dtype)
        weights, start = [], 0
        for block in blocks:
            block_weights = []
            for n, width, f in block:
                end = start + n * width * len(f)
                w = kernel[:, start:end].reshape(self.hidden, n, width, len(f))
                w = (w * jnp.asarray(f, dtype)).transpose(0, 3, 2, 1)
                block_weights.append(w.reshape(self.hidden, width * len(f), n))
                start = end
            weight = jnp.concatenate(block_weights, axis=1)
            weights.append(weight / (self.hidden * weight.shape[1]) ** 0.5)
        return jnp.concatenate([weights[0], weights[2]], axis=-1), weights[1]


class L1Net(nn.Module):
    """L1Net: nodes have scalars s and vectors V, to which each layer applies a
    :class:`Convolution`, then s' = κ softplus(s) and V' = 1.846 σ(g) V with a scalar gate g for
    each V. All layers but the first add the result to their input.

    Each edge has the features b(d_ij) = √(2/c) sin(nπd/c) / d for n = 1, 2, …, and a_ij times a
    cosine cutoff. They are 0 beyond the cutoff c, and so are R and messages.

    Args:
      features: number of scalars.
      vectors: number of vectors.
      embedding: width of the embedding of h.
      hidden: width of the radial network.
      layers: number of gated convolutions.
      num_rbf: number of radial basis functions.
      cutoff: cutoff distance of interactions, in the unit of x, where forces would jump.
      average_nodes: mean number of nodes of a graph; features are divided by its square root.
      softplus_scale, radial_scale: κ, and the scale of the radial network's activation: 1/√(mean
        square) over normal numbers, which the authors estimate anew in each process.
      parity: "natural" omits the cross product u × V, so that the network is equivariant to
        reflections; "ignored" includes it, as the authors do.
      extra_layers: scalars and vectors of additional gated layers without a residual connection,
        for example (32, 8, 128, 0) for two.
      padded_nodes: also receive the messages of padding nodes in the authors' batches, which pad
        molecules to this size. The padding is at the origin, with s = κ softplus(0) after the first
        layer, which breaks equivariance to translations.
      output_features: width of h', computed by one more convolution; h' is s if not given.
      update_coordinates: move x by a learned combination of the vectors and of v.

    Call: takes a graph with h (N, F) or (N,), x (N, 3), v (N, 3) or None and a (E, A) or None;
    returns it with new h and x.

    Raises:
      ValueError: x is not (N, 3), the graph has no nodes, or an option is out of range.
    """

    symmetry: ClassVar[Symmetry] = "SE(3)"
    head: ClassVar[type[nn.Module]] = L1NetReadout

    features: int = 64
    vectors: int = 21
    embedding: int = 128
    hidden: int = 128
    layers: int = 4
    num_rbf: int = 50
    cutoff: float = 10.0
    average_nodes: float = 18.0
    softplus_scale: float = 1.4044
    radial_scale: float = 1.5643
    parity: Parity = "natural"
    extra_layers: tuple[int, ...] = ()
    padded_nodes: int | None = None
    output_features: int | None = None
    update_coordinates: bool = False

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph, dimensions=3)
        sizes = ("features", "vectors", "embedding", "hidden", "layers", "num_rbf")
        scales = ("cutoff", "average_nodes", "softplus_scale", "radial_scale")
        optional = {"padded_nodes": self.padded_nodes, "output_features": self.output_features}
        require_positive(optional, **{name: getattr(self, name) for name in sizes})
        require_positive_number(**{name: getattr(self, name) for name in scales})
        require_option("parity", self.parity, Parity)
        extra = self.extra_layers
        if not isinstance(extra, tuple) or len(extra) % 2:
            raise ValueError(f"extra_layers is {extra}; expected pairs of scalars and vectors")
        for k, size in enumerate(extra):
            require_count(f"extra_layers[{k}]", size, minimum=1 - k % 2)
        if self.update_coordinates and extra[-1:] == (0,):
            raise ValueError(f"extra_layers is {extra}; expected vectors at the end, to move x")
        pair_graph, pair_mask = pairs_of(graph, self.padded_nodes is not None)
        x, v = pair_graph.nodes.x, pair_graph.nodes.v
        s = embed(pair_graph.nodes, self.embedding, use_bias=False, kernel_init=normal(1.0))
        rows = edge_rows(pair_graph, pair_mask)
        pair_graph, edges = self._edge_inputs(pair_graph, s.dtype)
        vectors = jnp.zeros((*x.shape, 0), s.dtype) if v is None else v[..., None].astype(s.dtype)

        def convolve(n_s: int, n_v: int, name: str, stddev: float = 1.0) -> tuple[jax.Array, ...]:
            options = (self.hidden, self.radial_scale, self.parity, stddev)
            inputs = [s, vectors]
            if self.padded_nodes is not None:
                inputs[0] = jnp.pad(s, ((0, 1), (0, 0)), constant_values=padding_s)
                inputs[1] = jnp.pad(vectors, ((0, 1), (0, 0), (0, 0)))
            inputs = [z / self.average_nodes**0.5 for z in inputs]
            return Convolution(n_s, n_v, n_v, *options, name=name)(pair_graph, rows, edges, *inputs)

        padding_s = 0.0  # s of a padding node
        widths = zip(extra[::2], extra[1::2], strict=True)
        for k, (n_s, n_v) in enumerate([(self.features, self.vectors)] * self.layers + [*widths]):
            sums, new_vectors = convolve(n_s, n_v, f"layer_{k}")
            scalars, gates = jnp.split(sums, [n_s], axis=-1)
            ds = self.softplus_scale * softplus(scalars)
            dv = GATE * nn.sigmoid(gates)[:, None] * new_vectors
            s, vectors = (s + ds, vectors + dv) if 0 < k < self.layers else (ds, dv)
            padding_s = self.softplus_scale * LN2 / SHARPNESS  # κ softplus(0)
        if self.update_coordinates:
            dx = Dense(1, False, normal(1e-3), name="vectors_out")(vectors)
            x = x + dx[..., 0].astype(x.dtype)
            if v is not None:  # convolutions use only the neighbors' v
                x += self.param("t", nn.initializers.ones, (), v.dtype) * v
        if self.output_features is not None:
            # Zero weights: with normal ones, sums over nodes would start in the hundreds.
            s, _ = convolve(self.output_features, 0, "out", 0.0)
        return graph._replace(nodes=graph.nodes.replace(h=s, x=x))

    def _edge_inputs(self, graph: GraphsTuple, dtype: jnp.dtype) -> tuple[GraphsTuple, EdgeInputs]:
        """Return the graph with edges of padding nodes, and (b, u, multiplicity) of its edges."""
        r_ij, multiplicity = edge_vectors(graph, graph.nodes.x), jnp.ones(())
        if self.padded_nodes is not None:
            n_node, receivers = graph.nodes.x.shape[0], graph.receivers
            is_loop = (graph.senders == receivers) & jnp.all(r_ij == 0, axis=-1)
            padding_counts = self.padded_nodes - jnp.asarray(graph.n_node)[graph_of_node(graph)]
            multiplicity = jnp.where(is_loop, jnp.maximum(padding_counts, 0)[receivers], 1)[:, None]
            r_ij = jnp.where(is_loop[:, None], graph.nodes.x[receivers], r_ij)
            graph = graph._replace(senders=jnp.where(is_loop, n_node, graph.senders))
        distance, u = length_and_direction(r_ij)
        b = bessel_basis(distance[:, 0], self.num_rbf, self.cutoff)
        b *= jnp.where(distance < self.cutoff, distance / above_zero(distance), 0)  # 0 at d = 0
        if graph.edges.a is not None:
            b = jnp.concatenate([b, cosine_cutoff(distance, self.cutoff) * graph.edges.a], axis=-1)
        return graph, (b.astype(dtype), -u.astype(dtype), multiplicity.astype(dtype))
