"""Whether a recipe can be trained on so many nodes, found before there are any: what a queue would tell hours later."""

from __future__ import annotations

import torch

from restrain.data.order import check_micro, ranks_a_group
from restrain.parallel.layout import layout_of
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.training import build, network, placement, spans


def check(recipe: Recipe, nodes: int, tasks: int) -> None:
    """Raises UserError for a batch, a layout or a model that cannot be on ``nodes`` of ``tasks`` processes each."""
    layout = layout_of(recipe.parallel, World(size=nodes * tasks, local_size=tasks, launcher="slurm"))
    spans.check(recipe, layout.data)
    if recipe.batch.micro != "auto":
        check_micro(recipe.batch.global_, recipe.batch.group, layout.data, recipe.batch.micro)
    device = torch.device("cpu" if recipe.parallel.accelerator == "cpu" else "cuda")
    placement.check_layout(recipe, layout, device)
    known = device if device.type == "cpu" else None  # the GPUs of the nodes are not to be asked here
    network.check_model(build.with_classes(recipe, None), None, layout.tensor, known)


def told(recipe: Recipe, nodes: int, tasks: int) -> str:
    """One line for a person: the layout, and what of a step each process takes."""
    layout = layout_of(recipe.parallel, World(size=nodes * tasks, local_size=tasks, launcher="slurm"))
    batch, group = recipe.batch.global_, recipe.batch.group
    ranks = ranks_a_group(batch, group, layout.data)
    groups = f"{batch // group // layout.data} group(s) of {group}" if ranks == 1 else f"a group over {ranks} of them"
    chosen = layout.strategy
    if recipe.parallel.strategy == "auto" and layout.strategy == "ddp":
        chosen = "ddp, or fsdp where the model is too large for a GPU,"
    tensor = f" x tensor {layout.tensor}" if layout.tensor > 1 else ""
    many = f"{layout.world} process(es), {nodes} node(s) of {tasks}"
    return f"{chosen}{tensor} on {many}: {batch // layout.data} of {batch} samples a step each, {groups}"
