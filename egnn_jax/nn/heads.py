"""Heads: predictions from the output of a backbone."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax.graph._sums import dtype_of_sums
from egnn_jax.graph.exchange import exchange
from egnn_jax.graph.graph import Globals, GraphsTuple, max_nodes, mean_nodes, sum_nodes
from egnn_jax.nn.mlp import MLP, Dense, require_module, require_option, require_positive
from egnn_jax.nn.precision import MixedPrecision, backbone_of

Embedded = Literal["x", "h"]


class Readout(nn.Module):
    """Predict properties of whole graphs by MLP(Σ_i MLP(h_i)) (section 5.3).

    >>> graph = egnn.complete_graph(x=np.eye(3), h=np.ones((3, 2)))
    >>> model = egnn.Readout(egnn.EGNN(features=8, layers=1), outputs=2)
    >>> params = model.init(jax.random.key(0), graph)
    >>> model.apply(params, graph).globals.y.shape
    (1, 2)

    Both MLPs are Linear·SiLU·Linear, with the width of h.

    Args:
      encoder: a backbone, for example :class:`egnn_jax.EGNN`.
      outputs: number of predictions per graph, T.
      mean, scale: statistics of the targets, (T,) or one number for all. Predictions are
        mean + scale · output, so the network itself outputs numbers of order one.

    Call: takes a graph; returns the encoder's output with predictions (G, T) in ``globals.y``.

    Raises:
      ValueError: ``outputs`` is below 1, the encoder is not a flax module, or mean or scale has
        another shape.
    """

    encoder: nn.Module
    outputs: int = 1
    mean: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(outputs=self.outputs)
        out = require_module("encoder", self.encoder)(graph)
        return with_predictions(out, self._read(out, graph), self.mean, self.scale)

    def _read(self, out: GraphsTuple, graph: GraphsTuple) -> jax.Array:
        """Compute y (G, T) from the encoder's output and its input."""
        width = out.nodes.h.shape[-1]
        h = MLP(width, width, name="node_dec")(out.nodes.h)
        return MLP(width, self.outputs, name="graph_dec")(sum_nodes(out, h))


class SumReadout(Readout):
    """Predict properties of whole graphs as sums over nodes, Σ_i W h_i, as in DimeNet++.

    W is initialized to 0. Arguments, call and errors are as in :class:`Readout`.
    """

    def _read(self, out: GraphsTuple, graph: GraphsTuple) -> jax.Array:
        y_i = Dense(self.outputs, False, nn.initializers.zeros, name="node_dec")(out.nodes.h)
        return sum_nodes(out, y_i)


class MeanReadout(Readout):
    """Predict properties of whole graphs as means over nodes, mean_i (W h_i + b), as in LieConv.

    Arguments, call and errors are as in :class:`Readout`.
    """

    def _read(self, out: GraphsTuple, graph: GraphsTuple) -> jax.Array:
        return mean_nodes(out, Dense(self.outputs, name="node_dec")(out.nodes.h))


class MaxReadout(Readout):
    """Predict properties of whole graphs by MLP(max_i h_i), with the maximum of each channel.

    The MLP is Linear·ReLU·Linear, with the width of h. Arguments, call and errors are as in
    :class:`Readout`.
    """

    def _read(self, out: GraphsTuple, graph: GraphsTuple) -> jax.Array:
        width = out.nodes.h.shape[-1]
        return MLP(width, self.outputs, "relu", name="graph_dec")(max_nodes(out, out.nodes.h))


class CormorantReadout(Readout):
    """Predict properties of whole graphs by MLP(Σ_i MLP(h_i)), as in Cormorant.

    Both MLPs are Linear·LeakyReLU·Linear. Other arguments, call and errors are as in
    :class:`Readout`.

    Args:
      hidden: width of the hidden layers of both MLPs.
      features: width of the sum.
    """

    hidden: int = 256
    features: int = 64

    def _read(self, out: GraphsTuple, graph: GraphsTuple) -> jax.Array:
        require_positive(hidden=self.hidden, features=self.features)
        h = MLP(self.hidden, self.features, "leaky_relu", name="node_dec")(out.nodes.h)
        return MLP(self.hidden, self.outputs, "leaky_relu", name="graph_dec")(sum_nodes(out, h))


class L1NetReadout(Readout):
    """Predict properties of whole graphs as sums over nodes: Σ_i h_i, or Σ_i MLP(h_i).

    Without the MLP, the backbone's ``output_features`` are set to the number of targets. Other
    arguments, call and errors are as in :class:`Readout`.

    Args:
      mlp: use the MLP, Linear·ReLU·Linear with the width of h; its kernels are normal and divided
        by √in.
    """

    mlp: bool = False

    def setup(self) -> None:
        """Create the backbone, with an output layer if there is no MLP."""
        require_positive(outputs=self.outputs)
        outputs = None if self.mlp else self.outputs
        self.network = _with_outputs(self.encoder, outputs)

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        out = self.network(graph)
        h = out.nodes.h
        if self.mlp:
            h = self._linear(nn.relu(self._linear(h, h.shape[-1], 0)), self.outputs, 1)
        return with_predictions(out, sum_nodes(out, h), self.mean, self.scale)

    def _linear(self, h: jax.Array, features: int, index: int) -> jax.Array:
        shape = (h.shape[-1], features)
        kernel = self.param(f"kernel_{index}", nn.initializers.normal(1.0), shape, h.dtype)
        bias = self.param(f"bias_{index}", nn.initializers.zeros, (features,), h.dtype)
        return h @ kernel / h.shape[-1] ** 0.5 + bias


def _with_outputs(encoder: Any, outputs: int | None) -> nn.Module:
    """Copy a backbone, possibly in :class:`egnn_jax.MixedPrecision`, with the given number of
    output features, or with its own if None.
    """
    encoder = require_module("encoder", encoder)
    if outputs is None:
        return encoder.clone()
    if isinstance(encoder, MixedPrecision):
        return encoder.clone(model=_with_outputs(encoder.model, outputs))
    if not hasattr(encoder, "output_features"):
        class_name = type(encoder).__name__
        raise ValueError(
            f"{class_name} has no output_features; expected a backbone that has, or mlp=True"
        )
    return encoder.clone(output_features=outputs)


def head_of(model: nn.Module) -> Any:
    """The default head of a backbone: its attribute ``head``, or :class:`Readout`."""
    return getattr(backbone_of(model), "head", Readout)


def with_predictions(
    out: GraphsTuple,
    y: jax.Array,
    mean: float | tuple[float, ...] = 0.0,
    scale: float | tuple[float, ...] = 1.0,
) -> GraphsTuple:
    """Set ``globals.y`` of a graph to mean + scale · y, (G, T).

    Raises:
      ValueError: mean or scale is neither one number nor (T,).
    """
    for name, value in (("mean", mean), ("scale", scale)):
        if np.shape(value) not in ((), y.shape[1:]):
            raise ValueError(
                f"{name} has shape {np.shape(value)}; expected one number, or {y.shape[1:]}"
            )
    if np.any(np.asarray(mean) != 0) or np.any(np.asarray(scale) != 1):
        dtype = dtype_of_sums(y)  # half precision would round predictions far from 0
        y = jnp.asarray(mean, dtype) + jnp.asarray(scale, dtype) * y.astype(dtype)
    globals_ = out.globals if isinstance(out.globals, Globals) else Globals()
    return out._replace(globals=globals_.replace(y=y))


class Decoder(nn.Module):
    """Compute the logit of Â_ij (…, 1) from two embeddings (…, n), eq. 9.

    The logit is w ‖z_i − z_j‖² + b, with w = -0.1 and b = 1 before training.

    Args:
      linear: use one weight per squared difference, initialized like PyTorch's ``Linear``, as the
        authors do for GNN encoders.
    """

    linear: bool = False

    @nn.compact
    def __call__(self, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
        squared = (z_i - z_j) ** 2
        if self.linear:
            return Dense(1, name="linear")(squared)
        w = self.param("w", nn.initializers.constant(-0.1), (1,), squared.dtype)
        b = self.param("b", nn.initializers.ones, (1,), squared.dtype)
        return w * jnp.sum(squared, axis=-1, keepdims=True) + b


class Autoencoder(nn.Module):
    """Graph autoencoder: embed each node as z_i and decode the edges from pairs (section 5.2).

    Args:
      encoder: a backbone.
      embedding: the field of the encoder's output that holds z (N, n): "x", decoded by eq. 9, or
        "h", decoded by a linear layer.

    Call: takes a graph whose edges are the pairs to decode, with a_ij = A_ij; returns the
    encoder's output with the logits of Â_ij (E, 1) in ``edges.a``.

    Raises:
      ValueError: ``embedding`` is neither "x" nor "h", or ``encoder`` is not a flax module.
    """

    encoder: nn.Module
    embedding: Embedded = "x"

    def setup(self) -> None:
        """Create the decoder for the embedding."""
        require_option("embedding", self.embedding, Embedded)
        self.decoder = Decoder(linear=self.embedding == "h")

    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        out = require_module("encoder", self.encoder)(graph)
        z = self.embedded(out)
        logits = self.decode(z[graph.receivers], exchange(graph, z)[graph.senders])
        return out._replace(edges=out.edges.replace(a=logits))

    def embedded(self, out: GraphsTuple) -> jax.Array:
        """The embedding z (N, n) in the output of the encoder."""
        return out.nodes.x if self.embedding == "x" else out.nodes.h

    def decode(self, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
        """Logits (…, 1) of pairs of embeddings (…, n)."""
        return self.decoder(z_i, z_j)
