"""What the order of samples costs, as the set grows to five billion, and how long resuming in the midst of it takes.

``python benchmarks/order.py [--rounds 5] [--json FILE]``. Order: positions of steps of 4,096, planned as a run plans
them, from the middle of an epoch on. Resume: an index of 14.2 million samples is opened, and a run's loader begins at
sample 14,000,000, knowing the step alone; its source makes pictures of eight pixels instead of decoding. Data: none.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import reporting

from restrain.data import augment, index, synthetic
from restrain.data.loader import TrainLoader
from restrain.data.order import Order, Plan, resolve_shuffle

SIZES = (1_000, 100_000, 2_000_000, 14_200_000, 400_000_000, 5_000_000_000)
BATCH, STEPS = 4096, 64
RESUMED, OF = 14_000_000, 14_200_000


class Source:
    """Counts from an index; every sample is a picture of one colour."""

    channels, classes = 1, None

    def __init__(self, found: index.Index):
        self.names, self.counts, self.fingerprint = found.names, found.counts, ""

    def crcs(self, shard: int) -> np.ndarray:
        return np.zeros(int(self.counts[shard]), np.uint32)

    def read(self, shard: int, j: int) -> Any:
        raise NotImplementedError

    def rows(self, shard: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pictures = np.broadcast_to((j % 256).astype(np.uint8)[:, None, None, None], (len(j), 8, 8, 1))
        return np.ascontiguousarray(pictures), j % 10, np.zeros(len(j), np.uint64)

    def close(self) -> None:
        pass


def order_cost(samples: int) -> dict[str, Any]:
    """Nanoseconds a sample, and milliseconds of an epoch's set-up, of a set of ``samples``."""
    shards = max(1, samples // 10_000)
    counts = samples // shards + (np.arange(shards) < samples % shards)
    lanes, window = resolve_shuffle(samples)
    batch = min(BATCH, samples // 4)
    order, plan = Order(counts, 0, lanes, window), Plan(samples, batch, 1, lanes)
    began = time.perf_counter()
    order(0, np.zeros(1, np.int64))
    made = time.perf_counter() - began
    first = plan.steps_per_epoch // 2
    steps = range(first, min(first + STEPS, plan.steps_per_epoch))
    for step in steps[:2]:
        order(*plan.rows(step))
    began = time.perf_counter()
    for step in steps:
        order(*plan.rows(step))
    seconds = time.perf_counter() - began
    arrays = [a for epoch in order._epochs.values() for a in (epoch.shards, epoch.starts, epoch.stagger)]
    arrays += [window for _, window in order._windows.values()]
    return {
        "epoch_ms": made * 1e3,
        "ns_a_sample": seconds / (len(steps) * batch) * 1e9,
        "order_mb": sum(array.nbytes for array in arrays) / 1e6,
    }


def resume_seconds(folder: Path) -> float:
    """From the index on the disk to the first batch."""
    began = time.perf_counter()
    found = index.load(folder)
    assert found is not None
    samples = int(found.counts.sum())
    lanes, window = resolve_shuffle(samples)
    order, plan = Order(found.counts, 0, lanes, window), Plan(samples, BATCH, 32, lanes)
    loader = TrainLoader(
        Source(found),
        order,
        plan,
        augment.Pipeline([], 8, 1),
        seed=0,
        rank=0,
        world=1,
        micro=BATCH,
        start=RESUMED // BATCH,
        stop=plan.steps_per_epoch,
        threads=1,
    )
    batch = next(iter(loader))
    seconds = time.perf_counter() - began
    assert batch.step == RESUMED // BATCH
    loader.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    measured: dict[int, list[dict[str, Any]]] = {size: [] for size in SIZES}
    for _ in range(args.rounds):  # in turn, so that other work on the machine falls on all
        for size in SIZES:
            measured[size].append(order_cost(size))
    rows = []
    print(f"{'samples':>15}{'epoch ms':>10}{'ns/sample':>11}{'order MB':>10}")
    for size, found in measured.items():
        row = {name: statistics.median(one[name] for one in found) for name in found[0]}
        rows.append({"samples": size, **row})
        print(f"{size:15,}{row['epoch_ms']:10.2f}{row['ns_a_sample']:11.0f}{row['order_mb']:10.2f}")
    with tempfile.TemporaryDirectory() as folder:
        synthetic.write_index(Path(folder), OF)
        resume = statistics.median(resume_seconds(Path(folder)) for _ in range(args.rounds))
    print(f"resume at sample {RESUMED:,} of {OF:,}: {resume:.3f} s from the index to the first batch of {BATCH}")
    reporting.write(args.json, vars(args), {"resume_s": resume}, rows=rows)


if __name__ == "__main__":
    main()
