"""One file per column of the paper's Table 1, and the registry that names them."""

import flax.linen as nn

from egnn_jax.models.egnn import EGCL, EGNN
from egnn_jax.models.gnn import GNN
from egnn_jax.models.linear import Linear
from egnn_jax.models.radial_field import RadialField
from egnn_jax.models.schnet import SchNet
from egnn_jax.models.se3_transformer import SE3Transformer
from egnn_jax.models.tfn import TFN
from egnn_jax.nn.precision import MixedPrecision

MODELS: dict[str, type[nn.Module]] = {
    "egnn": EGNN,
    "gnn": GNN,
    "radial_field": RadialField,
    "tfn": TFN,
    "schnet": SchNet,
    "se3_transformer": SE3Transformer,
    "linear": Linear,
}
"""What a config's ``model.name`` may be. A new model is one file and one line here."""

__all__ = [
    "EGCL",
    "EGNN",
    "GNN",
    "MODELS",
    "TFN",
    "Linear",
    "MixedPrecision",
    "RadialField",
    "SE3Transformer",
    "SchNet",
]
