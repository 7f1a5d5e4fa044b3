"""N-body: predict charged particles 1,000 steps ahead (section 5.1, Table 2 and Figure 2)."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egnn_jax.data import nbody
from egnn_jax.data.loader import ArrayDataset
from egnn_jax.experiments import paper, plots
from egnn_jax.experiments.task import Apply, Task
from egnn_jax.graph.build import complete_edges
from egnn_jax.graph.geometry import random_orthogonal, safe_norm
from egnn_jax.graph.graph import Edges, Globals, GraphsTuple, Nodes
from egnn_jax.training.evaluation import Metrics
from egnn_jax.training.step import Loss


class Batch(NamedTuple):
    """B systems of M particles.

    Attributes:
      x, v: positions and velocities at the input frame (B, M, 3).
      target: positions 1,000 steps later (B, M, 3).
      charges: (B, M).
      weight: 1, or 0 for padding (B,).
    """

    x: Any
    v: Any
    target: Any
    charges: Any
    weight: Any


@dataclasses.dataclass(frozen=True)
class NBody(Task):
    """Predict the positions of charged particles; mean squared error over all coordinates.

    Args:
      dataset: the paper's data: "small" for Table 2, "sweep" for Figure 2.
      train_size: the number of training trajectories, taken from the start of the split.
      node_feature: h is the "speed" ‖v‖, or the "charge" for models that read v themselves.
      edge_distance: add ‖x_i − x_j‖² of the input to the edge attributes c_i c_j.
      edge_velocity: add the invariants r_ij·v_i, r_ij·v_j and v_i·v_j of the input to the edge
        attributes; neither ‖v‖ nor distances determine them (not in the paper).
      huber: train on the Huber loss, linear beyond this error (in units of length), so that the
        few unpredictable close encounters are not memorized; the paper's mean squared error if
        none.
      augment: rotate and reflect each training trajectory at random, for models that are not
        equivariant (not in the paper).
    """

    dataset: Literal["small", "sweep"] = "small"
    train_size: int = 3_000
    node_feature: Literal["speed", "charge"] = "speed"
    edge_distance: bool = True
    edge_velocity: bool = False
    huber: float | None = None
    augment: bool = False

    metric = "mse"

    def __post_init__(self) -> None:
        """Raise ValueError if an option is invalid."""
        if self.node_feature not in ("speed", "charge"):
            raise ValueError(
                f"task.node_feature is {self.node_feature!r}; expected 'speed' or 'charge'"
            )
        if self.huber is not None and not 0 < self.huber < np.inf:
            raise ValueError(
                f"task.huber is {self.huber}; expected a finite length above 0, or none"
            )

    @property
    def paper(self) -> dict[str, float]:
        """The values of Table 2."""
        return paper.TABLE2

    @cached_property
    def _splits(self) -> dict[str, ArrayDataset]:
        return {}

    def samples(self, split: str) -> ArrayDataset:
        """The trajectories of a split, in float32.

        Raises:
          ValueError: there are fewer than ``train_size``, or a value is not finite.
        """
        if split not in self._splits:
            data = nbody.load(self.dataset, split)
            size = self.train_size if split == "train" else len(data.x)
            if not 1 <= size <= len(data.x):
                raise ValueError(
                    f"task.train_size is {size}; expected 1 to {len(data.x)}, the trajectories of "
                    f"{self.dataset!r}"
                )
            fields = (data.x, data.v, data.target, data.charges, np.ones(len(data.x)))
            try:
                batch = Batch(*(np.asarray(field[:size], np.float32) for field in fields))
                self._splits[split] = ArrayDataset(batch)
            except ValueError as error:
                raise ValueError(
                    f"the {split} split of {self.dataset!r}: {error}; delete the cached data"
                ) from error
        return self._splits[split]

    def graph(self, batch: Batch, key: jax.Array | None = None) -> GraphsTuple:
        """The complete graphs of a batch; ``key`` is not used."""
        n_graph, n_node, n_dim = batch.x.shape
        x, v = batch.x.reshape(-1, n_dim), batch.v.reshape(-1, n_dim)
        charges = batch.charges.reshape(-1, 1)
        offsets = np.arange(0, n_graph * n_node, n_node, dtype=np.int32)[:, None]
        senders, receivers = (
            jnp.asarray((offsets + indices).reshape(-1)) for indices in complete_edges(n_node)
        )
        r_ij, v_i, v_j = x[receivers] - x[senders], v[receivers], v[senders]
        vector_pairs = []
        if self.edge_distance:
            vector_pairs.append((r_ij, r_ij))
        if self.edge_velocity:
            vector_pairs += [(r_ij, v_i), (r_ij, v_j), (v_i, v_j)]
        products = [jnp.sum(a * b, axis=-1, keepdims=True) for a, b in vector_pairs]
        a_ij = jnp.concatenate([charges[receivers] * charges[senders], *products], axis=-1)
        h = charges if self.node_feature == "charge" else safe_norm(v, keepdims=True)
        return GraphsTuple(
            nodes=Nodes(h=h, x=x, v=v),
            edges=Edges(a=a_ij),
            senders=senders,
            receivers=receivers,
            n_node=jnp.full(n_graph, n_node, jnp.int32),
            n_edge=jnp.full(n_graph, n_node * (n_node - 1), jnp.int32),
            globals=Globals(),
        )

    def predict(self, apply: Apply, params: Any, batch: Batch) -> jax.Array:
        """Predicted positions (B, M, 3)."""
        return apply(params, self.graph(batch)).nodes.x.reshape(batch.x.shape)

    def loss(self, apply: Apply) -> Loss:
        """The mean squared error, or the Huber loss, over all coordinates of a batch."""

        def loss(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
            if self.augment:
                keys = jax.random.split(key, batch.x.shape[0])
                q = jax.vmap(lambda k: random_orthogonal(k, batch.x.shape[-1]))(keys)
                fields = (batch.x, batch.v, batch.target)
                x, v, target = (jnp.einsum("bij,bmj->bmi", q, field) for field in fields)
                batch = batch._replace(x=x, v=v, target=target)
            predicted = self.predict(apply, params, batch)
            if self.huber is not None:
                error = optax.losses.huber_loss(predicted, batch.target, delta=self.huber)
                return jnp.mean(error), {}
            return jnp.mean((predicted - batch.target) ** 2), {}

        return loss

    def metrics(self, apply: Apply) -> Metrics:
        """``mse`` over the coordinates of real systems."""

        def metrics(params: Any, batch: Batch, key: jax.Array) -> dict[str, Any]:
            squared = (self.predict(apply, params, batch) - batch.target) ** 2
            total = jnp.sum(jnp.sum(squared, axis=(1, 2)) * batch.weight)
            return {"mse": (total, jnp.sum(batch.weight) * batch.x[0].size)}

        return metrics

    def trivial(self, apply: Apply) -> tuple[str, Apply]:
        """Predict no motion."""
        return "no motion", lambda params, graph: graph

    def plot(self, apply: Apply, params: Any, path: Path, systems: int = 6) -> Path:
        """Draw the first test systems in 3-D: each particle's path and its predicted end."""
        batch = self.samples("test").pack(np.arange(systems))
        predicted = np.asarray(self.predict(apply, params, batch))
        # The path is simulated again from the input frame; its end is the stored target.
        true_positions, _ = jax.vmap(
            lambda c, x, v: nbody.simulate(c, x, v, 1_000, sample_every=20)
        )(batch.charges, batch.x, batch.v)
        paths = np.concatenate([batch.x[:, None], np.asarray(true_positions)], axis=1)
        return plots.trajectories(batch.charges, paths, batch.target, predicted, path)
