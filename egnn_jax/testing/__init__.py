"""Checks of symmetry, padding and gradients for your own layers, with precise failure messages.

A layer is any function of a graph. Three lines test one:

>>> graph, model = egnn.testing.random_graph(seed=0), egnn.EGNN(features=8, layers=1)
>>> params = egnn.testing.randomise_parameters(model.init(jax.random.key(0), graph))
>>> error = egnn.testing.assert_equivariant(lambda g: model.apply(params, g), graph)

A check is only as good as its input. The random graphs are ragged, directed and padded, with
isolated nodes, single nodes, coincident nodes and nodes at rest. Parameters are redrawn to be of
order one, since an untrained φ_x moves nodes too little for errors to show. Use float64
(``jax.enable_x64``) if you can, to detect a wrong term as small as 1e-6.
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
