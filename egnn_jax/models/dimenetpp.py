"""DimeNet++ (Gasteiger et al. 2020), Table 3: directional messages between edges."""

from functools import partial
from typing import ClassVar

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph._validation import require_positive_number
from egnn_jax.graph.geometry import length_and_direction
from egnn_jax.graph.graph import GraphsTuple, edge_vectors, require_geometric, sum_at_receivers
from egnn_jax.nn.edge_rows import EdgeRows, add_at_edges, edge_rows, pairs_of, sum_over_rows
from egnn_jax.nn.forces import move_along_forces
from egnn_jax.nn.heads import SumReadout
from egnn_jax.nn.mlp import (
    Dense,
    EdgeLinear,
    Symmetry,
    embed,
    glorot_orthogonal,
    require_positive,
    silu,
    with_attributes,
)
from egnn_jax.nn.radial import polynomial_envelope
from egnn_jax.nn.spherical import spherical_bessel_basis, sum_over_reversed
from egnn_jax.nn.tensor import MAX_DEGREE, irreps

zeros = nn.initializers.zeros
Linear = partial(Dense, kernel_init=glorot_orthogonal, bias_init=zeros)
Matrix = partial(Linear, use_bias=False)


class DimeNetPP(nn.Module):
    """DimeNet++: messages m_ji of edges from j to i, updated from messages m_kj to their senders.

    Here r̂_ji = (x_i - x_j) / ‖x_i - x_j‖ is the direction of the edge from j to i, ∠ the angle
    between r̂_kj and r̂_ji, t = ‖x_i - x_j‖ / cutoff, σ the SiLU, and
    e(t) = 1/t - 28 t⁵ + 48 t⁶ - 21 t⁷ an envelope that goes to 0 at t = 1 with two continuous
    derivatives.

    - Distances: rbf_n = e(t) sin(f_n t), with learned f_n. Distances and angles:
      sbf_ln = e(t) √2 j_l(z_ln t) Y_l(∠) / abs(j_{l+1}(z_ln)), with t of the edge from k to j,
      the zeros z_ln of the spherical Bessel function j_l, and Y_l(∠) = √((2l+1)/4π) P_l(cos ∠).
    - First, m_ji = σ(Linear [h_i, h_j, σ(Linear [rbf, a_ij])]) of embedded h.
    - A layer: u_kj = σ(W (σ(Linear m_kj) ⊙ W₂ W₁ rbf_kj)), sums
      s_ji = σ(W Σ_{k≠i} u_kj ⊙ W₄ W₃ sbf), then m_ji' = m_ji + σ(Linear y_ji),
      y_ji = Res(σ(Linear m_ji) + s_ji), and two more Res, Res(z) = z + σ(Linear σ(Linear z)).
    - Output: after the first messages and each layer, σ Linear σ Linear σ Linear of
      W Σ_j (W rbf_ji) ⊙ m_ji; h' is the concatenation of all of them.

    The sum over k needs no list of triplets: P_l(cos ∠) = Y_l(r̂_kj) · Y_l(r̂_ji), so the terms of
    all edges k → j are summed at j, and each edge j → i multiplies the sum with Y_l(r̂_ji). The
    term k = i is subtracted.

    Edges beyond the cutoff and edges of length 0 are ignored; h' of a node without other edges does
    not depend on its h. With :class:`egnn_jax.SumReadout`, the authors' readout, the contribution
    of an atom is linear in h'.

    Args:
      features: width of the messages.
      layers: number of layers after the first messages.
      num_radial: number of radial functions, also for each l.
      num_spherical: number of angular functions, l = 0 to num_spherical - 1, at most 11.
      angular_features: width of the messages where they are combined with angles.
      basis_features: width to which a layer first maps rbf and sbf.
      output_features: width of each of the layers + 1 parts of h'.
      cutoff: cutoff distance of interactions, in the unit of x.
      forces: move x along the forces of an energy, x' = x - ∂E/∂x + t v with a learned time t (0
        without v), E = Σ_i W h'_i; otherwise x is unchanged.

    Call: takes a graph with h (N, F) or (N,), x (N, 3), v (N, 3) or None and a (E, A) or None;
    returns it with h (N, (layers + 1) · output_features).

    Raises:
      ValueError: x is not (N, 3), the graph has no nodes, a size is out of range, or the cutoff is
        not a finite distance above 0.
    """

    symmetry: ClassVar[Symmetry] = "E(3)"
    head: ClassVar[type[nn.Module]] = SumReadout

    features: int = 128
    layers: int = 4
    num_radial: int = 6
    num_spherical: int = 7
    angular_features: int = 64
    basis_features: int = 8
    output_features: int = 256
    cutoff: float = 5.0
    forces: bool = False

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph, dimensions=3)
        widths = ("features", "angular_features", "basis_features", "output_features")
        sizes = (*widths, "layers", "num_radial", "num_spherical")
        require_positive(**{name: getattr(self, name) for name in sizes})
        require_positive_number(cutoff=self.cutoff)
        if self.num_spherical > MAX_DEGREE + 1:
            raise ValueError(
                f"num_spherical is {self.num_spherical}; expected 1 to {MAX_DEGREE + 1}"
            )
        x = graph.nodes.x
        if not self.forces:
            return graph._replace(nodes=graph.nodes.replace(h=self._features(graph, x)))
        # Zero, since particles that nearly meet would otherwise be sent far away before training.
        energies = lambda h: Matrix(1, kernel_init=zeros, name="energy")(h)
        features = lambda model, x: model._features(graph, x)
        return move_along_forces(self, graph, features, energies)

    def _features(self, graph: GraphsTuple, x: jax.Array) -> jax.Array:
        """Compute h' of a graph with its nodes at x."""
        F, degree = self.features, self.num_spherical - 1
        graph, _ = pairs_of(graph)
        h = embed(graph.nodes, F, use_bias=False, kernel_init=_uniform)
        d, u_ij = length_and_direction(edge_vectors(graph, jnp.asarray(x)))
        t = jnp.where(d <= 0, 1, jnp.minimum(d / self.cutoff, 1))
        e = polynomial_envelope(t, 1.0) / t  # 1/t - 28 t⁵ + 48 t⁶ - 21 t⁷
        f = self.param("frequencies", _multiples_of_pi, (self.num_radial,), h.dtype)
        rbf = e * jnp.sin(f.astype(t.dtype) * t)  # e(t) sin(f_n t)
        s_ij = with_attributes(graph, rbf).astype(h.dtype)
        j = e[..., None] * spherical_bessel_basis(t[:, 0], degree, self.num_radial)
        l = np.arange(degree + 1)
        norm = np.sqrt((2 * l + 1) / (4 * np.pi))[:, None]
        sbf = (j * jnp.asarray(norm, t.dtype)).astype(h.dtype)  # sbf_ln / P_l(cos ∠)
        natural = irreps(1, degree, "natural")  # Y_l(a) · Y_l(b) = P_l(a · b)
        harmonics = e3nn.spherical_harmonics(natural, u_ij, False, "norm").array.astype(h.dtype)
        # Edges whose direction is NaN are kept, so that their result is NaN.
        near = (t[:, 0] < 1) | jnp.any(jnp.isnan(u_ij), axis=1)
        rows = edge_rows(graph, near), edge_rows(graph, near, outgoing=True)

        s_ij, rbf = silu(Linear(F, name="rbf")(s_ij)), rbf.astype(h.dtype)
        m = silu(EdgeLinear(F, glorot_orthogonal, zeros, name="messages")(graph, h, s_ij))
        output = partial(Output, F, self.output_features)
        outputs = [output(name="output_0")(graph, m, rbf)]
        for k in range(self.layers):
            layer = Interaction(F, self.angular_features, self.basis_features, name=f"layer_{k}")
            m = layer(graph, m, rbf, sbf, harmonics, rows)
            outputs.append(output(name=f"output_{k + 1}")(graph, m, rbf))
        return jnp.concatenate(outputs, axis=-1)


class Interaction(nn.Module):
    """One layer: update the messages m_ji (E, F), see :class:`DimeNetPP`."""

    features: int
    angular_features: int
    basis_features: int

    @nn.compact
    def __call__(
        self,
        graph: GraphsTuple,
        m: jax.Array,
        rbf: jax.Array,
        sbf: jax.Array,
        Y: jax.Array,
        rows: tuple[EdgeRows, EdgeRows],
    ) -> jax.Array:
        F, C = self.features, self.angular_features
        w_rbf = self._low_rank_matrix("rbf", rbf.shape[1], F, m.dtype)
        degrees, num_radial = sbf.shape[1:]
        w_sbf = self._low_rank_matrix("sbf", degrees * num_radial, C, m.dtype).reshape(
            degrees, num_radial, C
        )
        u_kj = silu(Matrix(C, name="down")(silu(Linear(F, name="kj")(m)) * (rbf @ w_rbf)))
        s_ji = silu(Matrix(F, name="up")(sum_over_angles(graph, u_kj, sbf, w_sbf, Y, rows)))
        y = _residual(silu(Linear(F, name="ji")(m)) + s_ji, F, "before")
        m = m + silu(Linear(F, name="skip")(y))
        return _residual(_residual(m, F, "after_0"), F, "after_1")

    def _low_rank_matrix(self, name: str, n_in: int, out: int, dtype: jnp.dtype) -> jax.Array:
        """Product of two weight matrices (n_in, out), of rank at most ``basis_features``."""
        w_1 = self.param(f"{name}_1", glorot_orthogonal, (n_in, self.basis_features), dtype)
        return w_1 @ self.param(f"{name}_2", glorot_orthogonal, (w_1.shape[1], out), dtype)


def sum_over_angles(
    graph: GraphsTuple,
    u: jax.Array,
    sbf: jax.Array,
    w: jax.Array,
    Y: jax.Array,
    rows: tuple[EdgeRows, EdgeRows],
) -> jax.Array:
    """Compute Σ_{k≠i} u_kj ⊙ Σ_ln w_ln sbf_ln P_l(r̂_kj · r̂_ji) for each edge from j to i, (E, C).

    Args:
      graph: the graph.
      u: messages (E, C).
      sbf: radial functions of the edges (E, L, n), for l = 0 to L - 1.
      w: weights (L, n, C).
      Y: harmonics of the edge directions (E, L²), with Y_l(a) · Y_l(b) = P_l(a · b).
      rows: the edges where sbf is not 0, in rows by receiver and in rows by sender.
    """
    incoming, outgoing = rows
    v = [u * (sbf[:, l] @ w[l]) for l in range(len(w))]  # v^l_kj
    harmonics = lambda rows: jnp.where(rows.mask[:, :, None], Y[rows.edges], 0)

    def sums(rows: EdgeRows) -> jax.Array:  # S^l_j = Σ_k v^l_kj Y_l(r̂_kj)
        Y_kj = harmonics(rows)
        Y_l = [Y_kj[:, :, l**2 : (l + 1) ** 2, None] for l in range(len(w))]
        terms = zip(v, Y_l, strict=True)
        return jnp.concatenate(
            [jnp.sum(v_l[rows.edges][:, :, None] * Y_l, axis=1) for v_l, Y_l in terms], axis=1
        )

    def products(rows: EdgeRows) -> jax.Array:  # Σ_l S^l_j · Y_l(r̂_ji)
        operands = harmonics(rows), S[rows.nodes]
        return jnp.einsum("rtm,rmc->rtc", *operands, precision="highest")

    n_node = graph.nodes.x.shape[0]
    S = sum_over_rows(incoming, sums, n_node)
    terms = ((-1) ** l * v_l for l, v_l in enumerate(v))  # k = i, where r̂_kj = -r̂_ji
    term_i = sum(terms, jnp.zeros_like(u))
    return add_at_edges(-sum_over_reversed(graph, term_i), outgoing, products, n_node)


class Output(nn.Module):
    """Output block: aggregate the messages m_ji (E, F) at each node i, (N, out)."""

    features: int
    out: int

    @nn.compact
    def __call__(self, graph: GraphsTuple, m: jax.Array, rbf: jax.Array) -> jax.Array:
        h = sum_at_receivers(graph, Matrix(self.features, name="rbf")(rbf) * m)
        h = Matrix(self.out, name="up")(h)
        for k in range(3):
            h = silu(Linear(self.out, name=f"dense_{k}")(h))
        return h


def _residual(z: jax.Array, features: int, name: str) -> jax.Array:
    hidden = silu(Linear(features, name=f"{name}_1")(z))
    return z + silu(Linear(features, name=f"{name}_2")(hidden))


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -(3**0.5), 3**0.5)


def _multiples_of_pi(key: jax.Array, shape: tuple[int], dtype: jnp.dtype) -> jax.Array:
    return jnp.pi * jnp.arange(1, shape[0] + 1, dtype=dtype)
