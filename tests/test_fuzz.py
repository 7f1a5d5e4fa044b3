"""Every public function that takes arrays or graphs, with arguments of all kinds.

A call has to give a right answer, or a ValueError or TypeError of this library that says what was
received and what was expected. ``python -m tests.test_fuzz 10000`` makes that many calls of each.
"""

import functools
import sys
import traceback
import warnings
from collections import Counter
from types import SimpleNamespace
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings

import egnn_jax as egnn
from egnn_jax import testing
from tests import fuzzing
from tests.fuzzing import call, graph, mostly_right, odd, odd_graph

SLOW = ("models", "losses", "predict", "gradients", "from_torch")


def close(got: Any, expected: Any, like: Any = None) -> None:
    """Assert equality up to rounding in the dtype of what was got."""
    got = np.asarray(got)
    inexact = jnp.issubdtype(got.dtype, jnp.inexact)
    eps = float(jnp.finfo(got.dtype).eps) if inexact else 0
    wide = np.complex128 if got.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        expected = np.asarray(expected, wide)
        expected = expected.astype(got.dtype).astype(wide) if inexact else expected
    scale = np.abs(np.where(np.isfinite(expected), expected, 0)).max(initial=0)
    np.testing.assert_allclose(
        got.astype(wide), expected, rtol=100 * eps, atol=100 * eps * max(scale, 1e-30)
    )


def well_formed(out: Any, given: dict[str, Any]) -> None:
    """Assert that a graph is one: finite arrays that fit together, edges sorted by receiver."""
    leaves = [np.asarray(a) for a in jax.tree.leaves(out)]
    assert all(np.isfinite(a.astype(np.float64)).all() for a in leaves)
    size, receivers = out.nodes.x.shape[0], np.asarray(out.receivers)
    assert out.n_node.tolist() == [size]
    assert out.n_edge.tolist() == [len(receivers)]
    assert (np.diff(receivers) >= 0).all()
    for ends in (receivers, np.asarray(out.senders)):
        assert len(ends) == len(receivers)
        assert ((ends >= 0) & (ends < size)).all()
    if not hasattr(given["x"], "get_positions") and out.globals.cell is None:
        close(out.nodes.x, given["x"])
    for name in ("h", "v"):
        if given.get(name) is not None:
            close(getattr(out.nodes, name), given[name])


def pairs(out: Any) -> set[tuple[int, int]]:
    return set(zip(out.receivers.tolist(), out.senders.tolist(), strict=True))


def structure(rng: np.random.Generator) -> dict[str, Any]:
    size, n = int(rng.integers(0, 7)), int(rng.integers(1, 5))
    x = rng.standard_normal((size, n))
    return {
        "x": x,
        "h": rng.integers(0, 119, size) if rng.integers(2) else rng.standard_normal((size, 2)),
        "v": rng.standard_normal((size, n)) if rng.integers(2) else None,
        "y": rng.standard_normal(2) if rng.integers(2) else None,
    }


def fuzz_complete_graph(rng: np.random.Generator) -> None:
    given = mostly_right(rng, structure(rng))
    out = call(rng, egnn.complete_graph, given)
    well_formed(out, given)
    size = len(out.nodes.x)
    assert pairs(out) == {(i, j) for i in range(size) for j in range(size) if i != j}


def fuzz_complete_edges(rng: np.random.Generator) -> None:
    number = odd(rng, rng.integers(0, 5)) if rng.integers(2) else int(rng.integers(0, 9))
    senders, receivers = egnn.complete_edges(number)
    assert len(set(zip(senders, receivers, strict=True))) == number * max(number - 1, 0)


def fuzz_graph_from_edges(rng: np.random.Generator) -> None:
    right = structure(rng)
    size, n = right["x"].shape
    number = int(rng.integers(0, 9)) if size else 0
    right |= {
        "senders": rng.integers(0, max(size, 1), number),
        "receivers": rng.integers(0, max(size, 1), number),
        "a": rng.standard_normal((number, 2)),
    }
    if rng.integers(2):
        right |= {"steps": rng.integers(-2, 3, (number, n)), "cell": rng.standard_normal((n, n))}
    given = mostly_right(rng, right)
    out = call(rng, egnn.graph_from_edges, given)
    well_formed(out, given | {"x": np.asarray(given["x"])})
    order = np.argsort(np.asarray(given["receivers"]), kind="stable")
    close(out.senders, np.asarray(given["senders"])[order])
    if given["a"] is not None:
        close(out.edges.a, np.asarray(given["a"])[order])


def fuzz_graph_from_adjacency(rng: np.random.Generator) -> None:
    right = structure(rng)
    right["adjacency"] = rng.random((len(right["x"]),) * 2) < 0.5
    if rng.integers(2):
        right["adjacency"] = right["adjacency"] * rng.standard_normal(right["adjacency"].shape)
    given = mostly_right(rng, right)
    out = call(rng, egnn.graph_from_adjacency, given)
    well_formed(out, given)
    assert pairs(out) == set(zip(*np.nonzero(np.asarray(given["adjacency"])), strict=True))


def lattice(rng: np.random.Generator, right: dict[str, Any]) -> dict[str, Any]:
    n = right["x"].shape[1]
    if rng.integers(2):
        right["cell"] = np.eye(n) + 0.3 * rng.standard_normal((n, n))
        right["periodic"] = rng.random(n) < 0.5 if rng.integers(2) else bool(rng.integers(2))
    return right


def fuzz_radius_graph(rng: np.random.Generator) -> None:
    given = mostly_right(rng, lattice(rng, structure(rng) | {"cutoff": float(rng.random())}))
    out = call(rng, egnn.radius_graph, given)
    well_formed(out, given)
    if given.get("cell") is None:
        x = np.asarray(given["x"]).astype(np.float64)
        near = np.linalg.norm(x[:, None] - x[None], axis=-1) <= float(given["cutoff"]) * (1 + 1e-10)
        assert pairs(out) == set(zip(*np.nonzero(near & ~np.eye(len(x), dtype=bool)), strict=True))
    elif np.abs(np.asarray(out.globals.cell)).max() < 1e3:  # a warning names what is rounded
        lengths = np.linalg.norm(egnn.edge_vectors(out, out.nodes.x), axis=1)
        assert (lengths <= 1.01 * float(given["cutoff"]) + 1e-5).all()


def fuzz_knn_graph(rng: np.random.Generator) -> None:
    given = mostly_right(rng, lattice(rng, structure(rng) | {"k": int(rng.integers(1, 4))}))
    out = call(rng, egnn.knn_graph, given)
    well_formed(out, given)
    assert np.bincount(out.receivers, minlength=len(out.nodes.x)).tolist() == [given["k"]] * len(
        out.nodes.x
    )


def fuzz_from_ase(rng: np.random.Generator) -> None:
    size = int(rng.integers(0, 5))
    atoms = ase.Atoms(numbers=rng.integers(0, 100, size), positions=rng.random((size, 3)))
    if rng.integers(2):
        atoms.set_cell(rng.standard_normal((3, 3)) * rng.integers(0, 2, (3, 1)))
        atoms.pbc = rng.random(3) < 0.5
    if size and not rng.integers(4):
        atoms.positions.flat[0] = fuzzing.NUMBERS[rng.integers(len(fuzzing.NUMBERS))]
    given = {"atoms": atoms, "cutoff": 1.0, "y": rng.standard_normal(2)}
    if rng.integers(2):
        name = ("energy", "forces", "stress")[rng.integers(3)]
        shape = {"energy": (), "forces": (size, 3), "stress": (6,)}[name]
        atoms.info["label"] = odd(rng, rng.standard_normal(shape))
        given = given | {name: "label"} | ({"y": None} if name == "energy" else {})
    given = mostly_right(rng, given)
    out = egnn.from_ase(**given)
    well_formed(out, {"x": given["atoms"]})
    periodic = None if out.globals.cell is None else True
    assert egnn.to_ase(out, periodic).numbers.tolist() == atoms.numbers.tolist()


def fuzz_batch(rng: np.random.Generator) -> None:
    fields = {name: bool(rng.integers(2)) for name in ("kinds", "v", "a", "y")}
    graphs = [graph(rng, **fields) for _ in range(rng.integers(1, 4))]
    graphs = [odd_graph(rng, g) if not rng.integers(4) else g for g in graphs]
    budget = None if rng.integers(2) else egnn.Budget(20, 80, 5)
    if not rng.integers(5):
        budget = budget and budget._replace(n_edge=odd(rng, np.array(3)))
    out = egnn.batch(odd(rng, 0) if not rng.integers(9) else graphs, budget)
    for one, other in zip(egnn.unbatch(out), graphs, strict=True):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            close(a, b)


def fuzz_datasets(rng: np.random.Generator) -> None:
    fields = {name: bool(rng.integers(2)) for name in ("kinds", "v", "a", "y")}
    graphs = [graph(rng, **fields) for _ in range(rng.integers(1, 4))]
    graphs = [odd_graph(rng, g) if not rng.integers(4) else g for g in graphs]
    dataset = egnn.GraphDataset(graphs)
    out = jax.tree.map(lambda a: a[0, 0], dataset.loader(len(graphs)).batches(None, 0, 1))
    assert egnn.node_mask(out).sum() == sum(len(g.nodes.x) for g in graphs)
    for part, g in zip(dataset, graphs, strict=True):
        for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(g), strict=True):
            close(a, b)


def fuzz_arrays(rng: np.random.Generator) -> None:
    right = {"x": rng.standard_normal((4, 3)), "y": rng.integers(0, 3, 4)}
    name = ("x", "y")[rng.integers(2)]
    given = right | {name: odd(rng, right[name]) if rng.integers(2) else right[name]}
    packed = egnn.ArrayDataset(given).loader(2).batches(None, 0, 2)
    for name in given:
        if isinstance(given[name], np.ndarray) and given[name].dtype != bool:
            got = np.asarray(packed[name])
            close(got.reshape(4, *got.shape[3:]), given[name])


def fuzz_from_arrays(rng: np.random.Generator) -> None:
    n_node = rng.integers(0, 4, 3)
    total = int(n_node.sum())
    given = mostly_right(
        rng, {"n_node": n_node, "h": np.ones((total, 2)), "x": rng.random((total, 3))}
    )
    nodes = egnn.Nodes(h=given["h"], x=given["x"])
    out = egnn.GraphDataset.from_arrays(given["n_node"], nodes)
    assert len(out) == len(given["n_node"])
    if total:
        close(np.concatenate([g.nodes.x for g in out]), given["x"])


def fuzz_masks(rng: np.random.Generator) -> None:
    right = egnn.batch([graph(rng)], egnn.Budget(9, 30, 4))
    mask = (egnn.node_mask, egnn.edge_mask, egnn.graph_mask)[rng.integers(3)]
    out = mask(right if rng.integers(3) else odd_graph(rng, right))
    assert out.dtype == bool
    if not rng.integers(9):
        close(jax.jit(mask)(right), mask(right))


def fuzz_readouts(rng: np.random.Generator) -> None:
    given = egnn.batch([graph(rng, v=False, a=False, kinds=False, y=False) for _ in range(3)])
    function = (egnn.sum_nodes, egnn.mean_nodes, egnn.sum_at_receivers, egnn.edge_vectors)[
        rng.integers(4)
    ]
    rows = len(given.receivers) if function is egnn.sum_at_receivers else len(given.nodes.x)
    values = rng.standard_normal((rows, *(2,) * rng.integers(0, 3)))
    values = odd(rng, values) if rng.integers(2) else values
    whole = given if rng.integers(3) else odd_graph(rng, given)
    arrays = {"graph": whole}
    name = "x" if function is egnn.edge_vectors else "values"
    out = call(rng, function, arrays | {name: values})
    if whole is not given:
        return
    if np.asarray(values).dtype.kind in "iu" and np.asarray(values).itemsize == 8:
        values = np.asarray(jnp.asarray(values))  # JAX has integers of 32 bits, whose sums wrap
    wide = np.asarray(values, np.complex128 if np.iscomplexobj(values) else np.float64)
    with np.errstate(all="ignore"):
        if function is egnn.edge_vectors:
            close(out, wide[np.asarray(given.receivers)] - wide[np.asarray(given.senders)])
            return
        segments = np.repeat(np.arange(3), given.n_node)
        if function is egnn.sum_at_receivers:
            segments = np.asarray(given.receivers)
        expected = np.zeros((len(out), *wide.shape[1:]), wide.dtype)
        np.add.at(expected, segments, wide)
        if np.asarray(values).dtype == np.uint32 and function is not egnn.mean_nodes:
            expected %= 2**32
        if function is egnn.mean_nodes:
            counts = np.maximum(given.n_node, 1).reshape(-1, *(1,) * (wide.ndim - 1))
            expected = expected / counts
    close(out, expected)


def fuzz_transform(rng: np.random.Generator) -> None:
    right = {"matrix": rng.standard_normal((3, 3)), "translation": rng.standard_normal(3)}
    one = graph(rng)
    given = mostly_right(rng, right) | {"graph": one if rng.integers(2) else odd_graph(rng, one)}
    out = call(rng, egnn.transform, given)
    matrix, translation = (np.asarray(given[name], np.float64) for name in right)
    with np.errstate(all="ignore"):
        close(out.nodes.x, np.asarray(given["graph"].nodes.x) @ matrix.T + translation)


def fuzz_safe_norm(rng: np.random.Generator) -> None:
    right = {"x": rng.standard_normal((3, 4)) * 10.0 ** rng.integers(-40, 39)}
    given = mostly_right(rng, right | {"axis": int(rng.integers(-2, 2))})
    out = call(rng, egnn.safe_norm, given)
    x = np.asarray(given["x"])
    x = jnp.asarray(x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float))
    tiny = np.abs(np.asarray(x, np.float64)) < 1.2e-38  # numbers that XLA takes as 0 on CPUs
    wide = np.where(tiny, 0, np.asarray(x, np.float64))
    with np.errstate(all="ignore"):
        close(out, np.linalg.norm(wide, axis=given["axis"]))
        if np.isfinite(np.asarray(out, np.float64)).all():
            slope = jax.grad(lambda x: jnp.sum(egnn.safe_norm(x, given["axis"])))(x)
            length = np.linalg.norm(wide, axis=given["axis"], keepdims=True)
            close(slope, np.where(length > 0, wide / np.where(length > 0, length, 1), 0))


def fuzz_random_orthogonal(rng: np.random.Generator) -> None:
    right = {"n": int(rng.integers(1, 5)), "determinant": (1, -1, None)[rng.integers(3)]}
    given = mostly_right(rng, right)
    q = egnn.random_orthogonal(jax.random.key(0), **given)
    close(q @ q.T, np.eye(given["n"]))


def fuzz_testing(rng: np.random.Generator) -> None:
    right = {"seed": int(rng.integers(9)), "n": 3, "features": 2, "attributes": 1, "sizes": (3, 2)}
    given = mostly_right(rng, right)
    out = testing.random_graph(**given)
    assert np.isfinite(np.asarray(out.nodes.x)).all()


MODELS = {
    "egnn": egnn.EGNN(4, 1), "blocks": egnn.EGNN(4, 1, edge_block=3, residual=False),
    "normal": egnn.EGNN(4, 1, normalize=True, infer_edges=True), "gnn": egnn.GNN(4, 1),
    "radial": egnn.RadialField(4, 1), "schnet": egnn.SchNet(4, 1), "painn": egnn.PaiNN(4, 1),
    "tensornet": egnn.TensorNet(4, 1), "linear": egnn.Linear(), "egcl": egnn.EGCL(2),
    "readout": egnn.Readout(egnn.EGNN(4, 1)), "autoencoder": egnn.Autoencoder(egnn.EGNN(4, 1)),
    "mixed": egnn.MixedPrecision(egnn.EGNN(4, 1)),
    "tfn": egnn.TFN(2, 1),
    "transformer": egnn.SE3Transformer(2, 1),
}  # fmt: skip
"""One of each model, and of each head."""


def fuzz_models(rng: np.random.Generator) -> None:
    model = MODELS[list(MODELS)[rng.integers(len(MODELS))]]
    given = odd_graph(rng, graph(rng))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), given))
    if not rng.integers(10):  # most of the time goes into compiling
        out: Any = model.apply(model.init(jax.random.key(0), given), given)
        plain = [np.asarray(a, np.float64) for a in jax.tree.leaves(given)]
        if all((np.abs(a) < 10).all() for a in plain):
            assert all(np.isfinite(a).all() for a in jax.tree.leaves(out))
        assert out.nodes.x.shape == given.nodes.x.shape
    assert jax.tree.leaves(shapes) or isinstance(model, egnn.Linear)


def fuzz_losses(rng: np.random.Generator) -> None:
    model = egnn.Readout(egnn.EGNN(4, 1), outputs=2)
    right = egnn.batch([graph(rng, kinds=False)], egnn.Budget(9, 40, 2))
    given = odd_graph(rng, right)
    loss = (egnn.losses.mean_absolute_error, egnn.losses.mean_squared_error)[rng.integers(2)](model)
    params = jax.eval_shape(model.init, jax.random.key(0), right)
    value, _ = jax.eval_shape(lambda params: loss(params, given, jax.random.key(0)), params)
    assert value.shape == ()


def fuzz_predict(rng: np.random.Generator) -> None:
    right = {"numbers": np.array([8, 1, 1]), "positions": rng.standard_normal((3, 3))}
    given = mostly_right(rng, right)
    found = pretrained()(SimpleNamespace(**given) if rng.integers(9) else odd(rng, right))
    assert all(value.shape == (1,) for value in found.values())


@functools.cache
def pretrained() -> Any:
    return egnn.load_pretrained("qm9")


def fuzz_from_torch(rng: np.random.Generator) -> None:
    model = egnn.EGNN(2, 1)
    params = model.init(jax.random.key(0), egnn.complete_graph(np.eye(3)))
    state = egnn.interop.to_torch_state_dict(params, model)
    given = mostly_right(rng, state) if rng.integers(9) else odd(rng, 0)
    again = egnn.interop.from_torch_state_dict(given, model)
    assert jax.tree.structure(again) == jax.tree.structure(params)


FUZZED = {
    name.removeprefix("fuzz_"): function
    for name, function in list(globals().items())
    if name.startswith("fuzz_")
}


def run(name: str, calls: range) -> tuple[list[str], Counter[str]]:
    """What is wrong with calls of a function, by seed, and how they ended."""
    wrong, ends = [], Counter()
    for seed in calls:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                FUZZED[name](np.random.default_rng(seed))
            ends["answered"] += 1
        except AssertionError as error:
            line = traceback.extract_tb(error.__traceback__)[1].line
            wrong.append(f"seed {seed}: {line} {error}")
        except Exception as error:
            ends["refused"] += 1
            if words := fuzzing.refused(error):
                wrong.append(f"seed {seed}: {words}")
    return wrong, ends


@pytest.mark.parametrize("name", FUZZED)
def test_every_call_is_answered_rightly_or_refused(name):
    calls = settings().max_examples // 4 if name in SLOW else 3 * settings().max_examples
    wrong, ends = run(name, range(calls))
    assert not wrong, "\n".join(wrong[:3])
    assert ends["answered"] >= max(calls // 20, 1)


if __name__ == "__main__":
    for name in sys.argv[2:] or FUZZED:
        wrong, ends = run(name, range(int(sys.argv[1])))
        print(name, dict(ends), f"{len(wrong)} wrong", *wrong[:4], sep="\n  ", flush=True)
