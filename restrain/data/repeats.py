"""Repeated augmentation (Hoffer et al. 2020, arXiv:1901.09335): where in a step the copies of a sample stand."""

from __future__ import annotations

import numpy as np

from restrain.errors import UserError


def dealt(batch: int, group: int, repeats: int) -> np.ndarray:
    """Which of a step's rows, the copies of a sample being neighbours, stands in each row: int64 [batch].

    Blocks of ``repeats`` groups (the last of up to twice as many) are filled in turn, each row of a block going to the
    block's next group. So copies are near each other, and their sample is read by few ranks, but in different groups.
    """
    groups = batch // group
    firsts = [repeats * block for block in range(groups // repeats)]
    sizes = [b - a for a, b in zip(firsts, [*firsts[1:], groups], strict=True)]
    blocks = [
        group * first + np.arange(group * size, dtype=np.int64).reshape(group, size).T.reshape(-1)
        for first, size in zip(firsts, sizes, strict=True)
    ]
    return np.concatenate(blocks)


def check_repeats(batch: int, group: int, repeats: int) -> None:
    """Raises UserError, naming the sizes that work, when copies of a sample cannot all be in different groups."""
    if repeats > 1 and repeats * group > batch:
        works = [size for size in range(1, batch // repeats + 1) if batch % size == 0]
        sizes = f"Groups that work: {', '.join(map(str, works[-8:]))}. " if works else ""
        raise UserError(
            f"data.repeats={repeats}: the copies of an image go to different groups, and a step of "
            f"batch.global={batch} has {batch // group} of batch.group={group}. {sizes}With these groups, data.repeats "
            f"is at most {batch // group}."
        )
