"""How many collectives a step issues under each layout, and that the host waits for none of its values."""

import json
from pathlib import Path

import pytest

from tests import worlds
from tests.parallel.parity import COMMON, LAYOUTS, MODELS

STEP = ["length=4st", "evaluate.every=4st", "checkpoint.every=4st", "ema=null"]
BLOCKS = 3  # of the transformer
FSDP = LAYOUTS["fsdp"][1]


def counted(folder: Path, words: list[str], ranks: int = 2) -> list[dict[str, int]]:
    recipe, *overrides = words
    file = folder / "counts.jsonl"
    faults = {
        rank: [("count_collectives", {"path": str(file if rank == 0 else folder / "other")})] for rank in range(ranks)
    }
    settings = [*COMMON, "batch.global=48", "batch.group=4", *STEP]
    ended = worlds.train(folder / "run", [*overrides, *settings], ranks, faults, recipe=recipe)
    assert set(ended.codes) == {0}, ended.text
    return worlds.lines(file)


@pytest.mark.parametrize(("reshard", "gathers"), [(True, 2), (False, 1)])
def test_fsdp_gathers_a_block_for_each_pass(tmp_path: Path, reshard: bool, gathers: int) -> None:
    words = [*MODELS["vit"], *FSDP, f"parallel.reshard={json.dumps(reshard)}"]
    for step in counted(tmp_path, words):
        assert step["gather"] == gathers * (BLOCKS + 1)  # the root, stem and head, is gathered like one
        assert step["scatter"] == BLOCKS + 1
        assert step["reduce"] == 1  # loss, counts, flags, norm and ledger


def test_micro_steps_reduce_once(tmp_path: Path) -> None:
    for step in counted(tmp_path, [*MODELS["vit"], *FSDP, "batch.micro=8"]):
        assert step["gather"] == 3 * 2 * (BLOCKS + 1)
        assert step["scatter"] == BLOCKS + 1


def test_a_dropped_block_is_not_gathered(tmp_path: Path) -> None:
    steps = counted(tmp_path, [*MODELS["vit"], *FSDP, "model.drop_path={rate: 0.6, mode: batch}"])
    assert len({step["skipped"] for step in steps}) > 1
    for step in steps:
        assert step["gather"] == 2 * (BLOCKS + 1 - step["skipped"])


def test_batch_norm_statistics_are_one_reduction(tmp_path: Path) -> None:
    for step in counted(tmp_path, [*MODELS["resnet"], *FSDP]):
        assert step["reduce"] == 2  # the statistics, and the vector


def test_tensor_parallel_reduces_a_branch_twice(tmp_path: Path) -> None:
    for step in counted(tmp_path, [*MODELS["vit"], *LAYOUTS["tensor 2"][1]]):
        assert step["reduce"] == 2 * 2 * BLOCKS + 1  # two branches, forward and backward; the vector
        assert "gather" not in step


@pytest.mark.parametrize("layout", ["fsdp", "ddp"])
def test_the_host_waits_for_nothing(tmp_path: Path, layout: str) -> None:
    faults = {rank: [("forbid_synchronisation", {})] for rank in range(2)}
    settings = [*COMMON, "batch.global=48", "batch.group=4", *STEP, "ema={decay: 0.9}", "clip=0.5"]
    recipe, *words = MODELS["resnet"]
    ended = worlds.train(tmp_path / "run", [*words, *settings, *LAYOUTS[layout][1]], 2, faults, recipe=recipe)
    assert set(ended.codes) == {0}, ended.text
