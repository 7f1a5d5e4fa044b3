"""Where will five charged particles be 1,000 steps from now? Section 5.1, Table 2 and Figure 2."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from egnn_jax.data import nbody
from egnn_jax.experiments.task import Apply, Sums, save
from egnn_jax.graph.geometry import random_orthogonal, safe_norm
from egnn_jax.graph.graph import GraphsTuple, Nodes, complete_edges

TABLE2 = {
    "linear": 0.0819,
    "se3_transformer": 0.0244,
    "tfn": 0.0155,
    "gnn": 0.0107,
    "radial_field": 0.0104,
    "egnn": 0.0071,
}
"""The paper's test errors, by the registry's name of the model."""


class Batch(NamedTuple):
    """B systems of M particles: ``x``, ``v``, ``target`` (B, M, 3), ``charges`` (B, M), ``weight``
    (B,) 0 for padding.
    """

    x: Any
    v: Any
    target: Any
    charges: Any
    weight: Any


@dataclasses.dataclass(frozen=True)
class NBody:
    """Predict the positions of charged particles, mean squared error over all coordinates.

    Args:
      dataset: the paper's data: "small" for Table 2, "sweep" for Figure 2.
      train_size: train on the first so many trajectories.
      node_feature: what h is: the "speed" ‖v‖, or the "charge" for models that take v as it is.
      edge_distance: give ‖x_i − x_j‖² of the input as an edge attribute, beside c_i c_j.
      edge_velocity: give also the invariants r_ij·v_i, r_ij·v_j and v_i·v_j of the input, which
        neither ‖v‖ nor distances tell (not in the paper).
      huber: train on the Huber loss, linear beyond this error (in units of length), so that the few
        close encounters that nothing can predict are not learnt by heart; none for the paper's mean
        squared error.
      augment: turn and reflect each training trajectory at random, for models that are not
        equivariant (not in the paper).
    """

    dataset: Literal["small", "sweep"] = "small"
    train_size: int = 3_000
    node_feature: Literal["speed", "charge"] = "speed"
    edge_distance: bool = True
    edge_velocity: bool = False
    huber: float | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError where a number makes no sense."""
        if self.node_feature not in ("speed", "charge"):
            raise ValueError(
                f"task.node_feature is {self.node_feature!r}; expected 'speed' or 'charge'"
            )
        if self.huber is not None and not self.huber > 0:
            raise ValueError(f"task.huber is {self.huber}; expected a length above 0, or none")

    @property
    def metric(self) -> str:
        """The mean squared error."""
        return "mse"

    @property
    def paper(self) -> dict[str, float]:
        """Table 2."""
        return TABLE2

    @property
    def units(self) -> dict[str, str]:
        """None: the simulation's length is its own."""
        return {}

    @property
    def draws(self) -> int:
        """Nothing is random in evaluation."""
        return 1

    @cached_property
    def splits(self) -> dict[str, nbody.Trajectories]:
        """The three splits, float32 and checked to be finite.

        Raises:
          ValueError: there are fewer trajectories than ``train_size``, or a value is not finite.
        """
        splits = {split: nbody.load(self.dataset, split) for split in nbody.SPLITS}
        available = len(splits["train"].x)
        if not 1 <= self.train_size <= available:
            raise ValueError(
                f"train_size is {self.train_size}; expected 1 to {available}, the trajectories "
                f"of {self.dataset!r}"
            )
        splits["train"] = jax.tree.map(lambda a: a[: self.train_size], splits["train"])
        for split, data in splits.items():
            for name, array in vars(data).items():
                bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
                if len(bad):
                    raise ValueError(
                        f"{name} of trajectory {bad[0]} of the {split} split is not finite; "
                        f"delete the cached data set"
                    )
        return jax.tree.map(lambda a: np.asarray(a, np.float32), splits)

    def network(self, model: nn.Module) -> nn.Module:
        """The model itself: its coordinates are the prediction."""
        return model

    def size(self, split: str) -> int:
        """The number of trajectories in a split."""
        return len(self.splits[split].x)

    def deal(
        self, split: str, rows: np.ndarray, steps: int, groups: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Batches in the order given: all systems have the same size."""
        return rows.reshape(steps, groups, -1)

    def pack(self, split: str, rows: np.ndarray) -> Batch:
        """Batches stacked along the leading axes of ``rows`` (…, B); a row of -1 is padding of
        weight 0.
        """
        data = self.splits[split]
        return Batch(
            data.x[rows],
            data.v[rows],
            data.target[rows],
            data.charges[rows],
            (rows >= 0).astype(np.float32),
        )

    def graph(self, batch: Batch, key: jax.Array | None = None) -> GraphsTuple:
        """The complete graphs of a batch: h = ‖v‖ or the charge, a_ij = c_i c_j and the invariants
        asked for; ``key`` is not used.
        """
        n_graph, n_node, n_dim = batch.x.shape
        x, v, charges = (
            batch.x.reshape(-1, n_dim),
            batch.v.reshape(-1, n_dim),
            batch.charges.reshape(-1, 1),
        )
        first = np.arange(0, n_graph * n_node, n_node, dtype=np.int32)[:, None]
        senders, receivers = (
            jnp.asarray((first + indices).reshape(-1)) for indices in complete_edges(n_node)
        )
        r_ij, v_i, v_j = x[receivers] - x[senders], v[receivers], v[senders]
        invariants = [(r_ij, r_ij)] * self.edge_distance + [
            (r_ij, v_i),
            (r_ij, v_j),
            (v_i, v_j),
        ] * self.edge_velocity
        products = [jnp.sum(a * b, axis=-1, keepdims=True) for a, b in invariants]
        edges = jnp.concatenate([charges[receivers] * charges[senders], *products], axis=-1)
        h = charges if self.node_feature == "charge" else safe_norm(v, keepdims=True)
        return GraphsTuple(
            nodes=Nodes(h=h, x=x, v=v),
            edges=edges,
            senders=senders,
            receivers=receivers,
            n_node=jnp.full(n_graph, n_node, jnp.int32),
            n_edge=jnp.full(n_graph, n_node * (n_node - 1), jnp.int32),
            globals=None,
        )

    def predict(self, apply: Apply, params: dict, batch: Batch) -> jax.Array:
        """Predicted positions (B, M, 3)."""
        return apply(params, self.graph(batch)).nodes.x.reshape(batch.x.shape)

    def loss(self, apply: Apply, params: dict, batch: Batch, key: jax.Array) -> jax.Array:
        """The mean squared error (or Huber loss) over all coordinates of a batch; ``key`` draws the
        augmentation.
        """
        if self.augment:
            q = jax.vmap(lambda k: random_orthogonal(k, batch.x.shape[-1]))(
                jax.random.split(key, batch.x.shape[0])
            )
            x, v, target = (
                jnp.einsum("bij,bmj->bmi", q, a) for a in (batch.x, batch.v, batch.target)
            )
            batch = batch._replace(x=x, v=v, target=target)
        predicted = self.predict(apply, params, batch)
        if self.huber is not None:
            return jnp.mean(optax.losses.huber_loss(predicted, batch.target, delta=self.huber))
        return jnp.mean((predicted - batch.target) ** 2)

    def metrics(self, apply: Apply, params: dict, batch: Batch, key: jax.Array) -> dict[str, Sums]:
        """The squared error summed over the real coordinates of a batch, and their number; ``key``
        is not used.
        """
        squared = jnp.sum((self.predict(apply, params, batch) - batch.target) ** 2, axis=(1, 2))
        return {"mse": (jnp.sum(squared * batch.weight), jnp.sum(batch.weight) * batch.x[0].size)}

    def details(self, apply: Apply, params: Any) -> dict[str, Any]:
        """Nothing beyond the metrics."""
        return {}

    def draw(self, apply: Apply, params: dict, path: Path, systems: int = 6) -> Path:
        """A picture of the first test systems in 3-D: the true path of each particle and where it
        was predicted to end.
        """
        import matplotlib.pyplot as plt

        batch = self.pack("test", np.arange(systems))
        predicted = np.asarray(self.predict(apply, params, batch))
        # The path is found again from the input frame; its end is the stored target.
        truth, _ = jax.vmap(lambda c, x, v: nbody.simulate(c, x, v, 1_000, sample_every=20))(
            batch.charges, batch.x, batch.v
        )
        truth = np.concatenate([batch.x[:, None], np.asarray(truth)], axis=1)
        figure, panels = plt.subplots(
            2, -(-systems // 2), figsize=(4 * -(-systems // 2), 8), subplot_kw={"projection": "3d"}
        )
        for s, axes in zip(range(systems), panels.flat, strict=False):
            for k, charge in enumerate(batch.charges[s]):
                colour = "tab:red" if charge > 0 else "tab:blue"
                axes.plot(*truth[s, :, k].T, color=colour, lw=1.5)
                axes.scatter(*batch.x[s, k], color=colour, s=12)
                axes.scatter(*batch.target[s, k], facecolors="none", edgecolors=colour, s=60)
                axes.scatter(*predicted[s, k], color="black", marker="x", s=30)
            axes.set_title(f"test {s}: mse {np.mean((predicted[s] - batch.target[s]) ** 2):.4f}")
            axes.tick_params(labelsize=6)
        figure.suptitle(
            "1,000 steps of charged particles (red +, blue −): start •, true end ○, predicted end ×"
        )
        figure.tight_layout()
        return save(figure, path, tight=False)

    def compare(self, results: Mapping[str, Any], folder: Path) -> list[Path]:
        """Nothing beyond the table."""
        return []
