"""A run of elements of a flattened tensor as boxes of it."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from restrain.parallel.held import index_of
from restrain.parallel.stretch import boxes, stretch

SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


@st.composite
def runs(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = draw(SHAPES)
    size = math.prod(shape)
    start = draw(st.integers(0, size))
    return shape, start, draw(st.integers(start, size))


@given(runs())
def test_boxes_hold_the_elements_in_their_order(run: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, stop = run
    whole = torch.arange(math.prod(shape)).view(shape)
    parts = [
        whole[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))].reshape(-1)
        for offset, size in boxes(shape, start, stop)
    ]
    found = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
    assert found.tolist() == list(range(start, stop))
    assert len(parts) <= max(1, 2 * len(shape) - 1)


@given(runs())
def test_slices_and_fill_are_each_others_inverse(run: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, stop = run
    whole = torch.randn(shape)
    held, local = stretch(shape, start, stop), torch.zeros(stop - start)
    held.fill(local, lambda part, offset: part.copy_(whole[index_of(offset, part.shape)]))
    assert torch.equal(local, whole.reshape(-1)[start:stop])
    again = torch.full(shape, math.nan)
    for part, offset in held.saved(local):
        again[tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))] = part
    assert torch.equal(again.reshape(-1)[start:stop], local)
    assert again.isnan().sum() == whole.numel() - (stop - start)
    filled = torch.zeros_like(local)
    held.fill(
        filled,
        lambda view, offset: view.copy_(whole[tuple(slice(o, o + n) for o, n in zip(offset, view.shape, strict=True))]),
    )
    assert torch.equal(filled, local)
