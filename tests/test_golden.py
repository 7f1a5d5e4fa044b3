"""Outputs and gradients of the authors' networks, given their inputs and parameters, to 1e-10;
their trajectories to 1e-6.

``pytest tests/test_golden.py --golden DIR`` checks the files of another folder. A file's name says
which network it is.
"""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import sigmoid_binary_cross_entropy

import egnn_jax as egnn
from egnn_jax.data import nbody
from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.nn.heads import Autoencoder, Readout
from tests.conftest import GOLDEN
from tests.helpers import there_and_back, under

NETWORKS = ("autoencoder", "egnn_clean", "nbody", "qm9_egnn")
"""What the names of files begin with."""


def check_trajectories(z):
    for name in {key.split("/")[0] for key in z}:
        data = nbody._generate(name, "train", len(z[f"{name}/x"]))
        for field in ("charges", "x", "v", "target"):
            np.testing.assert_allclose(data[field], z[f"{name}/{field}"], rtol=0, atol=1e-6)


def autoencoder(path, z, params):
    width, layers = (
        params["gcl_0.edge_mlp.2.weight"].shape[0],
        1 + max(int(name[4]) for name in params if name.startswith("gcl_")),
    )
    if "fc_emb.weight" in params:
        embedding = params["fc_emb.weight"].shape[0]
        encoder, which = (
            egnn.GNN(width, layers, coordinates=False, embed=False, output_features=embedding),
            "h",
        )
    else:
        shrinkage = float(z["input/coord_regularisation"])
        encoder, which = egnn.EGNN(width, layers, embed=False, clip=100.0, shrinkage=shrinkage), "x"
    n_node = int(z["input/n_node"][0])
    x = z.get("input/noise", np.zeros((n_node, 1)))
    graph = GraphsTuple(
        egnn.Nodes(h=np.ones((n_node, 1)), x=x),
        egnn.Edges(a=z["input/edge_attr"]),
        z["input/receivers"],
        z["input/senders"],
        egnn.Globals(),
        z["input/n_node"],
        None,
    )
    return Autoencoder(encoder, which), jax.tree.map(jnp.asarray, graph)


def molecules(z, params):
    width, layers = (
        params["gcl_0.edge_mlp.2.weight"].shape[0],
        1 + max(int(name[4]) for name in params if name.startswith("gcl_")),
    )
    encoder = egnn.EGNN(width, layers, infer_edges=True, update_coordinates=False)
    parts = np.split(np.arange(len(z["input/x"])), np.cumsum(z["input/n_node"])[:-1])
    graph = egnn.batch(
        [egnn.complete_graph(x=z["input/x"][part], h=z["input/h"][part]) for part in parts]
    )
    return Readout(encoder), graph


def adjacency(out, graph):
    """Â of eq. 9 as a matrix with 0 on the diagonal."""
    return (
        jnp.zeros((graph.nodes.x.shape[0],) * 2)
        .at[graph.receivers, graph.senders]
        .set(jax.nn.sigmoid(out.edges.a[:, 0]))
    )


def network(path, z, params):
    """The model and its input graph."""
    if path.stem.startswith("autoencoder"):
        return autoencoder(path, z, params)
    if path.stem.startswith("qm9"):
        return molecules(z, params)
    layers = 1 + max(
        int(name.split("_")[1].split(".")[0]) for name in params if name.startswith("gcl_")
    )
    x, v, h = z.get("input/x"), z.get("input/v"), z.get("input/h")
    if path.stem.startswith("nbody_gnn"):
        features = params["embedding.0.weight"].shape[0]
        n = params["decoder.2.weight"].shape[0]
        x, v, h = h[:, :n], h[:, n:], None
        model = egnn.GNN(features, layers)
    elif path.stem.startswith("nbody_radial_field"):
        model = egnn.RadialField(params["gcl_0.phi.0.weight"].shape[0], layers)
    elif path.stem.startswith("nbody_egnn"):
        model = egnn.EGNN(params["embedding.weight"].shape[0], layers, clip=100.0)
    elif path.stem.startswith("egnn_clean"):
        model = egnn.EGNN(
            params["embedding_in.weight"].shape[0],
            layers,
            output_features=params["embedding_out.weight"].shape[0],
            infer_edges="gcl_0.att_mlp.0.weight" in params,
            normalize="norm1" in path.stem,
            tanh="tanh1" in path.stem,
        )
    else:
        raise ValueError(f"{path.name} names no network of this library")
    nodes = egnn.Nodes(h=h, x=x, v=v)
    graph = GraphsTuple(
        nodes,
        egnn.Edges(a=z.get("input/edge_attr")),
        z["input/receivers"],
        z["input/senders"],
        egnn.Globals(),
        z["input/n_node"],
        None,
    )
    return model, jax.tree.map(jnp.asarray, graph)


def test_golden(x64, golden_file):
    with np.load(golden_file) as file:
        z = dict(file)
    if golden_file.stem.startswith("nbody_trajectories"):
        check_trajectories(z)
        return
    state = under(z, "param/")
    model, graph = network(golden_file, z, state)
    params = there_and_back(state, model)
    outputs = under(z, "output/")
    place = lambda x: graph._replace(nodes=graph.nodes.replace(x=x))
    got = {
        "prediction": lambda: model.apply(params, graph).globals.y[:, 0],
        "z": lambda: model.embedded(model.apply(params, graph)),
        "adjacency": lambda: adjacency(model.apply(params, graph), graph),
        "bce_sum": lambda: jnp.sum(
            sigmoid_binary_cross_entropy(model.apply(params, graph).edges.a, graph.edges.a)
        ),
        "x": lambda: model.apply(params, graph).nodes.x,
        "h": lambda: model.apply(params, graph).nodes.h,
        "grad_x_of_sum_x2": lambda: jax.grad(
            lambda x: jnp.sum(model.apply(params, place(x)).nodes.x ** 2)
        )(graph.nodes.x),
    }
    assert outputs
    for name, want in outputs.items():
        np.testing.assert_allclose(
            got[name](), want, rtol=1e-10, atol=1e-10 * np.abs(want).max(), err_msg=name
        )


@pytest.mark.parametrize(
    "field", ["param/gcl_1.coord_mlp.0.weight", "input/x", "output/x", "output/grad_x_of_sum_x2"]
)
def test_a_changed_golden_value_is_seen(x64, tmp_path, field):
    z = dict(np.load(GOLDEN / "nbody_egnn.npz"))
    z[field] = z[field].copy()
    z[field].flat[1] += 1e-7
    np.savez(tmp_path / "nbody_egnn.npz", **z)
    with pytest.raises(AssertionError):
        test_golden(None, tmp_path / "nbody_egnn.npz")


def test_each_golden_file_is_checked_by_one_test(pytestconfig):
    modules = [
        f"tests.{path.stem}" for path in sorted(Path(__file__).parent.glob("test_golden*.py"))
    ]
    starts = [start for name in modules for start in importlib.import_module(name).NETWORKS]
    for path in pytestconfig.getoption("--golden").glob("*.npz"):
        assert len([start for start in starts if path.stem.startswith(start)]) == 1, path.name
