"""Heads: what is read out of the nodes that a backbone gives."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.exchange import exchange
from egnn_jax.graph.graph import Globals, GraphsTuple, max_nodes, mean_nodes, sum_nodes
from egnn_jax.nn.mlp import MLP, Dense, require_option, require_positive
from egnn_jax.nn.precision import MixedPrecision

Embedded = Literal["x", "h"]


class Readout(nn.Module):
    """Predictions for whole graphs (section 5.3): MLP(Σ_i MLP(h_i)).

    >>> graph = egnn.complete_graph(x=np.eye(3), h=np.ones((3, 2)))
    >>> model = egnn.Readout(egnn.EGNN(features=8, layers=1), outputs=2)
    >>> params = model.init(jax.random.key(0), graph)
    >>> model.apply(params, graph).globals.y.shape
    (1, 2)

    Both MLPs are Linear·SiLU·Linear, of the width of h.

    Args:
      encoder: a backbone, such as :class:`egnn_jax.EGNN`.
      outputs: how many numbers are predicted for each graph, T.
      mean, scale: of the targets, (T,) or one for all: predictions are mean + scale · output, so
        that the network itself gives numbers of order one.

    Call: a graph to what the encoder makes of it, with ``globals.y`` the predictions (G, T).

    Raises:
      ValueError: ``outputs`` is below 1.
    """

    encoder: nn.Module
    outputs: int = 1
    mean: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(outputs=self.outputs)
        out = self.encoder(graph)
        width = out.nodes.h.shape[-1]
        h = MLP(width, width, name="node_dec")(out.nodes.h)
        y = MLP(width, self.outputs, name="graph_dec")(sum_nodes(out, h))
        return with_predictions(out, y, self.mean, self.scale)


class SumReadout(nn.Module):
    """Predictions for whole graphs that are sums over nodes: Σ_i W h_i, as DimeNet++ has it.

    W is 0 before training. Arguments, call and errors are those of :class:`Readout`.
    """

    encoder: nn.Module
    outputs: int = 1
    mean: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(outputs=self.outputs)
        out = self.encoder(graph)
        of_nodes = Dense(self.outputs, False, nn.initializers.zeros, name="node_dec")(out.nodes.h)
        return with_predictions(out, sum_nodes(out, of_nodes), self.mean, self.scale)


class MeanReadout(nn.Module):
    """Predictions for whole graphs that are means over nodes: mean_i (W h_i + b), as of LieConv.

    Arguments, call and errors are those of :class:`Readout`.
    """

    encoder: nn.Module
    outputs: int = 1
    mean: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(outputs=self.outputs)
        out = self.encoder(graph)
        of_nodes = Dense(self.outputs, name="node_dec")(out.nodes.h)
        return with_predictions(out, mean_nodes(out, of_nodes), self.mean, self.scale)


class MaxReadout(nn.Module):
    """Predictions for whole graphs: MLP(max_i h_i), the maximum taken channel by channel.

    The MLP is Linear·ReLU·Linear, of the width of h. Arguments, call and errors are those of
    :class:`Readout`.
    """

    encoder: nn.Module
    outputs: int = 1
    mean: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(outputs=self.outputs)
        out = self.encoder(graph)
        width = out.nodes.h.shape[-1]
        y = MLP(width, self.outputs, "relu", name="graph_dec")(max_nodes(out, out.nodes.h))
        return with_predictions(out, y, self.mean, self.scale)


class CormorantReadout(nn.Module):
    """Predictions for whole graphs as Cormorant has them: MLP(Σ_i MLP(h_i)).

    Both MLPs are Linear·LeakyReLU·Linear. Arguments, call and errors are those of
    :class:`Readout`, and:

    Args:
      hidden: width of both MLPs.
      features: width of the sum.
    """

    encoder: nn.Module
    outputs: int = 1
    mean: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0
    hidden: int = 256
    features: int = 64

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_positive(outputs=self.outputs, hidden=self.hidden, features=self.features)
        out = self.encoder(graph)
        h = MLP(self.hidden, self.features, "leaky_relu", name="node_dec")(out.nodes.h)
        mlp = MLP(self.hidden, self.outputs, "leaky_relu", name="graph_dec")
        return with_predictions(out, mlp(sum_nodes(out, h)), self.mean, self.scale)


class L1NetReadout(nn.Module):
    """Predictions for whole graphs that are sums over nodes: Σ_i h_i of a backbone that gives as
    many ``output_features`` as there are targets, or Σ_i MLP(h_i) of any.

    Arguments, call and errors are those of :class:`Readout`, and:

    Args:
      mlp: with the MLP, Linear·ReLU·Linear of the width of h, whose kernels are normal and divided
        by √in.
    """

    encoder: nn.Module
    outputs: int = 1
    mean: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0
    mlp: bool = False

    def setup(self) -> None:
        """The backbone, with its last layer where there is no MLP."""
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

    def _linear(self, h: jax.Array, features: int, number: int) -> jax.Array:
        shape = (h.shape[-1], features)
        kernel = self.param(f"kernel_{number}", nn.initializers.normal(1.0), shape, h.dtype)
        bias = self.param(f"bias_{number}", nn.initializers.zeros, (features,), h.dtype)
        return h @ kernel / h.shape[-1] ** 0.5 + bias


def _with_outputs(encoder: Any, outputs: int | None) -> nn.Module:
    """The backbone, in :class:`egnn_jax.MixedPrecision` or not, with so many output features, or
    with its own number of them.
    """
    if outputs is None:
        return encoder.clone()
    if isinstance(encoder, MixedPrecision):
        return encoder.clone(model=_with_outputs(encoder.model, outputs))
    return encoder.clone(output_features=outputs)


def head_of(model: nn.Module) -> Any:
    """The head that a backbone is read out by: its attribute ``head``, or :class:`Readout`."""
    backbone = model.model if isinstance(model, MixedPrecision) else model
    return getattr(backbone, "head", Readout)


def with_predictions(
    out: GraphsTuple,
    y: jax.Array,
    mean: float | tuple[float, ...] = 0.0,
    scale: float | tuple[float, ...] = 1.0,
) -> GraphsTuple:
    """The graph with ``globals.y`` = mean + scale · y, (G, T)."""
    if (mean, scale) != (0.0, 1.0):
        y = jnp.asarray(mean, y.dtype) + jnp.asarray(scale, y.dtype) * y
    kept = out.globals if isinstance(out.globals, Globals) else Globals()
    return out._replace(globals=kept.replace(y=y))


class Decoder(nn.Module):
    """The logit of Â_ij from two embeddings (…, n), (…, n) to (…, 1), eq. 9.

    w ‖z_i − z_j‖² + b, with w = -0.1 and b = 1 before training.

    Args:
      linear: one weight for each squared difference, as the authors have it for GNN encoders;
        initialised as PyTorch's ``Linear``.
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
    """An embedding z_i of each node, and the edges decoded from it (section 5.2).

    Args:
      encoder: a backbone.
      embedding: the embedding z (N, n) in the encoder's output: "x", decoded by eq. 9, or "h",
        decoded by a linear layer.

    Call: a graph whose edges are the pairs to decode, with a_ij = A_ij, to the encoder's output
    with ``edges.a`` the logits of Â_ij (E, 1).
    """

    encoder: nn.Module
    embedding: Embedded = "x"

    def setup(self) -> None:
        """The decoder that belongs to the embedding."""
        require_option("embedding", self.embedding, Embedded)
        self.decoder = Decoder(linear=self.embedding == "h")

    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        out = self.encoder(graph)
        z = self.embedded(out)
        logits = self.decode(z[graph.receivers], exchange(graph, z)[graph.senders])
        return out._replace(edges=out.edges.replace(a=logits))

    def embedded(self, out: GraphsTuple) -> jax.Array:
        """The embedding z (N, n) in the output of the encoder."""
        return out.nodes.x if self.embedding == "x" else out.nodes.h

    def decode(self, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
        """Logits (…, 1) of pairs of embeddings (…, n)."""
        return self.decoder(z_i, z_j)
