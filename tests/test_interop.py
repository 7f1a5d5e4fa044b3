"""The authors' state dicts, in and out; that they give the authors' outputs is test_golden's."""

import jax
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import interop, testing
from egnn_jax.nn.heads import Autoencoder, Readout

MODELS = [
    (egnn.EGNN(features=5, layers=2, clip=100.0), {"features": 1}),
    (egnn.EGNN(features=5, layers=2), {"attributes": 0}),
    (egnn.EGNN(features=5, layers=2, output_features=3, infer_edges=True), {"velocity": False}),
    (egnn.EGNN(features=5, layers=1, update_coordinates=False), {}),
    (egnn.EGNN(features=5, layers=2, embed=False), {"velocity": False}),
    (egnn.GNN(features=5, layers=2), {"n": 2}),
    (egnn.GNN(features=5, layers=2), {"velocity": False, "attributes": 0}),
    (egnn.GNN(features=5, layers=2, embed=False), {"n": 2}),
    (egnn.GNN(features=5, layers=2, coordinates=False, output_features=3), {"features": 4}),
    (
        Autoencoder(
            egnn.GNN(features=5, layers=2, coordinates=False, embed=False, output_features=3), "h"
        ),
        {"features": 1, "attributes": 1},
    ),
    (Autoencoder(egnn.EGNN(features=5, layers=2, embed=False)), {"n": 8, "velocity": False}),
    (Autoencoder(egnn.RadialField(features=5, layers=2)), {"velocity": False}),
    (
        Readout(egnn.EGNN(features=5, layers=2, infer_edges=True, update_coordinates=False)),
        {"velocity": False, "attributes": 0},
    ),
    (Readout(egnn.EGNN(features=5, layers=2), outputs=3), {}),
    (
        egnn.SumReadout(
            egnn.DimeNetPP(
                features=6,
                layers=2,
                num_radial=3,
                num_spherical=2,
                angular_features=4,
                basis_features=2,
                output_features=5,
            ),
            outputs=3,
        ),
        {"attributes": 0},
    ),
    (
        egnn.CormorantReadout(
            egnn.Cormorant(2, 2, 1, 0, 3, parity="ignored", self_pairs=True), hidden=3, features=2
        ),
        {"velocity": False},
    ),
    (
        egnn.L1NetReadout(egnn.L1Net(3, 2, 4, 5, 2, parity="ignored"), outputs=2),
        {"velocity": False, "attributes": 0},
    ),
    (
        egnn.L1NetReadout(
            egnn.L1Net(3, 2, 4, 5, 2, parity="ignored", extra_layers=(2, 1)), mlp=True
        ),
        {"velocity": False},
    ),
    (egnn.MeanReadout(egnn.LieConv(features=8, layers=2), outputs=2), {"attributes": 0, "n": 2}),
    (egnn.RadialField(features=5, layers=2), {}),
    (egnn.NMP(features=5, layers=1, edge_features=3, edge_layers=2), {"features": 1}),
    (egnn.Set2SetReadout(egnn.NMP(5, 1, 3, 1), outputs=2, hidden=4), {"features": 3}),
    (egnn.Set2SetReadout(egnn.NMP(5, 1, 3, 1)), {"attributes": 0}),
    (egnn.FuchsTFN(4, 2, 1, 3, "ignored"), {"features": 3}),
    (egnn.MaxReadout(egnn.FuchsTFN(4, 1, 2, 3, "ignored"), outputs=2), {"attributes": 0}),
    (egnn.FuchsSE3Transformer(4, 2, 1, 3, 2, 2, "ignored"), {"features": 3}),
    (egnn.MaxReadout(egnn.FuchsSE3Transformer(4, 1, 2, 3, parity="ignored"), outputs=2), {}),
    (egnn.RadialField(features=5, layers=2), {"attributes": 0, "velocity": False}),
]


def of(model, options):
    shapes = jax.eval_shape(model.init, jax.random.key(0), testing.random_graph(**options))
    params = testing.randomise_parameters(shapes)
    return params, interop.to_torch_state_dict(params, model)


@pytest.mark.parametrize(("model", "options"), MODELS)
def test_there_and_back_is_exact(model, options):
    params, state = of(model, options)
    back = interop.from_torch_state_dict(state, model)
    assert jax.tree.structure(back) == jax.tree.structure(jax.tree.map(np.asarray, params))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_names_and_shapes_are_the_authors():
    _, state = of(egnn.EGNN(features=5, layers=1), {"features": 1, "attributes": 2})
    assert {name: value.shape for name, value in state.items()} == {
        "embedding.weight": (5, 1),
        "embedding.bias": (5,),
        "gcl_0.edge_mlp.0.weight": (5, 13),
        "gcl_0.edge_mlp.0.bias": (5,),
        "gcl_0.edge_mlp.2.weight": (5, 5),
        "gcl_0.edge_mlp.2.bias": (5,),
        "gcl_0.node_mlp.0.weight": (5, 10),
        "gcl_0.node_mlp.0.bias": (5,),
        "gcl_0.node_mlp.2.weight": (5, 5),
        "gcl_0.node_mlp.2.bias": (5,),
        "gcl_0.coord_mlp.0.weight": (5, 5),
        "gcl_0.coord_mlp.0.bias": (5,),
        "gcl_0.coord_mlp.2.weight": (1, 5),
        "gcl_0.coord_mlp_vel.0.weight": (5, 5),
        "gcl_0.coord_mlp_vel.0.bias": (5,),
        "gcl_0.coord_mlp_vel.2.weight": (1, 5),
        "gcl_0.coord_mlp_vel.2.bias": (1,),
    }


def test_names_of_nmp_are_those_of_tensorflow():
    _, state = of(egnn.Set2SetReadout(egnn.NMP(5, 1, 3, 1), hidden=4), {"features": 2})
    networks = {
        f"EdgeNetwork/adj_{way}_edge_nn/{name}": shape
        for way in ("in", "out")
        for name, shape in {
            "W0": (4, 3),
            "b0": (3,),
            "output_W": (3, 25),
            "output_b": (25,),
        }.items()
    }
    gru = {f"GRUUpdate/GRU_w{gate}": (10, 5) for gate in ("_z", "_r", "")}
    gru |= {f"GRUUpdate/GRU_u{gate}": (5, 5) for gate in ("_z", "_r", "")}
    lstm = {f"Set2VecOutput/output_LSTMLoopAtt{gate}m": (14, 7) for gate in "ifco"}
    lstm |= {f"Set2VecOutput/output_LSTMLoopAtt{gate}b": (1, 7) for gate in "ifco"}
    rest = {
        "EdgeNetwork/message_bias": (10,),
        "Set2VecOutput/att_W_1": (1, 1, 7, 7),
        "Set2VecOutput/output_LSTMLoopAttatt_W_2": (7, 7),
        "Set2VecOutput/output_LSTMLoopAttatt_V": (7, 1),
        "Set2VecOutput/W0": (14, 4),
        "Set2VecOutput/b0": (4,),
        "Set2VecOutput/output_W": (4, 1),
        "Set2VecOutput/output_b": (1,),
    }
    assert {name: value.shape for name, value in state.items()} == networks | gru | lstm | rest


def test_a_basis_of_the_other_sign_changes_that_of_its_weights():
    _, state = of(egnn.FuchsTFN(4, 3, 1, 3, "ignored"), {})
    signs = {(1, 1, 1): -1}
    turned = interop.with_basis_signs(state, signs)
    changed = {f"block0.2.kernel_unary.(1,1).rp.net.6.{leaf}" for leaf in ("weight", "bias")}
    for name, value in state.items():
        expected = value.copy()
        if name in changed:
            expected.reshape(4 * 4, 3, -1)[:, 1] *= -1  # J = 1 of 0, 1 and 2
        np.testing.assert_array_equal(turned[name], expected)
    again = interop.with_basis_signs(turned, signs)
    jax.tree.map(np.testing.assert_array_equal, again, dict(state))


def test_all_that_is_wrong_is_listed_at_once():
    model = egnn.EGNN(features=5, layers=2)
    _, state = of(model, {})
    del state["gcl_1.node_mlp.2.bias"], state["embedding.bias"]
    state["gcl_0.coord_mlp.0.weight"] = state["gcl_0.coord_mlp.0.weight"][:, :4]
    state["gcl_2.edge_mlp.0.weight"] = np.zeros((5, 3))
    with pytest.raises(ValueError, match="does not fit") as caught:
        interop.from_torch_state_dict(state, model)
    for part in (
        "embedding.bias (5,) is missing",
        "gcl_1.node_mlp.2.bias (5,) is missing",
        "gcl_2.edge_mlp.0.weight (5, 3) is left over",
        "gcl_0.coord_mlp.0.weight has shape (5, 4), expected (5, 5)",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        egnn.EGNN(features=6, layers=2),
        egnn.EGNN(features=5, layers=3),
        egnn.GNN(),
        egnn.RadialField(),
        egnn.NMP(),
        egnn.FuchsTFN(parity="ignored"),
    ],
)
@pytest.mark.parametrize("state", [{}, None])
def test_a_state_dict_of_another_network_is_refused(model, state):
    state = of(egnn.EGNN(features=5, layers=2), {})[1] if state is None else state
    with pytest.raises(ValueError, match="does not fit"):
        interop.from_torch_state_dict(state, model)


@pytest.mark.parametrize("shape", [(), (3,), (5, 1), (2, 3, 4)])
def test_any_misshapen_entry_is_refused(shape):
    model = egnn.EGNN(features=5, layers=1)
    _, state = of(model, {})
    for name in state:
        if state[name].shape != shape and (name, shape) != (
            "embedding.weight",
            (5, 1),
        ):  # which is right for one feature
            with pytest.raises(ValueError, match="does not fit"):
                interop.from_torch_state_dict(state | {name: np.zeros(shape)}, model)


def test_models_without_a_counterpart_are_refused():
    params = {"params": {"time": np.ones(())}}
    with pytest.raises(ValueError, match="Linear has no counterpart"):
        interop.to_torch_state_dict(params, egnn.Linear())
    for model in (egnn.Linear(), Autoencoder(egnn.Linear()), Readout(egnn.Linear())):
        with pytest.raises(ValueError, match="Linear has no counterpart"):
            interop.from_torch_state_dict({}, model)


def test_mixed_precision_has_the_same_parameters():
    model = egnn.EGNN(features=5, layers=2)
    params, state = of(model, {})
    mixed = egnn.MixedPrecision(model)
    jax.tree.map(np.testing.assert_array_equal, interop.from_torch_state_dict(state, mixed), params)
    jax.tree.map(np.testing.assert_array_equal, interop.to_torch_state_dict(params, mixed), state)
    read_out = Readout(egnn.MixedPrecision(egnn.Linear()))
    with pytest.raises(ValueError, match="Linear has no counterpart"):
        interop.from_torch_state_dict({}, read_out)


def test_a_head_that_is_not_the_authors_is_refused():
    with pytest.raises(ValueError, match="of NMP read it out; expected Set2SetReadout"):
        interop.from_torch_state_dict({}, Readout(egnn.NMP()))


@pytest.mark.parametrize(
    "model",
    [
        egnn.NMP(5, 1, 3, 1),
        egnn.Cormorant(2, 1, 1, 1, parity="ignored", self_pairs=True),
        egnn.FuchsTFN(4, 1, 1, 3, "ignored"),
    ],
)
def test_a_parameter_that_the_authors_lack_is_named(model):
    """Kinds of nodes are embedded, which their networks do not do."""
    graph = egnn.complete_graph(x=np.eye(3), h=np.array([6, 1, 8]))
    shapes = jax.eval_shape(model.init, jax.random.key(0), graph)
    with pytest.raises(ValueError, match=r"(?s)table of .* has no counterpart"):
        interop.to_torch_state_dict(testing.randomise_parameters(shapes), model)


def test_parameters_of_several_seeds_are_refused():
    model = egnn.EGNN(features=5, layers=1)
    params, _ = of(model, {})
    with pytest.raises(
        ValueError,
        match=r"(?s)of several seeds, take one.*embedding\.weight has shape \(5, 2, 2\), "
        r"expected \(5, 1\)",
    ):
        interop.to_torch_state_dict(jax.tree.map(lambda a: np.stack([a, a]), params), model)


def test_counts_of_batches_of_pytorchs_batch_normalization_are_left_out():
    model = egnn.MeanReadout(egnn.LieConv(features=4, layers=1))
    graph = egnn.complete_graph(np.eye(3), h=np.ones((3, 2)))
    params = model.init(jax.random.key(0), graph)
    state = interop.to_torch_state_dict(params, model)
    norms = [name for name in state if name.endswith("running_mean")]
    counts = {name.replace("running_mean", "num_batches_tracked"): np.array(7) for name in norms}
    assert counts
    again = interop.from_torch_state_dict(state | counts, model)
    jax.tree.map(np.testing.assert_array_equal, again, jax.device_get(params))


def test_a_table_of_node_types_has_no_counterpart():
    model = egnn.EGNN(features=4, layers=1)
    params = model.init(jax.random.key(0), egnn.complete_graph(np.eye(3), h=[1, 6, 8]))
    with pytest.raises(ValueError, match=r"embedding\.table of EGNN has no counterpart"):
        interop.to_torch_state_dict(params, model)
    model = egnn.DimeNetPP(features=4, layers=1)
    params = model.init(jax.random.key(0), egnn.complete_graph(np.eye(3), h=[1, 6, 8]))
    with pytest.raises(ValueError, match=r"embedding\.table of DimeNetPP has no counterpart"):
        interop.to_torch_state_dict(params, model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": 3.0, "coordinate_aggregation": "sum"}, "cutoff is 3.0, which has no counterpa"),
        ({"velocity": "carried"}, "velocity is 'carried', .* expected 'input'"),
        ({"aggregation": "mean"}, "aggregation is 'mean', .* expected 'sum'"),
        ({"coordinate_aggregation": "all_nodes"}, "is 'all_nodes', .* expected 'mean' or 'sum'"),
    ],
)
def test_options_without_a_counterpart_are_refused(options, message):
    model = egnn.EGNN(features=4, layers=1, **options)
    params = model.init(jax.random.key(0), egnn.complete_graph(np.eye(3)))
    with pytest.raises(ValueError, match=message):
        interop.to_torch_state_dict(params, model)
    with pytest.raises(ValueError, match=message):
        interop.from_torch_state_dict({}, model)


@pytest.mark.parametrize(
    "model",
    [egnn.LieConv(8, 1), egnn.MeanReadout(egnn.LieConv(8, 1)), egnn.L1Net(4, 2), egnn.NMP(8),
     egnn.FuchsTFN(4, 1, parity="ignored"), egnn.RadialField(4, 1)],
    ids=lambda model: type(model).__name__,
)  # fmt: skip
def test_parameters_of_another_model_are_refused(model):
    params = egnn.EGNN(4, 1).init(jax.random.key(0), egnn.complete_graph(np.eye(3)))
    for wrong in (params, {"params": {"w": np.ones(3)}}):
        with pytest.raises(ValueError, match=r"parameters of this model|not those of|expected"):
            interop.to_torch_state_dict(wrong, model)


def test_names_in_a_state_dict_are_text():
    with pytest.raises(ValueError, match="the state dict has the key 0; expected names as text"):
        interop.from_torch_state_dict({0: np.ones(3)}, egnn.EGNN(4, 1))


def test_torch_tensors_are_read():
    torch = pytest.importorskip("torch")
    model = egnn.EGNN(features=5, layers=2)
    params, state = of(model, {})
    tensors = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in state.items()}
    jax.tree.map(
        np.testing.assert_array_equal, interop.from_torch_state_dict(tensors, model), params
    )
