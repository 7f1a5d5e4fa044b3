"""Outputs of the authors' networks on molecules with bonds: NMP, and TFN and SE(3)-Transformer of
Fuchs et al., given their inputs and parameters, to 1e-10.

``pytest tests/test_golden_bonds.py --golden DIR`` checks the files of another folder.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import interop
from egnn_jax.nn.kernels import Filters
from tests.conftest import GOLDEN
from tests.helpers import under

NETWORKS = ("nmp_tf", "se3_transformer_qm9", "tfn_qm9")
"""What the names of files begin with."""
T, M, HEADS = 3, 4, 2
"""What shapes do not tell: steps of messages and of set2set of NMP, heads of SE(3)-Transformer."""


def molecules(z, h, kinds):
    """The molecules as one graph, with edges of these kinds (E, A) and without self-loops."""
    senders, receivers = z["input/senders"], z["input/receivers"]
    loops = senders == receivers
    graph = egnn.graph_from_edges(
        senders[~loops], receivers[~loops], x=z["input/x"], h=h, a=kinds[~loops]
    )
    n_node = z["input/n_node"]
    of = np.repeat(np.arange(len(n_node)), n_node)
    n_edge = np.bincount(of[receivers[~loops]], minlength=len(n_node))
    return graph._replace(n_node=jnp.asarray(n_node), n_edge=jnp.asarray(n_edge))


def nmp(z, state):
    kinds = np.eye(5)[z["input/bond_type"]][:, 1:]
    layers = len([name for name in state if "adj_in_edge_nn/W" in name])
    edge_features = state["EdgeNetwork/adj_in_edge_nn/W0"].shape[1]
    width = len(state["GRUUpdate/GRU_u"])
    model = egnn.NMP(width, T, edge_features, layers)
    hidden = state["Set2VecOutput/W0"].shape[1]
    outputs = state["Set2VecOutput/output_b"].size
    readout = egnn.Set2SetReadout(model, outputs, steps=M, hidden=hidden)
    return readout, molecules(z, z["input/node_features"], kinds)


def last(state, pattern):
    """The largest number in the names that match."""
    found = [re.search(pattern, name) for name in state]
    return max(int(match[1]) for match in found if match)


def fuchs(z, state):
    """TFN, or SE(3)-Transformer where there is attention."""
    radial = next(len(a) for name, a in state.items() if name.endswith("rp.net.0.bias"))
    degree = last(state, r"kernel_unary\.\(0,(\d+)\)")
    outputs = [len(a) for name, a in state.items() if re.search(r"(FCblock|block2)\.2\.bias", name)]
    graph = molecules(z, z["input/features"], z["input/bond_one_hot"])
    if any("GMAB" in name for name in state):
        features = len(state["Gblock.0.project.transform.0"])
        div = features // len(state["Gblock.0.GMAB.q.transform.0"])
        layers = last(state, r"Gblock\.(\d+)") // 2
        sizes = features, layers, degree, radial, HEADS, div
        return egnn.MaxReadout(egnn.FuchsSE3Transformer(*sizes, "ignored"), *outputs), graph
    layers = last(state, r"block0\.(\d+)") // 2 + 1
    features = state["block0.0.kernel_self.0"].shape[1]
    sizes = features, layers, degree, radial
    return egnn.MaxReadout(egnn.FuchsTFN(*sizes, "ignored"), *outputs), graph


def computed(model, params, graph):
    """Predictions, and what each layer of a network by Fuchs et al. gives, in the order of their
    blocks. Compiled as a whole: one operation after the other takes three times as long.
    """
    is_layer = lambda module, _: (module.name or "").startswith(("layer_", "norm_"))
    apply = partial(model.apply, capture_intermediates=is_layer, mutable=["intermediates"])
    quickly = {"xla_backend_optimization_level": 0}
    out, state = jax.jit(apply, compiler_options=quickly)(params, graph)
    outputs = state.get("intermediates", {}).get("encoder", {})
    place = lambda name: 2 * int(name.split("_")[1]) + name.startswith("norm")
    return out.globals.y[:, 0], {place(name): outputs[name]["__call__"][0] for name in outputs}


def check(path):
    with np.load(path) as file:
        z = dict(file)
    state = under(z, "param/")
    model, graph = (nmp if path.stem.startswith("nmp") else fuchs)(z, state)
    degrees = lambda key: tuple(map(int, key.rsplit("/")[-1].split(",")))
    signs = {degrees(key): float(a) for key, a in z.items() if key.startswith("input/q_sign/")}
    params = interop.from_torch_state_dict(interop.with_basis_signs(state, signs), model)
    back = interop.with_basis_signs(interop.to_torch_state_dict(params, model), signs)
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)
    outputs = under(z, "output/")
    close = partial(np.testing.assert_allclose, rtol=1e-10)
    y, blocks = computed(model, params, graph)
    alone, _ = computed(model, params, egnn.unbatch(graph)[0])
    seen = 0
    for name, want in outputs.items():
        if name.startswith("prediction"):
            close(y, want, err_msg=name)
            close(alone, want[:1], err_msg=f"{name}, the first molecule alone")
            seen += 1
        elif name.startswith("block"):
            block, degree = map(int, re.findall(r"\d+", name))
            got = blocks[block][degree]
            close(got, want, atol=1e-10 * np.abs(want).max(), err_msg=name)
        elif name.startswith("basis"):
            l_in, l_out = degrees(name)
            first = graph._replace(
                senders=z["input/senders"][: len(want)], receivers=z["input/receivers"][: len(want)]
            )
            first = first._replace(edges=first.edges.replace(a=None))
            got = Filters(first, 4, jnp.float64, "ignored").basis(l_in, l_out).transpose(0, 3, 1, 2)
            powers = range(abs(l_in - l_out), l_in + l_out + 1)
            got *= np.array([signs[l_out, l_in, j] for j in powers])
            close(got, want, atol=1e-12, err_msg=name)
        else:
            raise ValueError(f"{path} has the output {name}, which this test does not know")
    assert seen


def test_golden_bonds(x64, golden_file):
    check(golden_file)


@pytest.mark.parametrize(
    "name",
    [
        "nmp_tf",
        pytest.param("tfn_qm9", marks=pytest.mark.slow),
        pytest.param("se3_transformer_qm9", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("field", ["param", "input/x", "output/prediction"])
def test_a_changed_golden_value_is_seen(x64, tmp_path, name, field):
    z = dict(np.load(GOLDEN / f"{name}.npz"))
    for key in [key for key in z if key.startswith(field)][:1]:
        z[key] = z[key] + np.linspace(1, 2, z[key].size).reshape(z[key].shape) * 1e-6
    np.savez(tmp_path / f"{name}.npz", **z)
    with pytest.raises(AssertionError):
        check(tmp_path / f"{name}.npz")


def mlp(layers, e):
    """ReLU between linear layers, the last of them apart."""
    for k in range(sum(name.startswith("Dense_") for name in layers)):
        layer = layers[f"Dense_{k}"]
        e = np.maximum(e @ layer["kernel"] + layer["bias"], 0)
    return e @ layers["kernel"] + layers["bias"]


@pytest.mark.parametrize("attributes", [0, 2])
def test_nmp_equals_plain_loops_on_directed_graphs(x64, attributes):
    """Which edges the second sum is over, and what a pair with two edges sends, no golden file
    says.
    """
    graph = egnn.testing.random_graph(sizes=(5,), attributes=attributes, padding=False)
    twice = np.sort(np.append(np.arange(len(graph.senders)), [1, 3]))
    graph = graph._replace(
        senders=graph.senders[twice],
        receivers=graph.receivers[twice],
        edges=jax.tree.map(lambda a: a[twice], graph.edges),
        n_edge=graph.n_edge + 2,
    )
    model = egnn.NMP(features=4, layers=2, edge_features=3, edge_layers=2)
    params = egnn.testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    p = jax.tree.map(np.asarray, params["params"])
    x, h = np.asarray(graph.nodes.x), np.pad(graph.nodes.h, [(0, 0), (0, 2)])
    sigmoid = lambda t: 1 / (1 + np.exp(-t))
    for _ in range(2):
        sums = np.zeros((5, 8))
        for i in range(5):
            e = np.array([1.0] + [0.0] * attributes + [0.0])
            for place, name in ((slice(4), "A"), (slice(4, 8), "A_out")):
                sums[i, place] += mlp(p[name], e).reshape(4, 4) @ h[i]
        for k, (j, i) in enumerate(zip(graph.senders, graph.receivers, strict=True)):
            a = np.asarray(graph.edges.a)[k] if attributes else np.zeros(0)
            e = np.concatenate([[1 - a.sum()], a, [np.linalg.norm(x[i] - x[j])]])
            sums[i, :4] += mlp(p["A"], e).reshape(4, 4) @ h[j]
            sums[j, 4:] += mlp(p["A_out"], e).reshape(4, 4) @ h[i]
        m, g = sums + p["b"], {name: part["kernel"] for name, part in p["gru"].items()}
        z, r = (sigmoid(m @ g[f"W_{k}"] + h @ g[f"U_{k}"]) for k in "zr")
        h = (1 - z) * h + z * np.tanh(m @ g["W"] + (r * h) @ g["U"])
    got = model.apply(params, graph).nodes.h
    np.testing.assert_allclose(got, h, rtol=1e-10, atol=1e-10 * np.abs(h).max())
