"""What ``restrain check`` says of a recipe: each function looks at one thing and returns lines for a person."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from restrain.data.order import allowed_micro, allowed_worlds
from restrain.insight.cost import forward_macs, input_macs
from restrain.insight.units import size
from restrain.models import named_joins, residual_blocks
from restrain.models.build import build_model
from restrain.optim.groups import parameter_groups
from restrain.parallel import precision
from restrain.parallel.layout import ZERO, Layout, layout_of
from restrain.parallel.world import World, from_environment
from restrain.recipe import Recipe
from restrain.recipe.checks import listed
from restrain.training import arithmetic, build, network, spans
from restrain.training.arithmetic import Scale
from restrain.training.choosing import RULE, Choice, choose
from restrain.training.drop_path import saving
from restrain.training.inputs import image_sides, like_inputs, said
from restrain.training.memory import Memory, check_offload, free_on_host, held_of, needed, process_memory
from restrain.training.remat import NOTHING
from restrain.training.starting import local_ranks

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # characters of a sparkline
NOMINAL = 1000  # steps an epoch, to draw a schedule whose data set is not there


def model_without_memory(recipe: Recipe) -> nn.Module:
    """The recipe's model on the meta device, in its dtype."""
    with torch.device("meta"):
        model = build_model(recipe.model.model_dump(), recipe.seed, image_sides(recipe))
    network.check_drop_path(recipe, model)
    return model.to(precision.dtype_of_weights(recipe.precision))


def model_lines(recipe: Recipe, model: nn.Module) -> list[str]:
    """Name, parameters and what a forward pass costs."""
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = "all trainable" if trainable == parameters else f"{trainable:,} trainable (model.freeze)"
    if recipe.data.kind == "images":
        side = image_sides(recipe)[0]
        macs = forward_macs(model, recipe.model.in_chans, side, side)
    else:
        if recipe.data.kind == "tokens":
            network.check_speaks(recipe, model)
        macs = input_macs(model, like_inputs(recipe, 1, torch.float32))
    return [
        f"{recipe.model.name}, {recipe.model.classes:,} {'classes' if recipe.data.kind == 'images' else 'outputs'}",
        f"{parameters:,} parameters, {frozen}",
        f"{_scaled(macs)} multiply-adds {said(recipe)}",
        *getattr(model, "notices", ()),
    ]


def block_lines(recipe: Recipe, model: nn.Module) -> list[str]:
    """The residual blocks and their joins, and what differs over depth."""
    blocks = residual_blocks(model)
    if not blocks:
        return ["none: passes over blocks (remat, compile, layer_decay) have nothing to do"]
    kinds = Counter(type(block).__name__ for _, block in blocks)
    joins = named_joins(model)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    lines = [
        f"{len(blocks)}: {blocks[0][0]} ... {blocks[-1][0]}   ({counts})",
        f"{len(joins)} joins: {joins[0][0]} ... {joins[-1][0]}" if joins else "joins: the model's own",
    ]
    projections = sum(isinstance(module, nn.Linear) for _, block in blocks for module in block.modules())
    if projections:
        lines.append(f"{projections} projections: linear layers of queries, keys, values, outputs and MLPs")
    rates = [join.rate for _, join in joins if join.rate]
    if rates:
        lines.append(f"drop path: {len(rates)} of {len(joins)} joins, rates {min(rates):.4g} to {max(rates):.4g}")
        lines += saving_lines(recipe, model)
    zero = sum(getattr(module, "initial_scale", 1.0) == 0.0 for module in model.modules())
    if zero:
        lines.append(f"initial scale 0 in the last layer of {zero} branches (zero_init): each begins as an identity")
    return lines


def saving_lines(recipe: Recipe, model: nn.Module) -> list[str]:
    """What stochastic depth leaves out on average, weighted by the work of the blocks."""
    mode, work = recipe.model.drop_path.mode, network.block_work(recipe, model)
    if work is None:
        return [f"mode {mode}: dropped branches are computed and multiplied by 0, so none of their work is saved"]
    share = saving(model, mode, recipe.batch.group, work)
    what = {"batch": "a dropped block is not computed", "subset": "a branch is computed for the rows that keep it"}
    return [f"mode {mode}: {what[mode]}: {100 * share:.1f} % of the blocks' multiply-adds are saved on average"]


def group_lines(recipe: Recipe, model: nn.Module) -> list[str]:
    """Which parameters decay; the groups partition what is trained."""
    section = recipe.optimizer
    groups = parameter_groups(model, section.weight_decay, section.no_decay, section.layer_decay)
    lines = []
    for name, chosen in (
        (f"decay {section.weight_decay:g}", [g for g in groups if g["weight_decay"]]),
        ("no decay", [g for g in groups if not g["weight_decay"]]),
    ):
        tensors = [p for group in chosen for p in group["params"]]
        if tensors:
            lines.append(f"{name}: {len(tensors)} tensors, {sum(p.numel() for p in tensors):,} parameters")
    if section.layer_decay is not None:
        scales = [group["lr_scale"] for group in groups]
        lines.append(f"layer decay: learning rate x {min(scales):.3g} in the stem to x {max(scales):g} in the head")
    return lines


def length_lines(scale: Scale) -> list[str]:
    """Steps an epoch and in all."""
    total = scale.steps(scale.recipe.length)
    each = f"{scale.per_epoch} steps an epoch"
    if scale.plan is None:
        known = f"{total:,} steps in all" if total is not None else f"{scale.recipe.length} in all"
        return [f"{each}, {known}; N, the training samples, is not known: {scale.told}"]
    return [f"{each}, {total:,} in all ({scale.recipe.length}); {scale.samples:,} training samples: {scale.told}"]


def batch_lines(recipe: Recipe, micro: int, device: torch.device, layout: Layout) -> list[str]:
    """Processes and micro-batches that work."""
    whole, group = recipe.batch.global_, recipe.batch.group
    worlds = allowed_worlds(whole, group)
    chosen = "auto" if recipe.batch.micro == "auto" else "as the recipe says"
    return [
        f"{whole:,} samples a step in {whole // group} groups of {group}",
        f"processes that can share it: {listed(worlds, 16)}",
        *spans.lines(recipe),
        f"micro-batch: {micro} on {layout.world:,} {device.type} {'process' if layout.world == 1 else 'processes'} "
        f"({chosen}); possible there: {listed(allowed_micro(whole, group, layout.data), 16)}",
    ]


def schedule_lines(scale: Scale) -> list[str]:
    """A sparkline of the learning rate, and its values at the ends and at the peak."""
    recipe, nominal = scale.recipe, scale.plan is None
    if nominal:
        scale = Scale(recipe, NOMINAL * recipe.batch.global_, scale.told)
    factor, total = arithmetic.factor_of(scale), scale.steps(recipe.length)
    assert factor is not None
    assert total is not None
    rate = arithmetic.learning_rate(recipe)
    steps = [round(at * (total - 1) / (WIDTH - 1)) for at in range(WIDTH)]
    values = [factor(step) for step in steps]
    # The peak may be between two columns: look at every step of a short run, at many of a long one.
    peak = max(range(0, total, max(1, total // 20_000)), key=factor)
    top = max(factor(peak), *values, 1e-30)
    bars = "".join(BARS[min(len(BARS) - 1, int(value / top * len(BARS)))] for value in values)
    ends = f"start {rate * factor(0):.4g}, peak {rate * top:.4g} at {_share(peak, total)}, end {rate * values[-1]:.4g}"
    name = f"{recipe.schedule.name}, {recipe.optimizer.name}; {ends}"
    drawn = [f"drawn with {NOMINAL:,} steps an epoch, as N is not known"] if nominal and _counts(recipe) else []
    return [bars, name, *arithmetic.learning_rate_lines(scale), *drawn]


def _counts(recipe: Recipe) -> bool:
    """Whether steps and epochs or shares meet in the schedule, so that its shape depends on N."""
    schedule = recipe.schedule
    moments = [recipe.length, schedule.warmup, *getattr(schedule, "at", ())]
    moments += [getattr(schedule, key) for key in ("peak", "decay") if hasattr(schedule, key)]
    return len({"st" if moment.unit == "st" else "ep" for moment in moments if moment.value}) > 1


def _share(step: int, total: int) -> str:
    return f"step {step:,}" if step == 0 else f"{100 * step / total:.3g} %"


def memory_lines(memory: Memory, number_format: str) -> list[str]:
    """Bytes of a process by what they hold."""
    share = memory.share
    parts = [
        ("weights and buffers", share.weights),
        ("the copy that is updated", share.master),
        ("gradients", share.gradients),
        ("DeepSpeed's buffers", share.buffers),
        ("optimizer", share.optimizer),
        ("moving average", share.average),
    ]
    held = ", ".join(f"{name} {size(amount)}" for name, amount in parts if amount)
    kept = (
        f"activations about {size(memory.activations)}: what {memory.micro} rows in {number_format} keep for backward"
    )
    remat = [f"{memory.recomputed} (parallel.remat)"] if memory.recomputed != NOTHING else []
    return [f"about {size(memory.total)} a process with micro-batches of {memory.micro}", held, kept, *remat]


def world_of(recipe: Recipe) -> World:
    """The processes that a recipe names, seen from the first one; those that would be started here where it does not
    say. A process that is one of several already looks at its own."""
    nodes, here = recipe.parallel.nodes, from_environment()
    if here.launcher != "single":
        return here
    each = local_ranks(recipe)
    return World(size=each * (nodes if isinstance(nodes, int) else 1), local_size=each)


def layout_lines(recipe: Recipe, model: nn.Module, memory: Memory, choice: Choice, world: World) -> list[str]:
    """How the model lies over the processes that the recipe names, and what each of them holds; none for a single one
    that has all of it. ``model`` is on the meta device, ``memory`` that of the layout."""
    layout, share = choice.layout, memory.share
    if world.size == 1 and layout.strategy == "single":
        return []
    grid = f"{layout.replicas} replica(s) x {layout.shard} shard(s) x {layout.tensor} tensor rank(s)"
    if layout.strategy in ZERO:
        grid = f"ZeRO stage {layout.strategy[-1]}"
    lines = [f"{layout.strategy} on {layout.world:,} process(es), {world.nodes} node(s) of {world.local_size}: {grid}"]
    lines += [f"parallel.strategy=auto is {choice.reason}"] if choice.reason else []
    whole = sum(p.numel() for p in model.parameters())
    # The first rank has the largest part of what does not divide, the last one the smallest.
    last = held_of(recipe, model, layout, memory.micro, layout.world - 1).parameters
    of = "updates" if layout.strategy in ZERO else "holds"
    lines.append(
        f"a process {of} {share.parameters:,} of {whole:,} parameters (the last one {last:,}), and holds "
        f"{size(share.total)} between backward pass and update"
    )
    if share.gathered:
        lines.append(f"and gathers at most {size(share.gathered)} at a time, the largest part that is gathered as one")
    return lines


def strategy_lines(recipe: Recipe, used: dict[str, Any] | None = None) -> list[str]:
    """What ``parallel.strategy`` comes to, with the bytes that decide. ``used``: a run's placement.

    Raises UserError for processes that cannot share a step.
    """
    recipe = build.with_classes(recipe, None)
    world = world_of(recipe)
    spans.check(recipe, layout_of(recipe.parallel, world).data)
    model = model_without_memory(recipe)
    share = held_of(recipe, model)
    held = [("weights and buffers", share.weights), ("gradients", share.gradients)]
    held += [(recipe.optimizer.name, share.optimizer)]
    held += [("moving average", share.average)] if share.average else []
    told = " + ".join(f"{name} {size(amount)}" for name, amount in held)
    lines = [f"{told} = {size(share.total)} for the whole model"]
    if world.size > 1:
        memory = process_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"), world)
        need = needed(recipe, model, memory)
        choice = choose(recipe.parallel, world, need)
        batch = recipe.batch.global_  # in one micro-step: what is held does not depend on rows
        found = Memory(batch, held_of(recipe, model, choice.layout, batch), 0)
        lines += layout_lines(recipe, model, found, choice, world)
        if recipe.parallel.strategy == "auto":
            cards = (choose(recipe.parallel, world, replace(need, memory=gb * 10**9)).layout for gb in arithmetic.GPUS)
            on = ", ".join(f"{gb} GB: {layout.strategy}" for gb, layout in zip(arithmetic.GPUS, cards, strict=True))
            lines.append(f"auto, {world.size:,} processes on GPUs of {on}")
    elif recipe.parallel.strategy == "auto":
        lines.append("auto, 1 process: single. On several, which parallel.devices and parallel.nodes say: " + RULE)
    if used and "strategy" in used:
        layout = f"{used['strategy']}, tensor {used['tensor']}, shard {used['shard']}"
        lines.append(f"this run's last start: {layout}, on {used['world']} process(es)")
        lines += [f"parallel.strategy=auto was {used['because']}"] if used.get("because") else []
    return lines


def offload_lines(memory: Memory, layout: Layout, world: World, refuse: bool) -> list[str]:
    """What the processes of a node keep in its memory. ``refuse``: raise WorldError where this machine, which is like
    those of the run, has less."""
    free = free_on_host()
    needed = memory.share.hosted(layout) * world.local_size
    if refuse:
        needed = check_offload(memory.share, layout, world.local_size, free)
    return [f"of a node's memory they keep {size(needed)} (parallel.offload); here {size(free)} are free"]


def data_lines(data: build.Data) -> list[str]:
    """What the data root holds."""
    train, evaluation = data.train, data.evaluation
    if (vocabulary := getattr(train, "vocabulary", None)) is not None:
        windows, context = int(train.counts.sum()), train.context  # type: ignore[attr-defined]
        held = "nothing to evaluate on"
        if evaluation is not None:
            held = f"{int(evaluation.counts.sum()):,} windows to evaluate"
        return [f"{windows:,} training windows of {context} tokens, a vocabulary of {vocabulary:,}", held]
    classes = f", {len(train.classes):,} classes" if train.classes else ""
    if not train.channels:
        held = f"{int(evaluation.counts.sum()):,} to evaluate" if evaluation is not None else "nothing to evaluate on"
        return [f"{int(train.counts.sum()):,} training sequences of {data.train_pipeline.size} steps", held]
    lines = [
        f"{int(train.counts.sum()):,} training samples in {len(train.counts):,} "
        f"{'shard' if len(train.counts) == 1 else 'shards'}{classes}, {train.channels} channel"
        f"{'' if train.channels == 1 else 's'}"
    ]
    lines.append(
        f"{int(evaluation.counts.sum()):,} samples to evaluate" if evaluation is not None else "nothing to evaluate on"
    )
    return lines


def _scaled(count: int) -> str:
    value, units = float(count), ["", " k", " M", " G", " T"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.4g}{units[0]}"
