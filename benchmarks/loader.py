"""Restrain's loader beside a torch DataLoader with torchvision's transforms on PIL images, the same photographs.

``python benchmarks/loader.py --root FOLDER [--pattern "train-*.tar"] [--workers 2] [--rounds 3] [--json FILE]``. Both
read each sample at random from the same tar shards, decode it, take a random resized crop of 224 pixels, flip it and
stack uint8 batches; nothing else is timed. They run in turn in each round, so that other load falls on both; the table
shows medians. CPU time counts worker processes too. Also timed: the digits, where a step costs numpy's calls alone.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import reporting
import torch
from PIL import Image
from torchvision import transforms

from restrain.data import augment, images, sets
from restrain.data.loader import TrainLoader
from restrain.data.order import Order, Plan, resolve_shuffle

BATCH = 32


class TorchvisionSet(torch.utils.data.Dataset):
    """The shards through torchvision's transforms, as its reference training does it."""

    def __init__(self, source: Any):
        self.source, self.starts = source, np.concatenate(([0], np.cumsum(source.counts)))
        self.transform = transforms.Compose(
            [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
        )

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, item: int) -> tuple[Any, int]:
        shard = int(np.searchsorted(self.starts, item, side="right")) - 1
        sample = self.source.read(shard, item - int(self.starts[shard]))
        return self.transform(Image.open(io.BytesIO(sample.data)).convert("RGB")), sample.label


def ours(source: Any, ops: list[Any], size: int, threads: int, steps: int, **kind: Any) -> TrainLoader:
    samples = int(source.counts.sum())
    order = Order(source.counts, 0, *resolve_shuffle(samples))
    batch = kind.pop("batch", BATCH)
    plan = Plan(samples, batch, batch, order.lanes)
    pipeline = augment.train_pipeline(ops, size, channels=source.channels, **kind)
    settings = {"rank": 0, "world": 1, "micro": batch, "start": 0, "stop": steps, "threads": threads}
    return TrainLoader(source, order, plan, pipeline, seed=0, **settings)


def theirs(source: Any, workers: int, steps: int) -> Iterable[Any]:
    data = TorchvisionSet(source)
    chosen = torch.utils.data.RandomSampler(data, replacement=True, num_samples=steps * BATCH)
    return torch.utils.data.DataLoader(data, BATCH, sampler=chosen, num_workers=workers)


def cpu_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def timed(make: Callable[[], Iterable[Any]], items: int) -> tuple[float, float]:
    """(items a second, CPU milliseconds an item); worker processes have ended, so their time is counted."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in make():
        pass
    wall = time.perf_counter() - wall
    return items / wall, (cpu_seconds() - cpu) / items * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--pattern", default="train-*.tar")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=36)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)

    section = SimpleNamespace(name="webdataset", root=args.root, train=args.pattern, eval=None, cache=None)
    source: Any = sets.open_source(section, "train")
    digits: Any = sets.open_source(SimpleNamespace(name="digits"), "train")
    crop = [
        SimpleNamespace(name="random_resized_crop", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
        SimpleNamespace(name="flip", p=0.5),
    ]
    shift = [SimpleNamespace(name="shift", pixels=1)]
    loaders: dict[str, tuple[Callable[[], Iterable[Any]], int]] = {
        f"restrain, {decoder}": (lambda d=decoder: ours(source, crop, 224, args.workers, args.steps, decoder=d), BATCH)
        for decoder in images.DECODERS
    }
    loaders["torch DataLoader, PIL"] = (lambda: theirs(source, args.workers, args.steps), BATCH)
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    steps: list[tuple[float, float]] = []
    for _ in range(args.rounds):
        for name, (make, batch) in loaders.items():
            results[name].append(timed(make, args.steps * batch))
        steps.append(timed(lambda: ours(digits, shift, 8, 1, 2000, batch=64), 2000))
    table = {
        name: {
            "images_per_s": reporting.spread([rate for rate, _ in rows]),
            "cpu_ms": reporting.spread([cpu for _, cpu in rows]),
        }
        for name, rows in results.items()
    }
    cells = [
        (name, f"{row['images_per_s']['median']:.0f}", f"{row['cpu_ms']['median']:.2f}") for name, row in table.items()
    ]
    reporting.table(("224 pixels, batch 32", "images/s", "CPU ms/image"), cells)
    digits_us = reporting.spread([cpu * 1e3 for _, cpu in steps])
    print(f"digits, batch 64: {digits_us['median']:.0f} us of CPU a step")
    reporting.write(args.json, vars(args), {"loaders": table, "digits_cpu_us_a_step": digits_us})


if __name__ == "__main__":
    main()
