"""The authors' Cormorant and L1Net: outputs, features of every level, and parameter counts.

``--golden DIR`` takes the files ``cormorant*.npz`` and ``l1net*.npz`` of another folder.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egnn_jax as egnn
from egnn_jax import interop
from egnn_jax.data.qm9_graphs import atom_features
from egnn_jax.nn.clebsch_gordan import solid_harmonics
from egnn_jax.nn.heads import CormorantReadout
from egnn_jax.nn.radial import DampedWaves
from tests.conftest import GOLDEN


def load(path):
    """The parameters of a file, all else that is in it, and its molecules."""
    with np.load(path) as file:
        z = dict(file)
    state = {key.removeprefix("param/"): z[key] for key in z if key.startswith("param/")}
    ends = np.cumsum(z["input/n_node"])
    parts = [slice(end - size, end) for end, size in zip(ends, z["input/n_node"], strict=True)]
    x, kinds = z["input/x"], z["input/atomic_numbers"]
    return z, state, [(x[part], kinds[part]) for part in parts]


def assert_same(got, want, name=""):
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10 * np.abs(want).max(), err_msg=name)


def there_and_back(state, model):
    """The parameters of the authors' state dict, which comes back as it was."""
    params = interop.from_torch_state_dict(state, model)
    back = interop.to_torch_state_dict(params, model)
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)
    return params


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


def test_cormorant(x64, cormorant_file):
    z, state, parts = load(cormorant_file)
    model, graph = cormorant(state, z), molecules(parts)
    params = there_and_back(state, model)
    out, seen = model.apply(params, graph, capture_intermediates=True)
    assert_same(out.globals.y[:, 0], z["output/prediction"])
    for name in (name for name in z if name.startswith("output/atoms/")):
        level, l = name.split("/")[2], int(name[-1])
        f = seen["intermediates"]["encoder"][level]["__call__"][0][0]  # (2, C, N, K)
        f = f[..., l**2 : (l + 1) ** 2].transpose(2, 1, 3, 0)
        assert_same(f, z[name], name)


def test_harmonics_and_radial_functions_of_cormorant(x64, cormorant_file):
    z, state, ((x, _), *_) = load(cormorant_file)
    r = x[:, None] - x
    harmonics = solid_harmonics(jnp.asarray(r), 3)
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


@pytest.mark.parametrize(
    "field", ["param/cormorant_cg.edge_levels.1.cat_mix.mix_reps.weights.2", "input/x"]
)
def test_a_changed_value_is_seen(x64, tmp_path, field):
    z = dict(np.load(GOLDEN / "cormorant.npz"))
    z[field] = z[field].copy()
    z[field].flat[1] += 1e-5
    np.savez(tmp_path / "cormorant.npz", **z)
    with pytest.raises(AssertionError):
        test_cormorant(None, tmp_path / "cormorant.npz")


def test_cormorant_has_as_many_parameters_as_published():
    model = CormorantReadout(egnn.Cormorant(parity="ignored", self_pairs=True))
    graph = egnn.complete_graph(np.eye(3), h=np.ones((3, 15)))
    params = jax.eval_shape(model.init, jax.random.key(0), graph)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 299_808
