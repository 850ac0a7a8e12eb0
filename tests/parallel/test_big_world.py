"""Worlds of a thousand ranks and more without their machines: a rank at a time in this process, beside a process group
that only pretends (torch's fake backend). What each rank works out alone must fit what all the others do."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing._internal.distributed import fake_pg  # noqa: F401  (registers the backend)

from restrain.data.order import Order, Plan, ranks_a_group
from restrain.models.build import build_model
from restrain.parallel import zero_shards
from restrain.parallel.distributed import span_of
from restrain.parallel.held import Held
from restrain.parallel.layout import Layout
from restrain.parallel.partition import Partition, partition_of
from restrain.parallel.sharded import Sharded, make_groups
from restrain.parallel.stretch import Stretch, boxes, stretch
from restrain.parallel.world import World
from restrain.recipe import load
from restrain.run.checkpoint import Reader, Slice, Writer
from restrain.run.manifest import file_name, slices_by_file
from restrain.run.slices import Box

BIG = [
    Layout("fsdp", 1024, 1, 1024),
    Layout("hsdp", 1024, 1, 8),
    Layout("fsdp", 1024, 8, 128),
    Layout("hsdp", 4096, 8, 64),
    Layout("fsdp", 4096, 1, 4096),
]
WIDTH = 1536  # more rows than 1,024 ranks, no multiple of it; fewer than 4,096, so that some ranks hold nothing


@contextmanager
def pretended(rank: int, world: int) -> Iterator[None]:
    """Rank ``rank`` of ``world``; collectives return at once, with nothing."""
    dist.init_process_group("fake", rank=rank, world_size=world, store=dist.HashStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def some(world: int) -> list[int]:
    return [0, 1, world // 2 + 5, world - 1]


@functools.cache
def _section(shape: str) -> dict:
    return load("shakespeare_gpt", [shape]).recipe.model.model_dump()


def small_gpt() -> nn.Module:
    """Few blocks of a wide model, on the meta device: what is cut is what matters."""
    shape = f"model.shape={{depth: 1, width: {WIDTH}, heads: 16, context: 64}}"
    section = _section(shape)
    with torch.device("meta"):
        return build_model(section | {"classes": 4099})


@functools.cache
def tiny_gpt() -> nn.Module:
    words = ["model.shape={depth: 1, width: 24, heads: 4, context: 7}", "data.context=7"]
    with torch.device("meta"):
        return build_model(load("shakespeare_gpt", words).recipe.model.model_dump() | {"classes": 11})


@functools.cache
def partitions(layout: Layout) -> list[Partition]:
    """Of the ranks of one tensor group; those of other groups are cut alike."""
    return [partition_of(small_gpt(), layout, rank) for rank in range(layout.tensor)]


def held(layout: Layout, name: str, dims: int, rank: int) -> Held:
    return partitions(layout)[rank % layout.tensor].held(name, dims, rank)


@pytest.mark.parametrize(
    ("batch", "group", "world"), [(4096, 4, 1024), (4096, 1, 4096), (2048, 8, 1024), (4096, 8, 4096)]
)
def test_the_rows_of_all_ranks_are_the_global_batch(batch: int, group: int, world: int) -> None:
    plan = Plan(1_281_167, batch, group, 64)
    step = plan.steps_per_epoch + 7
    epoch, whole = plan.rows(step)
    micro = batch // world
    parts = [plan.local(step, rank, world, micro) for rank in range(world)]
    assert {found for found, _ in parts} == {epoch}
    assert [first for _, micros in parts for first, _ in micros] == list(range(0, batch, micro))
    together = np.concatenate([positions for _, micros in parts for _, positions in micros])
    assert np.array_equal(together, whole[0])
    assert np.array_equal(np.sort(together), np.arange(7 * batch, 8 * batch))


def test_the_samples_of_all_ranks_are_those_of_the_batch_once() -> None:
    counts = np.full(1281, 1000)
    plan, order = Plan(int(counts.sum()), 4096, 1, 64), Order(counts, 3, 64, 4096, True)
    seen = set()
    for rank in range(1024):
        epoch, positions = plan.rows(5, 1, rank, 1024)
        shards, numbers = order(epoch, positions[0])
        seen |= set(zip(shards.tolist(), numbers.tolist(), strict=True))
    assert len(seen) == 4096  # so no two ranks read the same sample


@pytest.mark.parametrize(("batch", "group", "world"), [(2048, 8, 1024), (4096, 8, 4096)])
def test_the_ranks_of_a_batchnorm_group_agree_on_who_they_are(batch: int, group: int, world: int) -> None:
    ranks = ranks_a_group(batch, group, world)
    assert ranks == group * world // batch
    _, groups = Plan(100_000, batch, group, 1).groups(0)
    for rank in some(world):
        with pretended(rank, world):
            span = span_of(rank, ranks)
            assert span is not None
            members = dist.get_process_group_ranks(span.process_group)
        assert rank in members
        rows = [Plan(100_000, batch, group, 1).rows(0, 1, member, world)[1][0] for member in members]
        assert np.array_equal(np.concatenate(rows), groups[members[0] // ranks])  # together one whole group


@pytest.mark.parametrize("layout", BIG, ids=str)
def test_the_grid_of_ranks(layout: Layout) -> None:
    ranks = range(layout.world)
    places = [layout.place(rank) for rank in ranks]
    assert len(set(places)) == layout.world
    rows = [layout.rows(World(rank=rank, size=layout.world)).rank for rank in ranks]
    assert sorted(rows) == sorted(list(range(layout.data)) * layout.tensor)
    for rank in some(layout.world):
        assert [rows[other] for other in layout.tensor_group(rank)] == [rows[rank]] * layout.tensor
        assert sorted(rows[other] for other in layout.data_group(rank)) == list(range(layout.data))


@pytest.mark.parametrize("layout", BIG, ids=str)
def test_process_groups(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the layout, and few: all ranks of a run wait for each that is made."""
    made, new_group = [], dist.new_group

    def counting(*given, **more):
        made.append(given or more)
        return new_group(*given, **more)

    monkeypatch.setattr(dist, "new_group", counting)
    monkeypatch.setattr("torch.distributed.device_mesh.new_group", counting)
    for rank in some(layout.world):
        made.clear()
        with pretended(rank, layout.world):
            groups = make_groups(layout, rank, torch.device("cpu"))
            members = dist.get_process_group_ranks(groups.data)  # None: all ranks
            assert members == layout.data_group(rank)
            if layout.tensor > 1:
                assert dist.get_process_group_ranks(groups.tensor) == layout.tensor_group(rank)
            replica, _, tensor = layout.place(rank)
            mine = [other for other in range(layout.world) if layout.place(other)[::2] == (replica, tensor)]
            shard = groups.mesh.get_group("shard") if groups.mesh.ndim > 1 else groups.mesh.get_group()
            assert dist.get_process_group_ranks(shard) == mine
        sizes = [n for n in (layout.replicas, layout.shard, layout.tensor) if n > 1]
        loop = layout.tensor if len(sizes) == 3 else 0
        assert len(made) == (0 if len(sizes) == 1 else sum(layout.world // n for n in sizes) + loop)


@pytest.mark.parametrize("layout", BIG, ids=str)
def test_an_engine_holds_what_its_partition_says(layout: Layout) -> None:
    """A real one, FSDP2 and all."""
    for rank in some(layout.world)[1:]:
        with pretended(rank, layout.world):
            engine = Sharded(small_gpt(), layout, rank, torch.device("cpu"))
            for name, leaf in engine.leaves():
                assert leaf.numel() == held(layout, name, leaf.ndim, rank).elements
                assert engine.held(name, leaf) == held(layout, name, leaf.ndim, rank)


@pytest.mark.parametrize("layout", BIG, ids=str)
def test_the_slices_of_all_ranks_tile_each_tensor(layout: Layout) -> None:
    for name, shape in partitions(layout)[0].shapes.items():
        counted, copies = np.zeros(shape, np.int8), np.zeros(shape, np.int16)
        for rank in range(layout.world):
            found = held(layout, name, len(shape), rank)
            for piece in found.pieces:
                size = [s.stop - s.start for s in piece.at]
                index = tuple(slice(o, o + n) for o, n in zip(piece.offset, size, strict=True))
                counted[index] += found.saves
                if rank < layout.world // layout.replicas:
                    copies[index] += 1
        assert (counted == 1).all(), name
        assert (copies >= 1).all(), name


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 2, 4]), st.integers(1, 40), st.integers(1, 3), st.booleans())
def test_so_do_those_of_any_grid(tensor: int, shard: int, replicas: int, is_hybrid: bool) -> None:
    world = tensor * shard * (replicas if is_hybrid else 1)
    layout = Layout("hsdp" if is_hybrid else "fsdp", world, tensor, shard)
    cuts = [partition_of(tiny_gpt(), layout, rank) for rank in range(tensor)]
    for name, shape in cuts[0].shapes.items():
        counted = np.zeros(shape, int)
        total = 0
        for rank in range(world):
            found = cuts[rank % tensor].held(name, len(shape), rank)
            for piece in found.pieces if found.saves else ():
                size = [s.stop - s.start for s in piece.at]
                counted[tuple(slice(o, o + n) for o, n in zip(piece.offset, size, strict=True))] += 1
            total += found.elements if found.saves else 0
        assert (counted == 1).all(), name
        assert total == counted.size


# ------------------------------------------------------------------------------------- the checkpoint of so many ranks

ZERO = [Layout(stage, world, 1, 1) for stage in ("zero1", "zero3") for world in (1024, 4096)]
KINDS = ("param", "exp_avg")  # one of each kind of file


@functools.cache
def _zero1_flats(world: int) -> tuple[dict[nn.Parameter, str], SimpleNamespace]:
    """What DeepSpeed's optimizer of stages 1 and 2 has: all parameters one after the other, padded to equal parts."""
    names = {parameter: name for name, parameter in small_gpt().named_parameters()}
    parameters, offsets, end = list(names), [], 0
    for parameter in parameters:
        offsets.append(end)
        end += parameter.numel()
    flat = torch.empty(-(-end // world), device="meta")
    return names, SimpleNamespace(
        single_partition_of_fp32_groups=[flat],
        round_robin_bit16_groups=[parameters],
        round_robin_bit16_offsets=[offsets],
    )


def saved_by(layout: Layout, rank: int) -> Iterator[tuple[str, tuple[int, ...], list[Box]]]:
    """What a rank gives to a checkpoint: name of a parameter, shape of the whole, boxes of it."""
    found: dict[str, Held]
    if layout.strategy == "zero3":
        shares = {n: (s, *zero_shards.share(int(np.prod(s)), rank, layout.world)) for n, s in shapes_of_all().items()}
        found = {name: stretch(*share) for name, share in shares.items()}
    elif layout.strategy == "zero1":
        names, zero = _zero1_flats(layout.world)
        runs = zero_shards.runs(zero, 1, names, rank)
        found = {run.name: stretch(run.shape, run.start, run.stop) for run in runs}
    else:
        found = {name: held(layout, name, len(shape), rank) for name, shape in shapes_of_all().items()}
    for name, one in found.items():
        if isinstance(one, Stretch):
            placed = list(boxes(one.shape, one.start, one.stop))
        else:
            placed = [(p.offset, tuple(s.stop - s.start for s in p.at)) for p in one.pieces] if one.saves else []
        if placed:
            yield name, one.shape, placed


@functools.cache
def shapes_of_all() -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in small_gpt().named_parameters()}


def part_of(layout: Layout, rank: int) -> dict:
    """As the rank's writer tells rank 0, the hashes made up."""
    tensors = {
        f"{name}|{kind}": {
            "dtype": "F32",
            "shape": shape,
            "slices": [[file_name(f"{name}|{kind}", rank), *box] for box in placed],
        }
        for name, shape, placed in saved_by(layout, rank)
        for kind in KINDS
    }
    files = {file_name(name, rank): {"size": rank, "sha256": f"{rank:064x}"} for name in tensors}
    return {"save": 1, "files": files, "tensors": tensors}


@pytest.mark.parametrize(
    "layout",
    [pytest.param(one, marks=[pytest.mark.slow] if one.data > 1024 else []) for one in (*BIG, *ZERO)],
    ids=str,
)
def test_the_checkpoint_of_all_ranks(layout: Layout, tmp_path: Path) -> None:
    """Rank 0's writer, its own part real, commits what all the others tell it; what a reader finds then has each
    element of each tensor once, in files of which each is listed, each slice under a key of its own."""
    temporary = tmp_path / "step-5.tmp-1"
    temporary.mkdir()
    for rank in range(1, layout.world):
        (temporary / f"done-{rank:04d}.json").write_text(json.dumps(part_of(layout, rank)))
    own = {
        f"{name}|{kind}": [Slice(torch.empty(size), shape, offset) for offset, size in placed]
        for name, shape, placed in saved_by(layout, 0)
        for kind in KINDS
    }
    writer = Writer(tmp_path, 0, layout.world, 1)
    writer.save(5, own, {"step": 5})
    writer.wait()
    with Reader(tmp_path / "step-5") as reader:
        assert reader.world == layout.world
        assert reader.names() == sorted(f"{name}|{kind}" for name in shapes_of_all() for kind in KINDS)
        tensors, by_file = reader.manifest["tensors"], slices_by_file(reader.manifest)
    for name, shape in shapes_of_all().items():
        counted = np.zeros(shape, np.int8)
        for _, offset, size in tensors[f"{name}|param"]["slices"]:
            counted[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))] += 1
        assert (counted == 1).all(), name
        for kind in KINDS:
            entry = tensors[f"{name}|{kind}"]
            assert entry["dtype"] == "F32"
            assert tuple(entry["shape"]) == shape
            assert [slice_[1:] for slice_ in entry["slices"]] == [s[1:] for s in tensors[f"{name}|param"]["slices"]]
    assert sum(map(len, by_file.values())) == sum(len(entry["slices"]) for entry in tensors.values())
    assert all(by_file.values())  # no file without a slice
