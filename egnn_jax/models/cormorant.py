"""Cormorant (Anderson, Hy and Kondor 2019) of Table 3: products of complex features of all degrees."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import GraphsTuple, edge_vectors, require_geometric, sum_at_receivers
from egnn_jax.nn.clebsch_gordan import (
    by_degree,
    couple,
    degree_of,
    dual,
    mix,
    multiply,
    outer,
    part,
    solid_harmonics,
    sum_orders,
)
from egnn_jax.nn.edge_rows import EdgeRows, edge_rows, sum_over_rows
from egnn_jax.nn.heads import CormorantReadout
from egnn_jax.nn.mlp import (
    MLP,
    Dense,
    Initializer,
    Parity,
    Symmetry,
    Table,
    require_option,
    require_positive,
)

FREQUENCIES = (0.0, 1.0, 2.0, 3.0) * 2
"""Of the radial functions before training, in 1/Å; of the first four φ = 0, of the others π/2."""
WIDTH = 0.2
"""Over which messages fade out before training, in the unit of x."""


def _of_largest(initializer: Initializer, scale: float) -> Initializer:
    """Values of order ``scale`` / the larger side of a matrix."""
    return lambda key, shape, dtype: initializer(key, shape, dtype) * (scale / max(shape[1:]))


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.random.normal(key, shape, dtype)


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -1, 1)


class RadialFunctions(nn.Module):
    """R_kp(d) = sin(2π s_k d + φ_k) / dᵖ for p = 0 … 3, and 0 at d = 0, with learned s and φ: (E,)
    to (E, 4 K).
    """

    @nn.compact
    def __call__(self, distance: jax.Array) -> jax.Array:
        phases = np.repeat([0, np.pi / 2], 4)
        phases[0] = np.pi / 2  # sin(0) is 0 everywhere
        start = lambda values: lambda key, shape, dtype: jnp.asarray(values, dtype)
        s = self.param("scales", start(FREQUENCIES), (len(phases),), distance.dtype)
        phi = self.param("phases", start(phases), (len(phases),), distance.dtype)
        apart = distance[:, None] > 0
        d = jnp.where(apart, distance[:, None], 1)
        waves = jnp.where(apart, jnp.sin(2 * jnp.pi * s.astype(d.dtype) * d + phi), 0)
        powers = jnp.stack([jnp.ones_like(d), 1 / d, 1 / d**2, 1 / d**3], axis=-1)
        return (waves[:, :, None] * powers).reshape(len(distance), -1)


class CormorantLevel(nn.Module):
    """Edge and vertex activations G_ij and F_i of the next level.

    G_ij^l = mask(d_ij) W_l [G_ij^l, F_i · F_j, R(d_ij)] and
    F_i^l ← U_l [(Σ_j G_ij Υ(r_ij) ⊗ F_j)^l, F_i^l, (F_i ⊗ F_i)^l].

    Args:
      features: channels of each degree.
      degree: the highest degree of the output.
      radius, parity: see :class:`Cormorant`.
    """

    features: int
    degree: int
    radius: float
    parity: Parity

    @nn.compact
    def __call__(
        self, graph: GraphsTuple, rows: EdgeRows, f: jax.Array, g: Sequence[jax.Array]
    ) -> tuple[jax.Array, list[jax.Array]]:
        r_ij = edge_vectors(graph, graph.nodes.x)
        g = self._edges(graph, safe_norm(r_ij), f, g)
        harmonics = solid_harmonics(r_ij, self.degree).astype(f.dtype)
        kinds = jnp.stack(g, axis=-1)  # (2, C, E, L + 1)
        l_of = np.repeat(np.arange(self.degree + 1), 2 * np.arange(self.degree + 1) + 1)

        def sums(rows: EdgeRows) -> jax.Array:
            upsilon = jnp.where(rows.taken[:, :, None], harmonics[:, rows.edges], 0)
            g_ij = multiply(kinds[:, :, rows.edges][..., l_of], upsilon[:, None])
            f_j = f[:, :, graph.senders[rows.edges]]
            left, right = (jnp.concatenate([*z], axis=-1) for z in (g_ij, f_j))
            return jnp.einsum("crtp,crtq->crpq", left, right)

        pairs = sum_over_rows(rows, sums, f.shape[2], axis=1)  # Σ_j G_ij Υ_ij F_j
        pairs = pairs.reshape(*pairs.shape[:2], 2, len(l_of), 2, -1)
        real = pairs[:, :, 0, :, 0] - pairs[:, :, 1, :, 1]
        pairs = jnp.stack([real, pairs[:, :, 0, :, 1] + pairs[:, :, 1, :, 0]])
        messages = couple(pairs, self.degree, self.parity)
        squares = couple(outer(f, f), self.degree, self.parity)
        parts = []
        for l in range(self.degree + 1):
            kept = [part(f, l)] if l <= degree_of(f.shape[-1]) else []
            joined = jnp.concatenate([messages[l], *kept, squares[l]], axis=1)
            parts.append(self._mix(f"U_{l}", joined, _of_largest(_uniform, 10)))
        return by_degree(parts), g

    def _edges(
        self, graph: GraphsTuple, distance: jax.Array, f: jax.Array, g: Sequence[jax.Array]
    ) -> list[jax.Array]:
        """G_ij^l (2, C, E) for each degree l."""
        radial = RadialFunctions(name="R")(distance)
        if graph.edges.a is not None:
            radial = jnp.concatenate([radial, graph.edges.a], axis=-1)
            radial = jnp.pad(radial, ((0, 0), (0, radial.shape[-1] % 2)))
        radial = radial.astype(f.dtype).reshape(len(distance), -1, 2).T  # (2, K, E)
        products = multiply(f[:, :, graph.receivers], dual(f)[:, :, graph.senders])
        dots = sum_orders(products).transpose(0, 3, 1, 2)
        dots = dots.reshape(2, -1, len(distance))  # F_i · F_j, of each degree and channel
        rho = self.param("rho", nn.initializers.constant(self.radius), (self.features,), f.dtype)
        omega = self.param("omega", nn.initializers.constant(WIDTH), (self.features,), f.dtype)
        rho, omega = (jnp.maximum(jnp.abs(z), 1e-3)[:, None] for z in (rho, omega))
        mask = nn.sigmoid((rho - distance.astype(f.dtype)) / omega)
        new = []
        for l in range(self.degree + 1):
            joined = [g[l]] if l < len(g) else []
            joined += [dots] if l <= degree_of(f.shape[-1]) else []
            joined = jnp.concatenate([*joined, radial], axis=1)
            new.append(mask * self._mix(f"W_{l}", joined, _of_largest(_normal, 1)))
        return new

    def _mix(self, name: str, values: jax.Array, init: Initializer) -> jax.Array:
        shape = (2, values.shape[1], self.features)
        return mix(self.param(name, init, shape, values.dtype), values)


class Cormorant(nn.Module):
    """Nodes have complex features F^l of degree l, orders m = -l … l, which :class:`CormorantLevel`
    multiplies with those of their neighbors and with themselves.

    - F_i^0 = MLP[Σ_j w(d_ij) ⊙ h_j, h_i] with w = (Linear R)(d) σ((radius - d) / 0.2) for
      d < radius; F_i^1 = w v_i where nodes have velocities.
    - h' is what is invariant in the features of all levels: Re F^0, Im F^0, and
      Re F · F and ‖F‖² of each degree.

    Products and R grow as powers of distances: x is to be in Å, or of order one.

    Args:
      features: channels of each degree.
      layers: number of levels.
      degree: the highest degree of all levels but the last.
      last_degree: that of the last one.
      hidden: width of the MLP.
      radius: where the first messages end, and those of the levels before training.
      parity: "natural" for features of degree l that are multiplied by (-1)^l under a reflection,
        so that the network is equivariant to it; "ignored" for all products, as the authors have
        it, which gives that up.
      self_pairs: nodes send to themselves too, as the authors have it.
      update_coordinates: move x by a learned combination of the features of degree 1.

    Call: a graph with h (N, F) or (N,), x (N, 3), v (N, 3) or None and a (E, A) or None, to the
    same with h the invariants. Edges of length zero from a node to itself do not count.

    Raises:
      ValueError: x is not (N, 3), an option is out of range, or x is to move and no level has
        degree 1.
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
        x, f = graph.nodes.x, graph.nodes.h
        if jnp.issubdtype(f.dtype, jnp.integer):
            f = Table(self.features, name="kinds")(f)
        pairs, kept = _pairs(graph, self.self_pairs)
        f = self._first(pairs, kept, f)
        rows, g, levels = edge_rows(pairs, kept), [], []
        for k, degree in enumerate(degrees):
            level = CormorantLevel(
                self.features, degree, self.radius, self.parity, name=f"level_{k}"
            )
            f, g = level(pairs, rows, f, g)
            levels.append(f)
        if self.update_coordinates:
            vectors = jnp.concatenate([part(f, 1) for f in levels if f.shape[-1] > 1], axis=1)
            kernel = self.param("out", _of_largest(_normal, 1), (2, vectors.shape[1], 1), f.dtype)
            x = x + _cartesian(mix(kernel, vectors)[:, 0]).astype(x.dtype)
        return graph._replace(nodes=graph.nodes.replace(h=_invariants(levels), x=x))

    def _degrees(self, graph: GraphsTuple) -> list[int]:
        """The highest degree of each level."""
        require_geometric(graph)
        require_positive(features=self.features, layers=self.layers, hidden=self.hidden)
        require_option("parity", self.parity, Parity)
        if graph.nodes.x.shape[-1] != 3:
            raise ValueError(f"x has shape {graph.nodes.x.shape}; expected (N, 3)")
        degrees = [self.degree] * (self.layers - 1) + [self.last_degree]
        if min(degrees) < 0 or not self.radius > 0:
            raise ValueError(
                f"degree is {self.degree}, last_degree {self.last_degree} and radius "
                f"{self.radius}; expected degrees of at least 0 and a distance above 0"
            )
        if self.update_coordinates and max(degrees) < 1:
            raise ValueError("no level has features of degree 1 to move x; expected one")
        return degrees

    def _first(self, graph: GraphsTuple, kept: jax.Array, h: jax.Array) -> jax.Array:
        """F of degree 0, and 1 where nodes have velocities, (2, C, N, K)."""
        distance = safe_norm(edge_vectors(graph, graph.nodes.x))
        near = kept & (distance < self.radius)
        soft = jnp.where(near, nn.sigmoid((self.radius - distance) / WIDTH), 0)
        radial = RadialFunctions(name="R")(distance)
        if graph.edges.a is not None:
            radial = jnp.concatenate([radial, graph.edges.a], axis=-1)
        w = Dense(h.shape[-1], name="w")(radial.astype(h.dtype)) * soft[:, None].astype(h.dtype)
        sums = sum_at_receivers(graph, w * h[graph.senders])
        mlp = MLP(self.hidden, 2 * self.features, "leaky_relu", name="embedding")
        f = mlp(jnp.concatenate([sums, h], axis=-1))
        f = f.reshape(len(h), self.features, 2).transpose(2, 1, 0)[..., None]
        v = graph.nodes.v
        if v is None:
            return f
        kernel = self.param("velocity", _of_largest(_normal, 1), (2, 1, self.features), h.dtype)
        return by_degree([f, mix(kernel, part(solid_harmonics(v, 1), 1).astype(h.dtype)[:, None])])


def _pairs(graph: GraphsTuple, self_pairs: bool) -> tuple[GraphsTuple, jax.Array]:
    """The graph and which of its edges (E,) count: those of padding do not. With ``self_pairs`` an
    edge is put before those of each node, from it to itself.
    """
    apart = graph.senders != graph.receivers
    if graph.edges.shift is not None:
        apart |= jnp.any(graph.edges.shift != 0, axis=-1)
    if not self_pairs:
        return graph, apart
    nodes = jnp.arange(graph.nodes.x.shape[0], dtype=graph.receivers.dtype)
    order = jnp.argsort(jnp.concatenate([nodes, graph.receivers]), stable=True)
    insert = lambda a: jnp.concatenate([jnp.zeros((len(nodes), *a.shape[1:]), a.dtype), a])[order]
    senders, receivers = (
        jnp.concatenate([nodes, ends])[order] for ends in (graph.senders, graph.receivers)
    )
    edges = jax.tree.map(insert, graph.edges)
    kept = jnp.concatenate([jnp.ones(len(nodes), bool), apart])[order]
    return graph._replace(senders=senders, receivers=receivers, edges=edges), kept


def _invariants(levels: Sequence[jax.Array]) -> jax.Array:
    """(N, …): Re F^0 and Im F^0 of all levels, and Re F · F and ‖F‖² of each degree and channel."""
    alone = [f[:, :, :, 0] for f in levels]
    found = [jnp.concatenate(alone, axis=1).transpose(1, 0, 2)]
    dots = [sum_orders(multiply(f, dual(f)))[0] for f in levels]
    squares = [sum_orders(jnp.sum(f**2, axis=0)) for f in levels]
    for l in range(max(dot.shape[-1] for dot in dots)):
        for dot, square in zip(dots, squares, strict=True):
            if l < dot.shape[-1]:
                found.append(jnp.stack([dot[..., l], square[..., l]], axis=1))
    return jnp.concatenate([z.reshape(-1, z.shape[-1]) for z in found]).T


def _cartesian(f: jax.Array) -> jax.Array:
    """The real part of complex features of degree 1 (2, N, 3) as vectors (N, 3)."""
    (minus, zero, plus), (minus_i, _, plus_i) = (jnp.moveaxis(z, -1, 0) for z in f)
    # x = (F_-1 - F_1) / √2, y = (F_-1 + F_1) / √2i and z = F_0 of the conjugated harmonics
    return jnp.stack([minus - plus, minus_i + plus_i, 2**0.5 * zero], axis=-1) / 2**0.5
