"""Progressive resizing: FFCV's sides, epoch by epoch, through the loader."""

import zlib

import numpy as np
import pytest
import torch

from restrain.data import sets
from restrain.data.mix import Mix
from restrain.data.progressive import Sides
from tests.data.making import contents, op, section, train_loader, write_shards


@pytest.mark.parametrize(
    "case",
    [
        (160, 192, 65, 76, 32),  # rn50_88
        (160, 192, 11, 13, 32),  # rn50_16
        (96, 256, 0, 40, 32),
        (128, 224, 3.5, 17.25, 16),
        (64, 65, 2, 9, 1),
        (160, 192, 5, 5, 32),
    ],
)
def test_sides_are_ffcvs(case):
    """Against the formula of their `get_resolution`: numpy's interpolation, rounded to the multiple."""
    first, last, begins, ends, multiple = case
    sides = Sides(*case)
    for epoch in range(100):
        line = np.interp([epoch], [begins, ends], [first, last]) if begins < ends else [(first, last)[epoch > begins]]
        assert sides(epoch) == int(np.round(line[0] / multiple)) * multiple
    assert all(first <= sides(epoch) <= sides(epoch + 1) <= last for epoch in range(99))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = write_shards(tmp_path_factory.mktemp("shards"), 4, 11)
    return sets.open_source(section("webdataset", root), "train", classes=5)


CROP = (
    op("random_resized_crop", scale=(0.3, 1.0), ratio=(0.75, 4 / 3), interpolation="bilinear"),
    op("flip", p=0.5),
    op("random_erasing", p=0.5, scale=(0.1, 0.3), ratio=(0.3, 3.0), fill="noise"),
)
SIDES = Sides(8, 16, 0, 4, 4)
SETTINGS = {"ops": CROP, "size": 16, "sides": SIDES, "stop": 25, "mix": Mix(1, 0.2, 1.0)}


def test_each_epoch_has_its_side(shards):
    seen = {}
    for batch in train_loader(shards, **SETTINGS):
        (micro,) = batch.micros
        seen[batch.epoch] = tuple(micro.images.shape[2:])
        assert micro.images.is_contiguous(memory_format=torch.channels_last)
        assert int(micro.mix.box.max()) <= SIDES(batch.epoch)
    assert seen == {0: (8, 8), 1: (8, 8), 2: (12, 12), 3: (16, 16), 4: (16, 16)}


def test_an_epoch_is_as_of_a_run_of_its_side(shards):
    """Buffers are made once, for the largest: what is in them is what a run of that side alone would hold."""
    straight = contents(train_loader(shards, **SETTINGS))
    for epoch in range(5):
        alone = {**SETTINGS, "size": SIDES(epoch), "sides": None, "start": 5 * epoch, "stop": 5 * epoch + 5}
        assert contents(train_loader(shards, **alone)) == [row for row in straight if row[1] == epoch]


@pytest.mark.parametrize(("world", "micro", "start"), [(1, 2, 0), (2, 4, 9), (4, 2, 12), (2, 2, 17)])
def test_worlds_and_restarts_in_the_ramp(shards, world, micro, start):
    straight = contents(train_loader(shards, **SETTINGS))
    parts = [
        train_loader(shards, world=world, rank=rank, micro=micro, start=start, threads=2, **SETTINGS)
        for rank in range(world)
    ]
    assert sorted(row for part in parts for row in contents(part)) == [row for row in straight if row[0] >= start]


def test_pixel_hashes(shards):
    for batch in train_loader(shards, pixels=True, **SETTINGS):
        for micro in batch.micros:
            rows = micro.images.permute(0, 2, 3, 1).contiguous().numpy()
            assert [zlib.crc32(row.tobytes()) for row in rows] == micro.pixels.tolist()


def test_buffers_are_made_once(shards):
    found = set()
    for batch in train_loader(shards, **SETTINGS):
        found.add(batch.micros[0].images.untyped_storage().data_ptr())
    assert len(found) <= 18
