"""Draws docs/images/travel-batch.svg: one step's samples, groups, ranks and micro-batches, and what ranks add up.

``python docs/figures/travel_batch.py``. Which row is where is asked of the run's own order and plan.
"""

from __future__ import annotations

from svg import arrow, box, lines, path, text, write

from restrain.data.order import Order, Plan, ranks_a_group
from restrain.parallel.layout import Layout
from restrain.training.vector import FIELDS, WIDTH

SAMPLES, BATCH, GROUP, STEP = 1437, 16, 4, 2  # the digits, in small steps
PLAN = Plan(SAMPLES, BATCH, GROUP, lanes=1)
ORDER = Order([SAMPLES], seed=0, lanes=1, window=SAMPLES)

LEFT, CELL, RIGHT = 168, 36, 12
WIDE = LEFT + BATCH * CELL + RIGHT
STRIPS = (  # layout, micro-batch, what it is
    (Layout("single", 1), 4, ("1 process", "4 micro-batches of 4")),
    (Layout("ddp", 2, 1, 1), 8, ("2 processes", "1 micro-batch of 8 each")),
    (Layout("fsdp", 4, 1, 4), 4, ("4 processes", "1 micro-batch of 4 each")),
    (Layout("fsdp", 4, 2, 2), 4, ("4 processes, tensor of 2", "pairs see the same rows")),
    (Layout("fsdp", 8, 1, 8), 2, ("8 processes", "a group lies over two")),
)


def samples(y: float) -> list[str]:
    """The step's positions, the samples that stand there, and the groups that they are cut into."""
    epoch, groups = PLAN.groups(STEP)
    _, numbers = ORDER(epoch, groups.reshape(-1))
    parts = [
        text(LEFT - 12, y + 16, "position in the epoch", "small soft", "end"),
        text(LEFT - 12, y + 31, "sample", "small soft", "end"),
    ]
    for row, (position, number) in enumerate(zip(groups.reshape(-1).tolist(), numbers.tolist(), strict=True)):
        x = LEFT + row * CELL
        parts.append(box(x + 1, y, CELL - 2, 38, f"c{row // GROUP}"))
        parts.append(text(x + CELL / 2, y + 16, str(position), "small soft", "middle"))
        parts.append(text(x + CELL / 2, y + 31, str(number), "", "middle"))
    for group in range(BATCH // GROUP):
        x = LEFT + group * GROUP * CELL
        parts.append(path(f"M{x + 3} {y + 44}v4h{GROUP * CELL - 6}v-4"))
        parts.append(text(x + GROUP * CELL / 2, y + 61, f"group {group}", "small", "middle"))
    return parts


def strip(y: float, layout: Layout, micro: int, words: tuple[str, str]) -> list[str]:
    """Who computes which rows under one layout, under the samples themselves."""
    parts = [text(LEFT - 12, y + 14, words[0], "", "end"), text(LEFT - 12, y + 28, words[1], "small soft", "end")]
    for rank in range(layout.data):
        _, cut = PLAN.local(STEP, rank, layout.data, micro)
        first, rows = cut[0][0], sum(len(positions) for _, positions in cut)
        parts.append(box(LEFT + first * CELL + 1, y, rows * CELL - 2, 34))
        ranks = [r for r in range(layout.world) if r // layout.tensor == rank]
        name = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}, {ranks[1]}"
        parts.append(text(LEFT + (first + rows / 2) * CELL, y + 12, name, "small", "middle"))
        for begin, positions in cut:
            parts += pieces(y + 17, begin, len(positions))
    if (ranks := ranks_a_group(BATCH, GROUP, layout.data)) > 1:
        for group in range(BATCH // GROUP):
            middle, reach = LEFT + (group + 0.5) * GROUP * CELL, GROUP * CELL / ranks / 2
            parts.append(path(f"M{middle - reach} {y + 36}v5h{2 * reach}v-5"))
    return parts


def pieces(y: float, first: int, rows: int) -> list[str]:
    """A micro-batch: its rows, each in the colour of its group, without a gap between them."""
    parts, row = [], first
    while row < first + rows:
        stop = min(first + rows, (row // GROUP + 1) * GROUP)
        left = 4 if row == first else 0
        right = 4 if stop == first + rows else 0
        parts.append(box(LEFT + row * CELL + left, y, (stop - row) * CELL - left - right, 12, f"c{row // GROUP} full"))
        row = stop
    return parts


def together(y: float) -> list[str]:
    """What ranks add up in a step."""
    third = (WIDE - 24 - 2 * 12) / 3
    told = (
        ("gradients", ("averaged over ranks once, after", "the last micro-batch's backward pass")),
        ("sums of BatchNorm", ("written down a group at a time,", "one reduction, one update a step")),
        ("the step's vector", ("one reduction of 16 numbers (below),", "read by the host a step later")),
    )
    parts = []
    for number, (title, rows) in enumerate(told):
        x = 12 + number * (third + 12)
        parts += [box(x, y, third, 54), text(x + 10, y + 18, title, "head"), lines(x + 10, y + 33, rows, "small", 13)]
    return parts


def vector(y: float) -> list[str]:
    """The one vector of a step, field by field."""
    limbs = (WIDTH - len(FIELDS)) // 2
    wide = (WIDE - 24) / WIDTH
    parts = []
    for number, name in enumerate([*FIELDS, *(f"{part}" for part in range(2 * limbs))]):
        x = 12 + number * wide
        is_hash = number >= len(FIELDS)
        kind = f"c{2 + (number - len(FIELDS)) // limbs}" if is_hash else "c0" if number < 3 else "c1"
        parts.append(box(x + 1, y, wide - 2, 22, kind))
        word = f"limb {int(name) % limbs}" if is_hash else {"grad_norm": "norm²"}.get(name, name)
        parts.append(text(x + wide / 2, y + 15, word, "tiny", "middle"))
    ends = ((0, 3, "known on the device"), (3, len(FIELDS), "known on the host"))
    ends += ((len(FIELDS), len(FIELDS) + limbs, "ledger's hash"), (len(FIELDS) + limbs, WIDTH, "hash of the pixels"))
    for start, stop, word in ends:
        parts.append(text(12 + (start + stop) / 2 * wide, y + 36, word, "small soft", "middle"))
    return parts


def main() -> str:
    parts = [
        text(
            12, 18, f"Step {STEP + 1} of an epoch of {SAMPLES:,} samples: {BATCH} of them, in groups of {GROUP}", "head"
        )
    ]
    parts += samples(28)
    parts.append(text(12, 118, "The same rows on any number of processes: whole groups, or equal parts of one", "head"))
    y = 128
    for layout, micro, words in STRIPS:
        parts += strip(y, layout, micro, words)
        y += 46
    parts.append(text(LEFT, y + 8, "joined below: statistics of a group are exchanged", "small soft"))
    middle = WIDE / 2
    parts += [arrow(middle, y + 14, middle, y + 34), text(middle + 10, y + 27, "forward and backward", "small")]
    parts += together(y + 40)
    parts += vector(y + 106)
    parts += [arrow(middle, y + 148, middle, y + 166)]
    parts += [box(12, y + 170, WIDE - 24, 26)]
    parts.append(
        text(
            middle,
            y + 187,
            "clip, guard, optimizer, moving average: every rank decides alike, and updates what it holds",
            "",
            "middle",
        )
    )
    label = (
        "One step: samples in order, cut into groups, the groups over ranks and micro-batches, and what ranks add up."
    )
    return write("travel-batch.svg", WIDE, y + 206, label, parts)


if __name__ == "__main__":
    main()
    print("written: docs/images/travel-batch.svg")
