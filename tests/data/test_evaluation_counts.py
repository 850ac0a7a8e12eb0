"""Evaluation counts are exact: every N from 1 to 1,001 on 1 to 16 ranks, by the loader's own jobs; and whole runs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from restrain.data import augment
from restrain.data.loader import EvalLoader
from tests import worlds
from tests.bad_input.harness import AUGMENT, RECIPE
from tests.data.making import write_shards
from tests.data.test_loader import eval_loader


def jobs(counts, rank, world, batch):
    """What a rank would read: its loader's jobs, nothing decoded."""
    source = SimpleNamespace(counts=np.asarray(counts), channels=3, names=[])
    loader = EvalLoader(source, augment.eval_pipeline(1, 1), rank=rank, world=world, batch=batch, threads=1)
    return loader, list(loader._jobs())


def seen(counts, world, batch):
    """(shard, j) of the valid rows of all ranks, in the order of rank and batch; checks that lengths are equal."""
    rows, lengths = [], set()
    for rank in range(world):
        loader, found = jobs(counts, rank, world, batch)
        lengths.add((len(loader), len(found)))
        for job in found:
            assert job.rows == batch
            keep = job.valid
            rows += zip(job.index[keep].tolist(), job.shard[keep].tolist(), job.j[keep].tolist(), strict=True)
    assert len(lengths) == 1
    (length,) = lengths
    assert length[0] == length[1]
    return rows


@pytest.mark.parametrize("world", range(1, 17))
def test_every_sample_is_counted_once_for_any_number_of_them(world):
    for samples in range(1, 1002):
        batch = -(-min(samples, 64 * world) // world)  # as a run does: no rows of padding alone
        first = samples // 3
        counts = [n for n in (first, samples - first) if n]
        rows = sorted(seen(counts, world, batch))
        assert [index for index, _, _ in rows] == list(range(samples))
        if samples % 97 == 0:  # which shard a number is of: now and then, since it is slow to compare
            assert [(s, j) for _, s, j in rows] == [(s, j) for s, n in enumerate(counts) for j in range(n)]


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_any_batch(batch):
    for samples in (1, 2, 63, 64, 65, 1001):
        for world in (1, 3, 16):
            assert sorted(index for index, _, _ in seen([samples], world, batch)) == list(range(samples))


@pytest.mark.parametrize("samples", [1, 3, 17])
def test_read_and_decoded_as_well(tmp_path, samples):
    from restrain.data import sets
    from tests.data.making import section

    root = write_shards(tmp_path, 1, samples, prefix="val")
    source = sets.open_source(section("webdataset", root), "eval", classes=5)
    for world in (1, 4, 16):
        labels = {}
        for rank in range(world):
            for one in eval_loader(source, world=world, rank=rank, batch=2, threads=1):
                keep = one.valid.tolist()
                labels |= {i: n for i, n, k in zip(one.index.tolist(), one.labels.tolist(), keep, strict=True) if k}
        assert labels == {n: n % 5 for n in range(samples)}


@pytest.mark.slow
def test_accuracy_is_that_of_one_process_to_the_last_digit(tmp_path):
    """37 pictures, prime, through the training code on 1, 2 and 4 ranks: counts are whole numbers, so equal."""
    write_shards(tmp_path / "set", 2, 8, classes=2)
    write_shards(tmp_path / "set", 1, 37, prefix="val", classes=2)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE)
    words = ["data.name=webdataset", AUGMENT, f"data.root={tmp_path / 'set'}", "length=1st", "evaluate.every=1st"]
    words += ["batch.group=1", "precision=fp64", "evaluate.batch=5"]
    found = []
    for world in (1, 2, 4):
        run = tmp_path / f"on-{world}"
        ended = worlds.train(run, [*words, "batch.micro=1"], world, recipe=str(recipe))
        assert ended.codes == [0] * world, ended.text
        line = worlds.lines(run / "metrics.jsonl")[-1]
        found.append(json.dumps([line["eval/count"], line["eval/top1"]]))
        assert line["eval/count"] == 37
        assert line["eval/top1"] * 37 / 100 == pytest.approx(round(line["eval/top1"] * 37 / 100), abs=1e-9)
    assert len(set(found)) == 1, found
