"""What the values of a recipe come to: steps, learning rates, micro-batches, drop rates, with the sums in words.

Each function returns lines for a person. Nothing here needs torch or the data set: where the number of samples is not
known the formula stands with N. tests/training/test_arithmetic.py holds every figure to what a run uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from restrain.data.order import Plan, allowed_micro, allowed_worlds
from restrain.optim import schedules
from restrain.recipe import Duration, Recipe
from restrain.recipe.checks import DIGITS_SIDE, listed
from restrain.recipe.model_names import family_of
from restrain.training import spans
from restrain.training.micro import (
    BYTES_A_PIXEL,
    BYTES_A_TOKEN,
    PIXELS_A_STEP,
    PIXELS_A_TOKEN,
    PIXELS_WORTH_SPLITTING,
    auto_micro,
)

GPUS = (16, 40, 80)  # GB of memory of common cards, for which `auto` is worked out


@dataclass(frozen=True)
class Scale:
    """How long a run is. ``samples``: training samples, None where ``told`` says why they are not known."""

    recipe: Recipe
    samples: int | None
    told: str

    @property
    def plan(self) -> Plan | None:
        batch = self.recipe.batch
        return None if self.samples is None else Plan(self.samples, batch.global_, batch.group, 1)

    def steps(self, duration: Duration) -> int | None:
        """A duration in steps; None where it takes N, or is time on the clock."""
        if duration.is_wall_clock:
            return None
        if duration.unit == "st":
            return int(duration.value)
        if duration.unit == "%":
            total = self.steps(self.recipe.length)
            return None if total is None else duration.steps(0, total)
        return None if self.plan is None else self.plan.step_at(duration.value)

    @property
    def per_epoch(self) -> str:
        """``"floor(1437 / 64) = 22"``, or the formula."""
        whole = self.recipe.batch.global_
        return f"floor(N / {whole})" if self.plan is None else f"floor({self.samples:,} / {whole}) = {self.epoch}"

    @property
    def epoch(self) -> int:
        assert self.plan is not None
        return self.plan.steps_per_epoch


def duration_lines(scale: Scale, duration: Duration) -> list[str]:
    """A duration in steps."""
    if duration.is_wall_clock:
        return [f"{duration} = {duration.seconds():,.0f} s on rank 0's clock, whatever the step"]
    if duration.unit == "st":
        if scale.plan is None:
            return [f"{duration}: {duration.value:,} optimizer steps as written"]
        return [f"{duration.value:,} steps as written = {scale.plan.epochs(int(duration.value)):.4g} epochs"]
    steps, length = scale.steps(duration), scale.recipe.length
    if duration.unit == "%":
        total = scale.steps(length)
        if total is None:
            return [f"{duration} of {length}: {_number(duration)} / 100 x {_number(length)} x {scale.per_epoch} steps"]
        return [f"{duration} of {length} = {total:,} steps: {steps:,} steps"]
    if steps is None:
        return [f"{_number(duration)} x {scale.per_epoch} steps; N, the training samples, is not known: {scale.told}"]
    return [
        f"steps an epoch = floor(samples / batch.global) = {scale.per_epoch}   (samples: {scale.told})",
        f"{_number(duration)} x {scale.epoch:,} = {steps:,} steps",
    ]


def _number(duration: Duration) -> str:
    return str(duration).removesuffix(duration.unit)


def learning_rate(recipe: Recipe) -> float:
    """The learning rate of which the schedule takes a factor: that of ``restrain.optim.optimizers.base_lr``."""
    optimizer, ratio = recipe.optimizer, 1.0
    if optimizer.lr_per is not None and optimizer.lr_rule != "none":
        ratio = recipe.batch.global_ / optimizer.lr_per
    return optimizer.lr * (math.sqrt(ratio) if optimizer.lr_rule == "sqrt" else ratio)


def learning_rate_lines(scale: Scale) -> list[str]:
    """The learning rate after ``lr_rule``."""
    recipe, optimizer = scale.recipe, scale.recipe.optimizer
    lr, whole = f"{learning_rate(recipe):.6g}", recipe.batch.global_
    if optimizer.lr_per is None or optimizer.lr_rule == "none":
        return [f"lr_rule = {optimizer.lr_rule}: {lr}, whatever the batch"]
    if optimizer.lr_rule == "sqrt":
        ratio = f"sqrt({whole} / {optimizer.lr_per})"
        return [f"sqrt rule: lr x sqrt(batch.global / lr_per) = {optimizer.lr:g} x {ratio} = {lr}"]
    return [f"linear rule: lr x batch.global / lr_per = {optimizer.lr:g} x {whole} / {optimizer.lr_per} = {lr}"]


def factor_of(scale: Scale) -> Callable[[int], float] | None:
    """Step -> factor of the learning rate; None where the length in steps is not known."""
    total = scale.steps(scale.recipe.length)
    if total is None or scale.plan is None:
        return None
    section, epoch = scale.recipe.schedule, scale.epoch
    return lambda step: schedules.factor(section, step, steps_per_epoch=epoch, total_steps=total)


def schedule_lines(scale: Scale) -> list[str]:
    """The learning rate at the moments that the schedule names."""
    recipe, schedule = scale.recipe, scale.recipe.schedule
    moments: list[tuple[str, Duration]] = [("start", Duration(0, "st"))]
    if schedule.warmup.value:
        moments.append(("warm-up ends", schedule.warmup))
    moments += [("drop", at) for at in getattr(schedule, "at", ())]
    moments += [("peak", schedule.peak)] if schedule.name == "one_cycle" else []
    factor, rate = factor_of(scale), learning_rate(recipe)
    if factor is None:
        told = [f"{what}: {_moment(scale, moment)}" for what, moment in moments[1:]]
        return [*told, f"in steps that takes N, the training samples: {scale.told}"]
    total = scale.steps(recipe.length)
    assert total is not None
    points = [(what, moment, scale.steps(moment)) for what, moment in moments]
    if schedule.name == "wsd":
        begins = total - (scale.steps(schedule.decay) or 0)
        points.append(("decay begins", Duration(begins, "st"), begins))
    points += [("half way", Duration(50, "%"), total // 2), ("last step", recipe.length, total - 1)]
    lines = []
    for what, moment, step in sorted(points, key=lambda point: point[2] or 0):
        if step is not None and step < total:
            lines.append(f"step {step:>8,}   {rate * factor(step):<12.6g} {what}{_written(what, moment)}")
        else:
            lines.append(f"{what} at {moment} is beyond the end, {recipe.length}")
    return lines


def _written(what: str, moment: Duration) -> str:
    return "" if what in ("start", "half way", "last step", "decay begins") else f" ({moment})"


def _moment(scale: Scale, moment: Duration) -> str:
    return duration_lines(scale, moment)[0].partition("; N")[0]


def micro_lines(scale: Scale, used: dict[str, Any] | None = None) -> list[str]:
    """The micro-batches that work, and what ``auto`` makes of them. ``used``: a run's placement."""
    recipe = scale.recipe
    whole, group = recipe.batch.global_, recipe.batch.group
    tokens = recipe.data.context if recipe.data.kind == "tokens" else None
    pixels = (recipe.resolution.train or DIGITS_SIDE) ** 2 if tokens is None else tokens * PIXELS_A_TOKEN
    if recipe.data.kind == "sequences":
        pixels = recipe.data.context * PIXELS_A_STEP
    row_bytes = None if tokens is None else tokens * BYTES_A_TOKEN
    worlds = allowed_worlds(whole, group)
    lines = [
        f"a process computes batch.global / processes = {whole} / processes rows a step, in whole groups of {group}"
    ]
    lines += [
        f"{world} process{'es' if world > 1 else ''}: {listed(allowed_micro(whole, group, world), 16)}"
        for world in (worlds if len(worlds) <= 4 else [*worlds[:3], worlds[-1]])
    ]
    if recipe.batch.micro == "auto":
        cpu = auto_micro(whole, group, 1, pixels, None)
        cards = ", ".join(f"{gb} GB: {auto_micro(whole, group, 1, pixels, gb * 10**9, row_bytes)}" for gb in GPUS)
        row = f"{pixels:,} pixels x {BYTES_A_PIXEL:,}" if tokens is None else f"{tokens:,} tokens x {BYTES_A_TOKEN:,}"
        counted = "" if tokens is None else f", a token counting as {PIXELS_A_TOKEN}"
        lines += [
            f"auto, 1 process on a CPU: {cpu} (one group from {PIXELS_WORTH_SPLITTING:,} pixels a group on, else the "
            f"largest below that; here a group has {group * pixels:,}{counted})",
            f"auto, 1 process on a GPU of {cards} (the largest whose rows x {row} bytes fill less than half of it)",
        ]
    if used:
        share = whole // used["world"]
        lines.append(
            f"this run's last start: {used['micro']} on {used['device']}, {used['world']} process(es), so "
            f"{share // used['micro']} micro-batch(es) a step"
        )
    return lines


def group_lines(scale: Scale) -> list[str]:
    """How many groups a step has, and how many processes can share them."""
    batch = scale.recipe.batch
    return [
        f"batch.global / batch.group = {batch.global_} / {batch.group} = {batch.global_ // batch.group} groups a step",
        f"processes that can share them: {listed(allowed_worlds(batch.global_, batch.group), 16)}",
        *spans.lines(scale.recipe),
    ]


def own_blocks(name: str) -> int | None:
    """Residual blocks of one of our networks, from the layers that its name counts; None where a name does not say."""
    found = family_of(name)
    rule = BLOCKS.get(found[0]) if found else None
    return rule(name) if rule else None


def _resnet_blocks(name: str) -> int:
    """All layers but stem and head are in blocks: in bottlenecks by threes, which ImageNet sizes have from 50 layers on
    (He et al. 2015, arXiv:1512.03385, table 1) and two of the CIFAR sizes of He et al. 2016 (arXiv:1603.05027)."""
    layers = int(name[len(name.rstrip("0123456789")) :])
    bottleneck = layers >= 50 if "cifar" not in name else name in ("cifar_preresnet164", "cifar_preresnet1001")
    return (layers - 2) // (3 if bottleneck else 2)


def _densenet_blocks(name: str) -> int:
    """Stem, head and transitions are in no block (Huang et al. 2016, arXiv:1608.06993: table 1; section 4.2)."""
    layers = int(name.partition("_k")[0].rpartition("densenet")[2].removeprefix("bc"))
    outside = 4 if "cifar" in name else 5
    is_compact = "cifar" not in name or "bc" in name
    return (layers - outside) // (2 if is_compact else 1)


BLOCKS: dict[str, Callable[[str], int]] = {
    "resnet": _resnet_blocks,
    "preact": _resnet_blocks,
    "shared": _resnet_blocks,
    "densenet": _densenet_blocks,
    "plain": lambda name: 0,
}


def drop_path_lines(scale: Scale, only: int | None = None) -> list[str]:
    """Drop rate of each block, or of the block ``only``, counted from 0."""
    model = scale.recipe.model
    rate, decay = model.drop_path.rate, model.drop_path.decay
    blocks = own_blocks(model.name)
    if decay == "constant":
        return [f"decay = constant: {rate:g} in every block"]
    if blocks is None:
        owner = (
            "timm's: each block has the rate that timm gives it" if model.name.startswith("timm/") else "of any depth"
        )
        return [f"{model.name} is {owner}; restrain check lists them"]
    if blocks == 0:
        return [f"{model.name} has no residual blocks, and so no path to drop"]
    rates = [rate * (depth + 1) / blocks for depth in range(blocks)]
    lines = [f"block l of {blocks}, counted from 0: rate x (l + 1) / {blocks}"]
    if only is not None:
        return [*lines, f"block {only}: {rate:g} x {only + 1} / {blocks} = {rates[only]:.6g}"]
    for first in range(0, blocks, 8):
        part = " ".join(f"{one:<7.4g}" for one in rates[first : first + 8])
        lines.append(f"{first:>3}-{min(first + 7, blocks - 1):<3} {part.rstrip()}")
    return lines
