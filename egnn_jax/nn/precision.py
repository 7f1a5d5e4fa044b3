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
    """What features and messages are computed in: the type of h, or that of x where nodes have no
    features.
    """
    return graph.nodes.x.dtype if graph.nodes.h is None else graph.nodes.h.dtype


class MixedPrecision(nn.Module):
    """A model whose features, messages and matrix products are of another type; parameters and
    coordinates keep theirs.

    Sums over neighbours are taken in float32 at least, and what comes out has the types that came
    in. The parameters are those of ``model`` itself, so that either can go on with the other's.

    Args:
      model: any model of this library, or one that computes in the type of h and casts to that of x
        where it moves x.
      compute_dtype: "bfloat16", or "float32" to cast nothing.
      matmul_precision: what ``jax.default_matmul_precision`` is while it computes: on a GPU
        "default" takes TensorFloat-32 for float32 products, "highest" does not.

    Call: as the model.
    """

    model: nn.Module
    compute_dtype: ComputeDtype = "bfloat16"
    matmul_precision: MatmulPrecision = "default"

    def setup(self) -> None:
        """The model's parameters, under its own names."""
        nn.share_scope(self, self.model)

    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        with jax.default_matmul_precision(self.matmul_precision):
            if self.compute_dtype == "float32" or self.is_initializing():
                return self.model(graph)

            def cast(tree: Any) -> Any:
                return jax.tree.map(lambda a: a.astype(self.compute_dtype), tree)

            h = graph.nodes.h
            if h is None:
                raise ValueError(
                    f"nodes have no h; expected features to compute in {self.compute_dtype}"
                )
            run: Any = nn.map_variables(
                lambda model, graph: model(graph), "params", trans_in_fn=cast
            )
            out = run(self.model, graph._replace(nodes=graph.nodes.replace(h=cast(h))))
        return out._replace(nodes=out.nodes.replace(h=out.nodes.h.astype(h.dtype)))
