"""The steps of decoding on a device, taken by the CPU's backend: the host's crops, replacements and ledger. On a GPU
the same is held to a grey level or two."""

import numpy as np
import pytest
import torch

from restrain.data import augment, gpu
from restrain.data.images import resolve_decoder
from restrain.data.sets import open_source
from restrain.errors import UserError, WorldError

from .making import CROP, jpeg, op, section, train_loader, write_shards, write_tar

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(name)


def rows(loader) -> list[tuple]:
    return [
        (batch.step, micro.row + i, int(micro.labels[i]), int(micro.prefix[i]), micro.images[i].cpu().numpy().copy())
        for batch in loader
        for micro in batch.micros
        for i in range(len(micro.labels))
    ]


@pytest.mark.parametrize("name", DEVICES)
def test_rows_are_those_of_the_host(tmp_path, name):
    write_shards(tmp_path / "set", 3, 8)
    source = open_source(section("webdataset", tmp_path / "set"), "train", classes=5)
    host, there = (rows(train_loader(source, micro=4, device=where)) for where in (None, device(name)))
    assert [row[:4] for row in there] == [row[:4] for row in host]
    worst = max(np.abs(a[4].astype(int) - b[4]).max() for a, b in zip(host, there, strict=True))
    assert worst <= (2 if name == "cpu" else 12)  # these are noise, where a GPU's chroma differs most


@pytest.mark.parametrize("name", DEVICES)
def test_photographs_differ_by_less_than_a_grey_level_on_average(shared_data, name):
    root = shared_data / "imagenet-sample"
    source = open_source(section("webdataset", root), "train")
    fields = {"size": 224, "batch": 32, "group": 32, "stop": 2}
    host, there = (rows(train_loader(source, device=where, **fields)) for where in (None, device(name)))
    differences = [np.abs(a[4].astype(int) - b[4]).mean() for a, b in zip(host, there, strict=True)]
    assert np.mean(differences) < (0.1 if name == "cpu" else 1.0)


@pytest.mark.parametrize("name", DEVICES)
def test_bad_samples_are_replaced_as_on_the_host(tmp_path, name):
    pictures = [jpeg(n) if n not in (3, 4) else b"\xff\xd8\xffno" for n in range(8)]
    members = [m for n, data in enumerate(pictures) for m in ((f"{n}.jpg", data), (f"{n}.cls", b"1"))]
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set/train-0.tar", members)
    source = open_source(section("webdataset", tmp_path / "set"), "train", classes=5)
    found = []
    for where in (None, device(name)):
        batches = list(train_loader(source, batch=8, device=where))
        found.append([[(one.j, one.used_j) for one in batch.replaced] for batch in batches])
        found.append([batch.micros[0].prefix.tolist() for batch in batches])
    assert found[0] == found[2]
    assert sorted(found[0][0]) == [(3, 5), (4, 5)]
    assert found[1] == found[3]


def test_nothing_but_bad_samples(tmp_path):
    members = [m for n in range(12) for m in ((f"{n}.jpg", b"\xff\xd8\xffno"), (f"{n}.cls", b"1"))]
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set/train-0.tar", members)
    source = open_source(section("webdataset", tmp_path / "set"), "train", classes=5)
    with pytest.raises(WorldError, match="No usable sample"):
        list(train_loader(source, batch=8, device=torch.device("cpu")))


def test_what_only_the_host_can_is_refused():
    gpu.check(augment.train_pipeline(CROP, 224))
    for ops in ((), (op("flip", p=0.5),), (*CROP, op("color_jitter", brightness=1, contrast=0, saturation=0, hue=0))):
        with pytest.raises(UserError, match=r"data\.decode=gpu decodes for data\.augment"):
            gpu.check(augment.train_pipeline(ops, 224))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch finds no CUDA device"):
            resolve_decoder("gpu")
