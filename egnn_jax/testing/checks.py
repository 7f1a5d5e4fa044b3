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
    rtol = _checked(fn, graph, rtol)
    out = fn(graph)
    _assert_not_blind(fn, graph, out, rtol)
    n = graph.nodes.x.shape[1]
    key = jax.random.key(seed)
    scale = float(jnp.abs(graph.nodes.x).max())
    shift = scale * jax.random.normal(jax.random.fold_in(key, 1), (n,), graph.nodes.x.dtype)
    turn = partial(random_orthogonal, key, n)
    moves = [("a rotation", turn(1), 0.0)] * rotation
    moves += [("a reflection", turn(-1), 0.0)] * reflection
    moves += [("a translation", jnp.eye(n), shift)] * translation
    worst = 0.0
    for name, q, t in moves:
        expected = transform(out, q, t) if isinstance(out, GraphsTuple) else out
        worst = max(
            worst,
            _compare.assert_close(
                fn(_moved(graph, q, t)), expected, rtol, f"after {name} of the input"
            ),
        )
    return worst


def assert_permutation_equivariant(
    fn: GraphFunction, graph: GraphsTuple, *, seed: int = 0, rtol: float | None = None
) -> float:
    """Assert that permuting the nodes of each graph, and the edges, permutes the output alike.

    Arguments, return value and errors are as in :func:`assert_equivariant`. If the output is not a
    graph, every array must be invariant.
    """
    rtol = _checked(fn, graph, rtol)
    rng = np.random.default_rng(seed)
    counts = np.asarray(graph.n_node)
    nodes = np.concatenate(
        [
            end - count + rng.permutation(count)
            for end, count in zip(np.cumsum(counts), counts, strict=True)
        ]
    )
    renumbered = np.argsort(nodes)
    receivers = renumbered[np.asarray(graph.receivers)]
    edges = rng.permutation(len(receivers))
    edges = edges[np.argsort(receivers[edges], kind="stable")]

    def permuted(g: GraphsTuple) -> GraphsTuple:
        take = lambda rows: lambda a: a[rows]
        return g._replace(
            nodes=jax.tree.map(take(nodes), g.nodes),
            edges=jax.tree.map(take(edges), g.edges),
            senders=jnp.asarray(renumbered[np.asarray(g.senders)][edges], g.senders.dtype),
            receivers=jnp.asarray(receivers[edges], g.receivers.dtype),
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
    rtol = _checked(fn, graph, rtol)
    if isinstance(graph, PaddedGraphsTuple):
        raise ValueError(
            "the graph is a padded batch; expected one without padding, such as "
            "random_graph(padding=False)"
        )
    out = fn(graph)
    if not isinstance(out, GraphsTuple):
        rows = graph.n_node.shape[0]
        for leaf in jax.tree.leaves(out):
            if np.shape(leaf)[:1] != (rows,):
                raise ValueError(
                    f"the function returns an array {np.shape(leaf)}; expected a graph, or arrays "
                    f"with a row for each of the {rows} graphs"
                )
    padded = fn(pad_with_noise(graph, seed))
    if isinstance(padded, GraphsTuple):
        padded = GraphsTuple(*padded)  # the type of a batch without padding
    worst = _compare.assert_close(
        jax.tree.map(lambda a, like: a[: len(like)], padded, out),
        out,
        rtol,
        "after padding was appended",
    )
    if isinstance(out, GraphsTuple):
        parts = unbatch(out)
    else:
        parts = [
            jax.tree.map(itemgetter(slice(k, k + 1)), out) for k in range(graph.n_node.shape[0])
        ]
    for k, (single, part) in enumerate(zip(unbatch(graph), parts, strict=True)):
        worst = max(
            worst,
            _compare.assert_close(
                fn(single), part, rtol, f"between graph {k} alone and in the batch"
            ),
        )
    return worst


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
    given = {"nodes": graph.nodes, "edges": graph.edges, "params": params}
    # Whole numbers, such as node types, have no derivative.
    inputs = jax.tree.map(lambda a: a if _is_floating(a) else None, given)
    dtype = graph.nodes.x.dtype

    def energy(inputs: Any) -> jax.Array:
        whole = jax.tree.map(
            lambda a, own: own if a is None else a, inputs, given, is_leaf=lambda a: a is None
        )
        g = graph._replace(nodes=whole["nodes"], edges=whole["edges"])
        out = fn(g) if params is None else fn(whole["params"], g)
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
            bad = np.argwhere(~np.isfinite(value))
            if len(bad):
                raise AssertionError(
                    f"{name} with respect to {field or 'the input'}"
                    f"{_compare.place(field, bad[0])} is {value[tuple(bad[0])]}"
                )


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _moved(graph: GraphsTuple, q: jax.Array, t: jax.Array | float) -> GraphsTuple:
    """Transform a graph, keeping coincident nodes together in spite of rounding."""
    moved = transform(graph, q, t)
    _, first, place = np.unique(
        np.asarray(graph.nodes.x), axis=0, return_index=True, return_inverse=True
    )
    return moved._replace(nodes=moved.nodes.replace(x=moved.nodes.x[first][place.reshape(-1)]))


def _assert_not_blind(fn: GraphFunction, graph: GraphsTuple, out: Any, rtol: float) -> None:
    """Assert that errors would show: coordinates move by far more than the tolerance, or the output
    depends on them.
    """
    seen = 100 * rtol
    x = np.asarray(graph.nodes.x)
    if isinstance(out, GraphsTuple) and out.nodes.x.shape == x.shape:
        moved, size = np.abs(np.asarray(out.nodes.x) - x).max(), np.abs(x).max()
        if 0 < moved <= seen * size:
            raise AssertionError(
                f"nodes.x moves by {moved / size:.1e} of its size only, expected more than "
                f"{seen:.1e}: errors would hide below the "
                "tolerance; redraw the parameters with randomise_parameters"
            )
        if moved:
            return
    # Stretch along one axis, which is neither a rotation nor a translation.
    stretched = jnp.concatenate([1.5 * graph.nodes.x[:, :1], graph.nodes.x[:, 1:]], axis=1)
    other = fn(graph._replace(nodes=graph.nodes.replace(x=stretched)))
    if isinstance(out, GraphsTuple):
        out, other = (g._replace(nodes=g.nodes.replace(x=None)) for g in (out, other))
    changes = [
        _compare.largest_error(a, b)[0]
        for (_, a), (_, b) in zip(_compare.fields(other), _compare.fields(out), strict=True)
    ]
    if max(changes, default=0.0) <= seen:
        raise AssertionError(
            f"the output changes by {max(changes, default=0.0):.1e} of its size when the "
            f"coordinates are stretched, expected more "
            f"than {seen:.1e}: it does not depend on them, so equivariance says nothing about it"
        )


def _require_arguments(fn: Any, graph: Any) -> None:
    require_function("fn", fn, "of a graph, such as lambda g: model.apply(params, g)")
    require_geometric(graph)


def _checked(fn: Any, graph: Any, rtol: float | None) -> float:
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
