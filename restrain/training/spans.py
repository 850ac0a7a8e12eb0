"""Groups that span processes: which recipes can be run so, on how many processes, and how a model is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from restrain.data.order import allowed_worlds, check_world, ranks_a_group, spanning_worlds
from restrain.errors import UserError
from restrain.recipe.checks import listed

if TYPE_CHECKING:
    from torch import nn

    from restrain.parallel.layout import Layout
    from restrain.recipe import Recipe


def refusal(recipe: Recipe) -> str | None:
    """Why the groups of a recipe cannot span processes; None where they can."""
    drop_path = recipe.model.drop_path
    if recipe.mix.mixup or recipe.mix.cutmix:
        return "mixup and cutmix take an image's partner from its group, which has to be on its process"
    if drop_path.rate and drop_path.mode == "subset":
        return "model.drop_path.mode=subset keeps a fixed number of rows of a group, not of each process's part of one"
    return None


def check(recipe: Recipe, world: int) -> None:
    """Raises UserError, naming the sizes that work, where ``world`` processes cannot share the steps of a recipe."""
    batch, group = recipe.batch.global_, recipe.batch.group
    check_world(batch, group, world)
    ranks, reason = ranks_a_group(batch, group, world), refusal(recipe)
    if ranks > 1 and reason is not None:
        raise UserError(
            f"{world} processes share a step of batch.global={batch} in groups of batch.group={group} only with each "
            f"group spanning {ranks} of them, which this recipe does not allow: {reason}. Numbers of processes that "
            f"work: {listed(allowed_worlds(batch, group))}."
        )


def lines(recipe: Recipe) -> list[str]:
    """For a person: the numbers of processes beyond one a group."""
    found, reason = spanning_worlds(recipe.batch.global_, recipe.batch.group), refusal(recipe)
    if not found:
        return []
    if reason is not None:
        return [f"no more than that, with groups that span processes: {reason}"]
    return [f"and with groups that span processes: {listed(found, 16)}"]


def lay(model: nn.Module, recipe: Recipe, layout: Layout, rank: int) -> None:
    """Let the norms of a model reduce over the ranks that share a group, in a run. To be called by all ranks.

    BatchNorm is not cut over a tensor group, so the ranks are those that see different rows.
    """
    from restrain.models.norm import set_group
    from restrain.parallel.distributed import span_of

    batch, group = recipe.batch.global_, recipe.batch.group
    ranks = 1 if layout.tensor > 1 else ranks_a_group(batch, group, layout.data)
    set_group(model, group, span_of(rank, ranks))
