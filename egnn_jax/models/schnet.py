"""SchNet (Schütt et al. 2017), Table 1: continuous-filter convolutions; outputs invariant features,
or moves x along the forces of an energy.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph._validation import require_positive_number
from egnn_jax.graph.exchange import exchange
from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import GraphsTuple, edge_vectors, require_geometric, sum_at_receivers
from egnn_jax.nn.forces import move_along_forces
from egnn_jax.nn.mlp import Dense, Symmetry, embed, require_positive, with_attributes
from egnn_jax.nn.radial import cosine_cutoff, gaussian_basis


@jax.custom_jvp
def shifted_softplus(x: jax.Array) -> jax.Array:
    """Elementwise shifted softplus, ln(eˣ/2 + 1/2).

    The value and its derivative, sigmoid(x), share one exponential.
    """
    gate = nn.sigmoid(x)
    return jnp.maximum(x, 0) - jnp.log(2 * jnp.maximum(gate, 1 - gate))


@shifted_softplus.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return shifted_softplus(x), dx * nn.sigmoid(x)


class SchNet(nn.Module):
    """SchNet: m_ij = φ_cf(‖r_ij‖, a_ij) φ_s(h_j), h_i' = h_i + φ_h(Σ_j m_ij).

    φ_cf is Linear·ssp·Linear·ssp of a Gaussian basis, times a cosine cutoff; φ_s is linear without
    bias; φ_h is Linear·ssp·Linear.

    Args:
      features: width of every layer.
      layers: number of interactions.
      num_rbf: number of Gaussian basis functions of the distance.
      cutoff: cutoff distance of the basis and of all interactions, in the unit of x.
      forces: move x along the forces of an energy, x' = x - ∂E/∂x + t v with a learned time t (0
        without v), E = Σ_i Linear·ssp·Linear(h_i); otherwise x is unchanged (the invariant network
        of QM9).

    Call: takes a graph with h (N, F) or (N,), x (N, n), v (N, n) or None and a (E, A) or None;
    returns it with h (N, features).

    Raises:
      ValueError: a size is not an integer of at least 1, or the cutoff is not above 0.
    """

    symmetry: ClassVar[Symmetry] = "E(n)"

    features: int = 64
    layers: int = 4
    num_rbf: int = 50
    cutoff: float = 10.0
    forces: bool = False

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph)
        require_positive(features=self.features, layers=self.layers, num_rbf=self.num_rbf)
        require_positive_number(cutoff=self.cutoff)
        if not self.forces:
            return graph._replace(nodes=graph.nodes.replace(h=self._features(graph, graph.nodes.x)))

        def energies(h: jax.Array) -> jax.Array:
            hidden = shifted_softplus(Dense(self.features, name="energy")(h))
            return Dense(1, name="energy_out")(hidden)

        features = lambda model, x: model._features(graph, x)
        return move_along_forces(self, graph, features, energies)

    def _features(self, graph: GraphsTuple, x: jax.Array) -> jax.Array:
        """Compute h (N, features) of a graph with its nodes at x."""
        distance = safe_norm(edge_vectors(graph, exchange(graph, x)))
        h = embed(graph.nodes, self.features)
        s_ij = with_attributes(graph, gaussian_basis(distance, self.num_rbf, self.cutoff)).astype(
            h.dtype
        )
        envelope = cosine_cutoff(distance, self.cutoff)[:, None].astype(h.dtype)
        for k in range(self.layers):
            name = f"layer_{k}_{{}}".format
            filters = shifted_softplus(Dense(self.features, name=name("phi_cf_0"))(s_ij))
            filters = (
                shifted_softplus(Dense(self.features, name=name("phi_cf_1"))(filters)) * envelope
            )
            phi_s = Dense(self.features, use_bias=False, name=name("phi_s"))(h)
            m_i = sum_at_receivers(graph, filters * exchange(graph, phi_s)[graph.senders])
            h += Dense(self.features, name=name("phi_h_1"))(
                shifted_softplus(Dense(self.features, name=name("phi_h_0"))(m_i))
            )
        return h
