"""One graph in parts on several devices: the same outputs and derivatives as on one."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, environment

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.graph.partition import divide
from egnn_jax.potentials.learned_dynamics import LearnedDynamics

CUTOFF = 1.3
TOLERANCE = 1e-10
CELL = np.array([[3.0, 0, 0], [0.7, 2.8, 0], [-0.4, 0.9, 2.9]])
EGNN = egnn.EGNN(features=8, layers=2)
CUT = egnn.EGNN(
    features=8, layers=2, cutoff=CUTOFF, num_rbf=4, coordinate_aggregation="sum", edge_block=16
)
MODELS = {
    "blocks": egnn.EGNN(features=8, layers=2, edge_block=7, infer_edges=True),
    "readout": egnn.Readout(egnn.EGNN(features=8, layers=2, coordinate_aggregation="all_nodes")),
    "potential": egnn.Potential(CUT, stress=True),
    "egnn": egnn.EGNN(features=8, layers=2, velocity="carried", aggregation="mean", clip=0.5),
    "egnn with a maximum": egnn.EGNN(features=8, layers=1, aggregation="max"),
    "mean readout": egnn.MeanReadout(EGNN),
    "autoencoder": egnn.Autoencoder(EGNN),
    "mixed precision": egnn.MixedPrecision(EGNN, compute_dtype="float32"),
    "gnn": egnn.GNN(features=8, layers=2),
    "radial field": egnn.RadialField(features=8, layers=2),
    "linear": egnn.Linear(),
    "schnet": egnn.SchNet(features=8, layers=2, num_rbf=5, cutoff=CUTOFF, forces=True),
    "painn": egnn.PaiNN(features=8, layers=2, num_rbf=5, cutoff=CUTOFF),
    "tensornet": egnn.TensorNet(features=8, layers=1, num_rbf=5, cutoff=CUTOFF),
    "tfn": egnn.TFN(features=4, layers=2),
    "se3_transformer": egnn.SE3Transformer(features=4, layers=2),
}
QUICK = ("blocks", "readout")  # the loss below is that of a potential
REFUSED = {
    "cormorant": egnn.Cormorant(features=4, layers=1),
    "l1net": egnn.L1Net(features=4, layers=1),
    "lieconv": egnn.LieConv(features=4, layers=1),
    "dimenetpp": egnn.DimeNetPP(features=8, layers=1, cutoff=CUTOFF),
    "nmp": egnn.NMP(features=8, max_nodes=40),
    "fuchs": egnn.FuchsTFN(features=4, layers=1),
    "maximum": egnn.MaxReadout(EGNN),
    "set2set": egnn.Set2SetReadout(EGNN),
}


def crystal(seed=0, atoms=30):
    """Atoms at random in a triclinic cell whose images are neighbors, two of them without any."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(atoms, 3)) @ CELL
    graph = egnn.radius_graph(x, CUTOFF, cell=CELL)
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    kept = ~np.isin(receivers, (3, atoms - 1)) & ~np.isin(senders, (3, atoms - 1))
    kept &= rng.random(len(kept)) < 0.8  # directed
    return egnn.graph_from_edges(
        senders[kept],
        receivers[kept],
        x=x,
        h=rng.standard_normal((atoms, 2)),
        v=rng.standard_normal((atoms, 3)),
        a=rng.standard_normal((kept.sum(), 2)),
        y=rng.standard_normal(1),
        steps=np.asarray(graph.edges.steps)[kept],
        cell=CELL,
    )


def parameters(model, graph):
    return testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))


def scalar(out):
    """A number that every field of the output changes."""
    leaves = jax.tree.leaves((out.nodes, out.edges.a, out.globals))
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves)


def difference(ours, others):
    """The largest difference of two trees, by the largest entry of each array."""
    assert jax.tree.structure(ours) == jax.tree.structure(others)
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(others), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0))
        / max(float(np.max(np.abs(np.asarray(b)), initial=0)), 1e-3)
        for a, b in pairs
        if a.size
    )


def compared(model, graph, parts, second=False):
    """The differences of outputs, and of gradients by parameters and coordinates, from those of
    one device.
    """
    params, x = parameters(model, graph), graph.nodes.x
    apply = egnn.on_devices(model.apply)

    def of_one(params, x, graph):
        return model.apply(params, graph._replace(nodes=graph.nodes.replace(x=x)))

    def of_parts(params, x, parts):
        return apply(params, parts.with_nodes(x=x))

    def all_of(function, given):
        def value(params, x, given):
            out = function(params, x, given)
            return scalar(out), out

        gradient = jax.value_and_grad(value, (0, 1), has_aux=True)

        def along(params, x, given):  # a derivative of the gradient
            step = lambda x: gradient(params, x, given)[1]
            return jax.jvp(step, (x,), (jnp.sin(7 * x),))[1]

        run = jax.jit(lambda *a: (gradient(*a), along(*a)) if second else gradient(*a))
        return run(params, x, given)

    return difference(all_of(of_parts, parts), all_of(of_one, graph))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS]
)
def test_two_devices_give_what_one_gives(x64, name):
    graph = crystal()
    parts = egnn.partition(graph, 2)
    assert parts.exchange.sent.shape[1] > 3, "there is something to exchange"
    assert compared(MODELS[name], graph, parts) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blocks", "potential"])
def test_second_derivatives_are_those_of_one_device(x64, name):
    graph = crystal()
    assert compared(MODELS[name], graph, egnn.partition(graph, 2), second=True) < TOLERANCE


def test_a_broken_exchange_is_found(x64):
    """What is received from the wrong rows changes outputs and gradients."""
    graph = crystal()
    parts = egnn.partition(graph, 2)
    sent = jnp.roll(parts.exchange.sent, 1, axis=1)
    broken = parts.replace(exchange=parts.exchange.replace(sent=sent))
    assert compared(MODELS["readout"], graph, broken) > 1e-3


def check_many(number):
    """In a process with that many devices: more parts, one of them empty, and a batch."""
    graph = crystal()
    print(number, compared(CUT, graph, egnn.partition(graph, number)))
    owners = np.random.default_rng(0).integers(1, number, 30) if number > 1 else None
    parts = egnn.partition(graph, number, owners)
    print(number, compared(MODELS["readout"], graph, parts))
    batch = testing.random_graph(sizes=(5, 1, 7, 2), padding=False)
    print(number, compared(MODELS["readout"], batch, egnn.partition(batch, number)))


@pytest.mark.slow
def test_one_four_and_five_devices_give_what_one_gives(x64):
    code = (
        "import sys; sys.path.insert(0, 'tests'); import jax;"
        "jax.config.update('jax_num_cpu_devices', 5); jax.config.update('jax_enable_x64', True);"
        "from test_partition import check_many; [check_many(n) for n in (1, 4, 5)]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [int(number) for number, _ in lines] == [1] * 3 + [4] * 3 + [5] * 3
    assert max(float(error) for _, error in lines) < TOLERANCE, done.stdout


def test_results_are_in_the_order_of_the_graph(x64):
    """Of a function that changes nothing, with owners at random."""
    graph = crystal()
    owners = np.random.default_rng(1).integers(0, 2, 30)
    parts = egnn.partition(graph, 2, owners)
    out = egnn.on_devices(lambda params, graph: graph)({}, parts)
    assert difference(out, graph) == 0
    moved = egnn.on_devices(lambda params, graph: graph)({}, parts.with_nodes(x=2 * graph.nodes.x))
    assert difference(moved.nodes, graph.nodes.replace(x=2 * graph.nodes.x)) == 0


def test_a_loss_is_that_of_one_device(x64):
    graph = crystal()
    nodes = graph.nodes.replace(y=jnp.cos(graph.nodes.x))
    labelled = graph._replace(nodes=nodes, globals=graph.globals.replace(stress=None))
    n_node, n_edge = len(nodes.x), len(graph.senders)
    whole = egnn.batch([labelled], egnn.Budget(n_node + 2, n_edge + 3, 2))
    potential = egnn.Potential(CUT)
    params, key = parameters(potential, graph), jax.random.key(0)
    loss = egnn.losses.energy_forces(potential)
    both = [
        jax.jit(jax.value_and_grad(f, has_aux=True))(params, g, key)
        for f, g in ((egnn.on_devices(loss), egnn.partition(labelled, 2)), (loss, whole))
    ]
    assert difference(*both) < TOLERANCE
    assert set(both[0][0][1]) == {"energy", "forces"}


def test_sums_means_and_masks_leave_padding_out(x64):
    """Of a batch with an empty graph, more of whose nodes one device owns."""
    graph = egnn.batch([crystal(), crystal(1)])._replace(
        n_node=jnp.array([30, 0, 30], jnp.int32), globals=egnn.Globals()
    )
    counts = np.asarray(graph.n_edge)
    graph = graph._replace(n_edge=jnp.array([counts[0], 0, counts[1]], jnp.int32))

    def function(params, graph):
        one = graph.nodes.x[:, :1] * 0 + 1
        numbers = (egnn.sum_nodes(graph, one), egnn.mean_nodes(graph, one + graph.nodes.h))
        if params:
            return numbers
        ones = jnp.where(egnn.node_mask(graph), 1, 0)[:, None]
        edges = jnp.where(egnn.edge_mask(graph)[:, None], 1, 0)
        into = jax.ops.segment_sum(edges, graph.receivers, len(ones))
        masked = (egnn.sum_nodes(graph, ones), egnn.sum_nodes(graph, into))
        return numbers, masked, egnn.graph_mask(graph)

    parts = egnn.partition(graph, 2, np.repeat([0, 1], [45, 15]))
    numbers, masked, mask = egnn.on_devices(function)({}, parts)
    assert difference(numbers, function(True, graph)) < TOLERANCE
    assert masked[0][:, 0].tolist() == graph.n_node.tolist()
    assert masked[1][:, 0].tolist() == graph.n_edge.tolist()
    assert mask.tolist() == [True] * 3


def test_parts_are_balanced_compact_and_know_their_neighbors():
    rng = np.random.default_rng(0)
    graph = egnn.radius_graph(rng.uniform(0, 12, (1728, 3)), 1.5)
    host = divide(graph, 8)
    n_node, n_edge = host.parts.n_node, host.parts.n_edge
    assert n_node[:, 0].sum() == 1728
    assert n_edge[:, 0].max() < 1.05 * len(graph.senders) / 8
    assert host.node.shape[1] < 1.2 * 1728 / 8
    # Cubes of side 6: what lies within 1.5 of three of their sides is (7.5³ - 6³) of 12³.
    assert host.exchange.sent.shape[1] < 1.3 * (7.5**3 - 6**3)
    for rows, pairs in host.exchange.rounds:
        froms, tos = zip(*pairs, strict=True)
        assert rows
        assert len(set(froms)) == len(froms)
        assert len(set(tos)) == len(tos)


def test_a_graph_without_places_is_divided_in_its_order():
    graph = egnn.complete_graph(x=np.zeros((6, 2)), h=np.arange(12.0).reshape(6, 2))
    assert divide(graph, 2).node.tolist() == [[0, 1, 2, 6], [3, 4, 5, 6]]


def test_more_devices_than_nodes_and_no_edges(x64):
    one = egnn.complete_graph(x=np.ones((1, 3)))
    assert compared(EGNN, one, egnn.partition(one, 2)) < TOLERANCE


def test_a_batch_of_empty_graphs_is_divided():
    empty = egnn.graph_from_edges([], [], x=np.zeros((0, 3)), h=np.zeros((0, 1)))
    assert divide(egnn.batch([empty, empty]), 2).node.shape[0] == 2


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_do_not_exchange_are_refused(name):
    graph = crystal()
    if name == "nmp":
        graph = graph._replace(nodes=graph.nodes.replace(v=None))
    parts = egnn.partition(graph, 2)
    params = jax.eval_shape(REFUSED[name].init, jax.random.key(0), graph)
    apply = egnn.on_devices(REFUSED[name].apply)
    with pytest.raises(ValueError, match=r"spread over devices|over several devices"):
        jax.eval_shape(apply, params, parts)


def test_simulations_run_on_parts(x64):
    graph = crystal()
    model = LearnedDynamics(features=4, steps=6, time=0.1)
    parts = egnn.partition(graph, 2)
    assert compared(model, graph, parts) < TOLERANCE
    bounded = egnn.on_devices(model.clone(growth=1.0).apply)
    with pytest.raises(ValueError, match="growth is not computed over several devices"):
        bounded(parameters(model, graph), parts)


def test_sums_that_leave_out_other_devices_are_refused():
    parts = egnn.partition(crystal(), 2)
    wrong = egnn.on_devices(lambda params, graph: {"loss": jnp.sum(graph.nodes.x)})
    with pytest.raises(ValueError, match=r"the result\['loss'\] differs between devices"):
        wrong({}, parts)


def test_bad_input_is_named():
    graph = crystal()
    parts: Any = egnn.partition(graph, 2)
    cases = [
        ("padded batch", lambda: egnn.partition(testing.random_graph(), 2)),
        ("devices is 0", lambda: egnn.partition(graph, 0)),
        ("devices is 99; expected at most", lambda: egnn.partition(graph, 99)),
        ("each once", lambda: egnn.partition(graph, [jax.devices()[0]] * 2)),
        ("owners has shape", lambda: egnn.partition(graph, 2, np.zeros(4, int))),
        ("owners holds 2", lambda: egnn.partition(graph, 2, np.full(30, 2))),
        ("traced", lambda: jax.jit(lambda g: egnn.partition(g, 2))(graph)),
        ("not in order", lambda: egnn.partition(graph._replace(receivers=graph.senders), 2)),
        ("globals", lambda: egnn.partition(graph._replace(globals=None), 2)),
        ("PartitionedGraph", lambda: egnn.on_devices(EGNN.apply)({}, graph)),
        ("function is of type EGNN; expected a function", lambda: egnn.on_devices(EGNN)),
        ("nodes have no z", lambda: egnn.partition(graph, 2).with_nodes(z=graph.nodes.x)),
        ("x has shape", lambda: egnn.partition(graph, 2).with_nodes(x=graph.nodes.x[1:])),
        ("GraphsTuple", lambda: egnn.partition(parts, 2)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_result_without_globals():
    parts = egnn.partition(crystal(), 1)
    found = egnn.on_devices(lambda params, graph: graph._replace(globals=None))({}, parts)
    assert found.globals is None
    np.testing.assert_array_equal(found.nodes.x, crystal().nodes.x)


def test_a_gradient_that_is_nan_is_no_agreement(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from benchmarks.partition import require_agreement

    np.savez(tmp_path / "gradient-1.npz", w=np.ones(3))
    np.savez(tmp_path / "gradient-2.npz", w=np.array([1.0, np.nan, 1.0]))
    with pytest.raises(ValueError, match="gradients differ by nan"):
        require_agreement(tmp_path, [1, 2])
    assert require_agreement(tmp_path, [1, 1]) == 0
