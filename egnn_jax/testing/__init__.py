"""Checks of what a geometric layer promises, for anyone's layers: each can fail, and says where.

A layer is any function of a graph. Three lines test one:

>>> graph, model = egnn.testing.random_graph(seed=0), egnn.EGNN(features=8, layers=1)
>>> params = egnn.testing.randomise_parameters(model.init(jax.random.key(0), graph))
>>> error = egnn.testing.assert_equivariant(lambda g: model.apply(params, g), graph)

A check is only as good as its input. Random graphs here are ragged, directed and padded, with
isolated nodes, single nodes, nodes at the same place and nodes at rest; parameters are of order
one, since an untrained φ_x moves nothing that could be seen to be wrong. Work in float64
(``jax.enable_x64``) where you can: a wrong term of 1e-6 then shows.
"""

from egnn_jax.testing.checks import (
    RTOL,
    GraphFunction,
    assert_equivariant,
    assert_finite_gradients,
    assert_padding_invariant,
    assert_permutation_equivariant,
)
from egnn_jax.testing.inputs import pad_with_noise, random_graph, randomise_parameters

__all__ = [
    "RTOL",
    "GraphFunction",
    "assert_equivariant",
    "assert_finite_gradients",
    "assert_padding_invariant",
    "assert_permutation_equivariant",
    "pad_with_noise",
    "random_graph",
    "randomise_parameters",
]
