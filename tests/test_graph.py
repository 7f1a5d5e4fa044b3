import ase
import ase.build
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.graph.graph import mean_at_receivers, softmax_at_receivers


def test_complete_graph_has_every_ordered_pair_once_sorted_by_receiver():
    graph = egnn.complete_graph(x=np.zeros((4, 2)))
    pairs = list(zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True))
    assert pairs == [(i, j) for i in range(4) for j in range(4) if i != j]
    assert graph.n_node.tolist() == [4]
    assert graph.n_edge.tolist() == [12]
    np.testing.assert_array_equal(graph.nodes.h, np.ones((4, 1)))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(graph))


def test_adjacency_rows_receive():
    graph = egnn.graph_from_adjacency([[0, 1, 0], [0, 0, 0], [1, 1, 0]], x=np.zeros((3, 3)))
    assert graph.receivers.tolist() == [0, 2, 2]
    assert graph.senders.tolist() == [1, 0, 1]


def test_edges_and_their_attributes_are_sorted_together():
    graph = egnn.graph_from_edges(
        [0, 1, 2, 0], [2, 0, 1, 1], x=np.zeros((3, 1)), a=[[20], [1], [12], [10]]
    )
    assert graph.receivers.tolist() == [0, 1, 1, 2]
    assert (10 * graph.receivers + graph.senders).tolist() == [1, 12, 10, 20]
    assert graph.edges.a[:, 0].tolist() == [1, 12, 10, 20]


def test_batch_and_unbatch_are_inverse_and_padding_is_masked():
    graphs = [testing.random_graph(n, sizes=(n,), padding=False) for n in (3, 1, 5)]
    edges = sum(g.senders.shape[0] for g in graphs)
    padded = egnn.batch(graphs, egnn.Budget(12, edges + 4, 6))
    assert padded.nodes.x.shape == (12, 3)
    assert padded.edges.a.shape[0] == edges + 4
    assert egnn.node_mask(padded).sum() == 9
    assert egnn.edge_mask(padded).sum() == edges
    assert egnn.graph_mask(padded).sum() == 3
    assert (jnp.diff(padded.receivers) >= 0).all()
    for parts in (egnn.unbatch(padded), egnn.unbatch(egnn.batch(graphs))):
        for one, other in zip(parts, graphs, strict=True):
            chex.assert_trees_all_equal(one, other)


def test_readouts_equal_loops():
    graph = testing.random_graph()
    h = np.asarray(graph.nodes.h)
    parts = np.split(h, np.cumsum(graph.n_node)[:-1])
    np.testing.assert_allclose(
        egnn.sum_nodes(graph, graph.nodes.h), [p.sum(0) for p in parts], rtol=1e-6
    )
    means = [p.mean(0) if len(p) else np.zeros(2) for p in parts]
    np.testing.assert_allclose(egnn.mean_nodes(graph, graph.nodes.h), means, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_halves_are_summed_in_more_digits(dtype):
    number = 1_000
    graph = egnn.graph_from_edges(
        np.arange(1, number + 1), np.zeros(number, int), x=np.zeros((number + 1, 3))
    )
    mean = mean_at_receivers(graph, jnp.full((number, 1), 100, dtype))
    assert mean.dtype == dtype
    assert mean[0, 0] == 100
    weights = softmax_at_receivers(graph, jnp.zeros((number, 1), dtype))
    assert weights.dtype == dtype
    np.testing.assert_allclose(weights.astype(jnp.float32), 1 / number, rtol=4e-3)


def empty_graph():
    return egnn.complete_graph(x=np.zeros((0, 3)), h=np.zeros((0, 1)))


def test_masks_count_real_graphs_without_nodes():
    graphs = [egnn.complete_graph(x=np.ones((2, 3))), empty_graph(), empty_graph()]
    padded = egnn.batch(graphs, egnn.Budget(5, 4, 6))
    assert egnn.graph_mask(padded).tolist() == [True, True, True, False, False, False]
    assert egnn.node_mask(padded).tolist() == [True, True, False, False, False]
    assert egnn.edge_mask(padded).tolist() == [True, True, False, False]
    assert len(egnn.unbatch(padded)) == 3
    no_nodes = egnn.batch([empty_graph()], egnn.Budget(1, 0, 2))
    assert egnn.graph_mask(no_nodes).tolist() == [True, False]
    assert egnn.node_mask(no_nodes).tolist() == [False]


@pytest.mark.parametrize("mask", [egnn.graph_mask, egnn.node_mask, egnn.edge_mask])
def test_a_batch_without_padding_has_no_mask(mask):
    graphs = [egnn.complete_graph(x=np.ones((n, 3))) for n in (2, 3, 4)]
    with pytest.raises(ValueError, match="expected a PaddedGraphsTuple"):
        mask(egnn.batch(graphs))
    padded = egnn.batch(graphs, egnn.Budget(10, 20, 4))
    assert mask(padded).tolist() == jax.jit(mask)(padded).tolist()
    assert mask(padded._replace(nodes=padded.nodes)).any()


@pytest.mark.parametrize("model", [egnn.Cormorant(), egnn.L1Net()])
def test_networks_that_need_nodes_say_so(model):
    with pytest.raises(ValueError, match="the graph has no nodes; expected at least one"):
        jax.eval_shape(model.init, jax.random.key(0), empty_graph())


def test_kinds_of_nodes_are_embedded():
    kinds = np.array([8, 1, 1], np.int8)
    graph = egnn.complete_graph(x=np.eye(3), h=kinds)
    assert graph.nodes.h.tolist() == [8, 1, 1]
    for name in ("egnn", "gnn", "schnet", "tfn"):
        options = {"coordinates": False} if name == "gnn" else {}
        model = egnn.MODELS[name](features=4, layers=1, **options)
        params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
        of = lambda h, model=model, params=params: (
            jax.jit(model.apply)(
                params, graph._replace(nodes=graph.nodes.replace(h=jnp.array(h, jnp.int8)))
            ).nodes.h
        )
        assert of([8, 1, 1]).shape == (3, 4)
        assert np.abs(of([8, 1, 1]) - of([8, 1, 6])).max() > 1e-3
        mixed = jax.jit(egnn.MixedPrecision(model).apply)(params, graph).nodes.h
        assert mixed.dtype == graph.nodes.x.dtype
        np.testing.assert_allclose(mixed, of([8, 1, 1]), rtol=0.1, atol=0.1)


def test_narrow_numbers_of_nodes_do_not_overflow():
    graphs = [egnn.complete_graph(np.ones((100, 2)) * k) for k in range(3)]
    graphs = [g._replace(n_node=np.array([100], np.int8)) for g in graphs]
    both = egnn.batch(graphs)
    assert egnn.sum_nodes(both, both.nodes.x)[:, 0].tolist() == [0, 100, 200]


def test_half_precision_does_not_round_predictions():
    graph = egnn.complete_graph(x=np.eye(3), h=np.ones((3, 2)))
    model = egnn.Readout(egnn.EGNN(4, 1), mean=-11178.0, scale=273.0)
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    exact = float(model.apply(params, graph).globals.y[0, 0])
    inside = model.clone(encoder=egnn.MixedPrecision(egnn.EGNN(4, 1)))
    for mixed in (egnn.MixedPrecision(model), inside):
        y = mixed.apply(params, graph).globals.y
        assert y.dtype == jnp.float32
        assert abs(float(y[0, 0]) - exact) < 0.05 * 273
    kinds = egnn.complete_graph(x=np.eye(3), h=[1, 6, 8])
    radial = egnn.RadialField(4, 1)
    mixed = egnn.MixedPrecision(radial).apply(radial.init(jax.random.key(0), kinds), kinds)
    assert mixed.nodes.h.dtype == jnp.int32


def test_targets_and_cells_belong_to_graphs():
    cell = np.diag([2.0, 3.0, 4.0])
    graphs = [
        egnn.radius_graph(np.full((2, 3), k) * [[0.1], [0.3]], 1.0, y=[k, -k], cell=cell)
        for k in (1.0, 2.0)
    ]
    padded = egnn.batch(graphs, egnn.Budget(6, 99, 3))
    assert padded.globals.y.tolist() == [[1, -1], [2, -2], [0, 0]]
    assert padded.globals.cell.shape == (3, 3, 3)
    one = graphs[0]
    np.testing.assert_allclose(one.edges.shift, one.edges.steps @ cell, atol=1e-6)
    assert jnp.issubdtype(one.edges.steps.dtype, jnp.integer)
    q = egnn.random_orthogonal(jax.random.key(0), 3)
    turned = egnn.transform(one, q)
    np.testing.assert_allclose(
        turned.edges.shift, one.edges.steps @ np.asarray(turned.globals.cell[0]), atol=1e-5
    )


def test_edges_that_are_not_sorted_by_receiver_are_refused():
    """Sums, and the models that arrange edges in rows, rely on the order."""
    graph = egnn.graph_from_edges([0, 0, 1], [1, 2, 2], x=np.eye(3))
    reversed_ = graph._replace(senders=graph.receivers, receivers=graph.senders[::-1])
    for call in (
        lambda: egnn.batch([graph, reversed_]),
        lambda: egnn.unbatch(reversed_),
        lambda: egnn.GraphDataset([graph, reversed_]),
    ):
        with pytest.raises(ValueError, match=r"receivers of edges \d and after are not in order"):
            call()
    with pytest.raises(ValueError, match="n_edge of graph 0 is None; expected the counts"):
        egnn.batch([graph._replace(n_edge=None)])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_transformed_graph_keeps_its_dtypes(x64, dtype):
    graph = egnn.radius_graph(np.eye(3) * 2, 2.5, v=np.eye(3), cell=np.eye(3) * 6, periodic=True)
    graph = graph._replace(globals=graph.globals.replace(stress=jnp.eye(3)[None]))
    graph = jax.tree.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, graph)
    turned = egnn.transform(graph, egnn.random_orthogonal(jax.random.key(0), 3), 1.0)
    assert jax.tree.map(lambda a: a.dtype, turned) == jax.tree.map(lambda a: a.dtype, graph)


def test_atoms_become_graphs_and_come_back():
    atoms = ase.Atoms("CO", [[0.0, 0.0, 0.0], [0.0, 0.0, 9.9]], cell=[10, 10, 10], pbc=True)
    graph = egnn.from_ase(atoms, cutoff=1.0, y=-1.5)
    assert graph.nodes.h.tolist() == [6, 8]
    assert graph.globals.y.tolist() == [[-1.5]]
    assert sorted(graph.edges.steps.tolist()) == [[0, 0, -1], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"cross the cell along \[2\] .*; expected periodic"):
        egnn.to_ase(graph)
    again = egnn.to_ase(graph, periodic=True)
    assert again.get_chemical_symbols() == ["C", "O"]
    assert again.pbc.all()
    np.testing.assert_allclose(again.get_distance(0, 1, mic=True), 0.1, atol=1e-5)
    alone = egnn.from_ase(ase.Atoms("H"))
    assert (alone.n_node.tolist(), alone.n_edge.tolist()) == ([1], [0])
    assert egnn.to_ase(alone).pbc.sum() == 0
    with pytest.raises(ValueError, match="periodic is True, and the graph has no cell"):
        egnn.to_ase(alone, periodic=True)
    flat = egnn.complete_graph(x=np.zeros((2, 2)), h=[1, 1])
    with pytest.raises(ValueError, match=r"x .*3"):
        egnn.to_ase(flat)
    crystal = egnn.to_ase(egnn.from_ase(ase.build.bulk("Cu"), cutoff=3.0))
    assert crystal.pbc.all()
    slab = ase.build.fcc111("Al", (2, 2, 2))
    edges = egnn.from_ase(slab, cutoff=4.0).receivers
    back = egnn.to_ase(egnn.from_ase(slab, cutoff=4.0), (True, True, False))
    assert len(egnn.from_ase(back, cutoff=4.0).receivers) == len(edges)
    with pytest.raises(ValueError, match="references is given without energy"):
        egnn.from_ase(atoms, cutoff=1.0, y=-1.5, references={"C": 0.0, "O": 0.0})
    with pytest.raises(ValueError, match="periodic; expected a cutoff"):
        egnn.from_ase(atoms)
    with pytest.raises(ValueError, match=r"x is ASE's Atoms; expected an array: see from_ase"):
        egnn.graph_from_edges([0], [1], x=atoms)


def test_rounding_of_large_coordinates_is_said():
    with pytest.warns(UserWarning, match=r"x reaches 4e\+06.*subtract the mean"):
        egnn.radius_graph(np.array([[4e6, 0.0], [4e6 + 0.6, 0.0]]), 1.0)


X = np.zeros((3, 2))
NAN = np.array([[0.0, 0.0], [0.0, np.nan], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: egnn.complete_graph(x=np.zeros(3)), r"x has shape \(3,\)"),
        (lambda: egnn.complete_graph(x=1.0), r"x has shape \(\)"),
        (
            lambda: egnn.complete_graph(x=X, h=np.zeros((2, 5))),
            r"h has shape \(2, 5\); expected \(3, any width\)",
        ),
        (
            lambda: egnn.complete_graph(x=X, v=np.zeros((3, 3))),
            r"v has shape \(3, 3\); expected \(3, 2\)",
        ),
        (
            lambda: egnn.complete_graph(x=X, a=np.zeros((5, 1))),
            r"a has shape \(5, 1\); expected \(6, any width\)",
        ),
        (
            lambda: egnn.complete_graph(x=X, h=[1, 2, 119]),
            "h holds 119; expected node types from 0",
        ),
        (lambda: egnn.complete_graph(x=X, h=[0.5, 1, 2]), r"h has shape \(3,\) and dtype float"),
        (lambda: egnn.complete_graph(x=X + 1e39), r"x is 1e\+39 at row 0.*float32"),
        (lambda: egnn.complete_graph(x=X, y=[np.nan]), "y is nan"),
        (
            lambda: egnn.graph_from_edges([0], [1], x=X, steps=[[0, 1]]),
            "steps are given without a cell",
        ),
        (
            lambda: egnn.graph_from_edges([0], [1], x=X, steps=[[0.5, 1]], cell=np.eye(2)),
            "steps has shape .* expected integers",
        ),
        (lambda: egnn.graph_from_adjacency([["0"]], x=X[:1]), "adjacency has dtype <U1"),
        (lambda: egnn.graph_from_adjacency([[np.nan]], x=X[:1]), "adjacency holds NaN"),
        (
            lambda: egnn.batch([egnn.batch([egnn.complete_graph(x=X)], egnn.Budget(9, 9, 9))]),
            "received a padded batch",
        ),
        (
            lambda: jax.jit(lambda x: egnn.batch([egnn.complete_graph(x=x)]))(jnp.zeros((2, 2))),
            "graph 0 is traced; expected its values",
        ),
        (lambda: egnn.complete_graph(x=NAN), "x is nan at row 1, column 1"),
        (lambda: egnn.complete_graph(x=X, v=X + np.inf), "v is inf at row 0, column 0"),
        (lambda: egnn.complete_graph(x=X.astype(str)), "dtype"),
        (
            lambda: egnn.graph_from_adjacency(np.zeros((2, 3)), x=X),
            r"adjacency has shape \(2, 3\); expected \(3, 3\)",
        ),
        (
            lambda: egnn.graph_from_edges([0, 3], [1, 1], x=X),
            "senders holds 3; expected node indices from 0 to 2",
        ),
        (lambda: egnn.graph_from_edges([0], [-1], x=X), "receivers holds -1"),
        (
            lambda: egnn.graph_from_edges([0, 1], [1], x=X),
            "senders has 2 entries but receivers has 1",
        ),
        (lambda: egnn.graph_from_edges([0.5], [1], x=X), "expected a list of integers"),
        (lambda: egnn.batch([]), "no graphs"),
        (lambda: egnn.batch([egnn.complete_graph(x=X), egnn.complete_graph(x=X, v=X)]), "differ"),
        (
            lambda: egnn.batch([egnn.complete_graph(x=X)] * 2, egnn.Budget(6, 20, 3)),
            "graph 1 with 3 nodes and 6 edges does not fit",
        ),
        (
            lambda: egnn.batch([egnn.complete_graph(x=X)], egnn.Budget(9, 5, 3)),
            "graph 0 with 3 nodes and 6 edges",
        ),
        (lambda: egnn.batch([egnn.complete_graph(x=X)] * 2, egnn.Budget(9, 20, 2)), "2 graphs"),
    ],
)
def test_nonsense_is_refused_with_what_was_received(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("field", "array"),
    [
        ("a", np.ones((6, 2, 2), np.float32)),
        ("shift", np.ones((6, 1), np.float32)),
        ("steps", np.ones((6, 2), np.int32)),
        ("steps", np.ones((6, 3), np.float32)),
    ],
)
def test_arrays_of_edges_have_their_shapes(field, array):
    graph = egnn.complete_graph(np.eye(3))
    graph = graph._replace(edges=graph.edges.replace(**{field: array}))
    with pytest.raises(ValueError, match=rf"edges\.{field} is .*; expected an array \(6, \w+\)"):
        egnn.EGNN(4, 1).init(jax.random.key(0), graph)


def test_bfloat16_is_a_type_of_real_numbers():
    graph = egnn.complete_graph(x=X, h=jnp.ones((3, 2), jnp.bfloat16))
    assert graph.nodes.h.dtype == jnp.bfloat16


def test_graphs_are_built_inside_differentiated_functions():
    def energy(x):
        graph = egnn.complete_graph(x=x)
        return jnp.sum((graph.nodes.x[graph.receivers] - graph.nodes.x[graph.senders]) ** 2)

    x = jnp.arange(6.0).reshape(3, 2)
    chex.assert_trees_all_close(jax.jit(jax.grad(energy))(x), 4 * (3 * x - x.sum(0, keepdims=True)))
