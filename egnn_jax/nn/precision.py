"""Any model, computed in another floating-point type than that of its parameters and
coordinates.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import GraphsTuple

ComputeDtype = Literal["float32", "bfloat16"]
MatmulPrecision = Literal["default", "high", "highest"]


def compute_dtype(graph: GraphsTuple) -> jnp.dtype:
    """The dtype of features and messages: that of h, or of x where h is absent or integer."""
    h, x = graph.nodes.h, graph.nodes.x
    return h.dtype if h is not None and jnp.issubdtype(h.dtype, jnp.floating) else x.dtype


class MixedPrecision(nn.Module):
    """A model whose features, messages and products have another dtype than its parameters.

    Parameters and coordinates keep theirs, sums over neighbors have at least float32, and the
    output has the dtypes of the input. The parameters are those of ``model`` itself, so that
    either can be trained further with the other's.

    Args:
      model: any model of this library, or one that computes in the dtype of h and casts to that of
        x where it moves x.
      compute_dtype: "bfloat16", or "float32" to cast nothing.
      matmul_precision: ``jax.default_matmul_precision`` of the model: on a GPU "default" takes
        TensorFloat-32 for float32 products, "highest" does not.

    Call: as the model.

    Raises:
      ValueError: nodes have no h.
    """

    model: nn.Module
    compute_dtype: ComputeDtype = "bfloat16"
    matmul_precision: MatmulPrecision = "default"

    @property
    def cutoff(self) -> float | None:
        """The model's, where its messages go to zero; None if it has none."""
        return getattr(self.model, "cutoff", None)

    def setup(self) -> None:
        """The model's parameters, under its own names."""
        nn.share_scope(self, self.model)

    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        with jax.default_matmul_precision(self.matmul_precision):
            if self.compute_dtype == "float32" or self.is_initializing():
                return self.model(graph)

            def cast(tree: Any) -> Any:
                return jax.tree.map(lambda a: a.astype(self.compute_dtype), tree)

            if graph.nodes.h is None:
                raise ValueError(
                    f"nodes have no h; expected features to compute in {self.compute_dtype}"
                )
            dtype = compute_dtype(graph)
            given = graph
            if jnp.issubdtype(graph.nodes.h.dtype, jnp.floating):
                given = graph._replace(nodes=graph.nodes.replace(h=cast(graph.nodes.h)))
            run: Any = nn.map_variables(
                lambda model, graph: model(graph), "params", trans_in_fn=cast
            )
            out = run(self.model, given)
        return out._replace(nodes=out.nodes.replace(h=out.nodes.h.astype(dtype)))
