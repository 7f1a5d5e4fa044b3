"""The authors' Cormorant and L1Net: outputs, features of every level, and parameter counts.

``--golden DIR`` takes the files ``cormorant*.npz`` and ``l1net*.npz`` of another folder.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import interop, testing
from egnn_jax.data.molecular_graphs import atom_features
from egnn_jax.nn.clebsch_gordan import clebsch_gordan, solid_harmonics
from egnn_jax.nn.edge_rows import edge_rows
from egnn_jax.nn.heads import CormorantReadout, L1NetReadout, head_of
from egnn_jax.nn.radial import DampedWaves
from tests.conftest import GOLDEN
from tests.helpers import arguments_of, there_and_back, under

NETWORKS = ("cormorant", "l1net")
"""What the names of files begin with."""

QUICKLY = {"xla_backend_optimization_level": 0}


def run(model, params, graph, **options):
    """The output, compiled as a whole: one operation after the other takes minutes."""
    return jax.jit(partial(model.apply, **options), compiler_options=QUICKLY)(params, graph)


def random(model, graph):
    return testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))


def load(path):
    """The parameters of a file, all else that is in it, and its molecules."""
    with np.load(path) as file:
        z = dict(file)
    state = under(z, "param/")
    ends = np.cumsum(z["input/n_node"])
    parts = [slice(end - size, end) for end, size in zip(ends, z["input/n_node"], strict=True)]
    x, kinds = z["input/x"], z["input/atomic_numbers"]
    return z, state, [(x[part], kinds[part]) for part in parts]


def assert_same(got, want, name=""):
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10 * np.abs(want).max(), err_msg=name)


def cormorant(state, z):
    *degrees, last = (int(l) for l in z["input/maxl"])
    assert set(degrees) == {degrees[0]}
    hidden = len(state["input_func_atom.mlps.0.linear.0.bias"])
    model = egnn.Cormorant(
        int(z["input/num_channels"]), len(degrees) + 1, degrees[0], last, hidden,
        parity="ignored", self_pairs=True,
    )  # fmt: skip
    return CormorantReadout(model, hidden=len(state["output_layer_atom.mlp1.linear.0.bias"]))


def molecules(parts):
    """The batch, with QM9's features."""
    features = [np.asarray(atom_features(jnp.asarray(kinds)), np.float64) for _, kinds in parts]
    return egnn.batch(
        [egnn.complete_graph(x=x, h=h) for (x, _), h in zip(parts, features, strict=True)]
    )


def check_cormorant(path):
    z, state, parts = load(path)
    model, graph = cormorant(state, z), molecules(parts)
    params = there_and_back(state, model)
    out, seen = run(model, params, graph, capture_intermediates=True)
    assert_same(out.globals.y[:, 0], z["output/prediction"])
    for name in (name for name in z if name.startswith("output/atoms/")):
        level, l = name.split("/")[2], int(name[-1])
        f = seen["intermediates"]["encoder"][level]["__call__"][0][0]  # (2, C, N, K)
        f = f[..., l**2 : (l + 1) ** 2].transpose(2, 1, 3, 0)
        assert_same(f, z[name], name)
    check_functions_of_distances(z, state, parts[0][0])


def check_functions_of_distances(z, state, x):
    """Harmonics and radial functions, of the first molecule."""
    r = x[:, None] - x
    harmonics = jax.jit(solid_harmonics, static_argnums=1)(jnp.asarray(r), 3)
    for l in range(4):
        got = harmonics[..., l**2 : (l + 1) ** 2]
        assert_same(jnp.moveaxis(got, 0, -1), z[f"output/harmonics_molecule_0/l_{l}"][:, :, 0])
    learned = {
        name: state[f"rad_funcs.rad_funcs.0.{name}"][0, 0, 0] for name in ("scales", "phases")
    }
    distances = np.linalg.norm(r, axis=-1)
    got = DampedWaves().apply({"params": learned}, jnp.asarray(distances.reshape(-1)))
    want = z["output/radial_molecule_0/level_0"]
    assert_same(got.reshape(want.shape), want)


def l1net(state, z):
    """The authors' network, of which the shapes tell the sizes."""
    layers = max(int(name.split(".")[2]) for name in state if name.startswith("net.layers."))
    weight = lambda name: state[f"{name}.0.R.f.weights.2"]
    embedding, hidden = state["net.layers.0.weight"].shape[1], weight("out.layers.0").shape[1]
    width = z["output/features"].shape[1]  # features + 3 vectors
    vectors = width - len(weight("net.layers.1")) // embedding  # of features + 2 vectors
    features, extra_layers = width - 3 * vectors, ()
    mlp = "out.mlp.0.weight" in state
    if mlp:  # conv to n_s and n_v, then to as many scalars as the MLP reads
        last = state["out.mlp.0.weight"].shape[1]
        both = len(weight("out.layers.1")) // last  # n_s + n_v
        n_v = (len(weight("out.layers.0")) - both * (features + vectors)) // width
        extra_layers = (both - n_v, n_v, last, 0)
    model = egnn.L1Net(
        features, vectors, embedding, hidden, layers,
        num_rbf=state["net.layers.1.0.R.f.weights.0"].shape[1],
        cutoff=float(z["input/cutoff"]),
        average_nodes=float(z["input/avg_n_atoms"]),
        softplus_scale=float(z["input/softplus_factor"]),
        radial_scale=float(z["input/shifted_softplus_factor"]),
        parity="ignored",
        extra_layers=extra_layers,
    )  # fmt: skip
    return L1NetReadout(model, mlp=mlp)


def of_kinds(state, parts):
    """The batch; an embedding is a product with one-hot features."""
    rows = len(state["net.layers.0.weight"])
    return egnn.batch([egnn.complete_graph(x=x, h=np.eye(rows)[kinds]) for x, kinds in parts])


def check_l1net(path):
    z, state, parts = load(path)
    model, graph = l1net(state, z), of_kinds(state, parts)
    params = there_and_back(state, model)
    out = run(model, params, graph)
    assert_same(out.globals.y[:, 0], z["output/prediction"])
    nodes, edges = len(graph.nodes.x), len(graph.senders)
    alone = graph._replace(
        n_node=np.ones(nodes, int), n_edge=np.array([edges] + [0] * (nodes - 1)),
        globals=jax.tree.map(lambda a: None, graph.globals),
    )  # fmt: skip
    atomwise = run(model, params, alone).globals.y  # sums over graphs of one atom each
    assert_same(atomwise[:, 0], z["output/atomwise"])
    last = f"layer_{model.encoder.layers}" if model.mlp else "out"  # reads features of the body
    *_, scalars, vectors = arguments_of(last, model, params, graph)
    vectors = vectors[:, jnp.array([1, 2, 0])].swapaxes(1, 2)  # (y, z, x) of each
    features = jnp.concatenate([scalars, vectors.reshape(len(scalars), -1)], axis=1)
    assert_same(features * z["input/avg_n_atoms"] ** 0.5, z["output/features"])


def test_golden(x64, golden_file):
    check = check_cormorant if golden_file.stem.startswith("cormorant") else check_l1net
    check(golden_file)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("cormorant", "param/cormorant_cg.edge_levels.1.cat_mix.mix_reps.weights.2"),
        ("cormorant", "input/x"),
        ("l1net", "param/net.layers.2.0.R.f.weights.2"),
        ("l1net", "output/features"),
        ("l1net_mlp", "param/out.mlp.0.weight"),
        ("l1net_mlp", "output/atomwise"),
    ],
)
def test_a_changed_golden_value_is_seen(x64, tmp_path, name, field):
    z = dict(np.load(GOLDEN / f"{name}.npz"))
    z[field] = z[field].copy()
    z[field].flat[1] += 1e-5
    np.savez(tmp_path / f"{name}.npz", **z)
    check = check_cormorant if name == "cormorant" else check_l1net
    with pytest.raises(AssertionError):
        check(tmp_path / f"{name}.npz")


def test_l1net_in_the_authors_batches_depends_on_padding(x64):
    """Water alone is .509; padded to the nine atoms of the others it is 9.448 there."""
    z, state, parts = load(GOLDEN / "l1net.npz")
    model = l1net(state, z)
    params = interop.from_torch_state_dict(state, model)
    water, batch = of_kinds(state, parts[:1]), of_kinds(state, parts)
    y = lambda model, graph: run(model, params, graph).globals.y[0, 0]
    np.testing.assert_allclose([y(model, water), y(model, batch)], z["output/prediction"][0])
    for size, expected in ((9, 9.448), (3, z["output/prediction"][0])):
        leaky = model.clone(encoder=model.encoder.clone(padded_nodes=size))
        chex.assert_trees_all_equal(interop.from_torch_state_dict(state, leaky), params)
        np.testing.assert_allclose([y(leaky, water), y(leaky, batch)], expected, rtol=1e-4)


def test_l1net_has_as_many_parameters_as_published():
    graph = egnn.complete_graph(np.eye(3), h=np.ones((3, 10)))
    model = L1NetReadout(egnn.L1Net(parity="ignored"))
    params = jax.eval_shape(model.init, jax.random.key(0), graph)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 5_661_312


def small(model, **options):
    sizes = {"features": 3, "layers": 2, "hidden": 4, **options}
    return model(**sizes, **({"vectors": 3} if model is egnn.L1Net else {"degree": 2}))


def test_l1net_has_its_readout_in_bfloat16_too():
    graph = egnn.complete_graph(np.eye(3), h=np.ones((3, 2)))
    net = small(egnn.L1Net)
    mixed = egnn.MixedPrecision(net)
    assert head_of(mixed) is L1NetReadout
    plain, rounded = (L1NetReadout(model, outputs=2) for model in (net, mixed))
    shapes = jax.eval_shape(plain.init, jax.random.key(0), graph)
    assert jax.eval_shape(rounded.init, jax.random.key(0), graph) == shapes
    assert jax.eval_shape(rounded.apply, shapes, graph).globals.y.shape == (1, 2)


@pytest.mark.parametrize("model", [egnn.Cormorant, egnn.L1Net])
def test_reflections_need_natural_parity(x64, model):
    graph = testing.random_graph(velocity=False, attributes=0)
    for parity in ("natural", "ignored"):
        net = small(model, layers=3, parity=parity, update_coordinates=True)
        params = random(net, graph)
        apply = jax.jit(partial(net.apply, params), compiler_options=QUICKLY)
        testing.assert_equivariant(apply, graph, reflection=False)
        if parity == "natural":
            testing.assert_equivariant(apply, graph)
        else:
            with pytest.raises(AssertionError, match="after a reflection"):
                testing.assert_equivariant(apply, graph)


def test_nodes_of_cormorant_send_to_themselves_only_where_asked(x64):
    """An edge of length zero from a node to itself changes nothing by itself."""
    x = np.array([[0, 0, 0], [1, 0.2, 0], [0, 1, 0.5]])
    h = np.array([[1, 2], [0, 1], [2, 0.5]])
    pairs = np.argwhere(~np.eye(3, dtype=bool))
    looped = np.concatenate([pairs, [[k, k] for k in range(3)]])
    with_edges = lambda edges: egnn.graph_from_edges(edges[:, 1], edges[:, 0], x=x, h=h)
    graph, loops = with_edges(pairs), with_edges(looped)
    net = small(egnn.Cormorant)
    params = random(net, graph)
    plain = run(net, params, graph).nodes.h
    assert_same(run(net, params, loops).nodes.h, plain)
    sent = small(egnn.Cormorant, self_pairs=True)
    original = run(sent, params, graph).nodes.h
    assert_same(run(sent, params, loops).nodes.h, original)
    assert np.abs(original - plain).max() > 1e-3 * np.abs(plain).max()


@pytest.mark.parametrize("model", [egnn.Cormorant, egnn.L1Net])
def test_a_node_with_many_edges_gets_the_same_sum(x64, model):
    """The edges of one node fill several rows alone, and one row next to a graph of many edges."""
    rng = np.random.default_rng(0)
    x, h = rng.standard_normal((25, 3)), rng.standard_normal((25, 2))
    first = np.array([(0, j) for j in range(1, 25)])
    net = small(model, layers=1)
    star = egnn.graph_from_edges(first[:, 1], first[:, 0], x=x, h=h)
    dense = egnn.complete_graph(rng.standard_normal((60, 3)), h=rng.standard_normal((60, 2)))
    graphs = star, egnn.batch([star, dense])
    width = [edge_rows(g, jnp.ones(len(g.senders), bool)).edges.shape[1] for g in graphs]
    assert width[0] < len(first) < width[1]
    params = random(net, star)
    assert_same(*(run(net, params, graph).nodes.h[0] for graph in graphs))


def test_clebsch_gordan_coefficients_are_orthonormal():
    for l1, l2 in ((1, 1), (2, 1), (3, 3), (3, 2)):
        every = [clebsch_gordan(l1, l2, l) for l in range(abs(l1 - l2), l1 + l2 + 1)]
        joined = np.concatenate(every, axis=-1).reshape((2 * l1 + 1) * (2 * l2 + 1), -1)
        np.testing.assert_allclose(joined.T @ joined, np.eye(len(joined)), atol=1e-13)
    assert clebsch_gordan(1, 1, 0)[1, 1, 0] == pytest.approx(-(3**-0.5))
    assert not clebsch_gordan(1, 1, 3).any()


@pytest.mark.parametrize("name", ["cormorant", "l1net"])
def test_bad_arguments_are_refused(name):
    graph = egnn.complete_graph(np.eye(3, 2))
    model = {"cormorant": egnn.Cormorant, "l1net": egnn.L1Net}[name]
    with pytest.raises(ValueError, match=r"expected \(N, 3\)"):
        small(model).init(jax.random.key(0), graph)
    graph = egnn.complete_graph(np.eye(3))
    for wrong in ({"parity": "odd"}, {"layers": 0}, {"features": 0}):
        with pytest.raises(ValueError, match="expected"):
            small(model, **wrong).init(jax.random.key(0), graph)


@pytest.mark.parametrize("model", [egnn.Cormorant, egnn.L1Net])
def test_parameters_that_the_authors_do_not_have_are_refused(model):
    graph = egnn.complete_graph(np.eye(3))
    options = {"self_pairs": True} if model is egnn.Cormorant else {}
    original = small(model, parity="ignored", **options)
    moving = original.clone(update_coordinates=True)
    with pytest.raises(ValueError, match="has no counterpart"):
        interop.to_torch_state_dict(random(moving, graph), moving)
    changes = {"parity": "natural"}
    changes |= {"self_pairs": False} if model is egnn.Cormorant else {}
    for name, value in changes.items():
        with pytest.raises(ValueError, match=f"{name} is '?{value}'?, which has no counterpart"):
            interop.from_torch_state_dict({}, original.clone(**{name: value}))
    state = interop.to_torch_state_dict(random(original, graph), original)
    del state[next(iter(state))]
    with pytest.raises(ValueError, match="is missing"):
        interop.from_torch_state_dict(state, original)
