"""What keeps EGNN finite: bounded φ_x over mean aggregation, whatever the parameters, depth, size,
spread and precision.

``python -m tests.test_stability`` prints the table of docs/testing.md.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing

CASES = {
    "10 nodes, 4 layers": (10, 1.0, 4),
    "10 nodes, 20 layers": (10, 1.0, 20),
    "10 nodes 1e3 apart, 4 layers": (10, 1e3, 4),
    "10 nodes 1e3 apart, 20 layers": (10, 1e3, 20),
    "1,000 nodes, 4 layers": (1_000, 1.0, 4),
}
OPTIONS = {
    "default (mean)": {},
    "sum": {"coordinate_aggregation": "sum"},
    "mean, normalize": {"normalize": True},
    "mean, tanh": {"tanh": True},
    "mean, tanh, normalize": {"tanh": True, "normalize": True},
    "sum, tanh, normalize": {"coordinate_aggregation": "sum", "tanh": True, "normalize": True},
}
LARGE = "1,000 nodes, 4 layers"
QUICK_THEN_LARGE = [
    pytest.param(case, marks=pytest.mark.slow if case == LARGE else ()) for case in CASES
]
BOUNDED = {name: options for name, options in OPTIONS.items() if name.startswith("mean, tanh")}


FEATURES = 8


def cast(tree, dtype):
    return jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
    )


@partial(jax.jit, static_argnums=0)
def layer(options, params, graph):
    return egnn.EGCL(FEATURES, **dict(options)).apply({"params": params}, graph)


def growth(options, case, drawn, dtype):
    """max|x| after all layers over max|x| before, and whether outputs and gradients are all finite.

    Two nodes are at the same place, and the padding holds numbers. ``drawn``: parameters of order
    one, else as initialised.
    """
    n_node, scale, layers = CASES[case]
    x = scale * np.random.default_rng(0).standard_normal((n_node, 3))
    x[1] = x[0]
    graph = cast(
        testing.pad_with_noise(egnn.complete_graph(x=x, h=np.ones((n_node, FEATURES)))), dtype
    )
    model = egnn.EGNN(FEATURES, layers, embed=False, **options)
    params = (
        model.init(jax.random.key(0), graph)
        if not drawn
        else jax.eval_shape(model.init, jax.random.key(0), graph)
    )
    params = cast(testing.randomise_parameters(params) if drawn else params, dtype)

    def energy(params, nodes):
        out = graph._replace(nodes=nodes)
        for k in range(layers):  # the same as model.apply, compiled once instead of once a layer
            out = layer(tuple(options.items()), params["params"][f"layer_{k}"], out)
        return sum(
            jnp.sum(jnp.sin(a.astype(jnp.float32))) for a in (out.nodes.x, out.nodes.h)
        ), out.nodes

    gradients, out = jax.grad(energy, argnums=(0, 1), has_aux=True)(params, graph.nodes)
    real = np.asarray(out.x[:n_node], np.float32)
    finite = all(
        np.isfinite(np.asarray(a, np.float32)).all() for a in jax.tree.leaves((out, gradients))
    )
    return np.abs(real).max() / np.abs(x).max(), finite


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(jnp.float32, id="float32"),
        pytest.param(jnp.bfloat16, id="bfloat16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("drawn", [False, True], ids=["initialised", "order-one"])
@pytest.mark.parametrize("case", QUICK_THEN_LARGE)
@pytest.mark.parametrize("options", BOUNDED)
def test_bounded_it_stays_finite(options, case, drawn, dtype):
    moved, finite = growth(BOUNDED[options], case, drawn, dtype)
    assert finite
    assert moved < 30


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "case", [case for case in QUICK_THEN_LARGE if "apart" not in case.values[0]]
)
def test_by_default_it_starts_finite_at_scale_one(case, dtype):
    _, finite = growth({}, case, False, dtype)
    assert finite


def test_the_check_can_fail():
    assert not growth(OPTIONS["sum"], "10 nodes 1e3 apart, 4 layers", True, jnp.float32)[1]


def table() -> str:
    """Largest coordinate out over in, for each option, case and kind of parameters; n: not
    finite.
    """
    rows = [
        "| options | parameters | " + " | ".join(CASES) + " |",
        "| --- | --- |" + " --- |" * len(CASES),
    ]
    for name, drawn in itertools.product(OPTIONS, (False, True)):
        cells = []
        for case in CASES:
            values = [
                growth(OPTIONS[name], case, drawn, dtype) for dtype in (jnp.float32, jnp.bfloat16)
            ]
            cells.append(
                " / ".join(f"{moved:.2g}" if finite else "not finite" for moved, finite in values)
            )
        rows.append(
            f"| {name} | {'order one' if drawn else 'initialised'} | " + " | ".join(cells) + " |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
