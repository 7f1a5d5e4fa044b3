"""Coordinate updates along the forces of an energy, for backbones with invariant features."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple


def move_along_forces(
    model: nn.Module,
    graph: GraphsTuple,
    features: Callable[[Any, jax.Array], jax.Array],
    energies: Callable[[jax.Array], jax.Array],
) -> GraphsTuple:
    """Update a graph to h' and x' = x - ∂E/∂x + t v, with a learned time t (0 without v).

    Call it in a compact method of the model, which gets the parameter "t".

    Args:
      model: the module whose parameters the functions use.
      graph: the input.
      features: function of the model and x (N, n) that returns h' (N, F).
      energies: function of h' that returns the energy of each node (N, 1); E is their sum.
    """

    def energy(model: nn.Module, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = features(model, x)
        return jnp.sum(energies(h)), h

    x, v = graph.nodes.x, graph.nodes.v
    (_, h), (gradient,) = nn.value_and_grad(energy, model, x, has_aux=True)
    if v is not None:
        x += model.param("t", nn.initializers.ones, (), v.dtype).astype(v.dtype) * v
    return graph._replace(nodes=graph.nodes.replace(h=h, x=x - gradient))
