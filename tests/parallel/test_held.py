"""What ranks hold of a tensor: together the whole, each element as often as there are copies, and saved once."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from restrain.errors import UserError
from restrain.parallel.held import Held, cut_along, index_of
from restrain.parallel.layout import Layout, layout_of
from restrain.parallel.partition import chunk
from restrain.parallel.world import World
from restrain.recipe import load


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_the_ranks_hold_the_whole(rows: int, cols: int, shards: int, tensors: int, parts: int, by_inputs: bool) -> None:
    units = rows * tensors
    shape = (cols, units) if by_inputs else (parts * units, cols)
    counted = torch.arange(math.prod(shape)).view(shape)
    seen = Counter()
    for tensor in range(tensors):
        segments = [
            (k * units + tensor * rows, k * units + (tensor + 1) * rows) for k in range(1 if by_inputs else parts)
        ]
        for shard in range(shards):
            first = shape[0] if by_inputs else parts * rows
            low, high = chunk(first, shard, shards)
            held = cut_along(shape, 1 if by_inputs else 0, segments, (low, high), 1, True)
            local = torch.full((high - low, rows if by_inputs else cols), -1)
            held.fill(local, lambda part, offset: part.copy_(counted[index_of(offset, part.shape)]))
            assert (local >= 0).all()
            for part, offset in held.saved(local):
                index = tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))
                assert torch.equal(counted[index], part)
                seen.update(part.flatten().tolist())
    assert seen == Counter(range(counted.numel()))


def test_coordinates() -> None:
    layout = Layout("hsdp", 8, tensor=2, shard=2)
    assert (layout.data, layout.replicas) == (4, 2)
    assert [layout.place(rank) for rank in range(8)] == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1),
    ]  # fmt: skip
    assert layout.tensor_group(5) == [4, 5]
    assert layout.data_group(5) == [1, 3, 5, 7]
    assert layout.rows(World(rank=5, size=8)).rank == 2


def parallel(*words: str):
    return load("digits_resnet20", list(words)).recipe.parallel


@pytest.mark.parametrize(
    ("words", "size", "told"),
    [
        (["parallel.tensor=3"], 4, r"tensor=3 does not divide the 4 process.*1, 2, 4 work"),
        (["parallel.strategy=hsdp"], 4, r"groups of 4 .* on 4 data-parallel.*Sizes that work: 2"),
        (["parallel.strategy=hsdp", "parallel.shard=3"], 4, r"groups of 3 .*Sizes that work: 2"),
        (["parallel.strategy=hsdp"], 3, r"No size works here: take fsdp"),
        (["parallel.shard=2"], 4, r"shard=2 is the size of a group of hsdp, and parallel\.strategy is auto"),
        (["parallel.strategy=single"], 2, r"strategy=single, but there are 2 processes"),
    ],
)
def test_what_does_not_divide_is_refused(words: list[str], size: int, told: str) -> None:
    with pytest.raises(UserError, match=told):
        layout_of(parallel(*words), World(size=size, local_size=size))


def test_a_whole_scalar() -> None:
    held: Held = cut_along((), None, (), None, 4, False)
    assert held.saved(torch.tensor(1.0)) == []
