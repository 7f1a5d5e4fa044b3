"""N-body systems of charged particles: the simulator and the paper's two data sets (section 5.1).

Units are those of the simulation: length 1, charge ±1, and time 1, which is 1,000 steps of dt.
"""

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from egnn_jax._files import expanded
from egnn_jax._progress import progress_bar
from egnn_jax.data._splits import SPLITS
from egnn_jax.data.cache import cached_arrays, default_folder

DT = 1e-3
BOX = 5.0
SPEED = 0.5


@chex.dataclass(frozen=True)
class Trajectories:
    """S trajectories of M particles: ``x`` and ``v`` at the input frame and ``target`` positions
    (S, M, n), and ``charges`` (S, M).
    """

    x: np.ndarray
    v: np.ndarray
    target: np.ndarray
    charges: np.ndarray


class Recipe(NamedTuple):
    """The authors' settings for one of their data sets: seed, trajectories per split, and the steps
    of input and target.
    """

    seed: int
    sizes: tuple[int, int, int]
    num_train: int
    sample_every: int
    input_step: int
    target_step: int


LENGTH = 5_000
CHUNK = 2_000
"""The number of trajectories that advance together: many per NumPy call, but fitting the cache."""
RECIPES = {
    "small": Recipe(
        43,
        (10_000, 2_000, 2_000),
        num_train=3_000,
        sample_every=100,
        input_step=3_100,
        target_step=4_100,
    ),
    "sweep": Recipe(
        42,
        (50_000, 2_000, 2_000),
        num_train=50_000,
        sample_every=500,
        input_step=3_500,
        target_step=4_500,
    ),
}


def force(charges: jax.Array, x: jax.Array) -> jax.Array:
    """The force Σ_j c_i c_j r_ij / ‖r_ij‖³ on each particle, each component clipped to ±0.1/dt.

    Args:
      charges: (M,).
      x: positions (M, n).

    Returns:
      Forces (M, n); particles at the same position do not act on each other.
    """
    r_ij = x[:, None] - x[None]
    squared_distance = jnp.sum(r_ij**2, axis=-1)
    separate = squared_distance > 0
    strength = (
        charges[:, None]
        * charges[None]
        * jnp.where(separate, jnp.where(separate, squared_distance, 1.0) ** -1.5, 0.0)
    )
    return jnp.clip(jnp.sum(strength[..., None] * r_ij, axis=1), -0.1 / DT, 0.1 / DT)


def reflect(x: ArrayLike, v: ArrayLike, box: float = BOX) -> tuple[jax.Array, jax.Array]:
    """Reflect positions beyond ±box at that wall, and turn the velocity component inward; both are
    (…, n).
    """
    x, v = jnp.asarray(x), jnp.asarray(v)
    v = jnp.where(x > box, -jnp.abs(v), jnp.where(x < -box, jnp.abs(v), v))
    return jnp.where(x > box, 2 * box - x, jnp.where(x < -box, -2 * box - x, x)), v


def simulate(
    charges: jax.Array, x: jax.Array, v: jax.Array, steps: int, sample_every: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Simulate M charged particles in n dimensions; a pure, differentiable function.

    Each step is v += dt F(x), then x += dt v, with dt = 0.001.

    Args:
      charges: (M,).
      x, v: initial positions and velocities (M, n).
      steps: the number of steps, at least 1.
      sample_every: return the state every this many steps; only the last state if not given.

    Returns:
      Positions and velocities (frames, M, n), frames = steps / sample_every.

    Raises:
      ValueError: shapes do not fit, or ``steps`` is not a positive multiple of ``sample_every``.
    """
    sample_every = steps if sample_every is None else sample_every
    if jnp.ndim(x) != 2 or jnp.shape(v) != jnp.shape(x) or jnp.shape(charges) != jnp.shape(x)[:1]:
        raise ValueError(
            f"charges, x, v have shapes {jnp.shape(charges)}, {jnp.shape(x)}, {jnp.shape(v)}; "
            f"expected (M,), (M, n), (M, n)"
        )
    if steps < 1 or sample_every < 1 or steps % sample_every:
        raise ValueError(
            f"steps={steps} and sample_every={sample_every}; expected steps to be a positive "
            f"multiple of sample_every"
        )

    def step(state: tuple[jax.Array, jax.Array], _: None):
        x, v = state
        v = v + DT * force(charges, x)
        return (x + DT * v, v), None

    def frame(state: tuple[jax.Array, jax.Array], _: None):
        state, _ = jax.lax.scan(step, state, None, length=sample_every)
        return state, state

    return jax.lax.scan(
        frame, (jnp.asarray(x), jnp.asarray(v)), None, length=steps // sample_every
    )[1]


def initial_states(
    random: np.random.RandomState, count: int, n_particles: int = 5, unused_frames: int = 0
):
    """Draw charges (S, M), positions and velocities (S, M, 3) in the order of the authors' code.

    Args:
      random: NumPy's legacy generator, which is advanced.
      count: the number of systems S.
      n_particles: the number of particles M.
      unused_frames: the number of stored frames for which the authors' code draws measurement noise
        after each trajectory; it is discarded.
    """
    charges, x, v = (
        np.empty((count, n_particles)),
        np.empty((count, n_particles, 3)),
        np.empty((count, n_particles, 3)),
    )
    for s in range(count):
        charges[s] = random.choice([-1.0, 0.0, 1.0], size=(n_particles, 1), p=[0.5, 0, 0.5])[:, 0]
        x[s] = random.randn(3, n_particles).T * (n_particles / 5.0) ** (1 / 3)
        direction = random.randn(3, n_particles).T
        v[s] = direction * SPEED / np.sqrt((direction**2).sum(axis=1, keepdims=True))
        random.randn(2 * unused_frames, 3, n_particles)
    return charges, x, v


def load(name: str, split: str, folder: Path | None = None) -> Trajectories:
    """Load one split of the paper's data; the first call generates it and stores it in ``folder``.

    Args:
      name: "small" (Table 2: 3,000 / 2,000 / 2,000 trajectories) or "sweep" (Figure 2: 50,000 for
        training; validation and test are those of "small").
      split: "train", "valid" or "test".
      folder: default :func:`egnn_jax.data.cache.default_folder`.

    Returns:
      Float64 arrays ``x``, ``v``, ``target`` (S, 5, 3) and ``charges`` (S, 5).

    Raises:
      ValueError: the name or the split is unknown.
    """
    if name not in RECIPES:
        raise ValueError(f"data set {name!r} is unknown; expected one of {sorted(RECIPES)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; expected one of {SPLITS}")
    if split != "train":
        name = "small"
    folder = default_folder() if folder is None else expanded(folder)
    arrays = cached_arrays(
        folder / "nbody" / f"{name}-{split}.npz", partial(_generate, name, split)
    )
    return Trajectories(**arrays)


def _generate(name: str, split: str, count: int | None = None) -> dict[str, np.ndarray]:
    """Generate a split, or only its first ``count`` trajectories, from the authors' seed."""
    recipe = RECIPES[name]
    random = np.random.RandomState(recipe.seed)
    unused_frames = LENGTH // recipe.sample_every - 1
    for size in recipe.sizes[: SPLITS.index(split)]:
        initial_states(random, size, unused_frames=unused_frames)
    split_size = recipe.num_train if split == "train" else recipe.sizes[SPLITS.index(split)]
    num_trajectories = count or split_size
    print(
        f"N-body '{name}' {split}: simulating {num_trajectories:,} trajectories of "
        f"{recipe.target_step:,} steps",
        file=sys.stderr,
    )
    charges, x, v = initial_states(random, num_trajectories, unused_frames=unused_frames)
    with jax.enable_x64(True):
        x, v = (np.asarray(a) for a in reflect(x, v))
    chunks = [slice(k, k + CHUNK) for k in range(0, num_trajectories, CHUNK)]
    chunk_frames = [
        _authors_frames(charges[s], x[s], v[s], recipe) for s in progress_bar(chunks, leave=False)
    ]
    x, v, target = (np.concatenate(arrays) for arrays in zip(*chunk_frames, strict=True))
    return {"x": x, "v": v, "target": target, "charges": charges}


def _authors_frames(
    charges: np.ndarray, x: np.ndarray, v: np.ndarray, recipe: Recipe
) -> tuple[np.ndarray, ...]:
    """The states of :func:`simulate` at the input and target steps, in the authors' exact order of
    operations.

    After a close encounter, a difference in the last bit grows to order one: with another order of
    operations, one trajectory in twenty ends elsewhere. So ‖r_ij‖² is computed as
    ‖x_i‖² + ‖x_j‖² − 2 x_i·x_j, and terms are added in the order in which NumPy adds them for a
    single trajectory. Trajectories are the last axis, for speed.
    """
    n_particles = x.shape[1]
    i, j = np.tril_indices(n_particles, -1)
    pair_index = np.zeros((n_particles, n_particles), int)
    pair_index[i, j] = pair_index[j, i] = np.arange(len(i))
    products = np.ascontiguousarray((charges[:, i] * charges[:, j]).T)
    x, v = (np.ascontiguousarray(np.moveaxis(a, 0, -1)) for a in (x, v))
    x_by_trajectory = np.empty((len(charges), n_particles, x.shape[1]))

    def force(x: np.ndarray) -> np.ndarray:
        x_by_trajectory[...] = np.moveaxis(x, -1, 0)
        dots = np.matmul(x_by_trajectory, x_by_trajectory.transpose(0, 2, 1))[:, i, j].T
        norms = (x[:, 0] ** 2 + x[:, 1] ** 2) + x[:, 2] ** 2
        strength = products / np.power(norms[i] + norms[j] - 2 * np.ascontiguousarray(dots), 1.5)
        total = np.zeros_like(x)
        for a in range(n_particles):
            for b in range(n_particles):
                if a != b:
                    total[a] += strength[pair_index[a, b]] * (x[a] - x[b])
        return np.clip(total, -0.1 / DT, 0.1 / DT)

    v = v + DT * force(x)
    frames = []
    for step in range(1, recipe.target_step + 1):
        x = x + DT * v
        if step == recipe.input_step:
            frames += [x, v]
        v = v + DT * force(x)
    return tuple(np.moveaxis(a, -1, 0) for a in (*frames, x))
