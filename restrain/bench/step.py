"""How long a recipe's optimizer step takes under a layout, and where the time goes.

Parts are measured one after the other, so that none disturbs another: first the clock alone, then some steps in which
every operation is looked at, then some under torch's profiler (:mod:`restrain.bench.collectives`).
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from restrain.bench import resources
from restrain.bench.collectives import spoken, watched
from restrain.bench.stepping import Stepping, prepare, settle
from restrain.insight.cost import input_macs
from restrain.insight.throughput import peak
from restrain.parallel import distributed
from restrain.parallel.layout import SHARDED, ZERO, Layout
from restrain.parallel.startup import Told
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.training import fit, lightning, opening, placement
from restrain.training.inputs import like_inputs
from restrain.training.placement import Placement

LOOKED_AT = 2  # steps in which operations are counted, and as many under the profiler
LEAST, MOST = 5, 10_000  # timed steps where a time is given


@dataclass(frozen=True)
class Effort:
    """``steps``: how many are timed; None: as many as fit into ``seconds``, at least five. ``warm``: steps before."""

    steps: int | None = None
    seconds: float = 10.0
    warm: int = 3


@dataclass
class Figures:
    """What was measured, of the whole world. Seconds are those of rank 0, memory is that of the rank that took most.

    ``rate``: images, tokens or sequences a second. ``flops``: of the model's arithmetic a second, by three forward
    passes a step; ``peak``: what the devices could do together, None where that is not known, and ``peak_of`` says
    whose figure it is. ``memory``: bytes beyond what a process took before the model was built. ``spoken``: seconds a
    step in which collectives were under way. ``collectives``, ``waits``: a step's.
    """

    layout: str
    device: str
    placement: dict[str, Any]
    precision: str
    world: int
    steps: int
    first: float
    step: float
    p10: float
    p90: float
    unit: str
    rate: float
    flops: float | None
    peak: float | None
    peak_of: str
    memory: int | None
    spoken: float
    collectives: dict[str, dict[str, float]]
    waits: dict[str, float] = field(default_factory=dict)
    waited: float = 0.0

    @property
    def mfu(self) -> float | None:
        """Share of the peak that the model's arithmetic uses (Chowdhery et al. 2022, appendix B)."""
        return self.flops / self.peak if self.flops and self.peak else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"rate_a_device": self.rate / self.world, "mfu": self.mfu}


def measure(recipe: Recipe, world: World, effort: Effort) -> Figures | None:
    """Time the step on the ranks that there are, each of which calls this; rank 0 is given the figures.

    Raises what a run of the recipe would raise: UserError for a layout that cannot be.
    """
    device = placement.device_of(recipe, world)
    fit.choose_algorithms(recipe.deterministic)
    told = distributed.connect(world, device, alone=recipe.parallel.strategy in (*SHARDED, *ZERO))
    try:
        autos, where = told.first_rank(lambda: settle(recipe, world, device))
        recipe, where = opening.settle(recipe, autos), Placement(**where | {"device": str(device)})
        torch.set_num_threads(where.threads)
        with lightning.quiet(), tempfile.TemporaryDirectory() as folder:
            growth = resources.Growth(device)
            stepping = prepare(recipe, world, device, where, Path(folder))
            found = _measured(stepping, device, effort, told, growth)
        if device.type == "cpu":
            found["peak"] = resources.multiplies(recipe.precision)
        ranks = _of_all_ranks(world, found)
        return None if world.rank else _figures(recipe, world, device, where, ranks, stepping)
    except RuntimeError as error:
        raise distributed.explained(error, told) from error
    finally:
        distributed.leave(world)


def _measured(
    stepping: Stepping, device: torch.device, effort: Effort, told: Told, growth: resources.Growth
) -> dict[str, Any]:
    """Of this rank, as JSON has it."""
    first, *warm = (_seconds(stepping.step, device) for _ in range(1 + effort.warm))
    count = effort.steps or told.first_rank(lambda: _fitting(effort.seconds, warm or [first]))
    if dist.is_initialized():
        dist.barrier()
    times, memory = _times(stepping.step, count, device), growth.bytes
    with watched() as seen:
        for _ in range(LOOKED_AT):
            stepping.alone()
    return {
        "first": first,
        "times": times,
        "memory": memory,
        "collectives": {
            kind: {"count": one.count / LOOKED_AT, "bytes": one.bytes / LOOKED_AT}
            for kind, one in sorted(seen.collectives.items())
        },
        "waits": {name: count / LOOKED_AT for name, count in seen.waits.items()},
        "waited": seen.waited / LOOKED_AT,
        "spoken": spoken(stepping.alone, LOOKED_AT) if seen.collectives else 0.0,
    }


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _fitting(seconds: float, warm: Sequence[float]) -> int:
    return max(LEAST, min(MOST, round(seconds / statistics.median(warm))))


def _times(step: Callable[[], None], count: int, device: torch.device) -> list[float]:
    """Seconds of each step; of a GPU between the ends of two, by events, since the host runs ahead of it."""
    if device.type != "cuda":
        return [_seconds(step, device) for _ in range(count)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize(device)
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]


def _of_all_ranks(world: World, mine: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank has found, on rank 0; over the store, as JSON."""
    if world.size == 1:
        return [mine]
    store = dist.distributed_c10d._get_default_store()
    store.set(f"restrain/bench/{world.rank}", json.dumps(mine))
    if world.rank:  # rank 0 hosts the store, and is heard to the end
        store.wait(["restrain/bench/heard"], timedelta(minutes=10))
        return []
    found = [json.loads(store.get(f"restrain/bench/{rank}")) for rank in range(world.size)]
    store.set("restrain/bench/heard", "1")
    return found


def _figures(
    recipe: Recipe,
    world: World,
    device: torch.device,
    where: Placement,
    ranks: Sequence[dict[str, Any]],
    stepping: Stepping,
) -> Figures:
    first, batch = ranks[0], recipe.batch.global_
    times = first["times"]
    step = statistics.median(times)
    deciles = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times * 9
    macs = _macs(recipe, stepping.run.engine.whole())
    grown = [one["memory"] for one in ranks if one["memory"] is not None]
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        each = peak(name, recipe.precision)
        top, whose = each * world.size if each else None, f"{name}, {recipe.precision} dense"
    else:
        name, top = "CPU", sum(one["peak"] for one in ranks)
        several = f", {world.size} processes at once" if world.size > 1 else ""
        whose = f"measured: products of matrices of {resources.MATRIX} x {resources.MATRIX}{several}"
    return Figures(
        layout=_told(where.layout(world)),
        device=name,
        placement=where.as_dict(),
        precision=recipe.precision,
        world=world.size,
        steps=len(times),
        first=first["first"],
        step=step,
        p10=deciles[0],
        p90=deciles[-1],
        unit=recipe.data.kind,
        rate=batch * (recipe.data.context if recipe.data.kind == "tokens" else 1) / step,
        flops=6.0 * macs * batch / step if macs else None,
        peak=top,
        peak_of=whose,
        memory=max(grown, default=None),
        spoken=first["spoken"] * step,
        collectives=first["collectives"],
        waits=first["waits"],
        waited=first["waited"],
    )


def _told(layout: Layout) -> str:
    shard = f" of {layout.shard}" if layout.strategy == "hsdp" else ""
    return f"{layout.strategy}{shard}{f', tensor {layout.tensor}' if layout.tensor > 1 else ''}"


def _macs(recipe: Recipe, model: torch.nn.Module) -> int | None:
    """Multiply-adds of a forward pass of one row; None of a model that cannot be counted."""
    try:
        return input_macs(model, like_inputs(recipe, 1, next(model.parameters()).dtype))
    except Exception:  # anything may happen in a model that is not ours, on the meta device
        return None
