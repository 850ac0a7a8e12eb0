"""Batches: the same on any world, from any start, with any threads; faults replaced or refused, never dropped."""

import random
import threading

import numpy as np
import pytest
import torch

from restrain import draws
from restrain.data import augment, sets
from restrain.data.expected import expected
from restrain.data.loader import EvalLoader
from restrain.data.mix import Mix
from restrain.errors import UserError, WorldError
from tests.data.making import contents, jpeg, op, section, train_loader, write_folder, write_shards, write_tar

WORLDS = [(1, 8, 1), (1, 2, 3), (2, 4, 2), (2, 2, 1), (4, 2, 4)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = write_shards(tmp_path_factory.mktemp("shards"), 4, 11)
    return sets.open_source(section("webdataset", root), "train", classes=5)


@pytest.fixture(scope="module")
def digits():
    return sets.open_source(section("digits"), "train", classes=10)


def digits_loader(source, **fields):
    fields = {"stop": 30, "ops": [op("shift", pixels=1)], "size": 8, "batch": 32, "group": 8, **fields}
    return train_loader(source, **fields)


@pytest.mark.parametrize(("world", "micro", "threads"), WORLDS)
def test_the_same_rows_on_any_world(shards, world, micro, threads):
    straight = contents(train_loader(shards))
    parts = [train_loader(shards, world=world, rank=r, micro=micro, threads=threads) for r in range(world)]
    assert sorted(row for part in parts for row in contents(part)) == straight
    assert {len(part) for part in parts} == {10}


def test_lanes_change_nothing_about_worlds(shards):
    settings = {"lanes": 3, "window": 4}
    straight = contents(train_loader(shards, **settings))
    assert straight != contents(train_loader(shards))
    parts = [contents(train_loader(shards, world=2, rank=r, **settings)) for r in range(2)]
    assert sorted(parts[0] + parts[1]) == straight


def test_resuming_gives_the_rest_of_the_straight_run(shards):
    """Cut at each step, with another world, micro-batch and number of threads each time; bytes and all."""
    straight = contents(train_loader(shards))
    for start in range(1, 10):
        world, micro, threads = WORLDS[start % len(WORLDS)]
        rest = []
        for rank in range(world):
            loader = train_loader(shards, world=world, rank=rank, micro=micro, threads=threads, start=start)
            assert len(loader) == 10 - start
            rest += contents(loader)
        assert sorted(rest) == [row for row in straight if row[0] >= start]


def test_each_row_is_its_sample_under_its_key(shards):
    """Recomputed without the loader: order, read, decode, augment by (seed, AUGMENT, epoch, position, copy 0)."""
    loader = train_loader(shards, seed=11, world=2, rank=1, micro=2)
    out = np.empty(loader.pipeline.shape, np.uint8)
    for batch in loader:
        epoch, parts = loader.plan.local(batch.step, 1, 2, 2)
        for micro, (_, positions) in zip(batch.micros, parts, strict=True):
            for i, position in enumerate(positions.tolist()):
                shard, j = (int(x[0]) for x in loader.order(epoch, positions[i : i + 1]))
                sample = shards.read(shard, j)
                loader.pipeline(sample.data, draws.key(11, draws.Purpose.AUGMENT, epoch, position, 0), out)
                assert np.array_equal(micro.images[i].permute(1, 2, 0).numpy(), out)
                assert int(micro.labels[i]) == sample.label
                assert int(micro.prefix[i]) == draws.key(shard, j, sample.crc, epoch)


def test_images_are_channels_last_uint8(shards):
    batch = next(iter(train_loader(shards)))
    images = batch.micros[0].images
    assert images.shape == (8, 3, 12, 12)
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert batch.micros[0].labels.dtype == torch.int64
    assert batch.wait > 0
    assert batch.replaced == []


@pytest.mark.parametrize("which", ["shards", "digits"])
def test_the_ledger_can_be_recomputed(which, request):
    source = request.getfixturevalue(which)
    make = train_loader if which == "shards" else digits_loader
    loader = make(source, world=2, rank=1, micro=4 if which == "shards" else 16)
    other = make(source, world=2, rank=0, micro=4 if which == "shards" else 8)
    audit = expected(loader.order, loader.plan, source.crcs)
    for batches in zip(loader, other, strict=True):
        total = 0
        for batch, one in zip(batches, (loader, other), strict=True):
            epoch, parts = one.plan.local(batch.step, one.rank, 2, one.micro)
            assert epoch == batch.epoch
            for micro, (row, positions) in zip(batch.micros, parts, strict=True):
                assert micro.row == row
                total += int(draws.extend(micro.prefix, positions).sum(dtype=np.uint64))
        assert total % 2**64 == audit(batches[0].step)


def test_digits_in_one_go_equal_one_by_one(digits, monkeypatch):
    together = contents(digits_loader(digits, stop=60))
    monkeypatch.setattr("restrain.data.loader.batched", lambda *_: False)
    assert contents(digits_loader(digits, stop=60)) == together


def test_no_generator_is_drawn_from(shards, digits, monkeypatch):
    straight = contents(train_loader(shards)), contents(digits_loader(digits))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def forbidden(*_, **__):
        raise AssertionError("a global generator was drawn from")

    for name in (
        "random",
        "uniform",
        "randint",
        "randrange",
        "choice",
        "shuffle",
        "gauss",
        "betavariate",
        "getrandbits",
    ):
        monkeypatch.setattr(random, name, forbidden)
    for name in ("rand", "random", "uniform", "randint", "choice", "shuffle", "permutation", "normal", "beta", "seed"):
        monkeypatch.setattr(np.random, name, forbidden)
    for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "manual_seed"):
        monkeypatch.setattr(torch, name, forbidden)
    for name in ("uniform_", "normal_", "random_", "bernoulli_", "exponential_"):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    mixed = train_loader(shards, mix=Mix(3, mixup=0.2, cutmix=1.0))
    assert (contents(train_loader(shards)), contents(digits_loader(digits))) == straight
    assert contents(mixed) == straight[0]
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_mixing_draws_do_not_depend_on_the_world(shards):
    def rows(**fields):
        out = {}
        for batch in train_loader(shards, mix=Mix(3, mixup=0.2, cutmix=1.0, off=8), **fields):
            for micro in batch.micros:
                if micro.mix is None:
                    assert batch.step >= 8
                    continue
                for i in range(len(micro.labels)):
                    partner = micro.row + int(micro.mix.partner[i])
                    out[batch.step, micro.row + i] = (partner, float(micro.mix.own[i]), micro.mix.box[i].tolist())
        return out

    straight = rows()
    assert len(straight) == 8 * 8
    for world, micro, _ in WORLDS:
        parts = [rows(world=world, rank=rank, micro=micro) for rank in range(world)]
        assert {k: v for part in parts for k, v in part.items()} == straight


def test_pixels_are_of_what_is_handed_over(shards):
    import zlib

    for batch in train_loader(shards, pixels=True, stop=3):
        for micro in batch.micros:
            rows = micro.images.permute(0, 2, 3, 1).contiguous().numpy()
            assert [zlib.crc32(row.tobytes()) for row in rows] == micro.pixels.tolist()


def test_a_batch_in_use_is_never_overwritten(shards):
    """The last two batches stay as they were handed over, whatever the threads do (device copies are asynchronous)."""
    held = []
    for batch in train_loader(shards, threads=4):
        now = contents([batch])
        for old, was in held:
            assert contents([old]) == was
        held = [*held[-1:], (batch, now)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_survive_their_asynchronous_copies(shards):
    straight = contents(train_loader(shards))
    copied = []
    for batch in train_loader(shards, pin=True, threads=4):
        assert batch.micros[0].images.is_pinned()
        copied.append(batch.micros[0].images.to("cuda", non_blocking=True))
    torch.cuda.synchronize()
    rows = torch.cat(copied).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    assert [row.tobytes() for row in rows] == [row[-1] for row in straight]


def test_worlds_that_do_not_divide(shards):
    with pytest.raises(UserError, match="3 processes cannot share"):
        train_loader(shards, world=3)
    with pytest.raises(UserError, match=r"batch\.micro=3: .* Sizes that work: 2, 4, 8\."):
        train_loader(shards, micro=3)
    train_loader(shards, world=8, micro=1).close()
    with pytest.raises(UserError, match="mixup and cutmix need whole groups on each process"):
        train_loader(shards, world=8, micro=1, mix=Mix(3, mixup=0.2))


def test_leaving_early_joins_the_threads(shards):
    before = threading.active_count()
    for start in (0, 3):
        loader = train_loader(shards, start=start)
        for _ in loader:
            break
        loader.close()
    iterator = iter(train_loader(shards))
    next(iterator)
    iterator.close()
    assert threading.active_count() == before


def bad_set(root, bad, shards=2, samples=20, data=b"no image"):
    """Shards in which the samples ``bad`` = (shard, j) cannot be decoded."""
    root.mkdir(exist_ok=True)
    for shard in range(shards):
        members = []
        for j in range(samples):
            image = data if (shard, j) in bad else jpeg(shard * samples + j)
            members += [(f"k{shard}-{j:02d}.jpg", image), (f"k{shard}-{j:02d}.cls", b"1")]
        write_tar(root / f"train-{shard}.tar", members)
        write_tar(root / f"val-{shard}.tar", members)
    return [sets.open_source(section("webdataset", root), split, classes=5) for split in ("train", "eval")]


def test_bad_samples_are_replaced_the_same_on_any_world(tmp_path):
    source, _ = bad_set(tmp_path, {(0, 3), (0, 4), (1, 19)})
    straight = contents(train_loader(source))
    replaced = [r for batch in train_loader(source) for r in batch.replaced]
    assert {(r.shard, r.j, r.used_j) for r in replaced} == {(0, 3, 5), (0, 4, 5), (1, 19, 0)}
    assert replaced[0].reason.startswith("cannot be decoded")
    assert {r.key for r in replaced} == {"k0-03", "k0-04", "k1-19"}
    for world, micro, threads in WORLDS:
        parts = [train_loader(source, world=world, rank=r, micro=micro, threads=threads) for r in range(world)]
        assert sorted(row for part in parts for row in contents(part)) == straight
    loader = train_loader(source)
    swaps = {(r.shard, r.j): r.used_j for r in replaced}
    audit = expected(loader.order, loader.plan, source.crcs, swaps)
    for batch in loader:
        _, parts = loader.plan.local(batch.step, 0, 1, 8)
        assert int(draws.extend(batch.micros[0].prefix, parts[0][1]).sum(dtype=np.uint64)) == audit(batch.step)


def test_bit_rot_is_replaced_in_training_and_refused_in_evaluation(tmp_path):
    source, _ = bad_set(tmp_path, set())
    for split in ("train", "val"):
        path = tmp_path / f"{split}-1.tar"
        data = bytearray(path.read_bytes())
        data[source.index.span(1, 7)[0] + 700] ^= 1
        path.write_bytes(data)
    assert {r.reason for batch in train_loader(source) for r in batch.replaced} == {
        "its bytes are not those that were indexed (checksum)"
    }
    evaluation = sets.open_source(section("webdataset", tmp_path), "eval", classes=5)
    with pytest.raises(WorldError, match=r"Evaluation stopped: sample 7 .* of val-1\.tar: .*checksum"):
        list(eval_loader(evaluation))


def test_the_budget_of_bad_samples(tmp_path):
    source, _ = bad_set(tmp_path, {(0, j) for j in range(6)})
    with pytest.raises(
        WorldError, match=r"Too many bad samples: 11 of \d+ had to be replaced; data.max_bad=0.0001 allows 10"
    ):
        list(train_loader(source, stop=20))
    assert len(list(train_loader(source, stop=20, max_bad=0.5))) == 20


def test_nothing_but_bad_samples(tmp_path):
    source, _ = bad_set(tmp_path, {(s, j) for s in range(2) for j in range(20)})
    with pytest.raises(
        WorldError, match=r"No usable sample: sample \d+ \(k\d-\d\d\) of train-\d\.tar: cannot be decoded"
    ):
        list(train_loader(source))


def test_a_label_out_of_range_stops_and_names_its_sample(tmp_path):
    write_shards(tmp_path, 1, 10, classes=8)
    source = sets.open_source(section("webdataset", tmp_path), "train", classes=5)
    with pytest.raises(UserError, match=r"sample s0000\d of train-000\.tar has label \d, and model\.classes=5"):
        list(train_loader(source))


def test_images_of_different_sizes_are_one_clear_error(tmp_path):
    write_folder(tmp_path / "train", {"a": 5, "b": 4})
    (tmp_path / "train" / "b" / "odd.jpg").write_bytes(jpeg(1, 16, 16))
    source = sets.open_source(section("folder", tmp_path), "train", classes=2)
    with pytest.raises(UserError, match=r"An image is 20 x 16 pixels .*\[sample \d \([ab]/\d\.jpg\) of [ab]\]"):
        list(train_loader(source, ops=[op("pad_crop", padding=2)], size=16))


def test_an_unforeseen_error_names_its_sample(shards, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(augment.Flip, "apply", broken)
    with pytest.raises(
        WorldError, match=r"Reading sample \d+ \(s\d+\) of train-00\d\.tar failed: ZeroDivisionError: oh"
    ):
        list(train_loader(shards))


def eval_loader(source, *, world=1, rank=0, batch=7, threads=2, size=12, **fields):
    pipeline = augment.eval_pipeline(size, None if source.channels == 1 else 14, channels=source.channels)
    return EvalLoader(source, pipeline, rank=rank, world=world, batch=batch, threads=threads, **fields)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 48])
@pytest.mark.parametrize("batch", [1, 7, 100])
def test_evaluation_sees_each_sample_once(shards, world, batch):
    """44 samples; also on more ranks than samples."""
    straight = {
        int(i): x.numpy().tobytes() for b in eval_loader(shards) for i, x in zip(b.index, b.images, strict=True)
    }
    seen, lengths = [], set()
    for rank in range(world):
        loader = eval_loader(shards, world=world, rank=rank, batch=batch)
        batches = 0
        for one in loader:
            batches += 1
            assert one.images.shape == (batch, 3, 12, 12)
            for i in torch.nonzero(one.valid)[:, 0].tolist():
                seen.append(int(one.index[i]))
                assert one.images[i].numpy().tobytes() == straight[seen[-1]]
        assert batches == len(loader)
        lengths.add(batches)
    assert sorted(seen) == list(range(44))
    assert len(lengths) == 1


def test_evaluation_may_be_repeated_and_left(shards):
    loader = eval_loader(shards)
    first = [(b.index.tolist(), b.valid.tolist(), b.labels.tolist()) for b in loader]
    for _ in loader:
        break
    assert [(b.index.tolist(), b.valid.tolist(), b.labels.tolist()) for b in loader] == first
    loader.close()


def test_evaluation_of_digits():
    source = sets.open_source(section("digits"), "eval", classes=10)
    labels = [int(label) for b in eval_loader(source, size=8, batch=50) for label in b.labels[b.valid]]
    assert labels == source.rows(np.zeros(360, int), np.arange(360))[1].tolist()


def test_undecodable_images_are_left_out_of_the_evaluation(tmp_path):
    _, source = bad_set(tmp_path, {(1, 19), (0, 2)})
    batches = []
    for one in eval_loader(source, batch=16):
        batches.append(one)
        assert not one.images[~one.valid].any()  # no pixels of a batch before
    assert [(b.shard, b.j, b.key) for one in batches for b in one.bad] == [(0, 2, "k0-02"), (1, 19, "k1-19")]
    assert sum(int(one.valid.sum()) for one in batches) == 38  # the padding repeats (1, 19): not counted again
    _, source = bad_set(tmp_path / "worse", {(0, j) for j in range(11)})
    with pytest.raises(WorldError, match="11 of 40 had to be left out of the evaluation"):
        list(eval_loader(source))
