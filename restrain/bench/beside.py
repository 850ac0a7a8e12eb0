"""Restrain's loader and others' on the same photographs, in turn in each round, so that other load falls on all."""

from __future__ import annotations

import multiprocessing
import statistics
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from types import SimpleNamespace
from typing import Any

from restrain.bench import peers, photographs
from restrain.bench.photographs import Photographs
from restrain.bench.rates import Rate, measure
from restrain.data import augment, images
from restrain.data.loader import EvalLoader

BATCH = 32
OURS = "restrain"
CROP = (
    SimpleNamespace(name="random_resized_crop", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation="bilinear"),
    SimpleNamespace(name="flip", p=0.5),
)


@dataclass(frozen=True)
class Row:
    """Medians over the rounds. threads: worker processes with others' loaders. ratio_to_timm: timm's CPU time of an
    image over this one's, with as many threads; None without timm."""

    name: str
    threads: int
    cpu_ms_per_image: float
    images_per_s: float
    ratio_to_timm: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    chosen: Photographs,
    names: Sequence[str],
    threads: Sequence[int],
    rounds: int = 3,
    evaluation: bool = False,
) -> list[Row]:
    """Time an epoch of each loader ``rounds`` times, each in a process of its own, after an epoch that is not timed."""
    found: list[Row] = []
    for count in threads:
        rates: dict[str, list[Rate]] = {name: [] for name in (OURS, *names)}
        for _ in range(rounds):
            for name in rates:
                rates[name].append(_alone(chosen, name, count, evaluation))
        cpu = {name: statistics.median(rate.cpu_ms for rate in some) for name, some in rates.items()}
        for name, some in rates.items():
            speed = statistics.median(rate.images_per_s for rate in some)
            ratio = cpu["timm"] / cpu[name] if "timm" in cpu else None
            found.append(Row(name, count, cpu[name], speed, ratio))
    return found


def _alone(*arguments: Any) -> Rate:
    """In a new process, where no other loader's threads and workers are left over."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_timed, *arguments).result()


def _timed(chosen: Photographs, name: str, threads: int, evaluation: bool) -> Rate:
    import torch

    torch.set_num_threads(1)  # of one operation: the loaders' own threads and workers are what is compared
    if "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork", force=True)  # the workers of others' loaders begin sooner
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, which is asked for
    if name == OURS and not evaluation:
        return _timed_run(chosen, threads)
    loader = _ours_for_evaluation if name == OURS else peers.PEERS[name]
    batches = loader(chosen, BATCH, threads, evaluation)
    return measure(batches, sum(_rows(batch) for batch in batches))


def _timed_run(chosen: Photographs, threads: int) -> Rate:
    """The second epoch of a run of three: a run is one iteration from its first step to its last, so that buffers are
    made once, and what is read ahead of the second epoch is made up for by what it reads ahead of the third."""
    pipeline = augment.train_pipeline(CROP, 224, decoder=images.resolve_decoder()[0])
    loader = photographs.ours(chosen.source(), pipeline, BATCH, threads, epochs=3)
    batches, steps = iter(loader), len(loader) // 3
    try:
        for _ in islice(batches, steps):
            pass
        return measure(islice(batches, steps), steps * BATCH)
    finally:
        loader.close()


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of text."""
    lines = [f"{'224 pixels, batches of 32':26}{'threads':>8}{'images/s':>10}{'CPU ms/image':>14}{'timm / this':>13}"]
    for row in rows:
        ratio = "" if row.ratio_to_timm is None else f"{row.ratio_to_timm:.2f}"
        lines.append(f"{row.name:26}{row.threads:8}{row.images_per_s:10.0f}{row.cpu_ms_per_image:14.2f}{ratio:>13}")
    return lines


def _ours_for_evaluation(chosen: Photographs, batch: int, threads: int, evaluation: bool) -> Iterable[Any]:
    pipeline = augment.eval_pipeline(224, 256, decoder=images.resolve_decoder()[0])
    return EvalLoader(chosen.source(), pipeline, rank=0, world=1, batch=batch, threads=threads)


def _rows(batch: Any) -> int:
    if hasattr(batch, "valid"):
        return int(batch.valid.sum())
    return len(batch[0])
