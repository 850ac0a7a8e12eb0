"""Draws docs/images/memory.svg: resident memory over ten epochs of the token loader, and of the image loader.

``python docs/figures/memory.py [SHARDS]``: SHARDS is a folder of ``train-*.tar`` photographs; without it the tokens
alone are drawn. Prints the memory at the end of each epoch. Linux only.

Tokens are mapped: a page of the shards counts as resident once it was read, so a first epoch grows by the size of the
set, however much memory is free. The broken line leaves those pages out.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from restrain.data import augment, sets
from restrain.data.loader import TrainLoader
from restrain.data.order import Order, Plan, resolve_shuffle
from restrain.data.text.loader import TokenLoader
from restrain.data.text.raw import describe
from restrain.data.text.source import TokenSource

IMAGE = Path(__file__).parents[1] / "images" / "memory.svg"
EPOCHS, SAMPLES = 10, 20  # SAMPLES: measurements an epoch
TOKENS = 20_000_000


def resident() -> tuple[float, float]:
    """(all, without mapped files): resident memory of this process in MB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    whole, files = (int(fields[name].split()[0]) / 1e3 for name in ("VmRSS", "RssFile"))
    return whole, whole - files


def watch(loader: TrainLoader) -> np.ndarray:
    """Resident memory (all, without mapped files) in MB, [EPOCHS x SAMPLES, 2]."""
    steps = len(loader)
    wanted = set(np.linspace(0, steps - 1, EPOCHS * SAMPLES).astype(int).tolist())
    return np.array([resident() for batch in loader if batch.step in wanted])


def planned(source: Any, batch: int) -> tuple[Order, Plan]:
    samples = int(source.counts.sum())
    order = Order(source.counts, 0, *resolve_shuffle(samples))
    return order, Plan(samples, batch, batch, order.lanes)


def token_loader(folder: Path, tokens: int = TOKENS, batch: int = 64) -> TokenLoader:
    np.random.default_rng(0).integers(0, 50257, tokens, dtype="<u2").tofile(folder / "train-000000.bin")
    describe(folder, "u16", 50257, None)
    source = TokenSource(folder, "train-*.bin", 1024, documents=True)
    order, plan = planned(source, batch)
    stop = EPOCHS * plan.steps_per_epoch
    return TokenLoader(source, order, plan, rank=0, world=1, micro=batch, start=0, stop=stop, threads=2)


def image_loader(folder: str, batch: int = 4, side: int = 160) -> TrainLoader:
    section: Any = SimpleNamespace(name="webdataset", root=folder, train="train-*.tar", eval=None, cache=None)
    source: Any = sets.open_source(section, "train")
    order, plan = planned(source, batch)
    crop = SimpleNamespace(
        name="random_resized_crop", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation="bilinear"
    )
    pipeline = augment.train_pipeline([crop], side)
    stop = EPOCHS * plan.steps_per_epoch
    return TrainLoader(
        source, order, plan, pipeline, seed=0, rank=0, world=1, micro=batch, start=0, stop=stop, threads=2
    )


# ---------------------------------------------------------------------------------------------------------- the drawing

WIDTH, HEIGHT, LEFT, TOP, GAP = 320, 150, 52, 30, 70
STYLE = """
text { font: 11px sans-serif; fill: #333 } .axis { stroke: #999; fill: none }
.all { stroke: #1f4e79; stroke-width: 1.6; fill: none } .own { stroke: #1f4e79; stroke-dasharray: 4 3; fill: none }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .all, .own { stroke: #9fd0ff } }
"""


def panel(title: str, measured: np.ndarray, column: int) -> str:
    top = 1.15 * float(measured.max())

    def line(values: Sequence[float], kind: str) -> str:
        x = np.linspace(0, WIDTH, len(values))
        points = " ".join(f"{a:.1f},{HEIGHT - HEIGHT * b / top:.1f}" for a, b in zip(x, values, strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    return (
        f'<g transform="translate({LEFT + column * (WIDTH + GAP)},{TOP})">'
        f'<path class="axis" d="M0 0V{HEIGHT}H{WIDTH}"/><text x="0" y="-8">{title}</text>'
        f'<text x="-6" y="8" text-anchor="end">{top:.0f}</text>'
        f'<text x="-6" y="{HEIGHT}" text-anchor="end">0</text><text x="0" y="{HEIGHT + 16}">0</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 16}" text-anchor="end">{EPOCHS} epochs</text>'
        f"{line(measured[:, 0].tolist(), 'all')}{line(measured[:, 1].tolist(), 'own')}</g>"
    )


def drawing(panels: Sequence[tuple[str, np.ndarray]]) -> str:
    width, height = LEFT + len(panels) * (WIDTH + GAP), TOP + HEIGHT + 50
    note = "Resident memory of the process in MB; broken: without mapped files."
    body = "".join(panel(title, measured, i) for i, (title, measured) in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{note}">'
        f'<style>{STYLE}</style>{body}<text x="{LEFT}" y="{height - 8}">{note}</text></svg>\n'
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        panels = [(f"tokens: {TOKENS // 10**6} M, context 1024", watch(token_loader(Path(folder))))]
    if sys.argv[1:]:
        loader = image_loader(sys.argv[1])
        panels.append((f"photographs: {int(loader.source.counts.sum()):,}, crops of 160", watch(loader)))
    for title, measured in panels:
        ends = measured.reshape(EPOCHS, SAMPLES, 2)[:, -1]
        print(f"{title}\n  all:     {' '.join(f'{mb:.0f}' for mb in ends[:, 0])} MB at the ends of the epochs")
        print(f"  unmapped {' '.join(f'{mb:.0f}' for mb in ends[:, 1])} MB")
    IMAGE.write_text(drawing(panels))


if __name__ == "__main__":
    main()
