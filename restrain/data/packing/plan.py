"""Which samples stand in which shard, and where: a function of listing, seed and sizes, never of workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from restrain import draws
from restrain.data.packing.items import Item
from restrain.data.tars import BLOCK

PURPOSE = draws.name_key("restrain data pack")


@dataclass(frozen=True)
class Shard:
    """A shard to write: its name, its samples in order."""

    name: str
    items: list[Item]


def permuted(split: str, items: list[Item], seed: int | None) -> list[Item]:
    """The samples in the order of the shards. Without a seed in that of the source.

    The permutation is of the samples in byte order of their keys, so the order of a directory does not matter.
    """
    if seed is None:
        return items
    ordered = sorted(items, key=lambda item: item.key.encode())
    order = draws.permutation(len(ordered), seed, PURPOSE, draws.name_key(split))
    return [ordered[i] for i in order]


def cut(split: str, items: list[Item], shard_size: int, ratio: float = 1.0) -> list[Shard]:
    """Shards of about ``shard_size`` bytes, all about equally long; samples are whole.

    ratio: what encoding anew is expected to leave of an image.
    """
    sizes = np.array([stored_size(item, ratio) for item in items], np.int64)
    ends = np.cumsum(sizes)
    count = max(1, -(-int(ends[-1]) // shard_size))
    shard_of = (ends - sizes) * count // int(ends[-1])
    borders = np.flatnonzero(np.diff(shard_of, prepend=-1))
    parts = [items[a:b] for a, b in zip(borders, [*borders[1:], len(items)], strict=True)]
    return [Shard(f"{split}-{number:06d}.tar", part) for number, part in enumerate(parts)]


def stored_size(item: Item, ratio: float = 1.0) -> int:
    """Bytes of a sample in a tar: its files, each behind a header and padded."""
    sizes = (int(part.size * ratio) if part.image else part.size for part in item.parts)
    return sum(BLOCK + -(-size // BLOCK) * BLOCK for size in sizes)
