"""What a step of a language model costs under Restrain, beside a bare loop over the same model in the same process.

``python benchmarks/language.py DATA [--rounds 5] [--steps 400] [--json FILE]``; DATA is a folder that holds
tinyshakespeare.txt. The recipe is shakespeare_gpt: 0.8 M parameters, 768 tokens a step. Both sides train the same model
from the same weights with the same fused AdamW, groups, schedule and clipping, in turn in each round, so that other
load on the machine falls on both. The loop draws its windows with torch.randint, as nanoGPT's does; Restrain's side is
a whole run: loader, journal, ledger, guard, lease, bar, signals. A round's figure is the mean over its steps, by clock
and by the processor time of the process; the ratios are medians over rounds of the ratio within one round.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reporting
import torch
import torch.nn.functional as F

from restrain.data.text.plain import TextSource
from restrain.optim.optimizers import build_optimizer
from restrain.parallel.world import World
from restrain.recipe import Resolved, load
from restrain.survival import signals
from restrain.training import build, network
from restrain.training.fit import fit
from restrain.training.lightning import quiet
from restrain.training.own import Callback, Own

CPU = torch.device("cpu")
WARMUP = 30  # steps of each round before the clock starts; the count of multiply-adds, once a run, falls among them
Times = tuple[float, float]


class Stopwatch(Callback):
    """Clock and processor time between two steps of a run."""

    def __init__(self, last: int):
        self.last, self.seen = last, {}

    def on_step_end(self, step: int, metrics: Any) -> None:
        if step in (WARMUP, self.last):
            self.seen[step] = now()

    @property
    def milliseconds(self) -> Times:
        return each(self.seen[WARMUP], self.seen[self.last], self.last - WARMUP)


def now() -> Times:
    return time.perf_counter(), time.process_time()


def each(begin: Times, end: Times, steps: int) -> Times:
    """Milliseconds a step, by both clocks."""
    wall, cpu = (1e3 * (after - before) / steps for before, after in zip(begin, end, strict=True))
    return wall, cpu


def under_restrain(resolved: Resolved, steps: int, folder: Path) -> Times:
    """A whole run of ``steps`` steps and one more, which is held back for the end of a run."""
    watch = Stopwatch(steps)
    fit(resolved, folder, World(), own=Own(callbacks=(watch,)), say=lambda text: None)
    return watch.milliseconds


def bare_loop(resolved: Resolved, steps: int) -> Times:
    """What one would write without any framework, of the same model."""
    recipe = build.with_classes(resolved.recipe, data := build.open_data(resolved.recipe))
    assert isinstance(data.train, TextSource)
    text = torch.from_numpy(data.train._tokens).long()
    context, rows = data.train.context, recipe.batch.global_
    model = network.build_model_on(recipe, CPU, recipe.seed).train()
    optimizer = build_optimizer(recipe.optimizer, model, batch_global=rows)
    factor = build.build_factor(recipe, build.build_plan(recipe, data, []), steps + 1)
    generator = torch.Generator().manual_seed(0)
    begin = now()
    for step in range(steps):
        if step == WARMUP:
            begin = now()
        places = torch.randint(len(text) - context, (rows,), generator=generator)
        x = torch.stack([text[i : i + context] for i in places])
        y = torch.stack([text[i + 1 : i + 1 + context] for i in places])
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor(step)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
    return each(begin, now(), steps - WARMUP)


def measure(args: argparse.Namespace) -> dict[str, list[Times]]:
    """Milliseconds a step of both sides, one pair a round."""
    changes = [f"data.root={args.data}", "data.holdout=0.0", f"length={args.steps + 1}st", "checkpoint.every=10min"]
    changes += ["track.every=1st", "expect=null", f"parallel.threads={args.threads}"]
    resolved = load("shakespeare_gpt", changes)
    torch.set_num_threads(args.threads)
    signals.install()
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Callable[[int], Times]] = {
            "bare loop": lambda number: bare_loop(resolved, args.steps),
            "restrain": lambda number: under_restrain(resolved, args.steps, Path(folder, str(number))),
        }
        found: dict[str, list[Times]] = {name: [] for name in sides}
        for number in range(args.rounds):
            for name, side in sides.items() if number % 2 == 0 else reversed(sides.items()):
                gc.collect()
                found[name].append(side(number))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", help="a folder that holds tinyshakespeare.txt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400, help=f"of a side in a round, the first {WARMUP} not timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    with quiet():
        found = measure(args)
    results: dict[str, Any] = {}
    rows = []
    for clock, kind in enumerate(("wall", "cpu")):
        ratios = [o[clock] / b[clock] for o, b in zip(found["restrain"], found["bare loop"], strict=True)]
        spreads = {name: reporting.spread([pair[clock] for pair in pairs]) for name, pairs in found.items()}
        results[kind] = {"ms": spreads, "ratio": statistics.median(ratios), "ratios": ratios}
        medians = [f"{spreads[name]['median']:.2f}" for name in found]
        rows.append([kind, *medians, f"{results[kind]['ratio']:.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}"])
    reporting.table(["ms a step", "bare loop", "restrain", "ratio", "of the rounds"], rows)
    print("aim: at most 1.05")
    reporting.write(args.json, vars(args) | {"data": "tinyshakespeare"}, results)


if __name__ == "__main__":
    main()
