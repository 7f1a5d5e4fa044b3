"""Our EGNN against the PyPI package egnn-pytorch with the same weights, where both define the same maths: pytest -m peers."""

import dataclasses

import jax
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import interop, testing

pytestmark = pytest.mark.peers

M, FEATURES, LAYERS = 9, 6, 3
# Theirs sums over all j, itself included: our graphs have self-loops, whose r_ij is 0.
EVERYONE = np.argwhere(np.ones((M, M)))
OURS = egnn.EGNN(features=FEATURES, layers=LAYERS, embed=False, coordinate_aggregation="sum")


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    pytest.importorskip("egnn_pytorch")
    with torch.no_grad():
        yield torch


def carried(torch, params, model, edge_dim, **options):
    """Their layers with our weights: hidden units that ours has not, and the bias of φ_x that ours has not, are zero."""
    from egnn_pytorch import EGNN

    names = {"edge_mlp.0": 0, "edge_mlp.2": 3, "node_mlp.0": 0, "node_mlp.2": 3, "coord_mlp.0": 0, "coord_mlp.2": 3}
    state = interop.to_torch_state_dict(params, model)
    layers = []
    for k in range(model.layers):
        theirs = EGNN(FEATURES, edge_dim=edge_dim, m_dim=FEATURES, soft_edges=model.infer_edges, **options).double()
        target = {name: torch.zeros_like(value) for name, value in theirs.state_dict().items()}
        for name, value in state.items():
            prefix, part, position, kind = name.split(".")
            if prefix != f"gcl_{k}":
                continue
            place = 0 if part == "att_mlp" else names[f"{part}.{position}"]
            part = {"coord_mlp": "coors_mlp", "att_mlp": "edge_gate"}.get(part, part)
            target[f"{part}.{place}.{kind}"][tuple(slice(size) for size in value.shape)] = torch.from_numpy(value)
        theirs.load_state_dict(target)
        layers.append(theirs)
    return layers


def compare(torch, model, pairs, edges, call, **options):
    rng = np.random.default_rng(0)
    x, h = rng.standard_normal((M, 3)), rng.standard_normal((M, FEATURES))
    pairs = np.asarray(pairs(x) if callable(pairs) else pairs)
    attributes = rng.standard_normal((M, M, 2)) if edges else None
    graph = egnn.graph_from_edges(pairs[:, 1], pairs[:, 0], x=x, h=h, edges=None if not edges else attributes[pairs[:, 0], pairs[:, 1]])
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    ours = model.apply(params, graph).nodes
    tensor = lambda a: torch.from_numpy(a)[None]
    feats, coors = tensor(h), tensor(x)
    for theirs in carried(torch, params, model, 2 if edges else 0, **options):
        feats, coors = theirs(feats, coors, edges=tensor(attributes) if edges else None, **call(torch))
    assert np.abs(ours.x - x).max() > 0.1
    np.testing.assert_allclose(feats[0].numpy(), ours.h, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(coors[0].numpy(), ours.x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("infer_edges", [False, True])
def test_complete_graphs(x64, torch, infer_edges, edges):
    compare(torch, dataclasses.replace(OURS, infer_edges=infer_edges), EVERYONE, edges, lambda torch: {})


def test_nearest_neighbours(x64, torch):
    """One layer: theirs looks for the neighbours anew in each."""

    def nearest(x):
        order = np.argsort(((x[:, None] - x[None]) ** 2).sum(-1), axis=1)[:, :4]
        return [(i, j) for i in range(M) for j in order[i]]

    compare(torch, dataclasses.replace(OURS, layers=1), nearest, False, lambda torch: {}, num_nearest_neighbors=4)


def test_some_nodes_masked_out(x64, torch):
    """Masked nodes send and receive nothing; theirs still updates their features."""
    real = np.arange(M) < 6
    pairs = np.argwhere(real[:, None] & real[None])
    compare(torch, OURS, pairs, False, lambda torch: {"mask": torch.from_numpy(real)[None]})
