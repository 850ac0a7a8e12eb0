"""Draws docs/images/augmentations.svg: 100,000 drawn parameters of each augmentation over as many of the reference's.

``python docs/figures/augmentations.py [N]`` prints the two-sample tests too. The reference is torchvision's or timm's
own code with its own generators (tests/data/references.py); tests/data/test_policies.py holds smaller samples to it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats
from torchvision import transforms

sys.path.append(str(Path(__file__).parents[2]))

from restrain import draws
from restrain.data.augment import colour, erasing, geometry, policies
from restrain.data.augment.base import Frame
from restrain.recipe.policy import parse_policy
from tests.data import references

IMAGE = Path(__file__).parents[1] / "images" / "augmentations.svg"
SIDE, M7 = 96, "rand-m7-mstd0.5-inc1"
ERASED = ((0.02, 1 / 3), (0.3, 10 / 3))


@dataclass(frozen=True)
class Panel:
    """A drawn parameter: values of ours and of the reference's, numbers or names."""

    title: str
    ours: np.ndarray
    theirs: np.ndarray

    @property
    def named(self) -> bool:
        return self.ours.dtype.kind == "U"

    def test(self) -> tuple[str, float, float]:
        """Which test, its p-value, and the largest difference: of a share, or of the distribution functions."""
        if self.named:
            a, b = Counter(self.ours.tolist()), Counter(self.theirs.tolist())
            names = sorted(set(a) | set(b))
            gap = max(abs(a[name] / len(self.ours) - b[name] / len(self.theirs)) for name in names)
            table = [[count[name] for name in names] for count in (a, b)]
            return "chi squared", float(stats.chi2_contingency(table).pvalue), gap
        found = stats.ks_2samp(self.ours, self.theirs, method="asymp")
        return "Kolmogorov-Smirnov", float(found.pvalue), float(found.statistic)


def panels(n: int) -> list[Panel]:
    """Every panel, from n images of ours and of each reference."""
    keys = [draws.key(2026, draws.Purpose.AUGMENT, 0, position, 0, 0) for position in range(n)]

    def steps(op) -> references.Drawn:
        return [[(step.name, step.argument) for step in op.params(key, SIDE, SIDE)] for key in keys]

    timm = steps(policies.TimmRandAugment(parse_policy(M7), (0, 0, 0))), references.timm_policy(M7, n)
    rand = steps(policies.RandAugment()), tabled(transforms.RandAugment(), n)
    trivial = steps(policies.TrivialAugment()), tabled(transforms.TrivialAugmentWide(), n)
    auto = steps(policies.AutoAugment()), tabled(transforms.AutoAugment(), n)
    crop = geometry.RandomResizedCrop(10)
    crops = np.array([crop.params(key, 375, 500) for key in keys]), references.crops(n, 375, 500)
    erase = erasing.RandomErasing(Frame(SIDE, (0.5,) * 3, (0.2,) * 3), 1.0, *ERASED)
    boxes = (
        np.array([erase.params(key, SIDE, SIDE)[:4] for key in keys]),
        references.erasing_boxes(n, SIDE, *ERASED),
    )
    jitter = [colour.ColorJitter(0.4, 0.4, 0.4, 0.1).params(key, 9, 9) for key in keys]
    jitters = jitter, references.color_jitter(n, 0.4, 0.4, 0.4, 0.1)

    def panel(title: str, pair: tuple, pick: Callable) -> Panel:
        return Panel(title, *(np.asarray(pick(drawn)) for drawn in pair))

    return [
        panel(f"{M7}: operations", timm, names),
        panel(f"{M7}: degrees", timm, lambda drawn: arguments(drawn, "Rotate")),
        panel(f"{M7}: brightness", timm, lambda drawn: arguments(drawn, "Brightness")),
        panel("RandAugment: operations", rand, names),
        panel("TrivialAugment: operations", trivial, names),
        panel("TrivialAugment: degrees", trivial, lambda drawn: arguments(drawn, "Rotate")),
        panel("TrivialAugment: contrast", trivial, lambda drawn: arguments(drawn, "Contrast")),
        panel("AutoAugment: operations", auto, names),
        panel("crop: share of the area", crops, lambda x: x[:, 2] * x[:, 3] / (375 * 500)),
        panel("crop: log of width / height", crops, lambda x: np.log(x[:, 3] / x[:, 2])),
        panel("crop: left edge", crops, lambda x: x[:, 1]),
        panel("erasing: share of the area", boxes, lambda x: x[:, 2] * x[:, 3] / SIDE**2),
        panel("erasing: top edge", boxes, lambda x: x[:, 0]),
        panel("colour jitter: brightness", jitters, lambda drawn: [factors[0] for _, factors in drawn]),
        panel("colour jitter: hue", jitters, lambda drawn: [factors[3] for _, factors in drawn]),
        panel("colour jitter: order", jitters, lambda drawn: ["".join("bcsh"[k] for k in order) for order, _ in drawn]),
    ]


def tabled(transform, n: int) -> references.Drawn:
    """torchvision's draws, as arguments of the operations."""
    drawn = references.torchvision_policy(transform, n, SIDE)
    found = [[policies.tabled(name, magnitude) for name, magnitude in one] for one in drawn]
    return [[(step.name, step.argument) for step in one] for one in found]


def names(drawn: references.Drawn) -> list[str]:
    return [name for one in drawn for name, _ in one]


def arguments(drawn: references.Drawn, wanted: str) -> list[float]:
    return [round(argument, 9) for one in drawn for name, argument in one if name == wanted]


def table(drawn: Sequence[Panel]) -> str:
    """A line a panel: the two-sample test and the largest difference."""
    lines = ["| drawn | values | test | p | largest difference |", "|---|---|---|---|---|"]
    for one in drawn:
        test, p, gap = one.test()
        lines.append(f"| {one.title} | {len(one.ours):,} | {test} | {p:.2f} | {gap:.4f} |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- the drawing

WIDTH, HEIGHT, LEFT, TOP, GAP, ACROSS = 220, 90, 16, 30, 44, 4
STYLE = """
text { font: 11px sans-serif; fill: #333 } .axis { stroke: #999; fill: none }
.reference { fill: #f0a868 } .ours { stroke: #1f4e79; stroke-width: 1.3; fill: none }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .ours { stroke: #9fd0ff } .reference { fill: #8a5a2b } }
"""


def heights(one: Panel) -> tuple[np.ndarray, np.ndarray, tuple[str, str]]:
    """Bars of ours and of the reference's, the highest 1, and what stands under the ends."""
    if one.named:
        kinds = sorted(set(one.ours.tolist()) | set(one.theirs.tolist()))
        bars = [np.array([(values == kind).mean() for kind in kinds]) for values in (one.ours, one.theirs)]
        ends = (kinds[0], kinds[-1])
    else:
        low, high = min(one.ours.min(), one.theirs.min()), max(one.ours.max(), one.theirs.max())
        kinds = len(np.unique(one.theirs))
        edges = np.linspace(low, high + 1e-9, 1 + min(40, 61 if kinds > 40 else kinds))
        bars = [np.histogram(values, edges)[0] / len(values) for values in (one.ours, one.theirs)]
        ends = (f"{low:.3g}", f"{high:.3g}")
    top = max(bar.max() for bar in bars)
    return bars[0] / top, bars[1] / top, ends


def picture(one: Panel, number: int) -> str:
    ours, theirs, (low, high) = heights(one)
    step = WIDTH / len(ours)
    bars = "".join(
        f'<rect class="reference" x="{n * step:.1f}" y="{HEIGHT * (1 - h):.1f}" width="{step:.1f}" '
        f'height="{HEIGHT * h:.1f}"/>'
        for n, h in enumerate(theirs)
    )
    line = "".join(f"V{HEIGHT * (1 - h):.1f}H{(n + 1) * step:.1f}" for n, h in enumerate(ours))
    x, y = LEFT + number % ACROSS * (WIDTH + GAP), TOP + number // ACROSS * (HEIGHT + GAP + 8)
    return (
        f'<g transform="translate({x},{y})"><text y="-8">{one.title}</text>{bars}'
        f'<path class="ours" d="M0,{HEIGHT}{line}V{HEIGHT}"/><path class="axis" d="M0,{HEIGHT}H{WIDTH}"/>'
        f'<text y="{HEIGHT + 14}">{low}</text><text x="{WIDTH}" y="{HEIGHT + 14}" text-anchor="end">{high}</text></g>'
    )


def drawing(drawn: Sequence[Panel], n: int) -> str:
    rows = -(-len(drawn) // ACROSS)
    width, height = LEFT + ACROSS * (WIDTH + GAP), TOP + rows * (HEIGHT + GAP + 8)
    note = f"{n:,} images each: bars, drawn by torchvision and timm; line, drawn from keys"
    body = "".join(picture(one, number) for number, one in enumerate(drawn))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{note}">'
        f'<style>{STYLE}</style>{body}<text x="{LEFT}" y="{height - 6}">{note}</text></svg>\n'
    )


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    found = panels(count)
    if count == 100_000:
        IMAGE.write_text(drawing(found, count))
    print(table(found))
