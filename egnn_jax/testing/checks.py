"""Checks of equivariance, padding and gradients for any function of a graph."""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph._validation import require_function
from egnn_jax.graph.batching import unbatch
from egnn_jax.graph.geometry import random_orthogonal, transform
from egnn_jax.graph.graph import GraphsTuple, PaddedGraphsTuple, require_geometric
from egnn_jax.testing import _compare
from egnn_jax.testing.inputs import pad_with_noise

GraphFunction = Callable[[GraphsTuple], Any]

RTOL = {"float64": 1e-10, "float32": 1e-4}
"""Default tolerance by dtype of x, relative to the largest entry of a field."""


def assert_equivariant(
    fn: GraphFunction,
    graph: GraphsTuple,
    *,
    rotation: bool = True,
    reflection: bool = True,
    translation: bool = True,
    seed: int = 0,
    rtol: float | None = None,
) -> float:
    """Assert that ``fn(Q x + t, Q v, h, edges)`` equals ``fn(x, v, h, edges)`` moved by Q and t.

    The expectation follows from what ``fn`` returns. In a graph, ``nodes.x`` must transform as
    points, ``nodes.v``, ``edges.shift`` and ``globals.cell`` as vectors, ``globals.stress`` as a
    tensor. All else must be invariant, as must every array of any other output, such as an energy:
    to check forces, return them as ``nodes.v``.

    Args:
      fn: function of a graph that returns a graph or invariant arrays.
      graph: the input, for example from :func:`random_graph`.
      rotation, reflection, translation: which transformations to test.
      seed: seed of Q and t.
      rtol: maximum error, relative to the largest entry of a field; by default :data:`RTOL` of x's
        dtype.

    Returns:
      The largest relative error found.

    Raises:
      AssertionError: a field differs; the message names the first field, the node and the distance.
        Or the check could not detect errors: coordinates move by less than a hundred times the
        tolerance, or the output does not depend on them at all.
      ValueError: ``fn`` is not a function, the graph is not one of this library, or its x has a
        dtype without a default tolerance.
    """
    rtol = _validated_rtol(fn, graph, rtol)
    out = fn(graph)
    _assert_sensitive(fn, graph, out, rtol)
    n = graph.nodes.x.shape[1]
    key = jax.random.key(seed)
    scale = float(jnp.abs(graph.nodes.x).max())
    shift = scale * jax.random.normal(jax.random.fold_in(key, 1), (n,), graph.nodes.x.dtype)
    orthogonal = partial(random_orthogonal, key, n)
    transformations = [("a rotation", orthogonal(1), 0.0)] * rotation
    transformations += [("a reflection", orthogonal(-1), 0.0)] * reflection
    transformations += [("a translation", jnp.eye(n), shift)] * translation
    max_error = 0.0
    for name, q, t in transformations:
        expected = transform(out, q, t) if isinstance(out, GraphsTuple) else out
        error = _compare.assert_close(
            fn(_transformed(graph, q, t)), expected, rtol, f"after {name} of the input"
        )
        max_error = max(max_error, error)
    return max_error


def assert_permutation_equivariant(
    fn: GraphFunction, graph: GraphsTuple, *, seed: int = 0, rtol: float | None = None
) -> float:
    """Assert that permuting the nodes of each graph, and the edges, permutes the output alike.

    Arguments, return value and errors are as in :func:`assert_equivariant`. If the output is not a
    graph, every array must be invariant.
    """
    rtol = _validated_rtol(fn, graph, rtol)
    rng = np.random.default_rng(seed)
    counts = np.asarray(graph.n_node)
    node_order = np.concatenate(
        [
            end - count + rng.permutation(count)
            for end, count in zip(np.cumsum(counts), counts, strict=True)
        ]
    )
    new_index = np.argsort(node_order)
    receivers = new_index[np.asarray(graph.receivers)]
    edge_order = rng.permutation(len(receivers))
    edge_order = edge_order[np.argsort(receivers[edge_order], kind="stable")]

    def permuted(g: GraphsTuple) -> GraphsTuple:
        take = lambda rows: lambda a: a[rows]
        return g._replace(
            nodes=jax.tree.map(take(node_order), g.nodes),
            edges=jax.tree.map(take(edge_order), g.edges),
            senders=jnp.asarray(new_index[np.asarray(g.senders)][edge_order], g.senders.dtype),
            receivers=jnp.asarray(receivers[edge_order], g.receivers.dtype),
        )

    out = fn(graph)
    expected = permuted(out) if isinstance(out, GraphsTuple) else out
    return _compare.assert_close(
        fn(permuted(graph)),
        expected,
        rtol,
        "after the nodes and edges were permuted",
    )


def assert_padding_invariant(
    fn: GraphFunction, graph: GraphsTuple, *, seed: int = 0, rtol: float | None = None
) -> float:
    """Assert that the output depends neither on padding nor on other graphs of the batch.

    Args:
      fn: function of a graph that returns a graph, or arrays with one row per graph, such as
        energies (G,).
      graph: a batch without padding, for example ``random_graph(padding=False)``.
      seed: seed of the numbers in the padding.
      rtol: as in :func:`assert_equivariant`.

    Returns:
      The largest relative error found.

    Raises:
      AssertionError: an output changes; the message names the first one, its place and the error.
      ValueError: the graph is a padded batch, or the function returns neither a graph nor arrays
        with one row per graph; or as in :func:`assert_equivariant`.
    """
    rtol = _validated_rtol(fn, graph, rtol)
    if isinstance(graph, PaddedGraphsTuple):
        raise ValueError(
            "the graph is a padded batch; expected one without padding, such as "
            "random_graph(padding=False)"
        )
    out = fn(graph)
    if not isinstance(out, GraphsTuple):
        n_graph = graph.n_node.shape[0]
        for leaf in jax.tree.leaves(out):
            if np.shape(leaf)[:1] != (n_graph,):
                raise ValueError(
                    f"the function returns an array {np.shape(leaf)}; expected a graph, or arrays "
                    f"with a row for each of the {n_graph} graphs"
                )
    padded_out = fn(pad_with_noise(graph, seed))
    if isinstance(padded_out, GraphsTuple):
        padded_out = GraphsTuple(*padded_out)  # the type of a batch without padding
    max_error = _compare.assert_close(
        jax.tree.map(lambda padded, array: padded[: len(array)], padded_out, out),
        out,
        rtol,
        "after padding was appended",
    )
    if isinstance(out, GraphsTuple):
        expected = unbatch(out)
    else:
        expected = [
            jax.tree.map(itemgetter(slice(k, k + 1)), out) for k in range(graph.n_node.shape[0])
        ]
    for k, (single, expected_out) in enumerate(zip(unbatch(graph), expected, strict=True)):
        error = _compare.assert_close(
            fn(single), expected_out, rtol, f"between graph {k} alone and in the batch"
        )
        max_error = max(max_error, error)
    return max_error


def assert_finite_gradients(fn: Callable[..., Any], graph: GraphsTuple, params: Any = None) -> None:
    """Assert that first and second derivatives are finite, in reverse and forward mode.

    Args:
      fn: function of a graph, or of ``params`` and a graph, that returns arrays.
      graph: the input; a :func:`random_graph` has coincident nodes, nodes at rest and padding.
      params: parameters to differentiate too; if given, ``fn(params, graph)`` is called.

    Raises:
      AssertionError: a derivative is not finite; the message names it, its field and its place.
      ValueError: ``fn`` is not a function, or the graph is not one of this library.
    """
    _require_arguments(fn, graph)
    arrays = {"nodes": graph.nodes, "edges": graph.edges, "params": params}
    # Whole numbers, such as node types, have no derivative.
    inputs = jax.tree.map(lambda a: a if _is_floating(a) else None, arrays)
    dtype = graph.nodes.x.dtype

    def energy(inputs: Any) -> jax.Array:
        merged = jax.tree.map(
            lambda a, original: original if a is None else a,
            inputs,
            arrays,
            is_leaf=lambda a: a is None,
        )
        g = graph._replace(nodes=merged["nodes"], edges=merged["edges"])
        out = fn(g) if params is None else fn(merged["params"], g)
        leaves = [leaf for leaf in jax.tree.leaves(out) if _is_floating(leaf)]
        return sum(
            (jnp.sum(jnp.sin(leaf.astype(dtype))) for leaf in leaves), start=jnp.zeros((), dtype)
        )

    ones = jax.tree.map(jnp.ones_like, inputs)

    @jax.jit
    def derivatives(inputs: Any) -> dict[str, Any]:
        gradient, second = jax.jvp(jax.grad(energy), (inputs,), (ones,))
        return {
            "the gradient": gradient,
            "the second derivative": second,
            "the jvp": jax.jvp(energy, (inputs,), (ones,))[1],
        }

    for name, tree in derivatives(inputs).items():
        for field, value in _compare.fields(tree):
            nonfinite = np.argwhere(~np.isfinite(value))
            if len(nonfinite):
                index = nonfinite[0]
                raise AssertionError(
                    f"{name} with respect to {field or 'the input'}"
                    f"{_compare.place(field, index)} is {value[tuple(index)]}"
                )


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _transformed(graph: GraphsTuple, q: jax.Array, t: jax.Array | float) -> GraphsTuple:
    """Transform a graph, keeping coincident nodes together in spite of rounding."""
    transformed = transform(graph, q, t)
    _, first, inverse = np.unique(
        np.asarray(graph.nodes.x), axis=0, return_index=True, return_inverse=True
    )
    x = transformed.nodes.x[first][inverse.reshape(-1)]
    return transformed._replace(nodes=transformed.nodes.replace(x=x))


def _assert_sensitive(fn: GraphFunction, graph: GraphsTuple, out: Any, rtol: float) -> None:
    """Assert that errors would show: coordinates move by far more than the tolerance, or the output
    depends on them.
    """
    threshold = 100 * rtol
    x = np.asarray(graph.nodes.x)
    if isinstance(out, GraphsTuple) and out.nodes.x.shape == x.shape:
        displacement, size = np.abs(np.asarray(out.nodes.x) - x).max(), np.abs(x).max()
        if 0 < displacement <= threshold * size:
            raise AssertionError(
                f"nodes.x moves by {displacement / size:.1e} of its size only, expected more than "
                f"{threshold:.1e}: errors would hide below the tolerance; redraw the parameters "
                "with randomise_parameters"
            )
        if displacement:
            return
    # Stretch along one axis, which is neither a rotation nor a translation.
    stretched = jnp.concatenate([1.5 * graph.nodes.x[:, :1], graph.nodes.x[:, 1:]], axis=1)
    stretched_out = fn(graph._replace(nodes=graph.nodes.replace(x=stretched)))
    if isinstance(out, GraphsTuple):
        out = out._replace(nodes=out.nodes.replace(x=None))
        stretched_out = stretched_out._replace(nodes=stretched_out.nodes.replace(x=None))
    changes = [
        _compare.largest_error(a, b)[0]
        for (_, a), (_, b) in zip(_compare.fields(stretched_out), _compare.fields(out), strict=True)
    ]
    if max(changes, default=0.0) <= threshold:
        raise AssertionError(
            f"the output changes by {max(changes, default=0.0):.1e} of its size when the "
            f"coordinates are stretched, expected more than {threshold:.1e}: it does not depend "
            "on them, so equivariance says nothing about it"
        )


def _require_arguments(fn: Any, graph: Any) -> None:
    require_function("fn", fn, "of a graph, such as lambda g: model.apply(params, g)")
    require_geometric(graph)


def _validated_rtol(fn: Any, graph: Any, rtol: float | None) -> float:
    """Check the arguments, and return the tolerance."""
    _require_arguments(fn, graph)
    if not len(graph.nodes.x):
        raise ValueError("the graph has no nodes; expected at least one")
    dtype = str(graph.nodes.x.dtype)
    if rtol is None and dtype not in RTOL:
        raise ValueError(
            f"x has dtype {dtype}, which has no default tolerance; expected float64 or "
            f"float32, or rtol to be given"
        )
    return RTOL[dtype] if rtol is None else rtol
