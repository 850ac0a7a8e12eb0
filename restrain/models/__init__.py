"""Models in pure PyTorch: no Lightning, no parallelism, no recipe objects.

``build_model(mapping)`` builds the recipe's ``model`` section; ``residual_blocks(model)`` and ``joins(block)`` are all
that a pass over a model needs to know of it.
"""

from .build import MODELS, build_model, freeze
from .init import Fill, init_model, init_tensor, materialise
from .norm import GroupedBatchNorm2d, StagedStatistics, set_group
from .residual import (
    JOINS,
    AddJoin,
    Join,
    ResidualBlock,
    drop_rate,
    join_class,
    joins,
    named_joins,
    residual_blocks,
    set_factors,
)

__all__ = [
    "JOINS",
    "MODELS",
    "AddJoin",
    "Fill",
    "GroupedBatchNorm2d",
    "Join",
    "ResidualBlock",
    "StagedStatistics",
    "build_model",
    "drop_rate",
    "freeze",
    "init_model",
    "init_tensor",
    "join_class",
    "joins",
    "materialise",
    "named_joins",
    "residual_blocks",
    "set_factors",
    "set_group",
]
