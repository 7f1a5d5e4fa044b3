"""Every model of the registry, in every option: symmetric as it says, indifferent to padding and
order, differentiable.

A model added to the registry is tested here without another line. ``python -m
tests.test_symmetries [MODEL …]`` prints the table of docs/testing.md.
"""

import dataclasses
import sys
from functools import partial
from typing import Literal, get_args, get_origin

import chex
import jax
import jax.numpy as jnp
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.experiments._options import plain_hints
from egnn_jax.potentials.learned_dynamics import LearnedDynamics

SIZES = {
    "features": 6, "layers": 2, "num_rbf": 8, "num_radial": 8, "hidden": 8, "vectors": 3,
    "embedding": 5, "num_spherical": 3, "angular_features": 5, "basis_features": 4,
    "output_features": 3, "kernel_features": 5, "kernel_channels": 3,
    "edge_features": 5, "edge_layers": 2, "radial": 5, "steps": 3,
}  # fmt: skip
REVERSE_ONLY = {"growth"}
"""Options whose gradient JAX knows in reverse mode only."""
UNSEEN = {"clip": 1e3}
"""Values for options that are not equivariant where they act: they must not act."""
RTOL = {"float64": 1e-10, "float32": 3e-5}
"""Stricter than what users' layers are held to."""
ABOUT_THE_ORIGIN = {"shrinkage": 0.1, "padded_nodes": 9}
"""Values for options that leave a model equivariant to rotations and reflections, but not to
translations.
"""


SMOOTH = {"cutoff": 7.0, "coordinate_aggregation": "sum"}
"""What ``num_rbf`` needs where a cutoff is optional, and ``cutoff`` itself."""


def sizes(model):
    """The small sizes of this test, as far as the model has such and gives them a default."""
    defaults = {field.name: field.default for field in dataclasses.fields(model)}
    divided = {egnn.LieConv: 32, egnn.FuchsSE3Transformer: 8}  # features: by 4; by div and heads
    small = SIZES | {"features": divided.get(model, SIZES["features"])}
    return {name: size for name, size in small.items() if defaults.get(name) is not None}


def variants(model):
    """The default, and each option at each of its other values."""
    hints = {name: hint for name, hint in plain_hints(model).items() if name not in sizes(model)}
    fields = {f.name: f for f in dataclasses.fields(model) if f.name in hints}
    yield {}
    for name, field in fields.items():
        if field.default is None and name in ("cutoff", "num_rbf"):
            yield SMOOTH if name == "cutoff" else SMOOTH | {"num_rbf": SIZES["num_rbf"]}
        elif name in UNSEEN | ABOUT_THE_ORIGIN:
            yield {name: (UNSEEN | ABOUT_THE_ORIGIN)[name]}
        elif name == "extra_layers":
            yield {name: (4, 2, 3, 0)}
        elif name == "activation":
            yield {name: "gelu"}
        elif hints[name] is bool:
            yield {name: not field.default}
        elif get_origin(hints[name]) is Literal:
            yield from ({name: value} for value in get_args(hints[name]) if value != field.default)
        elif hints[name] is int:
            yield {name: field.default - 1 if field.default > 1 else 2}
        elif hints[name] is float:
            yield {name: 7.0}
        elif {int, float} & set(get_args(hints[name])):
            yield {name: None if field.default is not None else 3}
        else:
            raise NotImplementedError(
                f"{model.__name__}.{name}: tell this test what values {hints[name]} may have"
            )


def describe(value):
    return (
        "-".join(f"{k}={v}" for k, v in value.items()) or "default"
        if isinstance(value, dict)
        else getattr(value, "__name__", None)
    )


# Other tests register models of their own.
MODELS = [m for m in egnn.MODELS.values() if m.__module__.startswith("egnn_jax.")]
CASES = [(model, options) for model in MODELS for options in variants(model)]
HIGH_DEGREE = (egnn.SE3Transformer, {"degree": 3})
"""Takes minutes to compile."""

HEAVY = (
    egnn.TFN, egnn.SE3Transformer, egnn.TensorNet, egnn.DimeNetPP, egnn.NMP, egnn.Cormorant,
    egnn.L1Net, egnn.LieConv, egnn.FuchsTFN, egnn.FuchsSE3Transformer, LearnedDynamics,
)  # fmt: skip
"""Up to half a minute to compile with all that a test needs. The symmetry of their defaults, and
golden values of those of Table 3, are tested in each ``make test``, the rest in ``make test-all``.
"""


def marked(*case, slow):
    return pytest.param(*case, marks=pytest.mark.slow if slow else ())


every_model = pytest.mark.parametrize(
    ("model", "options"),
    [marked(*case, slow=case[1] or case[0] in HEAVY) for case in [*CASES, HIGH_DEGREE]],
    ids=describe,
)
every_default = pytest.mark.parametrize(
    "model", [marked(model, slow=model in HEAVY) for model in MODELS], ids=describe
)


@pytest.fixture(autouse=True)
def strict():
    """No model may mix dtypes."""
    with jax.numpy_dtype_promotion("strict"):
        yield


def build(model, options, graph, seed=0):
    model = model(**sizes(model), **options)
    params = testing.randomise_parameters(
        jax.eval_shape(model.init, jax.random.key(seed), graph), seed
    )
    # Compiled as a whole, since one operation after the other takes twice as long, and without
    # optimization, which takes most of the time and is tested with everything else.
    quickly = {"xla_backend_optimization_level": 0}
    return model, params, jax.jit(partial(model.apply, params), compiler_options=quickly)


def graphs(model, n, **options):
    """With and without velocities and edge attributes, as far as the model takes them."""
    yield testing.random_graph(n=n, **options)
    yield testing.random_graph(n=n, attributes=0, velocity=model is egnn.Linear, **options)


def dimensions(model, options, every=True):
    if model.symmetry in ("E(3)", "SE(3)") or "lifts" in options:
        return (3,)
    return range(1, 9) if every else (1, 3, 6)


def moves(model, options):
    """Which of rotations, reflections and translations a model is equivariant to."""
    parity = options.get("parity", getattr(model, "parity", None))
    return {
        "rotation": model.symmetry != "T(n)",
        "reflection": model.symmetry not in ("SE(3)", "T(n)") or parity == "natural",
        "translation": not options.keys() & ABOUT_THE_ORIGIN.keys(),
    }


def largest_error(model, options, dimensions):
    """Over rotations, reflections and translations in these dimensions, relative to the largest
    entry of a field.
    """
    return max(
        testing.assert_equivariant(
            build(model, options, graph)[2],
            graph,
            rtol=RTOL[str(graph.nodes.x.dtype)],
            **moves(model, options),
        )
        for n in dimensions
        for graph in graphs(model, n)
    )


def hidden_by_rounding(model, options):
    """Whether outputs depend on coordinates by too little for the check in float32."""
    return model is egnn.L1Net and "extra_layers" in options


EQUIVARIANT = [(model, options) for model, options in CASES if model.symmetry != "none"]


@pytest.mark.parametrize(
    ("model", "options"),
    [marked(*c, slow=c[1] and c[0] in HEAVY) for c in EQUIVARIANT],
    ids=describe,
)
def test_equivariant(x64, model, options):
    """In three dimensions for the default, and in one for each option."""
    largest_error(model, options, [3] if options else dimensions(model, {}, every=False))


@pytest.mark.parametrize(
    ("model", "options"),
    [marked(*c, slow=c[1] or c[0] in HEAVY) for c in EQUIVARIANT],
    ids=describe,
)
def test_equivariant_in_float32(model, options):
    """Only rounding is new, which does not depend on the dimension."""
    if hidden_by_rounding(model, options):
        pytest.skip("float32 rounds as much as its output depends on coordinates")
    largest_error(model, options, [3])


@pytest.mark.slow
@pytest.mark.parametrize(("model", "options"), [*EQUIVARIANT, HIGH_DEGREE], ids=describe)
def test_equivariant_in_every_dimension(x64, model, options):
    largest_error(model, options, dimensions(model, options))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        marked(*case, slow=case[1] and case[0] in HEAVY)
        for case in CASES
        if case[0].symmetry in ("T(n)", "none")
    ],
    ids=describe,
)
def test_what_claims_no_rotations_has_none(x64, model, options):
    for n in dimensions(model, options, every=False):
        for graph in graphs(model, n):
            with pytest.raises(
                AssertionError, match=r"after a (rotation|reflection)|does not depend on them"
            ):
                testing.assert_equivariant(
                    build(model, options, graph)[2], graph, translation=False
                )


@every_model
def test_order_and_padding_do_not_matter(x64, model, options):
    # Velocities and attributes come and go with the default alone: the options are about messages.
    every = list(graphs(model, 3, padding=False))
    for graph in every[: 1 if options or model in HEAVY else None]:
        _, _, apply = build(model, options, graph)
        testing.assert_permutation_equivariant(apply, graph)
        testing.assert_padding_invariant(apply, graph)


@every_default
def test_nan_stays_in_its_graph(model):
    graph = testing.random_graph(sizes=(4, 3, 1))
    apply = build(model, {}, graph)[2]
    broken = graph._replace(nodes=graph.nodes.replace(x=graph.nodes.x.at[:4].set(jnp.nan)))
    of_others = lambda out: jax.tree.map(lambda a: a[4:8], out.nodes)
    out, wanted = apply(broken), apply(graph)
    chex.assert_trees_all_close(of_others(out), of_others(wanted), rtol=1e-5)
    moved = apply(graph._replace(nodes=graph.nodes.replace(x=1.1 * graph.nodes.x)))
    if wanted.nodes.h is not None and not jnp.allclose(moved.nodes.h, wanted.nodes.h):
        assert jnp.isnan(out.nodes.h[:3]).all()  # of the nodes with incoming edges


@every_model
def test_derivatives_are_finite_where_nodes_coincide(x64, model, options):
    if options.keys() & REVERSE_ONLY:
        pytest.skip("no forward mode")
    graph = testing.random_graph()
    model, params, _ = build(model, options, graph)
    testing.assert_finite_gradients(model.apply, graph, params)


@every_model
def test_jit_and_vmap_give_the_same(x64, model, options):
    first = testing.random_graph(sizes=(4,))
    stack = [
        first._replace(nodes=jax.tree.map(partial(jnp.multiply, scale), first.nodes))
        for scale in (1.0, -0.5, 2.0)
    ]
    model, params, _ = build(model, options, first)
    apply = partial(model.apply, params)
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(apply, stack))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)
    chex.assert_trees_all_close(jax.jit(jax.vmap(apply))(stacked), looped, rtol=1e-10)
    chex.assert_trees_all_close(jax.jit(apply)(first), apply(first), rtol=1e-10)


@every_default
def test_senders_in_other_cells(x64, model):
    graph = testing.random_graph(padding=False)
    shift = jax.random.normal(jax.random.key(0), (graph.senders.shape[0], 3))
    graph = graph._replace(edges=graph.edges.replace(shift=shift))
    apply = build(model, {}, graph)[2]
    testing.assert_permutation_equivariant(apply, graph)
    testing.assert_padding_invariant(apply, graph)
    if model.symmetry != "none":
        testing.assert_equivariant(apply, graph, **moves(model, {}))


@every_default
def test_mixed_precision_computes_in_bfloat16_and_moves_in_float32(model):
    graph = testing.random_graph()
    model, params, apply = build(model, {}, graph)
    mixed = egnn.MixedPrecision(model)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(mixed.init, jax.random.key(0), graph), params
    )
    exact, rounded = apply(graph), mixed.apply(params, graph)
    chex.assert_trees_all_equal_shapes_and_dtypes(exact, rounded)
    products = [
        line
        for line in jax.jit(mixed.apply).lower(params, graph).as_text().splitlines()
        if "dot_general" in line
    ]
    assert sum("xbf16>" in line for line in products) >= len(products) / 2
    assert 0 < distance(rounded, exact) < 0.1


@every_default
def test_node_types_are_computed_in_the_dtype_of_x(x64, model):
    graph = testing.random_graph()
    as_float32 = lambda a: a.astype(jnp.float32) if a.dtype.kind == "f" else a
    graph = jax.tree.map(as_float32, graph)
    kinds = jnp.arange(len(graph.nodes.x), dtype=jnp.int32) % 9
    graph = graph._replace(nodes=graph.nodes.replace(h=kinds))
    network = model(**sizes(model))
    params = jax.eval_shape(network.init, jax.random.key(0), graph)
    out = jax.eval_shape(network.apply, params, graph)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((params, out.nodes))}
    assert dtypes <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}


def distance(graph, other):
    """The largest difference of h or x, relative to the largest entry of each."""
    fields = [(graph.nodes.h, other.nodes.h), (graph.nodes.x, other.nodes.x)]
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in fields)


def mixed_error(model, options):
    """How far a rotation before the network and one after it are apart, computed in bfloat16: the
    largest of 20. Translations take the place of rotations where a model does not follow those.
    """
    graph = testing.random_graph()
    model, params, _ = build(model, options, graph)
    apply = jax.jit(partial(egnn.MixedPrecision(model).apply, params))
    rotates = moves(model, options)["rotation"]
    keys = [jax.random.key(k) for k in range(20)]
    turns = [egnn.random_orthogonal(key, 3, 1) if rotates else jnp.eye(3) for key in keys]
    shifts = [0.0 if rotates else jax.random.normal(key, (3,)) for key in keys]
    return max(
        distance(apply(egnn.transform(graph, q, t)), egnn.transform(apply(graph), q, t))
        for q, t in zip(turns, shifts, strict=True)
    )


def print_table(names):
    """Print the largest relative errors of each model over all its options and symmetries: in
    float64 in all dimensions, else in three, as the tests have it.
    """
    print("| model | options | dimensions | symmetries | float64 | float32 | bfloat16 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in dict.fromkeys(model for model, _ in EQUIVARIANT):
        if names and model.__name__ not in names:
            continue
        mine = [options for other, options in EQUIVARIANT if other is model]
        worst = []
        for double in (True, False):
            with jax.enable_x64(double):
                worst.append(
                    max(
                        largest_error(model, options, dimensions(model, options) if double else [3])
                        for options in mine
                        if double or not hidden_by_rounding(model, options)
                    )
                )
        worst.append(max(mixed_error(model, options) for options in mine))
        n = "3" if "3" in model.symmetry else "1 to 8"
        named = ", ".join(move for move, holds in moves(model, {}).items() if holds)
        errors = " | ".join(f"{error:.1e}" for error in worst)
        print(f"| {model.__name__} | {len(mine)} | {n} | {named} | {errors} |", flush=True)


if __name__ == "__main__":
    print_table(sys.argv[1:])
