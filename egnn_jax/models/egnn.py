"""E(n)-equivariant network of Satorras, Hoogeboom and Welling, ICML 2021, section 3."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax

from egnn_jax.graph._arrays import require_features
from egnn_jax.graph._validation import short_str
from egnn_jax.graph.graph import GraphsTuple, require_geometric
from egnn_jax.models.egcl import EGCL, Aggregation, CoordinateAggregation, Velocity
from egnn_jax.nn.mlp import Activation, Dense, Symmetry, embed, require_positive


class EGNN(nn.Module):
    """EGNN: a stack of :class:`EGCL` on an embedding of h. x and v are E(n)-equivariant, h is
    invariant.

    >>> graph = egnn.complete_graph(x=np.eye(3), h=np.ones((3, 2)))
    >>> model = egnn.EGNN(features=8, layers=2)
    >>> params = model.init(jax.random.key(0), graph)
    >>> out = model.apply(params, graph)
    >>> out.nodes.x.shape, out.nodes.h.shape
    ((3, 3), (3, 8))

    Args:
      features: width of every layer.
      layers: number of layers.
      layer: class of the layers, or a ``functools.partial`` of one; it receives those options below
        that are among its fields. If ``cutoff`` is one of them, a cutoff is given and coordinates
        move, its call also receives ``first``, the x of the input, see :class:`EGCL`.
      embed: embed h in ``features`` dimensions first (a linear map, or a table if h holds node
        types); otherwise the first layer does, without a residual if the width changes.
      output_features: project h to this width at the end.
      activation: see :class:`EGCL` for this option and all that follow.
      aggregation: aggregation of messages, eq. 5.
      velocity: which velocity eq. 7 multiplies.
      infer_edges: weight messages by a learned e_ij, eq. 8.
      coordinate_aggregation: C of eq. 4.
      normalize: divide r_ij by its length + 1e-8. Without a cutoff, gradients treat this length as
        constant, as in the authors' code.
      tanh: bound φ_x to (-1, 1).
      clip: bound each component of r_ij φ_x(m_ij).
      update_coordinates: False leaves x and v unchanged.
      residual: add h to φ_h.
      shrinkage: multiply x by 1 - shrinkage after each layer.
      cutoff: messages go smoothly to zero at this distance in the input.
      num_rbf: describe distances by this many Bessel functions instead of ‖r_ij‖².
      edge_block: sum messages over blocks of this many edges, if not all fit in memory.

    Call: takes a graph with h (N, F) or (N,), x (N, n), v (N, n) or None and a (E, A) or None;
    returns it with h (N, output_features or features) and updated x and v.

    Raises:
      ValueError: as in :class:`EGCL`, or ``layer`` is not a class of modules, or does not have an
        option that is given, or sets ``cutoff`` itself.
    """

    symmetry: ClassVar[Symmetry] = "E(n)"

    features: int = 64
    layers: int = 4
    layer: Callable[..., nn.Module] = EGCL
    embed: bool = True
    output_features: int | None = None
    activation: Activation = "silu"
    aggregation: Aggregation | Callable[[GraphsTuple, jax.Array], jax.Array] = "sum"
    velocity: Velocity = "input"
    infer_edges: bool = False
    coordinate_aggregation: CoordinateAggregation = "mean"
    normalize: bool = False
    tanh: bool = False
    clip: float | None = None
    update_coordinates: bool = True
    residual: bool = True
    shrinkage: float = 0.0
    cutoff: float | None = None
    num_rbf: int | None = None
    edge_block: int | None = None

    @nn.compact
    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_geometric(graph)
        optional = {"output_features": self.output_features}
        require_positive(optional, features=self.features, layers=self.layers)
        if self.embed:
            h = embed(graph.nodes, self.features)
            graph = graph._replace(nodes=graph.nodes.replace(h=h))
        require_features(graph.nodes.h)
        uses_first = self.cutoff is not None and self.update_coordinates
        x = graph.nodes.x
        for k in range(self.layers):
            options = self._layer_options(width=graph.nodes.h.shape[-1])
            layer_kwargs = {"first": x} if uses_first and "cutoff" in options else {}
            graph = self.layer(**options, name=f"layer_{k}")(graph, **layer_kwargs)
            if not hasattr(graph, "nodes"):
                raise ValueError(
                    f"the layer returns a {type(graph).__name__}; expected the graph with new nodes"
                )
        if self.output_features is not None:
            h = Dense(self.output_features, name="embedding_out")(graph.nodes.h)
            graph = graph._replace(nodes=graph.nodes.replace(h=h))
        return graph

    def _layer_options(self, width: int) -> dict[str, Any]:
        """This network's options that its layers have; no residual if the width of h changes."""
        option_names = {field.name for field in dataclasses.fields(self)} - {"parent", "name"}
        layer: Any = self.layer
        if isinstance(layer, functools.partial):
            option_names -= layer.keywords.keys()
            layer = layer.func
        is_module = isinstance(layer, type) and issubclass(layer, nn.Module)
        if not is_module or issubclass(layer, EGNN):
            raise ValueError(
                f"layer is {short_str(layer)}; expected a class of flax modules, such as EGCL, or "
                "a functools.partial of one"
            )
        if "cutoff" not in option_names:
            raise ValueError("the layer sets cutoff; expected it as an option of EGNN")
        layer_names = {field.name for field in dataclasses.fields(layer)}
        egcl_names = {field.name for field in dataclasses.fields(EGCL)} - {"features"}
        for name in sorted(egcl_names & option_names - layer_names):
            value = getattr(self, name)
            if value != getattr(EGNN, name):
                raise ValueError(
                    f"{name} is {short_str(value)}, which {layer.__name__} does not have; expected "
                    "a layer with this field, or the default"
                )
        options = {name: getattr(self, name) for name in layer_names & option_names}
        if "residual" in options:
            options["residual"] = self.residual and width == self.features
        return options
