"""What the extra `bench` installs: pytest -m peers.

The benchmark's PyTorch rewrite of the authors' networks against the authors' values, to 1e-10, and
our EGNN against the PyPI package egnn-pytorch with the same weights, where both define the same
maths.
"""

import dataclasses

import jax
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import interop, testing
from tests.conftest import GOLDEN
from tests.test_benchmark import small_setting

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]  # which its compiler calls

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
    """Their layers with our weights: hidden units that ours has not, and the bias of φ_x that ours
    has not, are zero.
    """
    from egnn_pytorch import EGNN

    names = {
        "edge_mlp.0": 0,
        "edge_mlp.2": 3,
        "node_mlp.0": 0,
        "node_mlp.2": 3,
        "coord_mlp.0": 0,
        "coord_mlp.2": 3,
    }
    state = interop.to_torch_state_dict(params, model)
    layers = []
    for k in range(model.layers):
        theirs = EGNN(
            FEATURES, edge_dim=edge_dim, m_dim=FEATURES, soft_edges=model.infer_edges, **options
        ).double()
        target = {name: torch.zeros_like(value) for name, value in theirs.state_dict().items()}
        for name, value in state.items():
            prefix, part, position, kind = name.split(".")
            if prefix != f"gcl_{k}":
                continue
            place = 0 if part == "att_mlp" else names[f"{part}.{position}"]
            part = {"coord_mlp": "coors_mlp", "att_mlp": "edge_gate"}.get(part, part)
            target[f"{part}.{place}.{kind}"][tuple(slice(size) for size in value.shape)] = (
                torch.from_numpy(value)
            )
        theirs.load_state_dict(target)
        layers.append(theirs)
    return layers


def compare(torch, model, pairs, edges, call, **options):
    rng = np.random.default_rng(0)
    x, h = rng.standard_normal((M, 3)), rng.standard_normal((M, FEATURES))
    pairs = np.asarray(pairs(x) if callable(pairs) else pairs)
    attributes = rng.standard_normal((M, M, 2)) if edges else None
    graph = egnn.graph_from_edges(
        pairs[:, 1],
        pairs[:, 0],
        x=x,
        h=h,
        a=None if not edges else attributes[pairs[:, 0], pairs[:, 1]],
    )
    params = testing.randomise_parameters(jax.eval_shape(model.init, jax.random.key(0), graph))
    ours = model.apply(params, graph).nodes
    tensor = lambda a: torch.from_numpy(a)[None]
    feats, coors = tensor(h), tensor(x)
    for theirs in carried(torch, params, model, 2 if edges else 0, **options):
        feats, coors = theirs(
            feats, coors, edges=tensor(attributes) if edges else None, **call(torch)
        )
    assert np.abs(ours.x - x).max() > 0.1
    np.testing.assert_allclose(feats[0].numpy(), ours.h, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(coors[0].numpy(), ours.x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("infer_edges", [False, True])
def test_complete_graphs(x64, torch, infer_edges, edges):
    compare(
        torch, dataclasses.replace(OURS, infer_edges=infer_edges), EVERYONE, edges, lambda torch: {}
    )


def test_nearest_neighbours(x64, torch):
    """One layer: theirs looks for the neighbours anew in each."""

    def nearest(x):
        order = np.argsort(((x[:, None] - x[None]) ** 2).sum(-1), axis=1)[:, :4]
        return [(i, j) for i in range(M) for j in order[i]]

    compare(
        torch,
        dataclasses.replace(OURS, layers=1),
        nearest,
        False,
        lambda torch: {},
        num_nearest_neighbors=4,
    )


def test_some_nodes_masked_out(x64, torch):
    """Masked nodes send and receive nothing; theirs still updates their features."""
    real = np.arange(M) < 6
    pairs = np.argwhere(real[:, None] & real[None])
    compare(torch, OURS, pairs, False, lambda torch: {"mask": torch.from_numpy(real)[None]})


@pytest.fixture
def peers():
    pytest.importorskip("torch")
    pytest.importorskip("egnn_pytorch")
    from benchmarks import peers

    return peers


def golden(network, name, compiled):
    """The network with the authors' parameters, compiled or not, and the file's other tensors, in
    float64.
    """
    import torch

    with np.load(GOLDEN / f"{name}.npz") as file:
        z = {key: torch.from_numpy(file[key]) for key in file}
    network.double().load_state_dict(
        {key.removeprefix("param/"): value for key, value in z.items() if key.startswith("param/")}
    )
    return torch.compile(network) if compiled else network, z


def close(got, want):
    want = np.asarray(want)
    np.testing.assert_allclose(
        got.detach().numpy(), want, rtol=1e-10, atol=1e-10 * np.abs(want).max()
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_the_authors_form_of_nbody(peers, compiled):
    network, z = golden(peers.NBodyEGNN(width=16, layers=2), "nbody_egnn", compiled)
    x = z["input/x"].requires_grad_()
    out = network(
        z["input/h"],
        x,
        (z["input/receivers"], z["input/senders"]),
        z["input/v"],
        z["input/edge_attr"],
    )
    close(out, z["output/x"])
    (out**2).sum().backward()
    close(x.grad, z["output/grad_x_of_sum_x2"])


@pytest.mark.parametrize("compiled", [False, True])
def test_the_authors_form_of_the_autoencoder(peers, compiled):
    import torch

    network, z = golden(peers.AutoencoderEGNN(width=16, layers=2), "autoencoder_egnn", compiled)
    edges, h = (z["input/receivers"], z["input/senders"]), z["input/noise"].new_ones(9, 1)
    close(network.encode(h, z["input/noise"], edges, z["input/edge_attr"]), z["output/z"])
    predicted = network(h, z["input/noise"], edges, z["input/edge_attr"])
    close(predicted[:, 0], z["output/adjacency"][edges])
    close(
        torch.nn.functional.binary_cross_entropy(predicted, z["input/edge_attr"], reduction="sum"),
        z["output/bce_sum"],
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_the_authors_form_of_qm9(peers, compiled):
    from benchmarks import torch_cases

    network, z = golden(peers.QM9EGNN(width=16, layers=2), "qm9_egnn", compiled)
    b = torch_cases.molecules(
        *(z[f"input/{name}"].numpy() for name in ("n_node", "h", "x")), np.zeros(3)
    )
    close(
        network(b.h, b.x, b.edges, None, b.node_mask, b.edge_mask, b.n_nodes),
        z["output/prediction"],
    )


def test_contenders_in_pytorch_agree_and_are_timed(peers, monkeypatch, tmp_path):
    from benchmarks import contenders, inputs, measure

    monkeypatch.setitem(inputs.SETTINGS, "pytorch", small_setting(tmp_path, layers=4))
    ours, theirs = (contenders.first_output("pytorch", name) for name in ("ours", "torch_eager"))
    measure.require_agreement("torch_eager", ours, theirs, "cpu (cpu)")
    for part in ("forward", "train_step"):
        for name in ("torch_eager", "egnn_pytorch"):
            assert contenders.seconds_per_step("pytorch", part, name) > 0
    with pytest.raises(peers.Unavailable, match="no checkout"):
        contenders.first_output("pytorch", "reference", str(tmp_path))


def test_a_checkouts_autoencoder_is_given_our_noise(peers):
    import torch

    ours, z = golden(peers.AutoencoderEGNN(width=16, layers=2), "autoencoder_egnn", False)

    class Theirs(torch.nn.Module):
        """As ``AE_EGNN`` is called, with what it returns."""

        def __init__(self):
            super().__init__()
            self.ours = ours

        def forward(self, nodes, edges, edge_attr):
            matrix = torch.zeros(9, 9).double()
            matrix[edges] = self.ours(nodes, torch.randn(9, 8), edges, edge_attr)[:, 0]
            return matrix, None

    arguments = (
        z["input/noise"].new_ones(9, 1),
        z["input/noise"],
        (z["input/receivers"], z["input/senders"]),
        z["input/edge_attr"],
    )
    close(peers.TheirAutoencoder(Theirs())(*arguments), ours(*arguments).detach())
    with pytest.raises(peers.Unavailable, match="one graph at a time"):
        peers.TheirAutoencoder(Theirs())(*arguments[:3], z["input/edge_attr"][:-1])
