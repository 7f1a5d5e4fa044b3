"""Learned dynamics: a model that integrates Newton's equations with a learned force."""

import math
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph._validation import require_count, require_positive_number
from egnn_jax.graph.exchange import exchange, require_one_part
from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import (
    GraphsTuple,
    edge_vectors,
    graph_of_node,
    mean_nodes,
    require_geometric,
    sum_at_receivers,
)
from egnn_jax.models.egcl import EGCL
from egnn_jax.nn.mlp import MLP, Dense, Symmetry, embed, require_positive, silu, with_attributes
from egnn_jax.nn.precision import compute_dtype
from egnn_jax.potentials.rollout import Phase, rollout, velocity_verlet

_EPSILON = 1e-6  # added to distances before taking their logarithm


class PairForce(nn.Module):
    """Force Σ_j f_ij, f_ij = r_ij/‖r_ij‖ sinh φ_f(h_i + h_j, log ‖r_ij‖, a_ij), ‖f_ij‖ ≤ bound.

    The logarithm and sinh turn a power law such as Coulomb's r⁻² into a linear function, so φ_f
    extrapolates to particles closer than any in training. If each edge has its reverse, with the
    same a, then f_ij = -f_ji and momentum is conserved; with ``layers=0`` and constant h and a, f
    is also the negative gradient of an energy.

    Args:
      features: width of the hidden layers.
      layers: number of EGCLs that first update h, which makes f a many-body force.
      bound: upper bound of ‖f_ij‖.

    Call: takes a graph with h (N, F) or None, x (N, n) and a (E, A) or None; returns forces (N, n).

    Raises:
      ValueError: ``layers`` is below 0, or above 0 for a graph without h.
    """

    features: int = 32
    layers: int = 0
    bound: float = 100.0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> jax.Array:
        """Compute forces (N, n)."""
        h, dtype = graph.nodes.h, compute_dtype(graph)
        require_count("layers", self.layers, 0)
        if h is None and self.layers:
            raise ValueError(f"layers is {self.layers} for a graph without h; expected 0, or h")
        r_ij = edge_vectors(graph, exchange(graph, graph.nodes.x))
        distance = safe_norm(r_ij, keepdims=True) + _EPSILON
        s_ij = with_attributes(graph, jnp.log(distance)).astype(dtype)
        z_ij = Dense(self.features, name="edges")(s_ij)
        if h is not None:
            h = embed(graph.nodes, self.features)
            for layer in range(self.layers):
                egcl = EGCL(self.features, update_coordinates=False, name=f"layer_{layer}")
                h = egcl(graph._replace(nodes=graph.nodes.replace(h=h))).nodes.h
            z_i = Dense(self.features, use_bias=False, name="nodes")(h)
            z_ij += z_i[graph.receivers] + exchange(graph, z_i)[graph.senders]
        u_ij = MLP(self.features, 1, name="phi_f")(silu(z_ij)).astype(distance.dtype)
        max_u = math.asinh(self.bound)
        f_ij = r_ij / distance * jnp.sinh(jnp.clip(u_ij, -max_u, max_u))
        return sum_at_receivers(graph, f_ij)


class LearnedDynamics(nn.Module):
    """Propagate particles of mass 1 in time, by velocity Verlet with a :class:`PairForce`.

    The force is learned through the whole simulation. The number of steps and the time are not
    parameters, so they may differ when the force is used.

    After a close encounter, the final state says nothing about the force: its gradient grows
    exponentially backward in time and swamps the others. In training, ``growth=1.0`` bounds it.

    Args:
      features, layers, bound: options of the force, see :class:`PairForce`.
      steps: number of simulation steps.
      time: duration of the simulation.
      growth: bound on the gradient with respect to a particle's position, or to its velocity times
        ``time``, at each step, relative to the longest gradient of its system at the end. Does not
        support forward-mode differentiation. By default, the gradient is exact.

    Call: takes a graph with x (N, n), v (N, n) or None for particles at rest, and constant h (N, F)
    or None and a (E, A) or None; returns it with x and v after ``time``.

    Raises:
      ValueError: an option is out of range, ``layers`` is above 0 for a graph without h, or
        ``growth`` is given for a graph that is spread over devices.
    """

    symmetry: ClassVar[Symmetry] = "E(n)"

    features: int = 32
    layers: int = 0
    bound: float = 100.0
    steps: int = 200
    time: float = 1.0
    growth: float | None = None

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        """Compute the graph after ``time``."""
        require_geometric(graph)
        require_positive(features=self.features, steps=self.steps)
        require_positive_number(bound=self.bound, time=self.time)
        if self.growth is not None:
            require_positive_number(growth=self.growth)
            require_one_part(graph, "growth")
        force = PairForce(self.features, self.layers, self.bound, name="force")
        force(graph)  # creates the parameters that the steps share
        module, variables = force.unbind()

        def force_at(params: Any, x: jax.Array) -> Any:
            return module.apply(params, graph._replace(nodes=graph.nodes.replace(x=x)))

        init, step = velocity_verlet(force_at, self.time / self.steps)
        v = jnp.zeros_like(graph.nodes.x) if graph.nodes.v is None else graph.nodes.v
        # Center each system, since steps would be rounded far from the origin.
        node_graph = graph_of_node(graph)
        center = jax.lax.stop_gradient(mean_nodes(graph, graph.nodes.x))[node_graph]
        initial = init(variables, graph.nodes.x - center, v)
        limit = jnp.zeros_like(initial.x[:, :1])

        def advance(params: Any, state: tuple[Phase, jax.Array]) -> tuple[Phase, jax.Array]:
            phase, limit = step(params, state[0]), state[1]
            if self.growth is not None:
                bounds = (self.growth, self.growth * self.time)
                clipped: Any = _clip_gradients(bounds, phase.x, phase.v, limit)
                x, v, limit = clipped
                phase = phase._replace(x=x, v=v)
            return phase, limit

        final, limit = rollout(advance, variables, (initial, limit), self.steps).state
        if self.growth is not None:
            measured: Any = _measure_gradients(self.time, final, limit, (node_graph, graph.n_node))
            final = measured
        v = None if graph.nodes.v is None else final.v
        return graph._replace(nodes=graph.nodes.replace(x=final.x + center, v=v))


# Both functions are the identity. In the backward pass, the otherwise unused gradient of ``limit``
# (N, 1) carries the longest final gradient of each system to the preceding steps.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _measure_gradients(
    time: float, final: Phase, limit: jax.Array, graphs: tuple[jax.Array, ...]
) -> Phase:
    return final


def _measure_forward(time: float, final: Phase, limit: jax.Array, graphs: Any) -> tuple[Phase, Any]:
    return final, graphs


def _measure_backward(
    time: float, graphs: tuple[jax.Array, ...], gradient: Phase
) -> tuple[Any, ...]:
    node_graph, n_node = graphs
    lengths = jnp.maximum(_length(gradient.x), _length(gradient.v) / time)
    longest = jax.ops.segment_max(lengths, node_graph, num_segments=n_node.shape[0])
    return gradient, longest[node_graph], None


_measure_gradients.defvjp(_measure_forward, _measure_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _clip_gradients(
    bounds: tuple[float, float], x: jax.Array, v: jax.Array, limit: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return x, v, limit


def _clip_forward(bounds: tuple[float, float], x: jax.Array, v: jax.Array, limit: jax.Array) -> Any:
    return (x, v, limit), None


def _clip_backward(bounds: tuple[float, float], _: None, gradients: Any) -> tuple[Any, ...]:
    x_gradient, v_gradient, limit = gradients
    x, v = (
        g * jnp.minimum(1, bound * limit / jnp.maximum(_length(g), jnp.finfo(g.dtype).tiny))
        for g, bound in zip((x_gradient, v_gradient), bounds, strict=True)
    )
    return x, v, limit


_clip_gradients.defvjp(_clip_forward, _clip_backward)


def _length(vectors: jax.Array) -> jax.Array:
    return safe_norm(vectors, keepdims=True)
