"""Restrain's token loader beside memory-mapped numpy and webdataset, over the same tokens.

``python benchmarks/tokens.py [--contexts 64,1024] [--tokens 20000000] [--batch 64] [--rounds 7] [--json FILE]``.

* ``restrain``: exact order, CRC-32 of each window, ledger prefix, one thread that reads ahead.
* ``restrain, no CRC``: the same with the check left out (measured only; no option of the loader does it).
* ``numpy``: a memory map, random offsets, one slice and cast a row for inputs and one for targets, then a stack, as in
  nanoGPT's training script: with replacement, so neither exact nor resumable.
* ``numpy, one slice``: the same with a single slice and cast a row, of which inputs and targets are views.
* ``webdataset``: the same windows as .npy members of tar shards, with a shuffle buffer of 1,000.

All give int64 inputs and targets in batches, in one process on warm files; the rounds are interleaved. CPU time is of
the whole process, threads included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import reporting
import torch
import webdataset

from restrain.bench.rates import Rate, measure
from restrain.data.order import Order, Plan, resolve_shuffle
from restrain.data.text import source as sources
from restrain.data.text.loader import TokenLoader
from restrain.data.text.raw import describe

MEMBERS = 20_000  # windows that the tar shards hold at most: they are gone through again and again


wds: Any = webdataset  # which declares its names in a way that a type checker does not see


def make_tokens(folder: Path, tokens: int) -> None:
    """One shard of u16 tokens of a vocabulary of GPT-2's size."""
    found = np.random.default_rng(0).integers(0, 50257, tokens, dtype=np.uint16)
    found.astype("<u2").tofile(folder / "train-000000.bin")
    describe(folder, "u16", 50257, None)


def ours(source: sources.TokenSource, batch: int, steps: int, threads: int) -> TokenLoader:
    windows = int(source.counts.sum())
    order = Order(source.counts, 0, *resolve_shuffle(windows))
    plan = Plan(windows, batch, batch, order.lanes)
    return TokenLoader(source, order, plan, rank=0, world=1, micro=batch, start=0, stop=steps, threads=threads)


def mapped(path: Path, context: int, batch: int, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for _ in range(steps):
        data = np.memmap(path, np.uint16, "r")
        offsets = torch.randint(len(data) - context, (batch,)).tolist()
        inputs = torch.stack([torch.from_numpy(data[i : i + context].astype(np.int64)) for i in offsets])
        targets = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + context].astype(np.int64)) for i in offsets])
        yield inputs, targets


def mapped_once(path: Path, context: int, batch: int, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for _ in range(steps):
        data = np.memmap(path, np.uint16, "r")
        offsets = torch.randint(len(data) - context, (batch,)).tolist()
        tokens = torch.stack([torch.from_numpy(data[i : i + context + 1].astype(np.int64)) for i in offsets])
        yield tokens[:, :-1], tokens[:, 1:]


def write_tars(source: sources.TokenSource, folder: Path) -> str:
    count = min(MEMBERS, int(source.counts.sum()))
    with wds.ShardWriter(str(folder / f"c{source.context}-%04d.tar"), maxcount=2000, verbose=0) as writer:
        for j in range(count):
            writer.write({"__key__": f"{j:08d}", "npy": np.asarray(source.read(0, j).data)})
    return str(folder / f"c{source.context}-{{0000..{(count - 1) // 2000:04d}}}.tar")


def tars(urls: str, batch: int, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    stages = wds.WebDataset(urls, shardshuffle=100, empty_check=False).repeat().shuffle(1000).decode().to_tuple("npy")
    for number, (rows,) in enumerate(stages.batched(batch, partial=False)):
        if number == steps:
            return
        tokens = torch.from_numpy(np.asarray(rows).astype(np.int64))
        yield tokens[:, :-1], tokens[:, 1:]


def compare(args: argparse.Namespace, context: int, folder: Path) -> list[dict[str, Any]]:
    source = sources.TokenSource(folder, "train-*.bin", context)
    urls = write_tars(source, folder)
    path, batch = folder / "train-000000.bin", args.batch
    fast, slow = max(8, args.windows // batch), max(8, args.windows // 16 // batch)
    makers: dict[str, tuple[int, Callable[[], Any]]] = {
        "restrain": (fast, lambda: ours(source, batch, fast, args.threads)),
        "restrain, no CRC": (fast, lambda: ours(source, batch, fast, args.threads)),
        "numpy": (fast, lambda: mapped(path, context, batch, fast)),
        "numpy, one slice": (fast, lambda: mapped_once(path, context, batch, fast)),
        "webdataset": (slow, lambda: tars(urls, batch, slow)),
    }
    rates: dict[str, list[Rate]] = {name: [] for name in makers}
    for number in range(args.rounds + 1):
        for name, (steps, make) in makers.items():
            unchecked = mock.patch.object(sources, "crcs_of", lambda stored, wanted: wanted.astype(np.uint64))
            if name == "restrain, no CRC":
                with unchecked:
                    rate = measure(make(), steps * batch)
            else:
                rate = measure(make(), steps * batch)
            if number:  # the first round warms files and caches
                rates[name].append(rate)
    return [_row(name, context, found, rates["numpy"]) for name, found in rates.items()]


def _row(name: str, context: int, rates: list[Rate], numpy: list[Rate]) -> dict[str, Any]:
    """ratio_to_numpy: the median of the rounds' ratios of CPU time; above 1 is less CPU time than numpy."""
    cpu = [theirs.cpu_ms / ours.cpu_ms for ours, theirs in zip(rates, numpy, strict=True)]
    wall = [ours.images_per_s / theirs.images_per_s for ours, theirs in zip(rates, numpy, strict=True)]
    return {
        "name": name,
        "context": context,
        "windows_per_s": statistics.median(rate.images_per_s for rate in rates),
        "cpu_us_per_window": statistics.median(rate.cpu_ms for rate in rates) * 1e3,
        "cpu_ratio_to_numpy": statistics.median(cpu),
        "rate_ratio_to_numpy": statistics.median(wall),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", default="64,1024")
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--windows", type=int, default=64_000, help="a round; webdataset a sixteenth")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_tokens(Path(folder), args.tokens)
        for context in map(int, args.contexts.split(",")):
            rows += compare(args, context, Path(folder))
    header = ["loader", "context", "windows/s", "CPU us", "CPU ratio", "rate ratio"]
    columns = ("windows_per_s", "cpu_us_per_window", "cpu_ratio_to_numpy", "rate_ratio_to_numpy")
    shown = [[r["name"], str(r["context"]), *(f"{r[c]:,.2f}" for c in columns)] for r in rows]
    reporting.table(header, shown)
    reporting.write(args.json, vars(args), {"rounds": args.rounds}, rows=rows)


if __name__ == "__main__":
    main()
