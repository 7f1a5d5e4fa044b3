"""Energies, forces and stress: derivatives, conservation, smoothness at the cutoff, padding."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.nn.radial import polynomial_envelope

CUTOFF = 2.5
BACKBONES = {
    "egnn": egnn.EGNN(
        features=8, layers=2, cutoff=CUTOFF, num_rbf=6, coordinate_aggregation="sum",
    ),
    "egnn, ‖r‖² and e_ij": egnn.EGNN(
        features=8, layers=2, cutoff=CUTOFF, update_coordinates=False, infer_edges=True
    ),
    "egnn in blocks": egnn.EGNN(
        features=8, layers=2, cutoff=CUTOFF, num_rbf=6, update_coordinates=False, edge_block=7
    ),
    "painn": egnn.PaiNN(features=8, layers=2, num_rbf=6, cutoff=CUTOFF, epsilon=0.1),
    "tensornet": egnn.TensorNet(features=8, layers=2, num_rbf=6, cutoff=CUTOFF),
    "dimenetpp": egnn.DimeNetPP(
        features=8, layers=1, angular_features=6, basis_features=4, output_features=8, cutoff=CUTOFF
    ),
    "schnet": egnn.SchNet(features=8, layers=2, num_rbf=8, cutoff=CUTOFF),
}  # fmt: skip


@pytest.fixture(
    params=[
        pytest.param(
            model, id=name, marks=pytest.mark.slow if name in ("dimenetpp", "tensornet") else ()
        )
        for name, model in BACKBONES.items()
    ]
)
def backbone(request, x64):
    return request.param


def crystal(seed=0, atoms=5):
    """Atoms at random in a thin triclinic cell, whose images are neighbors several times."""
    cell = np.array([[3.0, 0, 0], [0.7, 2.8, 0], [-0.4, 0.9, 1.9]])
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(atoms, 3)) @ cell
    return egnn.radius_graph(x, CUTOFF, h=rng.choice([1, 6, 8], atoms), cell=cell)


@pytest.mark.parametrize("wrap", [lambda model: model, egnn.MixedPrecision])
def test_forces_that_would_not_be_derivatives_are_refused(wrap):
    graph = egnn.complete_graph(np.eye(3), h=np.ones((3, 2)))
    sums = {"cutoff": 3.0, "coordinate_aggregation": "sum"}
    for options in ({"update_coordinates": False}, sums):
        model = egnn.EGNN(4, 2, normalize=True, **options)
        egnn.Potential(wrap(model)).init(jax.random.key(0), graph)
    with pytest.raises(ValueError, match="the EGNN has normalize and no cutoff"):
        egnn.Potential(wrap(egnn.EGNN(4, 2, normalize=True))).init(jax.random.key(0), graph)
    with pytest.raises(ValueError, match="the EGNN has shrinkage"):
        egnn.Potential(wrap(egnn.EGNN(4, 2, shrinkage=0.1))).init(jax.random.key(0), graph)


def test_a_slab_without_volume_has_no_stress():
    x = np.random.default_rng(0).uniform(size=(4, 3)) * 3
    cell = np.diag([3.0, 3.0, 3.0])
    solid, slab = (
        egnn.radius_graph(x, CUTOFF, h=np.ones(4, int), cell=c, periodic=(True, True, False))
        for c in (cell, cell * np.array([1, 1, 0]))
    )
    np.testing.assert_array_equal(slab.globals.cell[0], cell * np.array([1, 1, 0]))
    np.testing.assert_array_equal(slab.edges.shift, solid.edges.shift)
    network = egnn.Potential(egnn.PaiNN(features=4, layers=1, cutoff=CUTOFF), stress=True)
    params = network.init(jax.random.key(0), solid)
    both = egnn.batch([solid, slab], egnn.Budget(12, 2 * len(solid.senders) + 8, 4))
    stress = network.apply(params, both).globals.stress
    assert np.isfinite(stress[np.array([0, 2, 3])]).all()
    assert np.isnan(stress[1]).all()
    np.testing.assert_allclose(network.apply(params, solid).globals.stress[0], stress[0], rtol=1e-4)


def built(backbone, graph, **options):
    """A potential with parameters of order one, compiled."""
    potential = egnn.Potential(backbone, scale=0.7, **options)
    shapes = jax.eval_shape(potential.init, jax.random.key(0), graph)
    params = testing.randomise_parameters(shapes)
    return jax.jit(lambda graph: potential.apply(params, graph))


def moved(graph, x=None, strain=None):
    """The graph with other positions, or strained, with the edges it has."""
    x = graph.nodes.x if x is None else x
    if strain is not None:
        f = np.eye(3) + strain
        graph = graph._replace(
            edges=graph.edges.replace(shift=graph.edges.shift @ f),
            globals=graph.globals.replace(cell=graph.globals.cell @ f),
        )
        x = x @ f
    return graph._replace(nodes=graph.nodes.replace(x=jnp.asarray(x)))


def forces_near_a_symmetric_site(backbone):
    """Forces on an atom of a simple cubic crystal that is 0, 1e-6 and 2e-6 away from its place."""
    cell = 4.0 * np.eye(3)
    sites = 2.0 * np.stack(np.meshgrid(*[range(2)] * 3), -1).reshape(-1, 3)
    graph = egnn.radius_graph(sites, CUTOFF, h=np.full(8, 6), cell=cell)
    potential = built(backbone, graph)
    away = np.eye(8)[:, :1] * np.array([1e-6, 3e-7, -5e-7])
    return [potential(moved(graph, sites + k * away)).nodes.y[0] for k in range(3)]


def test_forces_are_linear_in_small_displacements_from_a_symmetric_site(backbone):
    """As harmonic vibrations need: vector features vanish there, and their norms have a kink."""
    at, once, twice = forces_near_a_symmetric_site(backbone)
    np.testing.assert_allclose(at, 0, atol=1e-9)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-3)
    assert np.abs(once).max() > 1e-9


def test_the_norm_of_the_painn_paper_has_a_kink_at_symmetric_sites(x64):
    backbone = egnn.PaiNN(features=8, layers=2, num_rbf=6, cutoff=CUTOFF, epsilon=0.0)
    _, once, twice = forces_near_a_symmetric_site(backbone)
    np.testing.assert_allclose(twice, once, rtol=1e-3)
    assert np.abs(once).max() > 1e-3


def test_forces_and_stress_are_the_derivatives_of_the_energy(backbone):
    graph = crystal()
    potential = built(backbone, graph, stress=True)
    energy = lambda **change: float(potential(moved(graph, **change)).globals.y[0, 0])
    out, x, step = potential(graph), np.asarray(graph.nodes.x), 1e-5
    forces = np.zeros_like(x)
    for place in itertools.product(range(len(x)), range(3)):
        change = np.zeros_like(x)
        change[place] = step
        forces[place] = (energy(x=x - change) - energy(x=x + change)) / (2 * step)
    size = np.abs(forces).max()
    assert size > 1e-2
    np.testing.assert_allclose(out.nodes.y, forces, atol=1e-6 * max(size, 1))
    volume = abs(np.linalg.det(graph.globals.cell[0]))
    stress = np.zeros((3, 3))
    for place in itertools.product(range(3), range(3)):
        strain = np.zeros((3, 3))
        strain[place] += step / 2
        strain.T[place] += step / 2
        difference = energy(strain=strain) - energy(strain=-strain)
        stress[place] = difference / (2 * step * volume)
    assert np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(out.globals.stress[0], stress, atol=1e-6 * max(size, 1))


def test_energy_is_the_sum_over_atoms_and_forces_and_torques_vanish(backbone):
    rng = np.random.default_rng(1)
    graph = egnn.radius_graph(rng.normal(size=(9, 3)), CUTOFF, h=rng.choice([1, 6, 8], 9))
    out = built(backbone, graph)(graph)
    assert out.nodes.h.shape == (9, 1)
    assert float(out.globals.y[0, 0]) == pytest.approx(float(out.nodes.h.sum()), rel=1e-12)
    forces, x = np.asarray(out.nodes.y), np.asarray(graph.nodes.x)
    assert np.abs(forces).max() > 1e-2
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cross(x, forces).sum(axis=0), 0, atol=1e-10)
    assert out.globals.stress is None


def test_energy_and_forces_have_no_jump_at_the_cutoff(backbone):
    """Also where the list of neighbors changes, which leaves out what is 0."""
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(size=(4, 3)), [[0, 0, 0.0]]])
    x[-1] = x[0]
    h = np.array([6, 1, 8, 6, 1])

    def at(distance):
        points = x.copy()
        points[-1] = x[0] + distance * np.array([0.6, 0, 0.8])
        graph = egnn.radius_graph(points, CUTOFF, h=h)
        return graph, graph.senders.shape[0]

    potential = built(backbone, at(CUTOFF)[0])
    inside, outside = at(CUTOFF * (1 - 1e-6)), at(CUTOFF * (1 + 1e-6))
    assert inside[1] > outside[1]
    near, far = (potential(graph) for graph, _ in (inside, outside))
    # Forces change by 1e-6 of their slope; a jump would be of order one.
    np.testing.assert_allclose(near.globals.y, far.globals.y, atol=1e-4)
    np.testing.assert_allclose(near.nodes.y, far.nodes.y, atol=1e-3)


def test_pairs_beyond_the_cutoff_change_nothing(backbone):
    """Also where a layer has moved them, so that a later one sees them within the cutoff."""
    rng = np.random.default_rng(3)
    x, h = rng.normal(size=(12, 3)), rng.choice([1, 6, 8], 12)
    near, all_pairs = egnn.radius_graph(x, CUTOFF, h=h), egnn.complete_graph(x, h)
    assert len(near.senders) < len(all_pairs.senders)
    potential = built(backbone, near)
    expected, found = potential(near), potential(all_pairs)
    assert np.abs(expected.nodes.y).max() > 1e-2
    np.testing.assert_allclose(found.nodes.h, expected.nodes.h, atol=1e-10)
    np.testing.assert_allclose(found.nodes.y, expected.nodes.y, atol=1e-10)


def test_rotations_permutations_and_padding(backbone):
    graph = crystal()
    potential = built(backbone, graph, stress=True)
    q = egnn.random_orthogonal(jax.random.key(0), 3)
    out, turned = potential(graph), potential(egnn.transform(graph, q, 0.3))
    expected = egnn.transform(out, q)
    np.testing.assert_allclose(turned.globals.y, out.globals.y, rtol=1e-10)
    np.testing.assert_allclose(turned.nodes.y, out.nodes.y @ q.T, atol=1e-9)
    np.testing.assert_allclose(turned.globals.stress, expected.globals.stress, atol=1e-9)
    others = [crystal(seed=1, atoms=3), graph, crystal(seed=2, atoms=1)]
    together = potential(egnn.batch(others, egnn.Budget(20, 400, 6)))
    alone = [potential(other) for other in others]
    starts = np.cumsum([0, 3, 5])
    for k, (start, one) in enumerate(zip(starts, alone, strict=True)):
        rows = slice(start, start + len(one.nodes.x))
        np.testing.assert_allclose(together.globals.y[k], one.globals.y[0], rtol=1e-9)
        np.testing.assert_allclose(together.nodes.y[rows], one.nodes.y, atol=1e-9)
        np.testing.assert_allclose(together.globals.stress[k], one.globals.stress[0], atol=1e-9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(together))


def test_the_envelope_ends_with_two_derivatives(x64):
    value = lambda d: polynomial_envelope(d, 3.0)
    first, second = jax.grad(value), jax.grad(jax.grad(value))
    assert value(0.0) == 1
    for d in (3.0 - 1e-7, 3.0, 3.1):
        np.testing.assert_allclose([value(d), first(d), second(d)], 0, atol=1e-4)
    assert value(1.5) == pytest.approx(1 - 28 / 64 + 48 / 128 - 21 / 256)


def test_what_is_not_smooth_is_refused():
    graph = crystal()
    for options, message in (
        ({"num_rbf": 8}, "num_rbf is 8 without a cutoff"),
        ({"cutoff": 3.0}, "coordinate_aggregation is 'mean' with a cutoff"),
        ({"cutoff": 3.0, "aggregation": "mean", "update_coordinates": False},
         "aggregation is 'mean' with a cutoff"),
        ({"cutoff": 3.0, "coordinate_aggregation": "sum", "aggregation": "max"},
         "aggregation is 'max' with a cutoff"),
        ({"cutoff": -1.0, "coordinate_aggregation": "sum"}, "cutoff is -1.0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            egnn.EGNN(features=8, **options).init(jax.random.key(0), graph)
    for nothing in (egnn.Globals(), None):
        free = graph._replace(globals=nothing)
        with pytest.raises(ValueError, match="the graph has no cell"):
            egnn.Potential(BACKBONES["painn"], stress=True).init(jax.random.key(0), free)


def test_graphs_without_globals_have_energies_and_forces():
    graph = egnn.complete_graph(np.eye(3), h=np.array([1, 6, 8]))
    potential = egnn.Potential(BACKBONES["schnet"])
    params = potential.init(jax.random.key(0), graph)
    out = potential.apply(params, graph._replace(globals=None))
    chex.assert_trees_all_equal(out, potential.apply(params, graph))
    assert egnn.to_ase(graph._replace(globals=None)) == egnn.to_ase(graph)


@pytest.mark.parametrize("options", [{"normalize": True}, {"shrinkage": 0.1}])
def test_options_of_layers_are_checked_in_a_partial_too(options):
    layer = functools.partial(egnn.EGCL, **options)
    potential = egnn.Potential(egnn.EGNN(features=4, layers=2, layer=layer))
    graph = egnn.complete_graph(x=np.eye(3), h=np.ones((3, 2)))
    with pytest.raises(ValueError, match=f"the EGNN has {next(iter(options))}"):
        potential.init(jax.random.key(0), graph)
