"""Outputs and gradients of Table 3's other systems, as their authors' code computes them, to 1e-10.

``pytest tests/test_golden_table3.py --golden DIR`` checks the files of another folder. A file's
name says which network it is: NETWORKS has a function for each, which gives what our network
computes of the outputs that the file holds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import interop
from egnn_jax.data import molecular_graphs
from egnn_jax.experiments._options import shared
from egnn_jax.nn.spherical import spherical_bessel_zeros
from tests.conftest import GOLDEN
from tests.helpers import arguments_of, there_and_back, under


def molecules(z, h):
    """The complete graphs of the file's molecules, with features h (N, F)."""
    parts = np.split(np.arange(len(h)), np.cumsum(z["input/n_node"])[:-1])
    return egnn.batch([egnn.complete_graph(x=z["input/x"][part], h=h[part]) for part in parts])


def count(names, pattern):
    """How many different numbers stand where {} is in the names that begin with the pattern."""
    start = pattern.removesuffix("{}")
    return len({name.removeprefix(start).split(".")[0] for name in names if name.startswith(start)})


def predictions(model, variables, graph):
    """From x of the nodes to predictions (G, T) and the gradient of their sum, compiled as a whole:
    one operation after the other takes several times as long.
    """
    at = lambda x: graph._replace(nodes=graph.nodes.replace(x=x))
    y = lambda x: model.apply(variables, at(x)).globals.y
    both = lambda x: (y(x), jax.grad(lambda x: jnp.sum(y(x)))(x))
    return jax.jit(both, compiler_options={"xla_backend_optimization_level": 0})


def dimenetpp(z, state):
    width = lambda name: state[f"{name}.weight"].shape
    first = "interaction_blocks.0"
    backbone = egnn.DimeNetPP(
        features=width("emb.emb")[1],
        layers=count(state, "interaction_blocks.{}"),
        num_radial=len(state["rbf.freq"]),
        num_spherical=width(f"{first}.lin_sbf1")[1] // len(state["rbf.freq"]),
        angular_features=width(f"{first}.lin_down")[0],
        basis_features=width(f"{first}.lin_rbf1")[0],
        output_features=width("output_blocks.0.lin_up")[0],
        cutoff=float(z["input/cutoff"]),
    )
    model = egnn.SumReadout(backbone, width("output_blocks.0.lin")[0])
    variables = there_and_back(state, model)
    zeros = spherical_bessel_zeros(backbone.num_spherical - 1, backbone.num_radial)
    np.testing.assert_array_equal(zeros.astype(np.float32), z["input/bessel_zeros_float32"])
    whole = molecules(z, np.eye(len(state["emb.emb.weight"]))[z["input/atomic_numbers"]])
    order = np.lexsort((z["input/senders"], z["input/receivers"]))
    ends = [jnp.asarray(z[f"input/{end}"][order], jnp.int32) for end in ("receivers", "senders")]
    within = whole._replace(receivers=ends[0], senders=ends[1], n_edge=None)
    kj, ji = z["input/triplet_kj"][:60], z["input/triplet_ji"][:60]
    for graph in (whole, within):  # edges beyond the cutoff are nothing
        y, gradient = predictions(model, variables, graph)(graph.nodes.x)
        edges = rows_of(graph, z["input/receivers"], z["input/senders"])
        _, *read, _ = arguments_of("layer_0", model, variables, graph)
        m, rbf, sbf, Y = (value[edges] for value in read)
        degree = np.repeat(np.arange(sbf.shape[1]), 2 * np.arange(sbf.shape[1]) + 1)
        P = jax.ops.segment_sum((Y[kj] * Y[ji]).T, degree).T  # P_l(cos of the angle)
        yield {
            "prediction": y,
            "grad_x_of_sum": gradient,
            "rbf": rbf,
            "sbf_first_60_triplets": (sbf[kj] * P[..., None]).reshape(len(kj), -1),
            "embedding_block": m,
        }


def rows_of(graph, receivers, senders):
    """Which edges of the graph run between these nodes."""
    key = lambda i, j: np.asarray(i) * len(graph.nodes.x) + np.asarray(j)
    row = {edge: k for k, edge in enumerate(key(graph.receivers, graph.senders).tolist())}
    return np.array([row[edge] for edge in key(receivers, senders).tolist()])


def lieconv(state, lifts=0):
    width = lambda name: state[f"{name}.weight"].shape
    block = "net.1.net"
    layers = len([name for name in state if name.endswith(".linear.weight")])
    backbone = egnn.LieConv(
        features=width("net.0.module")[0],
        layers=layers,
        kernel_features=width(f"{block}.5.weightnet.0.module")[0],
        kernel_channels=width(f"{block}.5.weightnet.6.module")[0],
        lifts=lifts,
    )
    model = egnn.MeanReadout(backbone, width(f"net.{layers + 3}.module")[0])
    return model, there_and_back(state, model)


def lieconv_t3(z, state):
    model, variables = lieconv(state)
    graph = molecules(z, z["input/features"])
    budget = egnn.Budget(len(z["input/x"]) + 4, len(graph.senders) + 9, len(z["input/n_node"]) + 2)
    for batch in (graph, egnn.batch([graph], budget)):  # padding counts for nothing
        real = slice(len(z["input/n_node"]))
        out, moved = model.apply(variables, batch, mutable=["batch_stats"])
        moved = interop.to_torch_state_dict(variables | moved, model)
        yield {
            "eval/prediction": model.apply(variables, batch).globals.y[real, 0],
            "train/prediction": out.globals.y[real, 0],
        } | {f"train/{name}": value for name, value in moved.items() if "running" in name}


class OfFile(egnn.LieConv):
    """With the rotations of the file, whose elements of SE(3) are given as their logarithms."""

    elements: tuple[tuple[float, ...], ...] = ()

    def _orientations(self, x):
        omega = np.array(self.elements).reshape(len(x), self.lifts, 6)[:, :, :3]
        half = np.linalg.norm(omega, axis=-1, keepdims=True) / 2
        return jnp.asarray(np.concatenate([np.cos(half), np.sin(half) * omega / (2 * half)], -1))


def lieconv_se3(z, state):
    model, variables = lieconv(state, lifts := int(z["input/lifts"]))
    elements = tuple(map(tuple, z["input/lifted_algebra"].tolist()))
    backbone = OfFile(**shared(model.encoder, OfFile), elements=elements)
    graph = molecules(z, molecular_graphs.atom_features(z["input/atomic_numbers"]))
    n_node, n_edge = graph.n_node[0], graph.n_edge[0]
    found = backbone._pairs(graph)
    pairs = np.zeros((n_node, n_node, lifts, lifts, 6))
    pairs[graph.receivers[:n_edge], graph.senders[:n_edge]] = found[:n_edge]
    pairs[np.arange(n_node), np.arange(n_node)] = found[len(graph.senders) :][:n_node]
    model = egnn.MeanReadout(backbone, model.outputs)
    yield {
        "eval/prediction": model.apply(variables, graph).globals.y[:, 0],
        "pairs_molecule_0": pairs.swapaxes(1, 2).reshape(n_node * lifts, -1, 6),
    }


NETWORKS = {"dimenetpp": dimenetpp, "lieconv_t3": lieconv_t3, "lieconv_se3": lieconv_se3}
"""By what the names of files begin with."""


def of_file(path):
    """The name of a file's network, and all that is in it."""
    with np.load(path) as file:
        z = dict(file)
    name = next(name for name in NETWORKS if path.stem.startswith(name))
    return name, z


def test_golden(x64, golden_file):
    name, z = of_file(golden_file)
    wanted = under(z, "output/")
    for outputs in NETWORKS[name](z, under(z, "param/")):
        assert outputs.keys() == wanted.keys()
        for field, got in outputs.items():
            want = wanted[field]
            np.testing.assert_allclose(
                got, want, rtol=1e-10, atol=1e-10 * np.abs(want).max(), err_msg=field
            )


@pytest.mark.parametrize(
    ("file", "field"),
    [
        *[
            pytest.param("dimenetpp_pyg", field, marks=pytest.mark.slow)
            for field in (
                "param/interaction_blocks.0.lin_sbf1.weight",
                "input/x",
                "output/grad_x_of_sum",
            )
        ],
        ("lieconv_t3", "param/net.2.net.5.linear.weight"),
        ("lieconv_t3", "output/train/net.2.net.5.weightnet.4.running_var"),
        ("lieconv_se3", "input/lifted_algebra"),
    ],
)
def test_a_changed_golden_value_is_seen(x64, tmp_path, file, field):
    z = dict(np.load(GOLDEN / f"{file}.npz"))
    z[field] = z[field].copy()
    z[field].flat[1] += 1e-7
    np.savez(tmp_path / f"{file}.npz", **z)
    with pytest.raises(AssertionError):
        test_golden(None, tmp_path / f"{file}.npz")


@pytest.mark.parametrize(
    ("model", "features", "parameters"),
    [
        (egnn.SumReadout(egnn.DimeNetPP()), 95, 1_885_830),
        (egnn.MeanReadout(egnn.LieConv(lifts=4)), 15, 21_316_129),
    ],
    ids=["DimeNetPP", "LieConv-SE(3)"],
)
def test_there_are_as_many_parameters_as_published(model, features, parameters):
    graph = egnn.complete_graph(x=np.zeros((2, 3)), h=np.zeros((2, features)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), graph)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
