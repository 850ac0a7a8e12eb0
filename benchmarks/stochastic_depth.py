"""What stochastic depth saves: step times of its modes beside the same network without it.

``python benchmarks/stochastic_depth.py [--json FILE]``. Two networks, both linear to 0.5: ResNet-110 at 32 pixels, and
ViT-S at 112. Every variant has a model, an optimizer and draws of its own, and all take one step in turn, so that other
work on the machine falls on all alike; times are those that the processor spent on this process, and the ratio of the
wall's times is given as well. The trunk (the residual blocks) is timed apart from stem, head and optimizer, by the
moments at which the host enters and leaves its forward and its backward pass.

A mode cannot save more than the share p of the trunk's time that the skipped blocks would have taken. Blocks differ in
time (in a ResNet-110 those that are dropped least take the longest), so each is timed in the steps of the variant
``none``, and p is the mean over the timed steps of the skipped blocks' shares. The bounds are trunk times of at most
1 - 0.9 p for ``batch`` and 1 - 0.75 p for ``subset``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import reporting
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.models import StagedStatistics, build_model, residual_blocks, set_group
from restrain.models.blocks import ResidualBlock
from restrain.training.dropping import Dropping

RATE = 0.5
now = time.process_time  # with one thread it is the wall's time of an idle machine
BOUNDS = {"batch": 0.9, "subset": 0.75}


@dataclass(frozen=True)
class Network:
    """``images``: [rows, channels, side, side]. ``stages``: block name -> the stage it is counted under."""

    title: str
    section: dict[str, Any]
    images: tuple[int, int, int, int]
    modes: tuple[str, ...]
    rounds: int  # timed steps of each variant
    stage: Callable[[str], str]


NETWORKS = {
    "resnet110": Network(
        "ResNet-110",
        {"name": "cifar_resnet110", "classes": 10},
        (16, 3, 32, 32),
        ("none", "sample", "batch"),
        100,
        lambda name: name.partition(".")[0],
    ),
    "vit_s": Network(
        "ViT-S/16",
        {"name": "vit_small_patch16_224", "classes": 1000},
        (4, 3, 112, 112),
        ("none", "sample", "batch", "subset"),
        50,
        lambda name: "blocks",
    ),
}


class Clock:
    """Seconds that each block of one step took, forward and backward, and those of the whole trunk.

    The backward pass of a block lasts from the moment when the gradient of its output is there to the moment when that
    of its input is. While a clock is running, every block of every model is on it.
    """

    def __init__(self) -> None:
        self.seconds: dict[ResidualBlock, float] = {}
        self.trunk = 0.0

    def __enter__(self) -> Clock:
        self.original: Callable[..., Any] = ResidualBlock.__call__
        self.blocks: list[ResidualBlock] = []
        self.edges: list[float] = []  # of the backward pass, from the last block's output to the first one's input
        clock = self

        def edge(gradient: Tensor) -> None:
            clock.edges.append(now())

        def timed(block: ResidualBlock, x: Tensor, *more: Any) -> Tensor:
            if not clock.blocks:
                x.register_hook(edge)
            clock.blocks.append(block)
            began = now()
            y = clock.original(block, x, *more)
            clock.seconds[block] = now() - began
            y.register_hook(edge)
            return y

        ResidualBlock.__call__ = timed  # pyright: ignore[reportAttributeAccessIssue]
        return self

    def __exit__(self, *_: object) -> None:
        ResidualBlock.__call__ = self.original  # pyright: ignore[reportAttributeAccessIssue]
        for block, ended, began in zip(reversed(self.blocks), self.edges[1:], self.edges[:-1], strict=True):
            self.seconds[block] += ended - began
        self.trunk = sum(self.seconds.values())


@dataclass
class Variant:
    """A network in one mode, and what its timed steps took. ``left_out``: of each step, block -> share left out."""

    mode: str
    model: nn.Module
    dropping: Dropping
    steps: list[float] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)
    trunks: list[float] = field(default_factory=list)
    blocks: list[dict[str, float]] = field(default_factory=list)
    left_out: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.statistics = StagedStatistics(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
        self.names = {block: name for name, block in residual_blocks(self.model)}

    def step(self, number: int, images: Tensor, labels: Tensor, timed: bool) -> None:
        """One optimizer step of one micro-batch that is one group."""
        rows = len(labels)
        wall, began = time.perf_counter(), now()
        self.optimizer.zero_grad()
        self.dropping.begin(number, rows)
        self.dropping.write(0, rows)
        with Clock() as clock:
            F.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()
        self.statistics.accumulate()
        self.statistics.commit(1, idle=self.dropping.idle)
        ended = now()
        if timed:
            self.steps.append(ended - began)
            self.walls.append(time.perf_counter() - wall)
            self.trunks.append(clock.trunk)
            self.blocks.append({self.names[block]: seconds for block, seconds in clock.seconds.items()})
            self.left_out.append(self.dropping.left_out)


def made(network: Network, mode: str) -> Variant:
    drop_path = {} if mode == "none" else {"rate": RATE, "decay": "linear", "mode": mode}
    model = build_model(network.section | {"drop_path": drop_path}, sides=(network.images[-1],))
    model = model.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    set_group(model, network.images[0])
    return Variant(mode, model, Dropping(model, "sample" if mode == "none" else mode, seed=0))


def measure(network: Network, rounds: int, warmup: int) -> dict[str, Any]:
    """Times of all variants over so many rounds, in each of which every variant takes one step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(network.images, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(network.section["classes"], (len(images),), generator=generator)
    variants = {mode: made(network, mode) for mode in network.modes}
    for number in range(warmup + rounds):
        order = list(variants.values())
        for variant in order[number % len(order) :] + order[: number % len(order)]:
            variant.step(number, images, labels, timed=number >= warmup)
    return summary(network, variants)


def summary(network: Network, variants: dict[str, Variant]) -> dict[str, Any]:
    """Medians, ratios to ``none``, and the realised share p of each variant beside its bound."""
    none = variants["none"]
    seconds = {name: statistics.median(step[name] for step in none.blocks) for name in none.names.values()}
    whole = sum(seconds.values())
    stages: dict[str, float] = {}
    for name, one in seconds.items():
        stages[network.stage(name)] = stages.get(network.stage(name), 0.0) + one
    found: dict[str, Any] = {"stages_ms": {name: 1e3 * one for name, one in stages.items()}}
    base_step, base_trunk = statistics.median(none.steps), statistics.median(none.trunks)
    for mode, variant in variants.items():
        p = [sum(seconds[name] * share for name, share in step.items()) / whole for step in variant.left_out]
        one = found[mode] = {
            "step_ms": 1e3 * statistics.median(variant.steps),
            "trunk_ms": 1e3 * statistics.median(variant.trunks),
            "step_ratio": statistics.median(variant.steps) / base_step,
            "trunk_ratio": statistics.median(variant.trunks) / base_trunk,
            "trunk_ratio_in_rounds": statistics.median(
                mine / other for mine, other in zip(variant.trunks, none.trunks, strict=True)
            ),
            "wall_ratio": statistics.median(variant.walls) / statistics.median(none.walls),
            "steps": len(variant.steps),
            "p": statistics.fmean(p),
        }
        if mode in BOUNDS:
            one["bound"] = 1.0 - BOUNDS[mode] * one["p"]
            one["saved_of_p"] = (1.0 - one["trunk_ratio"]) / one["p"]
            one["holds"] = one["trunk_ratio"] <= one["bound"]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="which of them")
    parser.add_argument("--rounds", type=int, help="timed steps of each variant, instead of each network's own")
    parser.add_argument("--warmup", type=int, default=3, help="steps of each variant before them")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows, results = [], {}
    for name in args.networks.split(","):
        network = NETWORKS[name]
        results[name] = measure(network, args.rounds or network.rounds, args.warmup)
        for mode in network.modes:
            one = results[name][mode]
            bound = f"{one['bound']:.3f}" if "bound" in one else ""
            step = [f"{one['step_ms']:.1f}", f"{one['step_ratio']:.3f}", f"{one['wall_ratio']:.3f}"]
            trunk = [f"{one['trunk_ms']:.1f}", f"{one['trunk_ratio']:.3f}", f"{one['trunk_ratio_in_rounds']:.3f}"]
            rows.append([f"{network.title} {mode}", *step, *trunk, bound, f"{one['p']:.3f}"])
        reporting.write(args.json, vars(args), results)
    header = ["", "step ms", ": none", "wall : none", "trunk ms", ": none", "in rounds", "at most", "p"]
    reporting.table(header, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
