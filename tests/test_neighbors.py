"""Graphs of neighbours against all pairs in plain loops, in open space and in cells of any shape;
and what they refuse.
"""

import itertools
import subprocess
import sys
import warnings
from functools import partial

import ase
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.graph.graph import edge_vectors

REACH = 7


def all_pairs(x, cell, periodic):
    """Distance, receiver, sender and shift of every pair of images that may matter."""
    steps = np.array(
        list(itertools.product(*(range(-REACH, REACH + 1) if p else [0] for p in periodic)))
    )
    shift = steps @ (np.eye(x.shape[1]) if cell is None else cell)
    k, i, j = (a.reshape(-1) for a in np.indices((len(steps), len(x), len(x))))
    k, i, j = (a[(i != j) | steps[k].any(axis=1)] for a in (k, i, j))
    return np.linalg.norm(x[i] - x[j] - shift[k], axis=1), i, j, shift[k]


@st.composite
def points_and_cells(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, m = draw(st.integers(1, 3)), draw(st.integers(2, 8))
    x = draw(st.sampled_from([0.5, 1.5])) * rng.standard_normal(
        (m, n)
    )  # inside the cell, or all over
    if draw(st.booleans()):
        return x, None, np.zeros(n, bool)
    cell = 1.5 * np.eye(n) + 0.3 * np.triu(rng.standard_normal((n, n)), 1)
    return x, cell, np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))


def listed(receivers, senders, shift):
    return sorted(
        (i, j, *s)
        for i, j, s in zip(
            np.asarray(receivers), np.asarray(senders), np.round(shift, 6) + 0.0, strict=True
        )
    )


def shifts(graph, like):
    shift = graph.edges.shift
    return np.zeros_like(like) if shift is None else np.asarray(shift)


@given(drawn=points_and_cells(), cutoff=st.floats(0.3, 2.5))
def test_radius_graph_has_every_pair_within_the_cutoff_once(drawn, cutoff):
    x, cell, periodic = drawn
    with jax.enable_x64(True):
        graph = egnn.radius_graph(x, cutoff, cell=cell, periodic=list(periodic))
    x = np.asarray(graph.nodes.x)  # inside the cell
    distances, *wanted = all_pairs(x, cell, periodic)
    found = graph.receivers, graph.senders, shifts(graph, x[np.asarray(graph.senders)])
    assert listed(*found) == listed(*(a[distances <= cutoff] for a in wanted))
    assert (np.diff(graph.receivers) >= 0).all()


@given(drawn=points_and_cells(), k=st.integers(1, 7))
def test_knn_graph_has_the_nearest(drawn, k):
    x, cell, periodic = drawn
    k = k if periodic.any() else min(k, len(x) - 1)
    with jax.enable_x64(True):
        graph = egnn.knn_graph(x, k, cell=cell, periodic=list(periodic))
    assert np.asarray(graph.receivers).tolist() == np.repeat(np.arange(len(x)), k).tolist()
    x = np.asarray(graph.nodes.x)  # inside the cell
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    distances = np.linalg.norm(
        x[receivers] - x[senders] - shifts(graph, x[senders]), axis=1
    ).reshape(len(x), k)
    every, of, *_ = all_pairs(x, cell, periodic)
    wanted = [np.sort(every[of == i])[:k] for i in range(len(x))]
    np.testing.assert_allclose(np.sort(distances, axis=1), wanted, atol=1e-9)


def test_knn_graph_of_coincident_nodes_has_no_self_loops():
    graph = egnn.knn_graph(np.zeros((6, 3)), 2)
    assert (np.asarray(graph.senders) != np.asarray(graph.receivers)).all()
    assert np.bincount(graph.receivers).tolist() == [2] * 6


@pytest.mark.parametrize("periodic", [True, (True, False, True)])
def test_nearest_of_points_that_have_left_their_cell(x64, rng, periodic):
    cell = np.array([[3.0, 0.2, 0.0], [0.1, 3.5, 0.3], [0.4, 0.0, 2.8]])
    x = rng.random((10, 3)) @ cell
    steps = np.where(
        periodic, rng.integers(-1_000, 1_000, (10, 3)), 0
    )  # all images between would not fit into memory
    inside, drifted = (
        egnn.knn_graph(points, 5, cell=cell, periodic=periodic) for points in (x, x + steps @ cell)
    )

    def lengths(graph):
        return np.sort(
            np.linalg.norm(edge_vectors(graph, graph.nodes.x), axis=1).reshape(10, 5), axis=1
        )

    np.testing.assert_allclose(lengths(drifted), lengths(inside), atol=1e-9)
    assert np.asarray(drifted.receivers).tolist() == np.asarray(inside.receivers).tolist()


def test_neighbours_in_many_dimensions(rng):
    points = rng.standard_normal((20, 6))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    graph = egnn.knn_graph(points, 4)
    nearest = np.argsort(distances, axis=1)[:, 1:5]
    for node in range(20):
        found = np.asarray(graph.senders)[np.asarray(graph.receivers) == node]
        assert sorted(found) == sorted(nearest[node])
    near = distances <= 3.0
    graph = egnn.radius_graph(points, 3.0)
    assert len(graph.senders) == near.sum() - 20 > 0


@pytest.mark.parametrize(
    "model",
    [
        egnn.EGNN(features=6, layers=2),
        egnn.SchNet(features=6, layers=2),
        egnn.TFN(features=4, layers=2),
        *(
            pytest.param(model, marks=pytest.mark.slow)
            for model in (
                egnn.DimeNetPP(6, 2, 3, 3, 4, 3, 5, cutoff=4.0),
                egnn.NMP(6, 2, 5, 1, max_nodes=32),
                egnn.Cormorant(4, 2, 1, hidden=6),
                egnn.L1Net(4, 2, 4, 5, 2, 6, cutoff=4.0),
                egnn.LieConv(8, 2),
                egnn.FuchsTFN(4, 2, 1, 6),
                egnn.FuchsSE3Transformer(4, 2, 1, 6, 2, 2),
            )
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_crystal_and_its_supercell_say_the_same(x64, rng, model):
    """And where an atom sits in another cell, or the cell is turned, nothing changes."""
    cell = np.array([[3.0, 0.2, 0.0], [0.1, 3.5, 0.3], [0.4, 0.0, 2.8]])
    x, h = rng.random((4, 3)) @ cell, rng.standard_normal((4, 2))
    steps = np.array(list(itertools.product((0, 1), repeat=3)))
    crystal = egnn.radius_graph(x, 4.0, h=h, cell=cell)
    supercell = egnn.radius_graph(
        (x + (steps @ cell)[:, None]).reshape(-1, 3), 4.0, h=np.tile(h, (8, 1)), cell=2 * cell
    )
    elsewhere = egnn.radius_graph(
        x + np.array([[0, 0, 0], [1, -2, 0], [0, 3, 1], [5, 0, 0]]) @ cell, 4.0, h=h, cell=cell
    )
    q = np.asarray(egnn.random_orthogonal(jax.random.key(0), 3))
    turned = egnn.radius_graph(x @ q.T, 4.0, h=h, cell=cell @ q.T)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), crystal))
    params = jax.tree.map(lambda a: 0.3 * a, params)
    apply = jax.jit(partial(model.apply, params))
    out = apply(crystal).nodes
    others = [(supercell, 8), (elsewhere, 1)]
    others += [] if model.symmetry == "T(n)" else [(turned, 1)]
    for other, copies in others:
        again = apply(other).nodes
        np.testing.assert_allclose(again.h, np.tile(out.h, (copies, 1)), rtol=1e-9)
    moved = np.asarray(apply(supercell).nodes.x - supercell.nodes.x)
    np.testing.assert_allclose(moved, np.tile(out.x - x, (8, 1)), atol=1e-9)


def test_a_periodic_graph_batches_and_pads():
    graphs = [egnn.radius_graph(np.eye(3)[:m], 1.6, cell=2 * np.eye(3)) for m in (1, 3)]
    both = egnn.batch(graphs, egnn.Budget(6, 200, 4))
    for one, again in zip(graphs, egnn.unbatch(both), strict=True):
        np.testing.assert_array_equal(one.edges.shift, again.edges.shift)
    with pytest.raises(ValueError, match="differ in what they carry"):
        egnn.batch([graphs[0], egnn.complete_graph(np.eye(3))])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: egnn.radius_graph(np.eye(3), 0.0), "cutoff is 0.0; expected a finite number"),
        (lambda: egnn.radius_graph(np.eye(3), np.nan), "cutoff is nan"),
        (
            lambda: egnn.radius_graph(np.eye(3), 1.0, cell=np.eye(2)),
            "expected 3 independent lattice vectors",
        ),
        (
            lambda: egnn.radius_graph(np.eye(3), 1.0, cell=np.ones((3, 3))),
            "expected 3 independent lattice vectors",
        ),
        (
            lambda: egnn.radius_graph(np.eye(3), 1.0, cell=np.eye(3), periodic=[True]),
            "expected one boolean, or 3",
        ),
        (lambda: egnn.radius_graph(np.full((2, 3), np.nan), 1.0), "x is nan"),
        (lambda: egnn.knn_graph(np.eye(3), 3), "k is 3; expected 1 to 2"),
        (lambda: egnn.knn_graph(np.eye(3), 0), "k is 0"),
        (lambda: egnn.knn_graph(np.zeros((0, 3)), 1), "k is 1"),
        (lambda: jax.jit(lambda x: egnn.radius_graph(x, 1.0).nodes.x)(np.eye(3)), "x is traced"),
        (
            lambda: egnn.graph_from_edges(
                [0], [1], np.eye(3), steps=np.zeros((2, 3), int), cell=np.eye(3)
            ),
            r"steps has shape \(2, 3\) .* expected integers \(1, 3\)",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def in_a_child(code):
    """The printed result of code that must not end its interpreter."""
    script = f"import numpy as np, egnn_jax as egnn\n{code}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_extreme_extents_end_no_interpreter():
    """A grid of cells over these would have from 10⁹ to 10⁶⁰ of them."""
    code = """
rng = np.random.default_rng(0)
image = np.stack(np.meshgrid(range(128), range(128)), -1).reshape(-1, 2)
slab = np.append(rng.random((200, 3)) * [9, 9, 2], [[0, 0, 1e7]], axis=0)
for x, cutoff in ((image, 1.5), ([[0.0], [1e5]], 1.0), (1e6 * rng.random((1000, 3)), 1.0),
                  (slab, 1.0), ([[0, 0], [1e20, 0]], 1.0), ([[0, 0], [1e-6, 0]], 1e-7)):
    print(len(egnn.radius_graph(np.array(x, float), cutoff).senders), end=" ")
"""
    image, two, far, slab, *extremes = (int(number) for number in in_a_child(code).split())
    assert image == 2 * (2 * 127 * 128 + 2 * 127 * 127)  # rows, columns and both diagonals
    assert (two, far, extremes) == (0, 0, [0, 0])
    rng = np.random.default_rng(0)
    x = rng.random((200, 3)) * [9, 9, 2]
    assert slab == (np.linalg.norm(x[:, None] - x, axis=-1) <= 1.0).sum() - 200


@pytest.mark.parametrize("side", [1.0, 0.1, 0.3, 7.7])
@pytest.mark.parametrize("origin", [0.0, 0.05, 123.4])
def test_pairs_at_exactly_the_cutoff_are_edges(side, origin):
    lattice = np.array(list(np.ndindex(4, 4, 4))) * side + origin * side
    cell = 4 * side * np.eye(3)
    crystal = egnn.radius_graph(lattice, side, cell=cell)
    assert np.bincount(np.asarray(crystal.receivers)).tolist() == [6] * 64
    free = egnn.radius_graph(lattice, side)
    assert len(free.senders) == 2 * 3 * 3 * 16
    one = egnn.radius_graph(np.array([[origin] * 3]), side, cell=side * np.eye(3))
    assert sorted(np.abs(np.asarray(one.edges.steps)).sum(axis=1)) == [1] * 6


def test_neighbors_are_sought_in_float64():
    x = np.array([[4e6], [4e6 + 0.9], [4e6 + 1.1]])
    with pytest.warns(UserWarning, match="distances are rounded"):
        graph = egnn.radius_graph(x, 1.0)
    pairs = sorted(zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True))
    assert pairs == [(0, 1), (1, 0), (1, 2), (2, 1)]
    with pytest.warns(UserWarning, match="neighbors are up to 0.2 apart: distances are rounded"):
        nearest = egnn.knn_graph(x, 1)
    assert nearest.senders.tolist() == [1, 2, 1]
    pairs = np.array([[0.0], [2.0], [1e4], [1e4 + 3e-4]])  # of which the second is lost
    with pytest.warns(UserWarning, match="neighbors are up to 0.0003 apart"):
        egnn.knn_graph(pairs, 1)


def test_complete_graphs_of_rounded_coordinates_warn_too():
    far = 4e6 + np.random.default_rng(0).random((4, 3))
    makes = [
        egnn.complete_graph,
        lambda x: egnn.graph_from_adjacency(np.ones((4, 4)), x),
        lambda x: egnn.from_ase(ase.Atoms("CHHO", x)),
    ]
    for make in makes:
        with pytest.warns(UserWarning, match=r"up to 0\.\d+ apart: distances are rounded"):
            make(far)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for fine in (far - 4e6, np.ones((4, 3)), 1e3 * far / 4e6 + np.eye(4, 3)):
                make(fine)
            jax.eval_shape(egnn.complete_graph, far)
            with jax.enable_x64(True):
                make(far)
    assert egnn.complete_graph(np.zeros((0, 3))).nodes.x.shape == (0, 3)


@pytest.mark.parametrize("skew", [0.0, 3.0, 30.0])
def test_a_skewed_cell_is_the_same_crystal(x64, rng, skew):
    x = rng.random((5, 3))
    straight = egnn.radius_graph(x, 1.2, cell=np.eye(3))
    cell = np.array([[1.0, 0, 0], [skew, 1, 0], [-skew, 2 * skew, 1]])
    skewed = egnn.radius_graph(x, 1.2, cell=cell)
    nearest = egnn.knn_graph(x, 8, cell=cell)
    lengths = [
        np.sort(np.linalg.norm(edge_vectors(g, g.nodes.x), axis=1))
        for g in (straight, skewed, nearest, egnn.knn_graph(x, 8, cell=np.eye(3)))
    ]
    np.testing.assert_allclose(lengths[0], lengths[1], atol=1e-9)
    np.testing.assert_allclose(lengths[2], lengths[3], atol=1e-9)
    np.testing.assert_allclose(skewed.edges.shift, np.asarray(skewed.edges.steps) @ cell, atol=1e-9)


def test_rows_of_zeros_where_space_is_not_periodic():
    x = np.array([[0.1, 0, 0], [0.9, 0, 0]])
    wire = egnn.radius_graph(
        x, 0.5, cell=[[1, 0, 0], [0, 0, 0], [0, 0, 0]], periodic=(True, False, False)
    )
    assert sorted(np.asarray(wire.edges.steps).tolist()) == [[-1, 0, 0], [1, 0, 0]]
    molecule = egnn.radius_graph(x, 1.0, cell=np.zeros((3, 3)), periodic=False)
    assert np.asarray(molecule.edges.steps).tolist() == [[0, 0, 0]] * 2
    with pytest.raises(ValueError, match=r"cell is .* expected 3 independent lattice vectors"):
        egnn.radius_graph(x, 0.5, cell=np.zeros((3, 3)))


def test_too_many_edges_are_refused_before_memory_is_taken():
    with pytest.raises(ValueError, match=r"expected at most 100000000 images"):
        egnn.radius_graph(np.zeros((1, 3)), 1.0, cell=1e-4 * np.eye(3))
    with pytest.raises(ValueError, match=r"edges among 20000 points; expected at most"):
        egnn.radius_graph(np.random.default_rng(0).random((20_000, 3)), 3.0)


def test_unwrapped_points_have_small_shifts():
    x = np.array([[0.2, 0.1, 0.3], [1e4 + 0.25, -2e4 + 0.1, 0.3]])
    graph = egnn.radius_graph(x, 0.1, cell=np.eye(3))
    assert np.abs(graph.edges.shift).max() <= 1
    np.testing.assert_allclose(
        np.linalg.norm(edge_vectors(graph, graph.nodes.x), axis=1), [0.05] * 2, atol=1e-5
    )
