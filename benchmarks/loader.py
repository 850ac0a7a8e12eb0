"""Restrain's loader beside timm's, torchvision's, webdataset's and DALI's, on the same photographs.

``python benchmarks/loader.py --root FOLDER [--pattern "train-*.tar"] [--threads 1,2,4] [--rounds 5] [--json FILE]``.
What is compared, and how: `restrain/bench`. ``rows`` are training (random resized crop of 224 pixels, flip), ours with
exact order, CRC of each sample and keyed draws; ``evaluation`` is the short side to 256 and the central 224. Both give
uint8: what normalises on the device is left out everywhere. Also timed: the digits, where a step costs numpy's calls.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import reporting

from restrain.bench import beside, peers, photographs
from restrain.bench.rates import measure
from restrain.data import augment, images, sets
from restrain.data.loader import TrainLoader
from restrain.data.order import Order, Plan, resolve_shuffle


def digits_us(rounds: int, steps: int = 2000, batch: int = 64) -> float:
    """CPU microseconds of a step's batch of digits, the median."""
    section: Any = SimpleNamespace(name="digits")
    source: Any = sets.open_source(section, "train")
    samples = int(source.counts.sum())
    order = Order(source.counts, 0, *resolve_shuffle(samples))
    plan = Plan(samples, batch, batch, order.lanes)
    pipeline = augment.train_pipeline([SimpleNamespace(name="shift", pixels=1)], 8, channels=1)
    loader = TrainLoader(
        source, order, plan, pipeline, seed=0, rank=0, world=1, micro=batch, start=0, stop=steps, threads=1
    )
    rates = [measure(loader, steps) for _ in range(rounds)]
    return statistics.median(rate.cpu_ms for rate in rates) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--pattern", default="train-*.tar")
    parser.add_argument("--threads", default="1,2,4")
    parser.add_argument("--copies", type=int, default=4, help="of each photograph in an epoch")
    parser.add_argument("--most", type=int, default=300, help="photographs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    threads = [int(count) for count in args.threads.split(",")]
    section: Any = SimpleNamespace(name="webdataset", root=args.root, train=args.pattern, eval=None, cache=None)
    source: Any = sets.open_source(section, "train")
    names, absent = peers.choose(peers.PEERS)
    print(f"decoder: {' '.join(images.resolve_decoder())}; not installed: {', '.join(absent) or 'none'}")
    with tempfile.TemporaryDirectory() as folder:
        chosen = photographs.unpack(source, Path(folder), args.copies, args.most)
        training = beside.compare(chosen, names, threads, args.rounds)
        print("\n".join(beside.table(training)))
        evaluation = beside.compare(chosen, names, threads[:1], args.rounds, evaluation=True)
        print("\n".join(["evaluation", *beside.table(evaluation)]))
    us = digits_us(args.rounds)
    print(f"digits, batch 64: {us:.0f} us of CPU a step")
    results = {
        "decoder": " ".join(images.resolve_decoder()),
        "not_installed": absent,
        "evaluation": [row.as_dict() for row in evaluation],
        "digits_cpu_us_a_step": us,
    }
    reporting.write(args.json, vars(args), results, rows=[row.as_dict() for row in training])


if __name__ == "__main__":
    main()
