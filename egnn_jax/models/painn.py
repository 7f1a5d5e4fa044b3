"""PaiNN (Schütt, Unke and Gastegger 2021): messages of scalars and vectors within a cutoff."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph._validation import require_not_negative, require_positive_number
from egnn_jax.graph.exchange import exchange
from egnn_jax.graph.geometry import length_and_direction, safe_norm
from egnn_jax.graph.graph import GraphsTuple, edge_vectors, require_geometric, sum_at_receivers
from egnn_jax.nn.mlp import MLP, Dense, Symmetry, embed, require_positive, with_attributes
from egnn_jax.nn.radial import bessel_basis, cosine_cutoff


class PaiNN(nn.Module):
    """PaiNN: each node has F features h and F vectors V, which start at 0 (or along v).

    Messages: h_i += Σ_j φ₁(h_j) W₁ and V_i += Σ_j V_j φ₂(h_j) W₂ + r_ij/‖r_ij‖ φ₃(h_j) W₃, with
    filters W of a Bessel basis of ‖r_ij‖ that go to 0 at the cutoff.
    Updates: h += a₁(h, s) ⟨AV, BV⟩ + a₂(h, s) and V += a₃(h, s) AV, with s = (‖BV‖² + ε²)^½ and
    matrices A and B that mix the vectors of a node. φ and a are Linear·SiLU·Linear, with three
    parts each. The paper has ε = 0; forces then jump where BV vanishes, as at symmetric sites.

    Args:
      features: number of features and of vectors, F.
      layers: number of message and update blocks.
      num_rbf: number of radial basis functions.
      cutoff: cutoff distance of interactions, in the unit of x.
      epsilon: ε, which rounds off ‖BV‖ at 0. Use 0.1 for potentials; 0 is the paper's norm.
      update_coordinates: move x by v'.

    Call: takes a graph with h (N, F) or (N,), x (N, n), v (N, n) or None and a (E, A) or None;
    returns it with h (N, features) and v' (N, n), a learned combination of each node's vectors.

    Raises:
      ValueError: a size is below 1, the cutoff is not a finite distance above 0, or ``epsilon`` is
        not a finite number of at least 0.
    """

    symmetry: ClassVar[Symmetry] = "E(n)"

    features: int = 128
    layers: int = 3
    num_rbf: int = 20
    cutoff: float = 5.0
    epsilon: float = 0.0
    update_coordinates: bool = False

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph)
        require_positive(features=self.features, layers=self.layers, num_rbf=self.num_rbf)
        require_positive_number(cutoff=self.cutoff)
        require_not_negative(epsilon=self.epsilon)
        x, v = graph.nodes.x, graph.nodes.v
        distance, u_ij = length_and_direction(edge_vectors(graph, exchange(graph, x)))
        h = embed(graph.nodes, self.features)
        u_ij = u_ij[:, :, None].astype(h.dtype)
        s_ij = with_attributes(graph, bessel_basis(distance[:, 0], self.num_rbf, self.cutoff))
        envelope = cosine_cutoff(distance, self.cutoff).astype(h.dtype)
        vectors = None
        if v is not None:
            vectors = Dense(self.features, use_bias=False, name="vectors_in")(
                v[:, :, None].astype(h.dtype)
            )
        for k in range(self.layers):
            filters = Dense(3 * self.features, name=f"layer_{k}_filters")(s_ij.astype(h.dtype))
            phi = MLP(self.features, 3 * self.features, name=f"layer_{k}_phi")(h)
            phi_w = exchange(graph, phi)[graph.senders] * (filters * envelope)
            dh_ij, phi_w_2, phi_w_3 = jnp.split(phi_w, 3, axis=-1)
            dv_ij = u_ij * phi_w_3[:, None]
            if vectors is not None:
                dv_ij += exchange(graph, vectors)[graph.senders] * phi_w_2[:, None]
            dv = sum_at_receivers(graph, dv_ij)
            h += sum_at_receivers(graph, dh_ij)
            vectors = dv if vectors is None else vectors + dv
            h, vectors = self._update(h, vectors, f"layer_{k}_update")
        assert vectors is not None
        v = Dense(1, use_bias=False, name="vectors_out")(vectors)[:, :, 0].astype(x.dtype)
        x = x + v if self.update_coordinates else x
        return graph._replace(nodes=graph.nodes.replace(h=h, x=x, v=v))

    def _update(self, h: jax.Array, vectors: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
        """Update block: h (N, F) and V (N, n, F) from those of the same node."""
        mixed = Dense(2 * self.features, use_bias=False, name=f"{name}_mix")(vectors)
        a_v, b_v = jnp.split(mixed, 2, axis=-1)
        if self.epsilon:
            epsilon = jnp.full_like(b_v[:, :1], self.epsilon)
            lengths = safe_norm(jnp.concatenate([b_v, epsilon], axis=1), axis=1)
        else:
            lengths = safe_norm(b_v, axis=1)
        a = MLP(self.features, 3 * self.features, name=name)(jnp.concatenate([h, lengths], -1))
        a_1, a_2, a_3 = jnp.split(a, 3, axis=-1)
        products = jnp.sum(a_v * b_v, axis=1)
        return h + a_1 * products + a_2, vectors + a_3[:, None] * a_v
