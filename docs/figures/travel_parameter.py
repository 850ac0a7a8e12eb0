"""Draws docs/images/travel-parameter.svg: one matrix from its initial numbers to a checkpoint and another layout.

``python docs/figures/travel_parameter.py``. Which rank holds which box is asked of the run's own partition.
"""

from __future__ import annotations

from typing import Any

import torch
from svg import arrow, box, lines, path, text, write

from restrain.models.build import build_model
from restrain.parallel.held import Held
from restrain.parallel.layout import Layout
from restrain.parallel.partition import partition_of
from restrain.recipe import load
from restrain.run.manifest import file_name
from restrain.run.slices import Box, overlap

NAME = "blocks.0.attn.qkv.weight"
SOURCE, TARGET = Layout("fsdp", 4, 1, 4), Layout("fsdp", 4, 2, 2)
RECIPE = ["shakespeare_gpt", "model.shape={depth: 2, width: 64, heads: 4, context: 64}", "model.classes=65"]
KINDS = ("param", "exp_avg", "exp_avg_sq", "ema")
READER = 1  # the rank of the target whose reading is drawn

TALL, WIDE, TOP = 240, 116, 92  # of a matrix on the drawing, and where it begins
LEFTS = {"source": 62, "leaf": 226, "files": 366, "target": 612}
RIGHT, SLICE = 742, 174


def boxes(held: Held) -> list[Box]:
    """(offset, shape) of what a rank holds, in the whole."""
    return [(piece.offset, tuple(s.stop - s.start for s in piece.at)) for piece in held.pieces]


def holdings(model: Any, layout: Layout) -> list[Held]:
    return [partition_of(model, layout, rank).held(NAME, 2, rank) for rank in range(layout.world)]


def matrix(x: float, held: list[Held], title: str) -> list[str]:
    """The whole matrix, each rank's boxes in its colour."""
    rows, columns = held[0].shape
    parts = [text(x, TOP - 24, title, "head"), text(x, TOP - 9, f"[{rows}, {columns}], cut by rows", "small soft")]
    for rank, one in enumerate(held):
        for (row, column), (height, width) in boxes(one):
            y, left = TOP + TALL * row / rows, x + WIDE * column / columns
            parts.append(box(left, y, WIDE * width / columns, TALL * height / rows, f"c{rank}"))
            word = f"rank {rank}: {row} to {row + height - 1}"
            middle = (left + WIDE * width / columns / 2, y + TALL * height / rows / 2 + 4)
            parts.append(text(*middle, word, "small", "middle"))
    return parts


def thirds(x: float) -> list[str]:
    parts = []
    for number, word in enumerate(("queries", "keys", "values")):
        y = TOP + number * TALL / 3
        parts += [path(f"M{x - 5} {y + 2}h-5V{y + TALL / 3 - 2}h5")]
        parts.append(text(x - 15, y + TALL / 6 + 3, word, "small soft", "end"))
    return parts


def leaves(x: float, held: list[Held]) -> list[str]:
    """What a rank keeps: its part of the weights, of Adam's two moments and of the average, of one shape each."""
    parts = [text(x, TOP - 24, "in each rank", "head"), text(x, TOP - 9, "weights, moments, EMA", "small soft")]
    rows = held[0].shape[0]
    for rank, one in enumerate(held):
        (offset, shape), *_ = boxes(one)
        y, tall = TOP + TALL * offset[0] / rows, TALL * shape[0] / rows
        for number in reversed(range(len(KINDS))):
            parts.append(box(x + 5 * number, y + 3 + 3 * number, 40, tall - 18, f"c{rank}"))
        parts.append(text(x + 62, y + tall / 2, f"{shape[0]} x {shape[1]}", "small"))
    return parts


def files(x: float, held: list[Held]) -> list[str]:
    """The slices of a checkpoint, as its manifest has them."""
    parts = [
        text(x, TOP - 24, "in a checkpoint", "head"),
        text(x, TOP - 9, "slices of files, with their place in the whole", "small soft"),
    ]
    rows = held[0].shape[0]
    for rank, one in enumerate(held):
        (offset, shape), *_ = boxes(one)
        y, tall = TOP + TALL * offset[0] / rows, TALL * shape[0] / rows
        parts.append(box(x, y + 2, SLICE, tall - 4, f"c{rank}"))
        model, optim = (file_name(f"{NAME}|{kind}", rank) for kind in ("param", "exp_avg"))
        parts.append(lines(x + 8, y + 20, (model, optim, f"offset {list(offset)}, shape {list(shape)}"), "small", 15))
    return parts


def readings(source: list[Held], target: list[Held]) -> list[str]:
    """From which slices one rank of the other layout takes which of its rows."""
    parts, rows = [], target[0].shape[0]
    for wanted in boxes(target[READER]):
        for saved in (one for held in source for one in boxes(held)):
            if (common := overlap(saved, wanted)) is not None:
                y = TOP + TALL * (common[0][0] + common[1][0] / 2) / rows
                parts.append(arrow(LEFTS["files"] + SLICE + 2, y, LEFTS["target"] - 3, y))
                word = f"{common[0][0]} to {common[0][0] + common[1][0] - 1}"
                parts.append(text((LEFTS["files"] + LEFTS["target"] + SLICE) / 2, y - 4, word, "small", "middle"))
    return parts


def main() -> str:
    name, *overrides = RECIPE
    with torch.device("meta"):
        model = build_model(load(name, overrides).recipe.model.model_dump(), 0)
    source, target = holdings(model, SOURCE), holdings(model, TARGET)
    columns = source[0].shape[1]
    parts = [text(12, 18, f"{NAME} under AdamW, with a moving average", "head")]
    told = (
        f"Element (i, j) starts as a function of seed, name and i x {columns} + j: a rank makes those of its own boxes."
    )
    parts.append(text(12, 36, told, "small"))
    parts += matrix(LEFTS["source"], source, "fsdp of 4")
    parts += thirds(LEFTS["source"])
    parts += leaves(LEFTS["leaf"], source)
    parts += files(LEFTS["files"], source)
    parts += matrix(LEFTS["target"], target, "tensor 2 x fsdp 2")
    parts += readings(source, target)
    middle = TOP + TALL / 2
    parts.append(arrow(LEFTS["source"] + WIDE + 6, middle, LEFTS["leaf"] - 4, middle))
    parts.append(arrow(LEFTS["leaf"] + 106, middle, LEFTS["files"] - 4, middle))
    told = f"A rank reads what its own boxes share with the slices, and nothing else; the arrows are rank {READER}'s."
    parts.append(text(12, TOP + TALL + 26, told, "small"))
    label = "A matrix cut over four ranks by rows, its slices in a checkpoint, and the boxes that another layout reads."
    return write("travel-parameter.svg", RIGHT, TOP + TALL + 38, label, parts)


if __name__ == "__main__":
    main()
    print("written: docs/images/travel-parameter.svg")
