"""Norms that are safe to differentiate, and the symmetries of Euclidean space."""

import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple


def safe_norm(x: jax.Array, axis: int = -1, keepdims: bool = False) -> jax.Array:
    """‖x‖ along ``axis`` whose value and derivatives at x = 0 are 0 instead of NaN."""
    squared = jnp.sum(x**2, axis=axis, keepdims=keepdims)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))


def random_orthogonal(key: jax.Array, n: int, determinant: int | None = None) -> jax.Array:
    """A Haar-uniform orthogonal (n, n) matrix: a rotation for ``determinant=1``, a reflection for
    -1.

    Raises:
      ValueError: ``determinant`` is neither 1, -1 nor None (either).
    """
    if determinant not in (1, -1, None):
        raise ValueError(f"determinant is {determinant}; expected 1, -1 or None")
    q = jax.random.orthogonal(key, n)
    if determinant is None:
        return q
    return q.at[0].multiply(determinant * jnp.sign(jnp.linalg.det(q)))


def transform(
    graph: GraphsTuple, matrix: jax.Array, translation: jax.Array | float = 0.0
) -> GraphsTuple:
    """The graph with x moved to ``matrix @ x + translation``; v, shifts, cells and stress by
    ``matrix``.
    """

    def turned(vectors: jax.Array | None) -> jax.Array | None:
        return None if vectors is None else vectors @ matrix.T

    nodes, edges, globals_ = graph.nodes, graph.edges, graph.globals
    stress = globals_.stress
    return graph._replace(
        nodes=nodes.replace(x=nodes.x @ matrix.T + translation, v=turned(nodes.v)),
        edges=edges.replace(shift=turned(edges.shift)),
        globals=globals_.replace(
            cell=turned(globals_.cell),
            stress=None if stress is None else matrix @ stress @ matrix.T,
        ),
    )
