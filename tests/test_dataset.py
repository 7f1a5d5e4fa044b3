"""Data sets of graphs: packed as jraph pads, dealt into batches of one size, kept on disk."""

import json
import shutil
from operator import itemgetter

import jax
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax.graph.build import complete_edges
from egnn_jax.graph.graph import PaddedGraphsTuple

SIZES = np.array([3, 1, 5, 2, 4, 4])


@pytest.fixture
def nodes(rng):
    return {"h": rng.standard_normal((SIZES.sum(), 2)), "x": rng.standard_normal((SIZES.sum(), 3))}


@pytest.fixture
def edges(rng, nodes):
    return rng.standard_normal((np.sum(SIZES * (SIZES - 1)), 1))


@pytest.fixture
def graphs(nodes, edges):
    return egnn.GraphDataset.from_arrays(SIZES, egnn.Nodes(**nodes), egnn.Edges(a=edges))


def single(nodes, edges, k, **fields):
    rows = slice(SIZES[:k].sum(), SIZES[: k + 1].sum())
    first = np.sum(SIZES[:k] * (SIZES[:k] - 1))
    a = edges[first : first + SIZES[k] * (SIZES[k] - 1)]
    return egnn.complete_graph(x=nodes["x"][rows], h=nodes["h"][rows], a=a, **fields)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: s.with_targets(np.zeros((7, 1))), "y has 7 rows; expected 6, one for each"),
        (lambda s: s.with_targets(np.zeros(6)), r"y has shape \(6,\); expected"),
        (lambda s: s.with_targets([[np.nan]] * 6), "y is nan at row 0"),
        (lambda s: s.split("0.5"), "a fraction is '0.5'; expected a number"),
        (lambda s: egnn.ArrayDataset({"a": np.ones((4, 2))})[1], "rows is 1; expected a slice"),
    ],
)
def test_misuse_is_refused(graphs, make, message):
    with pytest.raises(ValueError, match=message):
        make(graphs)


@pytest.mark.parametrize(
    ("sizes", "h", "x", "message"),
    [
        ([2], [1, 200], 0.0, "nodes h holds 200; expected node types from 0 to 118"),
        ([2], [1, 2], np.nan, "nodes x is not finite in row 0"),
        ([], [], 0.0, "n_node is empty"),
    ],
)
def test_flat_arrays_that_make_no_sense(sizes, h, x, message):
    nodes = egnn.Nodes(h=np.array(h, np.int32), x=np.full((len(h), 3), x))
    with pytest.raises(ValueError, match=message):
        egnn.GraphDataset.from_arrays(np.array(sizes, int), nodes)


def test_fractions_may_be_of_any_float_type(graphs):
    assert [len(part) for part in graphs.split(np.float32(0.5))] == [3, 3]


def of_kinds(sizes, **fields):
    """A data set whose nodes carry only their number, as h."""
    nodes = egnn.Nodes(h=np.arange(np.sum(sizes)), x=None)
    return egnn.GraphDataset.from_arrays(np.asarray(sizes), nodes, **fields)


def assert_same_graphs(one, other):
    assert len(one) == len(other)
    for k in range(len(one)):
        assert jax.tree.structure(one[k]) == jax.tree.structure(other[k])
        jax.tree.map(np.testing.assert_array_equal, one[k], other[k])


@pytest.mark.parametrize("rows", [[[0, 1, 2]], [[5, 4, 3], [2, 2, 2], [0, -1, 1], [-1, -1, -1]]])
def test_a_batch_is_jraphs(x64, graphs, nodes, edges, rows):
    rows = np.array(rows)
    packed = graphs.pack(rows)
    assert isinstance(packed, PaddedGraphsTuple)
    assert packed.senders.shape == (*rows.shape[:1], graphs.budgets(3)[-1].n_edge)
    for k, row in enumerate(rows):
        got = jax.tree.map(itemgetter(k), packed)
        assert (np.diff(got.receivers) >= 0).all()
        assert int(got.n_node.sum()) == len(got.nodes.h)
        assert int(got.n_edge.sum()) == len(got.senders)
        kept = [number for number in row if number >= 0]
        if not kept:
            assert (got.senders == 0).all()
            assert not np.asarray(egnn.graph_mask(got)).any()
            continue
        budget = egnn.Budget(len(got.nodes.h), len(got.senders), 4)
        want = egnn.batch([single(nodes, edges, number) for number in kept], budget)
        # Graphs that are missing count as padding at the end, so that all of it is jraph's.
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a, b)
        for mask in (egnn.node_mask, egnn.edge_mask, egnn.graph_mask):
            np.testing.assert_array_equal(np.asarray(mask(got)), np.asarray(mask(want)))
        assert np.asarray(egnn.graph_mask(got)).tolist() == [j < len(kept) for j in range(4)]


def test_masks_are_right_with_missing_graphs_and_with_real_empty_ones():
    graphs = of_kinds([2, 0, 3, 0], globals_=egnn.Globals(y=np.arange(1.0, 5.0)[:, None]))
    # Missing graphs lose their place; empty ones keep it, wherever they are.
    for row, y in (
        ([0, 1, 2, 3], [1, 2, 3, 4]),
        ([1, -1, 0, 3], [2, 1, 4]),
        ([3, 2, -1, 1], [4, 3, 2]),
        ([1, 3, -1, -1], [2, 4]),
        ([-1, -1, -1, -1], []),
    ):
        packed = graphs.pack(np.array(row))
        packed = packed._replace(nodes=packed.nodes.replace(x=packed.nodes.h[:, None] * 1.0))
        sizes = [[2, 0, 3, 0][k] for k in row if k >= 0]
        assert packed.n_node[: len(sizes)].tolist() == sizes
        assert packed.globals.y[:, 0].tolist() == [*y, *[0] * (5 - len(y))]
        assert np.asarray(egnn.graph_mask(packed)).tolist() == [k < len(y) for k in range(5)]
        assert int(egnn.node_mask(packed).sum()) == sum(sizes)
        assert int(egnn.edge_mask(packed).sum()) == sum(n * max(n - 1, 0) for n in sizes)
        assert int(packed.n_node.sum()) == len(packed.nodes.h)
        assert [len(g.nodes.h) for g in egnn.unbatch(packed)] == sizes


def test_a_data_set_of_graphs_is_that_of_their_arrays(nodes, edges, rng):
    y = rng.standard_normal((len(SIZES), 2)).astype(np.float32)
    singles = [single(nodes, edges, k, y=y[k]) for k in range(len(SIZES))]
    from_graphs = egnn.GraphDataset(singles)
    narrow = lambda a: np.asarray(a, np.float32)  # as complete_graph has it
    from_arrays = egnn.GraphDataset.from_arrays(
        SIZES,
        egnn.Nodes(h=narrow(nodes["h"]), x=narrow(nodes["x"])),
        egnn.Edges(a=narrow(edges)),
        egnn.Globals(y=y),
    )
    assert_same_graphs(from_graphs, from_arrays)
    assert_same_graphs(from_graphs, singles)
    assert_same_graphs(egnn.GraphDataset([egnn.batch(singles[:4]), *singles[4:]]), singles)
    rows = np.array([[2, 5, -1, 0]])
    jax.tree.map(np.testing.assert_array_equal, from_graphs.pack(rows), from_arrays.pack(rows))
    np.testing.assert_array_equal(from_graphs[[4, 1]].y, y[[4, 1]])
    assert from_graphs[::2].n_node.tolist() == SIZES[::2].tolist()
    statistics = from_graphs.target_statistics()
    np.testing.assert_allclose(statistics["mean"], y.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(statistics["scale"], y.std(axis=0), rtol=1e-6)


def test_graphs_that_differ_in_what_they_carry_are_named(nodes, edges):
    one, other = single(nodes, edges, 0), single(nodes, edges, 2, y=[1.0])
    with pytest.raises(ValueError, match=r"graph 1 carries .*globals\.y"):
        egnn.GraphDataset([one, other])
    padded = egnn.batch([one], egnn.Budget(9, 20, 3))
    with pytest.raises(ValueError, match=r"graph 1 is a padded batch; expected egnn\.unbatch"):
        egnn.GraphDataset([one, padded])
    with pytest.raises(ValueError, match="received no graphs"):
        egnn.GraphDataset([])
    with pytest.raises(ValueError, match="the graphs have no targets"):
        _ = egnn.GraphDataset([one]).y


def test_split_deals_each_graph_once():
    graphs = of_kinds(np.arange(1, 21), globals_=egnn.Globals(y=np.arange(20)[:, None]))
    parts = graphs.split(0.7, 0.2, seed=3)
    assert [len(part) for part in parts] == [14, 4, 2]
    numbers = np.concatenate([part.y[:, 0] for part in parts])
    assert sorted(numbers) == list(range(20))
    assert (numbers != np.arange(20)).any()
    for part in parts:
        assert part.n_node.tolist() == (part.y[:, 0] + 1).tolist()
        assert [len(part[k].nodes.h) for k in range(len(part))] == part.n_node.tolist()
    again = graphs.split(0.7, 0.2, seed=3)
    other = graphs.split(0.7, 0.2, seed=4)
    assert (again[0].y == parts[0].y).all()
    assert (other[0].y != parts[0].y).any()
    for fractions in ((), (0.5, 0.5), (-0.1,), (1.5,), (float("nan"),)):
        with pytest.raises(ValueError, match="expected numbers above 0, together below 1"):
            graphs.split(*fractions)
    with pytest.raises(ValueError, match="a part would be empty"):
        graphs.split(0.01)


@pytest.fixture
def saved(graphs, tmp_path):
    graphs.save(tmp_path / "set")
    return tmp_path / "set"


def test_a_data_set_is_saved_and_opened_memory_mapped(graphs, saved, tmp_path):
    opened = egnn.GraphDataset.open(saved, verify=True)
    assert_same_graphs(opened, graphs)
    assert isinstance(opened._nodes.x, np.memmap)
    rows = np.array([[5, 0, -1], [1, 2, 3]])
    jax.tree.map(np.testing.assert_array_equal, opened.pack(rows), graphs.pack(rows))
    part = graphs[[4, 1, 2]]
    part.save(tmp_path / "part")
    assert_same_graphs(egnn.GraphDataset.open(tmp_path / "part"), part)
    with pytest.raises(ValueError, match="set exists; expected a new folder"):
        graphs.save(saved)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part", "set"]  # nothing half-written


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no manifest", "no data set"])
def test_a_damaged_data_set_is_refused(saved, damage):
    path, where = saved / "nodes.x.npy", "nodes.x.npy"
    content = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        case "cut":
            path.write_bytes(content[:-1])
        case "missing":
            path.unlink()
        case "no manifest":
            (saved / "manifest.json").write_text(json.dumps({"format": "x"}))
            where = "holds no data set"
        case "no data set":
            shutil.rmtree(saved)
            where = "holds no data set"
    with pytest.raises(ValueError, match=where):
        egnn.GraphDataset.open(saved, verify=damage == "flip")


def test_a_batch_too_large_for_the_budget_loses_nothing():
    graphs = of_kinds([2] * 400 + [30])
    packed = graphs.pack(np.array([[400] * 40]))
    assert packed.n_node[0, :40].tolist() == [30] * 40
    assert packed.nodes.h.shape == (1, 40 * 30 + 1)
    assert graphs.budgets(40)[-1].n_node < 40 * 30


def test_one_large_graph_takes_the_memory_of_one():
    graphs = of_kinds([400])
    assert [len(ends) for ends in graphs._endpoints] == [400 * 399] * 2
    packed = graphs.pack(np.array([0]))
    np.testing.assert_array_equal(np.stack([packed.senders, packed.receivers]), complete_edges(400))


def test_leading_axes_are_kept(graphs):
    packed = graphs.pack(np.zeros((2, 3, 4), int))
    assert all(a.shape[:2] == (2, 3) for a in jax.tree.leaves(packed))


def test_what_graphs_carry_comes_along(rng):
    labels = rng.standard_normal((len(SIZES), 2))
    graphs = of_kinds(SIZES, globals_=egnn.Globals(y=labels))
    packed = graphs.pack(np.array([[4, 0], [-1, 2]]))
    np.testing.assert_array_equal(packed.globals.y[0], [labels[4], labels[0], [0, 0]])
    np.testing.assert_array_equal(packed.globals.y[1], [labels[2], [0, 0], [0, 0]])


def test_booleans_stay_booleans_in_batches():
    arrays = {"known": np.array([True, False]), "x": np.ones((2, 3), np.float16)}
    packed = egnn.ArrayDataset(arrays).pack(np.array([[0, -1]]))
    assert packed["known"].dtype == bool
    assert packed["known"].tolist() == [[True, False]]
    assert packed["x"].dtype == np.float16


def test_equal_targets_have_scale_one_whatever_their_rounding():
    y = np.stack([np.full(90, 0.1), np.full(90, -40.1) + 1e-14 * np.arange(90), np.arange(90)], 1)
    graphs = of_kinds(np.ones(90, int), globals_=egnn.Globals(y=y))
    scale = graphs.target_statistics()["scale"]
    assert scale[:2] == (1, 1)
    assert scale[2] == np.arange(90).std()
    small = of_kinds([1, 1], globals_=egnn.Globals(y=np.array([[1e7], [1e7 + 1e-4]])))
    np.testing.assert_allclose(small.target_statistics()["scale"], 5e-5, rtol=1e-3)
