"""DimeNet++: its bases against scipy, its sum over angles against a loop over pairs of edges."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import spherical_jn

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.graph.graph import edge_vectors
from egnn_jax.models.dimenetpp import sum_over_angles
from egnn_jax.nn.edge_rows import edge_rows
from egnn_jax.nn.mlp import glorot_orthogonal
from egnn_jax.nn.spherical import spherical_bessel_basis, spherical_bessel_zeros, sum_over_reversed
from egnn_jax.nn.tensor import irreps

FEATURES, BASIS, ANGLES = 4, 3, 5


def test_bessel_functions_vanish_at_their_zeros_and_are_orthonormal():
    zeros = spherical_bessel_zeros(6, 6)
    assert np.all(np.diff(zeros, axis=1) > 3)
    for ell, row in enumerate(zeros):
        np.testing.assert_allclose(spherical_jn(ell, row), 0, atol=1e-14)
        t, weights = np.polynomial.legendre.leggauss(80)
        t, weights = (t + 1) / 2, weights / 2
        with jax.enable_x64(True):
            j = np.asarray(spherical_bessel_basis(jnp.asarray(t), 6, 6))[:, ell]
        products = np.einsum("t,tn,tm->nm", weights * t**2, j, j)
        np.testing.assert_allclose(products, np.eye(6), atol=1e-6)  # zeros rounded to float32


@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-14), (False, 3e-6)])
def test_bessel_functions_are_scipys(double, tolerance):
    t = np.linspace(0, 1, 2_001)
    z = spherical_bessel_zeros(6, 6).astype(np.float32).astype(np.float64)
    ell = np.arange(7)[:, None]
    wanted = np.sqrt(2) / np.abs(spherical_jn(ell + 1, z)) * spherical_jn(ell, z * t[:, None, None])
    with jax.enable_x64(double):
        got = spherical_bessel_basis(jnp.asarray(t, jnp.result_type(float)), 6, 6)
        slope = jax.jacfwd(lambda t: spherical_bessel_basis(t, 6, 6)[0])(jnp.zeros(1))
    np.testing.assert_allclose(got, wanted, atol=tolerance * wanted.max())
    scale = np.sqrt(2) / np.abs(spherical_jn(2, z[1]))
    np.testing.assert_allclose(slope[1, :, 0], scale * z[1] / 3, rtol=1e-4)  # j_1(z) ≈ z / 3


def crystal():
    """Atoms whose images are neighbors several times, and of themselves."""
    cell = np.array([[3.0, 0, 0], [0.7, 2.8, 0], [-0.4, 0.9, 1.9]])
    x = np.random.default_rng(0).uniform(size=(4, 3)) @ cell
    return egnn.radius_graph(x, 2.5, h=np.array([1, 6, 8, 1]), cell=cell)


def twice(graph):
    """Each edge given twice."""
    ends = [jnp.repeat(jnp.asarray(end), 2) for end in (graph.senders, graph.receivers)]
    edges = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), graph.edges)
    return graph._replace(senders=ends[0], receivers=ends[1], edges=edges, n_edge=2 * graph.n_edge)


def with_shifts_alone(graph):
    return graph._replace(edges=graph.edges.replace(steps=None))


def hub():
    """An atom with twelve neighbors, which have three each."""
    x = np.random.default_rng(0).normal(size=(13, 3))
    ring = np.arange(12) + 1
    i, j = np.concatenate([np.stack([0 * ring, ring]), np.stack([ring, np.roll(ring, 1)])], axis=1)
    return egnn.graph_from_edges(np.append(i, j), np.append(j, i), x)


GRAPHS = {
    "with a hub": hub,
    "directed": lambda: testing.random_graph(padding=False, coincident=False),
    "given twice": lambda: twice(testing.random_graph(padding=False, coincident=False)),
    "periodic": crystal,
    "periodic, without whole steps": lambda: with_shifts_alone(crystal()),
}


def runs_back(graph, one, other):
    """Whether an edge k → j is the edge j → i reversed."""
    i, j = np.asarray(graph.receivers), np.asarray(graph.senders)
    if j[one] != i[other] or i[one] != j[other]:
        return False
    shift = graph.edges.shift
    return shift is None or np.abs(np.asarray(shift[one] + shift[other])).max() < 1e-9


def harmonics(r):
    """Y_0 to Y_4 (E, 25) of unit vectors, with Y_l(a) · Y_l(b) = P_l(a · b)."""
    return e3nn.spherical_harmonics(
        irreps(1, ANGLES - 1, "natural"), jnp.asarray(r), False, "norm"
    ).array


@pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS.keys())
def test_the_sum_over_angles_is_that_over_pairs_of_edges(x64, make):
    graph = make()
    rng = np.random.default_rng(1)
    i, j = np.asarray(graph.receivers), np.asarray(graph.senders)
    r = np.asarray(edge_vectors(graph, graph.nodes.x))
    r = r / np.linalg.norm(r, axis=1, keepdims=True)
    u, sbf = rng.normal(size=(len(i), FEATURES)), rng.normal(size=(len(i), ANGLES, BASIS))
    weights = rng.normal(size=(ANGLES, BASIS, FEATURES))
    every = np.ones(len(i), bool)
    rows = edge_rows(graph, every), edge_rows(graph, every, outgoing=True)
    assert (make is not hub) or rows[1].mask[len(graph.nodes.x) :].any()  # more than one row
    got = sum_over_angles(graph, *map(jnp.asarray, (u, sbf, weights)), harmonics(r), rows)
    wanted, pairs, excluded = np.zeros_like(u), 0, 0
    for ji in range(len(i)):
        for kj in np.flatnonzero(i == j[ji]):
            if runs_back(graph, kj, ji):
                excluded += 1
                continue
            angle = np.polynomial.legendre.legvander([r[ji] @ r[kj]], ANGLES - 1)[0]
            wanted[ji] += u[kj] * np.einsum("ln,l,lnc->c", sbf[kj], angle, weights)
            pairs += 1
    assert min(pairs, excluded) > 5
    np.testing.assert_allclose(got, wanted, atol=1e-11 * np.abs(wanted).max())


def test_what_runs_back_is_found_in_any_order_of_edges(x64):
    graph = testing.random_graph(padding=False, coincident=False)
    order = np.random.default_rng(0).permutation(len(graph.senders))
    assert (order != np.sort(order)).any()
    graph = graph._replace(senders=graph.senders[order], receivers=graph.receivers[order])
    values = np.arange(1.0, len(graph.senders) + 1)[:, None]
    ends = list(zip(np.asarray(graph.receivers), np.asarray(graph.senders), strict=True))
    back = [values[ends.index((j, i))] if (j, i) in ends else [0.0] for i, j in ends]
    np.testing.assert_array_equal(sum_over_reversed(graph, jnp.asarray(values)), back)
    assert 0 < np.count_nonzero(back) < len(back)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers is 0; expected at least 1"),
        ({"angular_features": 0}, "angular_features is 0"),
        ({"num_spherical": 12}, "num_spherical is 12; expected 1 to 11"),
        ({"cutoff": 0.0}, "cutoff is 0.0; expected a finite number above 0"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        egnn.DimeNetPP(**options).init(jax.random.key(0), testing.random_graph())


def test_embeddings_start_as_in_the_authors_code():
    graph = egnn.complete_graph(x=np.eye(3), h=np.array([6, 1, 8]))
    table = egnn.DimeNetPP(8, 1).init(jax.random.key(0), graph)["params"]["embedding"]["table"]
    bound = 3**0.5  # uniform, of variance 1
    assert 0.95 * bound < np.abs(table).max() <= bound
    np.testing.assert_allclose(np.std(table), 1, rtol=0.1)


def test_a_single_output_starts_finite():
    assert np.abs(glorot_orthogonal(jax.random.key(0), (1, 1))) == 1
    graph = testing.random_graph()
    out, _ = egnn.DimeNetPP(8, 1, output_features=1).init_with_output(jax.random.key(0), graph)
    assert np.isfinite(out.nodes.h).all()


def test_three_coordinates_are_needed():
    with pytest.raises(ValueError, match=r"x has shape \(\d+, 2\); expected \(N, 3\)"):
        egnn.DimeNetPP().init(jax.random.key(0), testing.random_graph(n=2))
