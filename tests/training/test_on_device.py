"""Batches that are copied beside the computation: the same contents. Needs a CUDA device."""

import pytest
import torch

from restrain.data.sets import open_source
from restrain.training.on_device import OnDevice
from tests.data.making import contents, section, train_loader, write_shards


@pytest.mark.gpu
def test_contents_are_those_of_the_loader(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    write_shards(tmp_path / "set", 3, 8)
    source = open_source(section("webdataset", tmp_path / "set"), "train", classes=5)
    loader = train_loader(source, pin=True, stop=40)
    found = []
    for batch in OnDevice(loader, torch.device("cuda")):
        torch.cuda._sleep(1_000_000)  # the device lags behind, as in training
        assert all(micro.images.is_cuda and micro.labels.is_cuda for micro in batch.micros)
        for micro in batch.micros:
            micro.images, micro.labels = micro.images.cpu(), micro.labels.cpu()
        found += contents([batch])
    assert found == contents(train_loader(source, stop=40))
