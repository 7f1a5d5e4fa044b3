"""Outputs of the authors' networks on molecules with bonds: NMP, and TFN and SE(3)-Transformer of
Fuchs et al., given their inputs and parameters, to 1e-10.

``pytest tests/test_golden_bonds.py --golden DIR`` checks the files of another folder.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import interop
from tests.conftest import GOLDEN

NETWORKS = ("nmp_tf", "se3_transformer_qm9", "tfn_qm9")
"""What the names of files begin with."""
T, M = 3, 4
"""Steps of messages and of set2set in the files of NMP."""


def parameters(z):
    return {key.removeprefix("param/"): a for key, a in z.items() if key.startswith("param/")}


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
    readout = egnn.Set2SetReadout(model, outputs, M, hidden)
    return readout, molecules(z, z["input/node_features"], kinds)


def check(path):
    with np.load(path) as file:
        z = dict(file)
    state = parameters(z)
    model, graph = nmp(z, state)
    params = interop.from_torch_state_dict(state, model)
    back = interop.to_torch_state_dict(params, model)
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)
    predicted = model.apply(params, graph).globals.y[:, 0]
    for name in ("prediction_alone", "prediction_padded_batch"):
        np.testing.assert_allclose(predicted, z[f"output/{name}"], rtol=1e-10)
    alone = [model.apply(params, one).globals.y[0, 0] for one in egnn.unbatch(graph)]
    np.testing.assert_allclose(alone, z["output/prediction_alone"], rtol=1e-10)


def test_golden_bonds(x64, golden_file):
    check(golden_file)
