"""Draws docs/images/travel-block.svg: when a rank of fsdp holds which blocks, over one step.

``python docs/figures/travel_block.py``. What is drawn is what happened: a small network is laid over the first of four
ranks, whose others are made up by torch's ``fake`` process group, and one step with a dropped block is watched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from svg import box, path, text, write
from torch import nn
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.testing._internal.distributed.fake_pg import FakeStore

from restrain.models import residual_blocks
from restrain.models.build import build_model
from restrain.parallel.layout import Layout
from restrain.parallel.sharded import Sharded
from restrain.recipe import load

WORLD, SKIPPED = 4, "blocks.2"
ROOT = "stem and head"
RECIPE = ["shakespeare_gpt", "model.shape={depth: 4, width: 64, heads: 4, context: 64}", "model.classes=65"]


@dataclass
class Watched:
    """``events``: (what, whose), in the order in which a rank issued them. ``sizes``: (whole, held) elements."""

    events: list[tuple[str, str]] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


def watch() -> Watched:
    """One step of four blocks on four ranks, of which the third block is left out."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
    try:
        name, *overrides = RECIPE
        with torch.device("meta"):
            model = build_model(load(name, overrides).recipe.model.model_dump(), 0)
        engine = Sharded(model, Layout("fsdp", WORLD, 1, WORLD), 0, torch.device("cpu"))
        engine.materialise(torch.device("cpu"), 0)
        found = Watched(sizes=_sizes(engine))
        names = {id(_group(block)): name for name, block in [*residual_blocks(model), (ROOT, model)]}
        with _listening(found.events, names):
            _step(engine)
        return found
    finally:
        dist.destroy_process_group()


def _group(module: nn.Module) -> Any:
    return module._get_fsdp_state()._fsdp_param_group  # pyright: ignore


def _sizes(engine: Sharded) -> dict[str, tuple[int, int]]:
    whole = {name: p.numel() for name, p in engine.whole().named_parameters()}
    held = {name: leaf.numel() for name, leaf in engine.leaves()}
    owners = {
        name: next((b for b, _ in residual_blocks(engine.model) if name.startswith(f"{b}.")), ROOT) for name in held
    }
    return {
        owner: tuple(sum(of[name] for name in held if owners[name] == owner) for of in (whole, held))  # pyright: ignore
        for owner in dict.fromkeys([ROOT, *owners.values()])
    }


class _listening:
    """Writes down what FSDP2 does while it is open, by its own methods."""

    def __init__(self, events: list[tuple[str, str]], names: dict[int, str]):
        self.events, self.names, self.inside = events, names, ""
        self.before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        self._wrap("pre_forward", after=lambda name: self.events.append(("forward", name)))
        self._wrap("pre_backward", after=lambda name: self.events.append(("backward", name)))
        self._wrap("reshard", before=lambda name: self.events.append(("release", name)))
        for method in ("unshard", "post_backward"):
            self._wrap(method)
        self._collective("gather", "all_gather_single", "all_gather_into_tensor")
        self._collective("scatter", "reduce_scatter_single", "reduce_scatter_tensor")

    def __exit__(self, *_: object) -> None:
        for owner, key, original in self.before:
            setattr(owner, key, original)

    def _wrap(
        self, key: str, before: Callable[[str], None] | None = None, after: Callable[[str], None] | None = None
    ) -> None:
        original = getattr(FSDPParamGroup, key)

        def wrapped(group: Any, *args: Any, **options: Any) -> Any:
            name, outer = self.names[id(group)], self.inside
            self.inside = name
            if before is not None and group.is_unsharded:
                before(name)
            result = original(group, *args, **options)
            if after is not None:
                after(name)
            self.inside = outer
            return result

        self.before.append((FSDPParamGroup, key, original))
        setattr(FSDPParamGroup, key, wrapped)

    def _collective(self, kind: str, *keys: str) -> None:
        key = next(key for key in keys if hasattr(dist, key))
        original = getattr(dist, key)

        def wrapped(*args: Any, **options: Any) -> Any:
            self.events.append((kind, self.inside))
            return original(*args, **options)

        self.before.append((dist, key, original))
        setattr(dist, key, wrapped)


def _step(engine: Sharded) -> None:
    model = engine.model.train()
    model.get_submodule(SKIPPED).skipped = True  # pyright: ignore[reportArgumentType]
    engine.clear()
    with engine.micro_step(last=True):
        logits = engine.net(torch.zeros(2, 64, dtype=torch.long))
        engine.backward(logits.float().logsumexp(-1).sum(-1), torch.ones(2))
    engine.gradients()


# ---------------------------------------------------------------------------------------------------------- the drawing

LEFT, ROW, TOP, SHARD = 112, 40, 46, 7
WIDTHS = {"gather": 17, "forward": 46, "backward": 62, "scatter": 17, "release": 0}
CURVE = 84


def timeline(found: Watched) -> list[tuple[str, str, float, float]]:
    """(what, whose, from, to) along the drawing; a root computes around its blocks and has no time of its own."""
    x, placed = float(LEFT), []
    for what, name in found.events:
        wide = 20 if name == ROOT and what in ("forward", "backward") else WIDTHS[what]
        placed.append((what, name, x, x + wide))
        x += wide
    return placed


def held(name: str, placed: list[tuple[str, str, float, float]], sizes: tuple[int, int]) -> list[tuple[float, int]]:
    """(where, change) of the elements of weights that the rank has of one block, whole ones beside its share."""
    return [
        (start, sizes[0] if what == "gather" else -sizes[0])
        for what, owner, start, _ in placed
        if owner == name and what in ("gather", "release")
    ]


def rows(found: Watched, placed: list[tuple[str, str, float, float]], half: float) -> list[str]:
    end, parts = placed[-1][3], []
    for number, name in enumerate(found.sizes):
        y = TOP + number * ROW
        floor = y + ROW - 8
        parts += [text(LEFT - 10, y + 22, name, "", "end")]
        parts.append(box(LEFT, floor - SHARD, end - LEFT, SHARD, "c0 full"))
        mine = [(what, start, stop) for what, owner, start, stop in placed if owner == name]
        opened = [start for what, start, _ in mine if what == "gather"]
        closed = [start for what, start, _ in mine if what == "release"]
        for start, stop in zip(opened, closed, strict=True):
            parts.append(box(start, floor - 28, stop - start, 28 - SHARD, "c0"))
        for what, start, stop in mine:
            if what in ("gather", "scatter"):
                parts.append(
                    box(
                        start + 1,
                        floor - 28,
                        stop - start - 2,
                        28 - SHARD,
                        "c1 full" if what == "gather" else "c2 full",
                    )
                )
            elif what in ("forward", "backward") and name != ROOT:
                parts.append(text((start + stop) / 2, floor - 14, what, "small", "middle"))
        if name == SKIPPED:
            words = "dropped in this step: never gathered, its gradient is zero"
            parts.append(text(half + 10, floor - 13, words, "small soft"))
    return parts


def curve(found: Watched, placed: list[tuple[str, str, float, float]], y: float) -> list[str]:
    """Elements of weights in the rank's memory."""
    whole = sum(size for size, _ in found.sizes.values())
    now = sum(size for _, size in found.sizes.values())
    share, end = now, placed[-1][3]
    changes = sorted(change for name, sizes in found.sizes.items() for change in held(name, placed, sizes))

    def at(amount: float) -> float:
        return y + CURVE - CURVE * amount / whole

    d = f"M{LEFT} {at(now):.1f}"
    for x, change in changes:
        now += change
        d += f"H{x:.1f}V{at(now):.1f}"
    d += f"H{end:.1f}"
    return [
        path(f"M{LEFT} {y}V{y + CURVE}H{end}"),
        path(f"M{LEFT} {at(whole):.1f}H{end}", "dash"),
        f'<path class="c0" style="fill-opacity:.18;stroke:none" d="{d}V{y + CURVE}H{LEFT}z"/>',
        f'<path class="c0" style="fill:none;stroke-width:1.6" d="{d}"/>',
        text(LEFT - 10, at(whole) + 4, "whole model", "small", "end"),
        text(LEFT - 10, at(share) + 3, "its share", "small", "end"),
        text(end, at(whole) - 5, f"weights in this rank's memory, of {whole:,}", "small soft", "end"),
    ]


def main() -> str:
    found = watch()
    placed = timeline(found)
    end, bottom = placed[-1][3], TOP + len(found.sizes) * ROW
    half = [start for what, name, start, _ in placed if (what, name) == ("gather", ROOT)][1]
    parts = [
        text(LEFT, 18, "One step of a rank of four: fsdp, stochastic depth of mode batch", "head"),
        text((LEFT + half) / 2, 38, "forward", "soft", "middle"),
        text((half + end) / 2, 38, "backward", "soft", "middle"),
        path(f"M{half:.1f} 28V{bottom}", "dash"),
        *rows(found, placed, half),
        *curve(found, placed, bottom + 24),
    ]
    x, y = LEFT, bottom + 24 + CURVE + 24
    legend = (
        ("c0 full", "a rank's share, at rest"),
        ("c1 full", "all-gather"),
        ("c0", "whole weights of a block"),
        ("c2 full", "reduce-scatter of its gradient"),
    )
    for kind, words in legend:
        parts += [box(x, y - 9, 14, 10, kind), text(x + 20, y, words, "small")]
        x += 34 + 5.2 * len(words)
    label = "A block is gathered before it computes and let go after it, forward and backward; a dropped one never is."
    return write("travel-block.svg", end + 14, y + 12, label, parts)


if __name__ == "__main__":
    main()
    print("written: docs/images/travel-block.svg")
