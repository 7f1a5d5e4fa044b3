"""Cormorant (Anderson, Hy and Kondor 2019), Table 3: tensor products of features of all degrees."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph._validation import require_count, require_positive_number
from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import GraphsTuple, edge_vectors, require_geometric, sum_at_receivers
from egnn_jax.nn.clebsch_gordan import (
    cartesian,
    couple,
    degree_of,
    dual,
    mix,
    multiply,
    outer,
    part,
    repeat_orders,
    solid_harmonics,
    sum_orders,
)
from egnn_jax.nn.edge_rows import EdgeRows, edge_rows, pairs_of, sum_over_rows
from egnn_jax.nn.heads import CormorantReadout
from egnn_jax.nn.mlp import (
    MLP,
    Dense,
    Initializer,
    Parity,
    Symmetry,
    node_features,
    require_option,
    require_positive,
    with_attributes,
)
from egnn_jax.nn.radial import DampedWaves

WIDTH = 0.2
"""Initial width over which messages fade out, in the unit of x."""


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.random.normal(key, shape, dtype) / max(shape[1:])


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -10, 10) / max(shape[1:])


class CormorantLevel(nn.Module):
    """Cormorant level: compute the next edge and vertex activations G_ij and F_i.

    G_ij^l ← mask(d_ij) W_l [G_ij^l, F_i · F_j, R(d_ij)] and
    F_i^l ← U_l [(Σ_j G_ij Υ(r_ij) ⊗ F_j)^l, F_i^l, (F_i ⊗ F_i)^l].

    F_i · F_j are the products Σ_m (-1)^m F_i,m F_j,-m of all degrees. R holds radial functions
    (:class:`~egnn_jax.nn.radial.DampedWaves`) and edge attributes, in pairs of a real and an
    imaginary part; Υ holds solid harmonics; W_l and U_l are complex matrices over channels.
    mask(d) = sigmoid((ρ - d) / ω), with ρ and ω learned for each channel, at least 10⁻³.

    Args:
      features: channels of each degree.
      degree: the highest degree of the output.
      radius, parity: see :class:`Cormorant`.

    Call: takes a graph, the rows of its edges, F (2, C, N, (L + 1)²) and G (2, C, E) for each
    degree; returns the next F and G.
    """

    features: int
    degree: int
    radius: float
    parity: Parity

    @nn.compact
    def __call__(
        self, graph: GraphsTuple, rows: EdgeRows, f: jax.Array, g: Sequence[jax.Array]
    ) -> tuple[jax.Array, list[jax.Array]]:
        g = self._edges(graph, f, g)
        messages = couple(self._message_products(graph, rows, f, g), self.degree, self.parity)
        squares = [outer(part(f, l), f) for l in range(degree_of(f.shape[-1]) + 1)]
        squares = couple(squares, self.degree, self.parity)
        new_f = []
        for l in range(self.degree + 1):
            f_l = [part(f, l)] if l <= degree_of(f.shape[-1]) else []
            inputs = jnp.concatenate([messages[l], *f_l, squares[l]], axis=1)
            new_f.append(self._mix(f"U_{l}", inputs, _uniform))
        return jnp.concatenate(new_f, axis=-1), g

    def _edges(self, graph: GraphsTuple, f: jax.Array, g: Sequence[jax.Array]) -> list[jax.Array]:
        """Edge activations G_ij^l (2, C, E) for each degree l."""
        distance = safe_norm(edge_vectors(graph, graph.nodes.x))
        radial = with_attributes(graph, DampedWaves(name="R")(distance))
        radial = jnp.pad(radial, ((0, 0), (0, radial.shape[-1] % 2))).astype(f.dtype)
        radial = radial.reshape(len(distance), radial.shape[-1] // 2, 2).T  # (2, K, E)
        products = multiply(f[:, :, graph.receivers], dual(f)[:, :, graph.senders])
        dots = sum_orders(products).transpose(0, 3, 1, 2)  # F_i · F_j, (2, L + 1, C, E)
        dots = dots.reshape(2, dots.shape[1] * self.features, len(distance))
        rho = self.param("rho", nn.initializers.constant(self.radius), (self.features,), f.dtype)
        omega = self.param("omega", nn.initializers.constant(WIDTH), (self.features,), f.dtype)
        rho, omega = (
            jnp.maximum(jnp.abs(z), 1e-3).astype(distance.dtype)[:, None] for z in (rho, omega)
        )
        mask = nn.sigmoid((rho - distance) / omega).astype(f.dtype)
        new_g = []
        for l in range(self.degree + 1):
            inputs = [g[l]] if l < len(g) else []
            inputs += [dots] if l <= degree_of(f.shape[-1]) else []
            inputs = jnp.concatenate([*inputs, radial], axis=1)
            new_g.append(mask * self._mix(f"W_{l}", inputs, _normal))
        return new_g

    def _message_products(
        self, graph: GraphsTuple, rows: EdgeRows, f: jax.Array, g: Sequence[jax.Array]
    ) -> list[jax.Array]:
        """Σ_j G_ij^l1 Υ^l1(r_ij) F_j (2, C, N, 2 l1 + 1, K) for each l1."""
        r_ij = edge_vectors(graph, graph.nodes.x)
        real, imaginary = solid_harmonics(r_ij, self.degree).astype(f.dtype)
        factor_re = jnp.concatenate([real, imaginary], axis=-1)  # G Υ = Re G (Re Υ, Im Υ)
        factor_im = jnp.concatenate([-imaginary, real], axis=-1)  # + Im G (-Im Υ, Re Υ)
        g_re, g_im = jnp.stack(g, axis=-1)  # (C, E, L + 1)
        f = f[..., : (2 * self.degree + 1) ** 2]  # products with l1, l ≤ L use l2 ≤ 2 L
        f_parts = jnp.concatenate([*f], axis=-1)  # (C, N, 2 K)

        def sums(rows: EdgeRows) -> jax.Array:
            g_upsilon = 0
            for g_ij, upsilon in ((g_re, factor_re), (g_im, factor_im)):
                g_orders = jnp.tile(repeat_orders(g_ij[:, rows.edges]), 2)
                g_upsilon += g_orders * jnp.where(rows.mask[:, :, None], upsilon[rows.edges], 0)
            f_j = f_parts[:, graph.senders[rows.edges]]
            return jnp.einsum("crtp,crtq->crpq", g_upsilon, f_j)

        products = sum_over_rows(rows, sums, f.shape[2], axis=1)
        products = products.reshape(*products.shape[:2], 2, -1, 2, f.shape[-1])
        real = products[:, :, 0, :, 0] - products[:, :, 1, :, 1]
        products = jnp.stack([real, products[:, :, 0, :, 1] + products[:, :, 1, :, 0]])
        return [products[..., l**2 : (l + 1) ** 2, :] for l in range(self.degree + 1)]

    def _mix(self, name: str, values: jax.Array, init: Initializer) -> jax.Array:
        shape = (2, values.shape[1], self.features)
        return mix(self.param(name, init, shape, values.dtype), values)


class Cormorant(nn.Module):
    """Cormorant: nodes have complex features F^l of degree l and order m = -l … l, which each
    :class:`CormorantLevel` multiplies with those of their neighbors and with themselves.

    - F_i^0 = MLP[Σ_j w(d_ij) ⊙ h_j, h_i] with w(d) = Linear(R(d)) sigmoid((radius - d) / 0.2) for
      d < radius, and 0 beyond; F_i^1 = W_v v_i with a complex W_v if nodes have velocities.
    - h' holds the invariants of the features of all levels: Re F^0, Im F^0, and Re F · F and ‖F‖²
      of each degree.

    Υ and R contain powers of the distance, ‖r‖^l and 1/d³, so x should be in Å, or of order one.

    Args:
      features: channels of each degree.
      layers: number of levels.
      degree: highest degree of all levels but the last.
      last_degree: highest degree of the last level.
      hidden: width of the MLP.
      radius: cutoff radius of the first messages, and initially of those of the levels.
      parity: "natural" multiplies features of degree l by (-1)^l under a reflection, so that the
        network is equivariant to reflections; "ignored" uses all products, as the authors do, and
        gives this up.
      self_pairs: nodes also send to themselves, as in the authors' code.
      update_coordinates: move x by a learned combination of the features of degree 1.

    Call: takes a graph with h (N, F) or (N,), x (N, 3), v (N, 3) or None and a (E, A) or None;
    returns it with the invariants as h. Zero-length edges from a node to itself are ignored.

    Raises:
      ValueError: x is not (N, 3), the graph has no nodes, an option is out of range, or
        ``update_coordinates`` is set but no level has degree 1.
    """

    symmetry: ClassVar[Symmetry] = "SE(3)"
    head: ClassVar[type[nn.Module]] = CormorantReadout

    features: int = 16
    layers: int = 4
    degree: int = 3
    last_degree: int = 0
    hidden: int = 256
    radius: float = 1.73
    parity: Parity = "natural"
    self_pairs: bool = False
    update_coordinates: bool = False

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        degrees = self._degrees(graph)
        pair_graph, pair_mask = pairs_of(graph, self.self_pairs)
        x, f = pair_graph.nodes.x, node_features(pair_graph.nodes, self.features, "kinds")
        f = self._initial_f(pair_graph, pair_mask, f)
        rows, g, levels = edge_rows(pair_graph, pair_mask), [], []
        for k, degree in enumerate(degrees):
            options = self.features, degree, self.radius, self.parity
            f, g = CormorantLevel(*options, name=f"level_{k}")(pair_graph, rows, f, g)
            levels.append(f)
        if self.update_coordinates:
            vectors = jnp.concatenate([part(f, 1) for f in levels if f.shape[-1] > 1], axis=1)
            small_normal = lambda *a: 1e-3 * _normal(*a)  # keeps x nearly fixed before training
            kernel = self.param("out", small_normal, (2, vectors.shape[1], 1), f.dtype)
            x = x + cartesian(mix(kernel, vectors)[:, 0]).astype(x.dtype)
        return graph._replace(nodes=graph.nodes.replace(h=_invariants(levels), x=x))

    def _degrees(self, graph: GraphsTuple) -> list[int]:
        """The highest degree of each level."""
        require_geometric(graph, dimensions=3)
        require_positive(features=self.features, layers=self.layers, hidden=self.hidden)
        require_count("degree", self.degree, 0)
        require_count("last_degree", self.last_degree, 0)
        require_positive_number(radius=self.radius)
        require_option("parity", self.parity, Parity)
        degrees = [self.degree] * (self.layers - 1) + [self.last_degree]
        if self.update_coordinates and max(degrees) < 1:
            raise ValueError("no level has features of degree 1 to move x; expected one")
        return degrees

    def _initial_f(self, graph: GraphsTuple, pair_mask: jax.Array, h: jax.Array) -> jax.Array:
        """Initial F of degree 0, and of degree 1 if nodes have velocities, (2, C, N, K)."""
        distance = safe_norm(edge_vectors(graph, graph.nodes.x))
        within_radius = pair_mask & (distance < self.radius)
        envelope = jnp.where(within_radius, nn.sigmoid((self.radius - distance) / WIDTH), 0)
        radial = with_attributes(graph, DampedWaves(name="R")(distance))
        w = Dense(h.shape[-1], name="w")(radial.astype(h.dtype)) * envelope[:, None].astype(h.dtype)
        sums = sum_at_receivers(graph, w * h[graph.senders])
        mlp = MLP(self.hidden, 2 * self.features, "leaky_relu", name="embedding")
        f = mlp(jnp.concatenate([sums, h], axis=-1))
        f = f.reshape(len(h), self.features, 2).transpose(2, 1, 0)[..., None]
        if (v := graph.nodes.v) is None:
            return f
        kernel = self.param("velocity", _normal, (2, 1, self.features), h.dtype)
        f_1 = mix(kernel, part(solid_harmonics(v, 1), 1).astype(h.dtype)[:, None])
        return jnp.concatenate([f, f_1], axis=-1)


def _invariants(levels: Sequence[jax.Array]) -> jax.Array:
    """Re F^0 and Im F^0 of all levels, and Re F · F and ‖F‖² of each degree and channel, (N, …)."""
    invariants = [jnp.concatenate([f[..., 0] for f in levels], axis=1).transpose(1, 0, 2)]
    dots = [sum_orders(multiply(f, dual(f)))[0] for f in levels]
    squares = [sum_orders(jnp.sum(f**2, axis=0)) for f in levels]
    for l in range(max(dot.shape[-1] for dot in dots)):
        for dot, square in zip(dots, squares, strict=True):
            if l < dot.shape[-1]:
                invariants.append(jnp.stack([dot[..., l], square[..., l]], axis=1))
    return jnp.concatenate([z.reshape(-1, z.shape[-1]) for z in invariants]).T
