"""How many collectives a step issues under each layout, and that the host waits for none of its values.

Counted where they enter torch's process group (:mod:`restrain.bench.collectives`), so DDP's own count too.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import worlds
from tests.parallel.parity import COMMON, LAYOUTS, MODELS

STEP = ["length=4st", "evaluate.every=4st", "checkpoint.every=4st", "ema=null"]
BLOCKS = 3  # of the transformer
RESIDUAL = 9  # of the ResNet
FSDP = LAYOUTS["fsdp"][1]
ALL = ["ema={decay: 0.9}", "clip=0.5"]  # what else a step may do with values of the device


def counted(folder: Path, words: list[str], ranks: int = 2, misled: str = "") -> list[dict[str, Any]]:
    """Of each step of rank 0; ``misled``: what it does besides (tests.planted)."""
    recipe, *overrides = words
    file = folder / "counts.jsonl"
    faults: dict[int, list[worlds.Fault]] = {
        rank: [("count_collectives", {"path": str(file if rank == 0 else folder / "other")})] for rank in range(ranks)
    }
    if misled:
        for planted in faults.values():
            planted.insert(0, ("misled", {"how": misled}))
    settings = [*COMMON, "batch.global=48", "batch.group=4", *STEP]
    ended = worlds.train(folder / "run", [*overrides, *settings], ranks, faults, recipe=recipe)
    assert set(ended.codes) == {0}, ended.text
    found = worlds.lines(file)
    assert len(found) == 4
    return found


@pytest.mark.parametrize(("reshard", "gathers"), [(True, 2), (False, 1)])
def test_fsdp_gathers_a_block_for_each_pass(tmp_path: Path, reshard: bool, gathers: int) -> None:
    words = [*MODELS["vit"], *FSDP, f"parallel.reshard={json.dumps(reshard)}"]
    for step in counted(tmp_path, words):
        assert step["all-gather"] == gathers * (BLOCKS + 1)  # the root, stem and head, is gathered like one
        assert step["reduce-scatter"] == BLOCKS + 1
        assert step["all-reduce"] == 1  # loss, counts, flags, norm and ledger


def test_micro_steps_reduce_once(tmp_path: Path) -> None:
    for step in counted(tmp_path, [*MODELS["vit"], *FSDP, "batch.micro=8"]):
        assert step["all-gather"] == 3 * 2 * (BLOCKS + 1)
        assert step["reduce-scatter"] == BLOCKS + 1


def test_a_dropped_block_is_not_gathered(tmp_path: Path) -> None:
    steps = counted(tmp_path, [*MODELS["vit"], *FSDP, "model.drop_path={rate: 0.6, mode: batch}"])
    assert len({step["skipped"] for step in steps}) > 1
    for step in steps:
        assert step["all-gather"] == 2 * (BLOCKS + 1 - step["skipped"])


def test_batch_norm_statistics_are_one_reduction(tmp_path: Path) -> None:
    for step in counted(tmp_path, [*MODELS["resnet"], *FSDP]):
        assert step["all-reduce"] == 2  # the statistics, and the vector
        assert step["all-gather"] == 2 * step["reduce-scatter"] == 2 * (RESIDUAL + 1)


def test_ddp_reduces_its_buckets_and_no_more(tmp_path: Path) -> None:
    """Two buckets: DDP's first is of 1 MB, and the weights are 2 MB. No micro-step but the last reduces."""
    first, *steps = counted(tmp_path, [*MODELS["resnet"], *LAYOUTS["ddp"][1], "batch.micro=8"])
    assert first["all-reduce"] == 2 + 2  # and it tells the others of the order that its buckets now have
    for step in steps:
        assert step["all-reduce"] == 2 + 2
        assert step.keys() == {"skipped", "all-reduce", "waits"}


def test_hsdp_adds_up_over_its_groups(tmp_path: Path) -> None:
    """A block's gradients are scattered inside a group and added up over the groups."""
    ranks, words = LAYOUTS["hsdp 2x2"]
    for step in counted(tmp_path, [*MODELS["vit"], *words], ranks):
        assert step["all-gather"] == 2 * (BLOCKS + 1)
        assert step["reduce-scatter"] == BLOCKS + 1
        assert step["all-reduce"] == BLOCKS + 1 + 1


def test_tensor_parallel_reduces_a_branch_twice(tmp_path: Path) -> None:
    for step in counted(tmp_path, [*MODELS["vit"], *LAYOUTS["tensor 2"][1]]):
        # Two branches, forward and backward; the vector; the norms of queries and keys, of which a rank sees its heads.
        assert step["all-reduce"] == 2 * 2 * BLOCKS + 2
        assert "all-gather" not in step


@pytest.mark.parametrize(
    ("model", "layout"),
    [("resnet", "single"), ("resnet", "ddp"), ("resnet", "fsdp"), ("vit", "hsdp 2x2"), ("gpt", "tensor 2")],
)
def test_the_host_waits_for_nothing(tmp_path: Path, model: str, layout: str) -> None:
    ended = forbidden(tmp_path, model, layout)
    assert set(ended.codes) == {0}, ended.text


def forbidden(folder: Path, model: str, layout: str, misled: str = "") -> worlds.Ended:
    """A run whose step raises where the host waits."""
    ranks, place = LAYOUTS.get(layout, (1, ()))
    planted: list[worlds.Fault] = [("misled", {"how": misled})] if misled else []
    faults = {rank: [*planted, ("forbid_synchronisation", {})] for rank in range(ranks)}
    recipe, *words = MODELS[model]
    if model == "gpt":
        (folder / "text").mkdir()
        (folder / "text" / "tinyshakespeare.txt").write_text("To be, or not to be: that is the question. " * 60)
        words.append(f"data.root={folder / 'text'}")
    settings = [*COMMON, "batch.global=48", "batch.group=4", *STEP, *ALL, *place]
    return worlds.train(folder / "run", [*words, *settings], ranks, faults, recipe=recipe)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_zero_costs(tmp_path: Path, stage: int) -> None:
    """DeepSpeed's engine is its own: only stage 3 makes the host wait, once a step; more in the first two, in which it
    records the order of its gathers."""
    pytest.importorskip("deepspeed")
    words = [*MODELS["vit"], f"parallel.strategy=zero{stage}", "precision=fp32"]
    recipe, *overrides = words
    file = tmp_path / "counts.jsonl"
    faults: dict[int, list[worlds.Fault]] = {
        rank: [("count_collectives", {"path": str(tmp_path / name)})] for rank, name in enumerate((file.name, "other"))
    }
    settings = [*[word for word in COMMON if "precision" not in word], "batch.global=48", "batch.group=4", *STEP]
    ended = worlds.train(tmp_path / "run", [*overrides, *settings], 2, faults, recipe=recipe)
    assert set(ended.codes) == {0}, ended.text
    steps = worlds.lines(file)[2:]
    assert len(steps) == 2
    for step in steps:
        assert step["waits"] == ({} if stage < 3 else {"_local_scalar_dense": 1})


# ------------------------------------------------------------------------------------- that these checks see something


@pytest.mark.parametrize(("how", "kind"), [("reduce", "all-reduce"), ("gather", "all-gather")])
def test_one_collective_more_is_counted(tmp_path: Path, how: str, kind: str) -> None:
    for step in counted(tmp_path, [*MODELS["vit"], *FSDP], misled=how):
        assert step[kind] == {"all-reduce": 1, "all-gather": 2 * (BLOCKS + 1)}[kind] + 1


@pytest.mark.parametrize("how", ["wait", "mask"])
def test_a_wait_is_forbidden(tmp_path: Path, how: str) -> None:
    ended = forbidden(tmp_path, "resnet", "single", how)
    assert ended.codes == [1]
    assert "the host waits for the device" in ended.text
