import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_features__

from egnn_jax._files import write_atomically
from egnn_jax.data import cache, nbody
from egnn_jax.data.cache import cached_arrays

GOLDEN = np.load(Path(__file__).parent / "data" / "golden" / "nbody_trajectories.npz")


def assert_equals_golden(array, expected):
    """To the last bit on CPUs with AVX-512, as that which exported the authors' trajectories. The
    kernels of NumPy and OpenBLAS for others round differently, as the plain loop below shows.
    """
    if __cpu_features__["AVX512_SKX"]:
        np.testing.assert_array_equal(array, expected)
    else:
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-8)


def test_small_is_the_authors_data_bit_for_bit():
    data = nbody.load("small", "train")
    assert data.x.shape == data.v.shape == data.target.shape == (3_000, 5, 3)
    assert data.charges.shape == (3_000, 5)
    for name in ("charges", "x", "v", "target"):
        assert_equals_golden(data[name][:8], GOLDEN[f"small/{name}"])
    for split in ("valid", "test"):
        assert nbody.load("small", split).x.shape == (2_000, 5, 3)


def test_sweep_starts_with_the_authors_trajectories():
    for key, array in nbody._generate("sweep", "train", 8).items():
        assert_equals_golden(array, GOLDEN[f"sweep/{key}"])


def test_many_trajectories_at_once_are_those_of_a_plain_loop_bit_for_bit():
    """One after the other, in the authors' operations: on any CPU what their code finds there."""
    recipe = nbody.RECIPES["small"]._replace(input_step=900, target_step=1_000)
    charges, x, v = map(np.asarray, nbody.initial_states(np.random.RandomState(0), 4))
    found = nbody._authors_frames(charges, x, v, recipe)

    def force(c, x):
        squared = (x**2).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # of a particle and itself
            strength = np.outer(c, c) / np.power(squared[:, None] + squared - 2 * x @ x.T, 1.5)
        np.fill_diagonal(strength, 0)
        along = [strength * np.subtract.outer(a, a) for a in x.T]
        return np.clip(np.sum(along, axis=-1).T, -100, 100)

    for k in range(4):
        c, place, speed = charges[k], x[k], v[k]
        speed = speed + nbody.DT * force(c, place)
        frames = []
        for step in range(1, 1_001):
            place = place + nbody.DT * speed
            if step == 900:
                frames += [place, speed]
            speed = speed + nbody.DT * force(c, place)
        for one, all_ in zip((*frames, place), found, strict=True):
            np.testing.assert_array_equal(one, all_[k])


def test_the_simulator_finds_the_same_frames(x64):
    charges, x, v = nbody.initial_states(np.random.RandomState(43), 8, unused_frames=49)
    frames = jax.vmap(lambda c, x, v: nbody.simulate(c, x, v, 4_100, sample_every=100))(
        charges, x, v
    )
    np.testing.assert_allclose(frames[0][:, 30], GOLDEN["small/x"], atol=1e-8)
    np.testing.assert_allclose(frames[1][:, 30], GOLDEN["small/v"], atol=1e-8)
    np.testing.assert_allclose(frames[0][:, 40], GOLDEN["small/target"], atol=1e-8)


def test_sweep_is_validated_on_small(data_folder):
    assert nbody.load("sweep", "test").x.shape == (2_000, 5, 3)
    assert not (data_folder / "nbody" / "sweep-test.npz").exists()


@pytest.mark.parametrize(
    ("name", "split", "message"), [("big", "train", "'big'"), ("small", "dev", "'dev'")]
)
def test_unknown_names(name, split, message):
    with pytest.raises(ValueError, match=f"{message} is unknown; expected one of"):
        nbody.load(name, split)


def test_simulation_equals_the_plain_loop(x64, rng):
    charges, x, v = (
        rng.choice([-1.0, 1.0], 4),
        rng.standard_normal((4, 2)),
        rng.standard_normal((4, 2)),
    )
    frames_x, frames_v = nbody.simulate(charges, x, v, 30, sample_every=10)
    assert frames_x.shape == frames_v.shape == (3, 4, 2)
    for step in range(1, 31):
        total = np.zeros_like(x)
        for i in range(4):
            for j in range(4):
                if i != j:
                    r = x[i] - x[j]
                    total[i] += charges[i] * charges[j] * r / np.linalg.norm(r) ** 3
        v = v + 0.001 * np.clip(total, -100, 100)
        x = x + 0.001 * v
        if step % 10 == 0:
            np.testing.assert_allclose(frames_x[step // 10 - 1], x, rtol=1e-12)
            np.testing.assert_allclose(frames_v[step // 10 - 1], v, rtol=1e-12)


def test_momentum_and_energy_are_kept(x64):
    charges, x = jnp.array([1.0, 1.0, -1.0]), jnp.array([[1.0, 0, 0], [-1, 0.5, 0], [0, -2, 1]])
    v = jnp.array([[0.0, 0.3, 0], [0.1, 0, 0], [0, 0, -0.2]])

    def energy(x, v):
        r = jnp.linalg.norm(x[:, None] - x[None] + jnp.eye(3)[:, :, None], axis=-1)
        return 0.5 * jnp.sum(v**2) + 0.5 * jnp.sum(
            jnp.where(jnp.eye(3) > 0, 0, charges[:, None] * charges[None] / r)
        )

    frames = nbody.simulate(charges, x, v, 2_000, sample_every=100)
    np.testing.assert_allclose(frames[1].sum(1), np.tile(v.sum(0), (20, 1)), atol=1e-12)
    np.testing.assert_allclose(jax.vmap(energy)(*frames), energy(x, v), rtol=1e-3)


def test_simulation_is_differentiable_and_vmaps(x64, rng):
    charges, x, v = (
        jnp.asarray(rng.choice([-1.0, 1.0], (2, 3))),
        jnp.asarray(rng.standard_normal((2, 3, 3))),
        jnp.zeros((2, 3, 3)),
    )
    end = jax.jit(jax.vmap(lambda c, x, v: nbody.simulate(c, x, v, 50)[0][-1]))
    gradient = jax.grad(lambda x: end(charges, x, v).sum())(x)
    direction, eps = jnp.asarray(rng.standard_normal(x.shape)), 1e-6
    numeric = (
        end(charges, x + eps * direction, v).sum() - end(charges, x - eps * direction, v).sum()
    ) / (2 * eps)
    np.testing.assert_allclose(jnp.sum(gradient * direction), numeric, rtol=1e-6)
    both = jax.grad(lambda x: nbody.simulate(charges[0], x, v[0], 5)[0].sum())(jnp.zeros((3, 3)))
    assert np.isfinite(both).all(), "particles at the same place"


def test_walls_turn_particles_inwards():
    x, v = nbody.reflect(jnp.array([6.0, -5.5, 1.0]), jnp.array([1.0, -2.0, -3.0]))
    assert x.tolist() == [4.0, -4.5, 1.0]
    assert v.tolist() == [-1.0, 2.0, -3.0]


@pytest.mark.parametrize(
    ("shapes", "steps", "every", "message"),
    [
        (((3,), (3, 2), (3, 3)), 5, None, r"expected \(M,\), \(M, n\), \(M, n\)"),
        (((2,), (3, 2), (3, 2)), 5, None, "shapes"),
        (((3,), (3, 2), (3, 2)), 5, 2, "steps=5 and sample_every=2"),
        (((3,), (3, 2), (3, 2)), 0, None, "steps=0"),
    ],
)
def test_nonsense_simulations(shapes, steps, every, message):
    with pytest.raises(ValueError, match=message):
        nbody.simulate(*(jnp.ones(s) for s in shapes), steps, every)


def build():
    return {"a": np.arange(1000.0)}


@pytest.mark.parametrize("damage", ["flip", "empty", "no checksum", "wrong checksum"])
def test_a_damaged_cache_is_named_and_rebuilt(tmp_path, damage):
    path = tmp_path / "x.npz"
    checksum = tmp_path / "x.npz.sha256"
    cached_arrays(path, build)
    content = bytearray(path.read_bytes())
    match damage:
        case "flip":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "empty":
            path.write_bytes(b"")
        case "no checksum":
            checksum.unlink()
        case "wrong checksum":
            checksum.write_text("0" * 64)
    with pytest.warns(UserWarning, match=r"x\.npz is damaged or incomplete"):
        np.testing.assert_array_equal(cached_arrays(path, build)["a"], build()["a"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == checksum.read_text().strip()
    assert cached_arrays(path, lambda: pytest.fail("built again"))["a"].shape == (1000,)


def test_a_build_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"damaged")

    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError), pytest.warns(UserWarning, match="is damaged or incomplete"):
        cached_arrays(path, fail)
    assert path.read_bytes() == b"damaged"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_generation_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    path, written = tmp_path / "x.npz", []

    def killed(path, content):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_atomically(path, content)

    monkeypatch.setattr(cache, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        cached_arrays(path, build)
    monkeypatch.undo()
    assert written == list(tmp_path.iterdir()) == [path]
    with pytest.warns(UserWarning, match=r"x\.npz is damaged or incomplete"):
        np.testing.assert_array_equal(cached_arrays(path, build)["a"], build()["a"])
