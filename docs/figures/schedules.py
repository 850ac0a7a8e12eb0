"""Draws docs/images/schedules.svg: three published schedules as recipes say them, over the reference's own scheduler.

``python docs/figures/schedules.py`` prints the largest differences too; tests/optim/test_schedules.py holds both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from restrain.optim import schedules
from restrain.recipe.schema_optim import Schedule

IMAGE = Path(__file__).parents[1] / "images" / "schedules.svg"


@dataclass(frozen=True)
class Published:
    """A schedule: its base rate, epochs, the section of a recipe, and the reference's rate at each step [steps]."""

    title: str
    lr: float
    epochs: int
    section: dict[str, Any]
    reference: Callable[[int], np.ndarray]

    def ours(self, per_epoch: int, **change: Any) -> np.ndarray:
        """Restrain's learning rate at each step, of the section with ``change`` over it."""
        section = TypeAdapter(Schedule).validate_python(self.section | change)
        total = self.epochs * per_epoch
        rates = [schedules.factor(section, t, steps_per_epoch=per_epoch, total_steps=total) for t in range(total)]
        return self.lr * np.array(rates)


def one_weight(lr: float) -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rsb_a2(per_epoch: int) -> np.ndarray:
    """timm's scheduler, asked at the start of each epoch."""
    optimizer = one_weight(5e-3)
    theirs = CosineLRScheduler(optimizer, 300, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4)
    rates = []
    for epoch in range(300):
        theirs.step(epoch)
        rates += per_epoch * [optimizer.param_groups[0]["lr"]]
    return np.array(rates)


def torchvision_v2(per_epoch: int) -> np.ndarray:
    """torch's schedulers as torchvision's script chains them, stepped after each epoch."""
    optimizer = one_weight(0.5)
    parts = [LinearLR(optimizer, start_factor=0.01, total_iters=5), CosineAnnealingLR(optimizer, T_max=595)]
    theirs = SequentialLR(optimizer, parts, milestones=[5])
    rates = []
    for _ in range(600):
        rates += per_epoch * [optimizer.param_groups[0]["lr"]]
        optimizer.step()
        theirs.step()
    return np.array(rates)


def ffcv_rn50_88(per_epoch: int) -> np.ndarray:
    """FFCV's formula: a triangle over epochs, interpolated again inside of each."""
    corners = np.interp(np.arange(89), [0, 2, 88], [1e-4 * 1.7, 1.7, 0.0])
    inside = np.arange(per_epoch)
    return np.concatenate([np.interp(inside, [0, per_epoch], corners[e : e + 2]) for e in range(88)])


TIMMS = {"per": "epoch", "warmup_prefix": False, "warmup_from": 0.02, "final": 2e-4}
PUBLISHED = [
    Published("RSB A2", 5e-3, 300, {"name": "cosine", "warmup": "5ep", **TIMMS}, rsb_a2),
    Published(
        "torchvision V2",
        0.5,
        600,
        {"name": "cosine", "warmup": "5ep", "warmup_from": 0.01, "per": "epoch"},
        torchvision_v2,
    ),
    Published("FFCV rn50-88", 1.7, 88, {"name": "one_cycle", "peak": "2ep", "start": 1e-4}, ffcv_rn50_88),
]


def difference(published: Published, per_epoch: int, **change: Any) -> tuple[float, float]:
    """Largest difference of the rate at any step, and at the first of any epoch, as shares of the base rate."""
    gap = np.abs(published.ours(per_epoch, **change) - published.reference(per_epoch)) / published.lr
    return float(gap.max()), float(gap[::per_epoch].max())


def table(per_epoch: int) -> str:
    lines = ["| schedule | keys | at any step | at epoch starts |", "|---|---|---|---|"]
    for one in PUBLISHED:
        variants: list[tuple[str, dict[str, Any]]] = [("as published", {})]
        if "per" in one.section:
            variants.append(("per: step", {"per": "step"}))
        if "warmup_prefix" in one.section:
            variants.append(("per: step, warmup_prefix: true", {"per": "step", "warmup_prefix": True}))
        for keys, change in variants:
            whole, starts = difference(one, per_epoch, **change)
            lines.append(f"| {one.title} | {keys} | {whole:.1e} | {starts:.1e} |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- the drawing

WIDTH, HEIGHT, LEFT, TOP, GAP = 240, 130, 46, 30, 64
STYLE = """
text { font: 11px sans-serif; fill: #333 } .axis { stroke: #999; fill: none }
.reference { stroke: #f0a868; stroke-width: 6; fill: none } .ours { stroke: #1f4e79; stroke-width: 1.3; fill: none }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .ours { stroke: #9fd0ff } .reference { stroke: #8a5a2b } }
"""


def path(values: Sequence[float], kind: str, top: float) -> str:
    """A line through equidistant values, 0 to ``top``, over the whole panel."""
    x = np.linspace(0, WIDTH, len(values))
    points = " ".join(f"{a:.1f},{HEIGHT - HEIGHT * b / top:.1f}" for a, b in zip(x, values, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def panel(one: Published, place: tuple[int, int], epochs: int, per_epoch: int) -> str:
    """The first ``epochs`` epochs; a long run is drawn by the starts of its epochs."""
    ours, theirs = one.ours(per_epoch), one.reference(per_epoch)
    every = 1 if epochs < 20 else per_epoch
    lines = [
        path(rates[: epochs * per_epoch : every].tolist(), kind, 1.05 * one.lr)
        for rates, kind in ((theirs, "reference"), (ours, "ours"))
    ]
    x, y = LEFT + place[0] * (WIDTH + GAP), TOP + place[1] * (HEIGHT + GAP)
    title = one.title if place[1] == 0 else f"its first {epochs} epochs"
    return (
        f'<g transform="translate({x},{y})"><text y="-8">{title}</text>'
        f'<path class="axis" d="M0,0V{HEIGHT}H{WIDTH}"/>{"".join(lines)}'
        f'<text x="-6" y="{HEIGHT - HEIGHT / 1.05 + 4:.0f}" text-anchor="end">{one.lr:g}</text>'
        f'<text x="-6" y="{HEIGHT + 4}" text-anchor="end">0</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 16}" text-anchor="end">epoch {epochs}</text></g>'
    )


def drawing(per_epoch: int = 20) -> str:
    """The figure: whole runs above, their beginnings below."""
    panels = [panel(one, (n, 0), one.epochs, per_epoch) for n, one in enumerate(PUBLISHED)]
    panels += [panel(one, (n, 1), 8, per_epoch) for n, one in enumerate(PUBLISHED)]
    width, height = LEFT + 3 * (WIDTH + GAP), TOP + 2 * (HEIGHT + GAP)
    note = "learning rate over epochs: thick, the reference's own scheduler; thin, the recipe's"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{note}">'
        f'<style>{STYLE}</style>{"".join(panels)}<text x="{LEFT}" y="{height - 8}">{note}</text></svg>\n'
    )


if __name__ == "__main__":
    IMAGE.write_text(drawing())
    print(table(per_epoch=625))
