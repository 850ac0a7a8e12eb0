"""Models in pure PyTorch: no Lightning, no parallelism, no recipe objects.

``build_model(mapping)`` builds the recipe's ``model`` section; ``residual_blocks(model)`` and ``joins(block)`` are all
that a pass over a model needs to know of it.
"""

from restrain.models.blocks import ResidualBlock, drop_rate, joins, named_joins, residual_blocks, set_factors
from restrain.models.build import MODELS, build_model, freeze
from restrain.models.dropout import KeyedDropout, named_dropouts, set_dropout_keys
from restrain.models.fill import Fill
from restrain.models.init import init_model, init_tensor, materialise
from restrain.models.norm import GroupedBatchNorm2d, StagedStatistics, set_group
from restrain.models.residual import JOINS, AddJoin, Join, JoinSpec, join_spec

__all__ = [
    "JOINS",
    "MODELS",
    "AddJoin",
    "Fill",
    "GroupedBatchNorm2d",
    "Join",
    "JoinSpec",
    "KeyedDropout",
    "ResidualBlock",
    "StagedStatistics",
    "build_model",
    "drop_rate",
    "freeze",
    "init_model",
    "init_tensor",
    "join_spec",
    "joins",
    "materialise",
    "named_dropouts",
    "named_joins",
    "residual_blocks",
    "set_dropout_keys",
    "set_factors",
    "set_group",
]
