"""Mixed precision: compute a model in another dtype than its parameters and coordinates."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.nn.mlp import require_module, require_option

ComputeDtype = Literal["float32", "bfloat16"]
MatmulPrecision = Literal["default", "high", "highest"]
DISTANCE_PARAMETERS = ("frequencies", "phases", "scales", "rho", "omega")
"""Names of parameters that multiply distances or are added to them, which are not rounded."""


def backbone_of(model: nn.Module) -> nn.Module:
    """The model that :class:`MixedPrecision` computes; another model is returned as it is."""
    return model.model if isinstance(model, MixedPrecision) else model


def compute_dtype(graph: GraphsTuple) -> jnp.dtype:
    """The dtype of features and messages: that of h, or of x if h is absent or integer."""
    h, x = graph.nodes.h, graph.nodes.x
    return h.dtype if h is not None and jnp.issubdtype(h.dtype, jnp.floating) else x.dtype


class MixedPrecision(nn.Module):
    """Compute a model's features, messages and products in another dtype than its parameters.

    Parameters and coordinates keep their dtypes, sums over neighbors use at least float32 (except
    in Cormorant, L1Net, NMP and LieConv, where they are matrix products), and the output has the
    dtypes of the input. The parameters are those of ``model`` itself, so either can
    continue training with the other's. Scalar parameters are not cast, since they scale
    coordinates: a model of your own that multiplies features by one must cast it to their dtype.

    Args:
      model: any model of this library, or one that computes in the dtype of h and casts to that of
        x to update x.
      compute_dtype: "bfloat16", or "float32" to cast nothing.
      matmul_precision: ``jax.default_matmul_precision`` of the model. On a GPU, "default" uses
        TensorFloat-32 for float32 products, "highest" does not.

    Call: as for the model.

    Raises:
      ValueError: nodes have no h, ``model`` is not a flax module, or an option has another value.
    """

    model: nn.Module
    compute_dtype: ComputeDtype = "bfloat16"
    matmul_precision: MatmulPrecision = "default"

    @property
    def cutoff(self) -> float | None:
        """The model's cutoff, where its messages go to zero, or None."""
        return getattr(self.model, "cutoff", None)

    def setup(self) -> None:
        """Share the model's scope, so that parameters keep their names."""
        require_module("model", self.model)
        nn.share_scope(self, self.model)

    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        require_option("compute_dtype", self.compute_dtype, ComputeDtype)
        require_option("matmul_precision", self.matmul_precision, MatmulPrecision)
        with jax.default_matmul_precision(self.matmul_precision):
            if self.compute_dtype == "float32" or self.is_initializing():
                return self.model(graph)

            def cast(tree: Any) -> Any:
                def cast_leaf(path: Any, a: jax.Array) -> jax.Array:
                    # Single numbers, such as the time of a step, scale coordinates.
                    keeps_dtype = not a.ndim or (path and path[-1].key in DISTANCE_PARAMETERS)
                    return a if keeps_dtype else a.astype(self.compute_dtype)

                return jax.tree_util.tree_map_with_path(cast_leaf, tree)

            if graph.nodes.h is None:
                raise ValueError(
                    f"nodes have no h; expected features to compute in {self.compute_dtype}"
                )
            dtype = compute_dtype(graph)

            def cast_back(a: jax.Array) -> jax.Array:
                return a.astype(dtype) if a.dtype == self.compute_dtype else a

            model_input = graph
            if jnp.issubdtype(graph.nodes.h.dtype, jnp.floating):
                model_input = graph._replace(nodes=graph.nodes.replace(h=cast(graph.nodes.h)))
            apply_model: Any = nn.map_variables(
                lambda model, graph: model(graph), "params", trans_in_fn=cast
            )
            out = apply_model(self.model, model_input)
        h, edges, globals_ = jax.tree.map(cast_back, (out.nodes.h, out.edges, out.globals))
        return out._replace(nodes=out.nodes.replace(h=h), edges=edges, globals=globals_)
