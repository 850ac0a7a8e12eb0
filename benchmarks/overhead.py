"""What the framework costs a step, in microseconds: Restrain's run beside a bare ``Trainer.fit`` and a bare loop.

``python benchmarks/overhead.py [--rounds 9] [--steps 2000] [--json FILE]``. A tiny model (Linear 16-32-3, batch 64), so
that nearly all of the time is the framework's, with everything of Restrain on but the mirrors: journal, ledger, lease,
guard, bar on a terminal, signals, and a checkpoint due by the clock. All three train on the same tensors with the same
fused SGD, in turn in each round, so that other load on the machine falls on all of them; a round's figure is the mean
over its steps, and the differences are medians over rounds of the difference within one round.

The second part is the share of a real step: ResNet-50, 224 pixels, batch 32. What the guard and the statistics cost
grows with the model, so it is measured on that model's own gradients and added.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import reporting
import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from rich.console import Console
from torch import nn

from restrain import draws
from restrain.data.batches import MicroBatch, StepBatch
from restrain.data.order import Plan
from restrain.insight.progress import Length, Progress
from restrain.models.build import build_model
from restrain.models.norm import set_group
from restrain.optim.optimizers import build_optimizer
from restrain.parallel import precision
from restrain.parallel.world import World
from restrain.recipe import Recipe, load
from restrain.run.checkpoint import Writer
from restrain.run.folder import RunFolder
from restrain.run.journal import Journal
from restrain.run.lease import Lease
from restrain.survival import signals
from restrain.training import build
from restrain.training.border import Border
from restrain.training.classify import Classify
from restrain.training.lightning import make_trainer, quiet
from restrain.training.recorder import Recorder
from restrain.training.state import RunState
from restrain.training.step import Run, StepSettings

BATCH, DISTINCT = 64, 16
WARMUP = 100  # steps of each round before the clock starts
STEPS_PER_EPOCH = 500
CPU = torch.device("cpu")
OVERRIDES = [
    "batch.global=64",
    "batch.group=64",
    "precision=fp32",
    "optimizer.lr=0.01",
    "loss.smoothing=0.0",
    "track.every=1st",
    "checkpoint.every=10min",
    "evaluate.every=20ep",
]


class Steps:
    """A loader of ready batches that times the steps between the first timed batch and the last one.

    By the clock, and by the processor time of all threads of this process: where other work shares the machine, only
    the second says what a step needs.
    """

    def __init__(self, batches: list[StepBatch]):
        self.batches = batches
        self.begin = self.end = (0.0, 0.0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[StepBatch]:
        for number, batch in enumerate(self.batches):
            if number in (WARMUP, len(self.batches) - 1):
                self.begin, self.end = self.end, (time.perf_counter(), time.process_time())
            yield batch

    @property
    def microseconds(self) -> tuple[float, float]:
        """(clock, processor) time of a step."""
        steps = len(self.batches) - 1 - WARMUP
        wall, cpu = (1e6 * (after - before) / steps for before, after in zip(self.begin, self.end, strict=True))
        return wall, cpu


def ready_batches(plan: Plan, steps: int) -> list[StepBatch]:
    """``steps`` batches over a few distinct micro-batches of float images, ledger prefixes hashed beforehand."""
    generator = torch.Generator().manual_seed(0)
    micros = []
    for number in range(DISTINCT):
        images = torch.randn(BATCH, 16, generator=generator)
        labels = torch.randint(3, (BATCH,), generator=generator)
        prefix = draws.mix(0, np.arange(number * BATCH, (number + 1) * BATCH), 0, 0)
        micros.append(MicroBatch(images, labels, 0, None, prefix, None))
    return [StepBatch(step, plan.place(step)[0], [micros[step % DISTINCT]], 1e-6, []) for step in range(steps)]


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)


def bare_loop(loader: Steps) -> None:
    """What one would write without any framework."""
    model = tiny()
    optimizer = sgd(model)
    for batch in loader:
        micro = batch.micros[0]
        optimizer.zero_grad()
        F.cross_entropy(model(micro.images), micro.labels).backward()
        optimizer.step()


class Bare(L.LightningModule):
    """The least that Lightning runs: manual optimisation, the raw torch optimizer, nothing logged."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.model = tiny()
        self.optimizer = sgd(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        return batch

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        micro = batch.micros[0]
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(micro.images), micro.labels).backward()
        self.optimizer.step()


class Documented(Bare):
    """The same as Lightning's documentation writes it: its wrapped optimizer and its own backward."""

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        micro, optimizer = batch.micros[0], self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.model(micro.images), micro.labels))
        optimizer.step()


def bare_fit(loader: Steps, module: L.LightningModule) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train_dataloaders=loader)


def restrain_run(loader: Steps, recipe: Recipe, plan: Plan, path: Path) -> None:
    """Restrain's Run as ``restrain.training.fit`` sets it up, around the tiny model."""
    total, world = len(loader), World()
    folder = RunFolder(path)
    folder.create()
    with Lease(folder.path) as lease, open(os.devnull, "w") as terminal:
        task = Classify(tiny(), build.build_loss(recipe.loss))
        optimizer = build_optimizer(recipe.optimizer, task.model, batch_global=BATCH)
        segments = [{"from_step": 0, "epoch": 0, "position": 0, "batch": plan.batch, "group": plan.group}]
        state = RunState(task.model, optimizer, segments=segments)
        console = Console(file=terminal, force_terminal=True, width=120)
        progress = Progress(
            Length(total, 0, total / plan.steps_per_epoch, plan.steps_per_epoch, BATCH), console=console, plain=False
        )
        recorder = Recorder(
            Journal(folder.journal, guard=lease.check),
            Journal(folder.ledger, guard=lease.check),
            progress,
            [],
            plan=plan,
            every=build.every(recipe.track.every, plan, total),
        )
        border = Border(
            state,
            build.build_cadence(recipe, plan, total, has_evaluation=False),
            Writer(folder.checkpoints, 0, 1, 1, recipe.checkpoint.keep),
            evaluate=None,
            recorder=recorder,
            lease=lease,
        )
        settings = StepSettings(
            seed=recipe.seed,
            micro=BATCH,
            shape=(16, 1, 1),
            precision=recipe.precision,
            factor=build.build_factor(recipe, plan, total),
        )
        run = Run(task, state, plan, world, border, settings)
        with progress:
            make_trainer(world, CPU).fit(run, train_dataloaders=loader)
        border.finish()
        recorder.close()
        lines = folder.ledger.read_text().count("\n"), folder.journal.read_text().count("\n")
        if lines != (total, total):
            raise AssertionError(f"{lines} lines in ledger and journal for {total} steps: not everything was on")


def overhead(rounds: int, steps: int) -> dict[str, list[tuple[float, float]]]:
    """Microseconds a step of each variant by clock and processor, one pair a round."""
    recipe = load("digits_resnet20", OVERRIDES).recipe
    plan = Plan(STEPS_PER_EPOCH * BATCH, BATCH, BATCH, 1)
    batches = ready_batches(plan, steps + WARMUP + 1)
    torch.set_num_threads(1)  # as a run of this size resolves it
    signals.install()
    with tempfile.TemporaryDirectory() as folder:
        variants: dict[str, Callable[[Steps, int], None]] = {
            "loop": lambda loader, number: bare_loop(loader),
            "fit": lambda loader, number: bare_fit(loader, Bare()),
            "fit, documented": lambda loader, number: bare_fit(loader, Documented()),
            "restrain": lambda loader, number: restrain_run(loader, recipe, plan, Path(folder, str(number))),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for number in range(rounds):
            for name, variant in variants.items():
                gc.collect()
                loader = Steps(batches)
                variant(loader, number)
                found[name].append(loader.microseconds)
    return found


def real_step(size: int, batch: int, repeats: int, threads: int) -> dict[str, float]:
    """Seconds of a plain ResNet-50 step (bf16 where the CPU has it), and what Run does more with its parameters."""
    torch.set_num_threads(threads)
    recipe = load("imagenet_resnet50", ["precision=auto"]).recipe
    number_format = precision.resolve("auto", CPU)
    model = build_model({"name": "resnet50", "classes": 1000}).to(memory_format=torch.channels_last)  # pyright: ignore
    set_group(model, batch)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), generator=generator)
    task = Classify(model)
    optimizer = build_optimizer(recipe.optimizer, model, batch_global=256)
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        optimizer.zero_grad()
        with precision.autocast(number_format, CPU):
            logits = model(images)
        task.rows(logits, labels).mean().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)

    plan, plain, whole = Plan(batch * 1000, batch, batch, 1), [], []
    state = RunState(model, optimizer, segments=[])
    settings = StepSettings(0, batch, (3, size, size), "fp32", lambda step: 0.1)
    run = Run(task, state, plan, World(), None, settings)  # pyright: ignore[reportArgumentType]
    vector = torch.zeros(16, dtype=torch.float64)
    for _ in range(2 * repeats + 1):
        optimizer.found_inf = None  # pyright: ignore[reportAttributeAccessIssue]
        begin = time.perf_counter()
        optimizer.step()
        plain.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        run.statistics.accumulate()
        run.update(0, vector, 0.1, run.engine.gradients())
        whole.append(time.perf_counter() - begin)
    more = statistics.median(w - p for w, p in zip(whole[1:], plain[1:], strict=True))
    return {"step": statistics.median(seconds[1:]), "update": more, "threads": threads}


def show(results: dict[str, Any], args: argparse.Namespace) -> None:
    wall, cpu = results["microseconds"]["wall"], results["microseconds"]["cpu"]
    above = results["above"]
    rows = []
    for name, found in wall.items():
        numbers = [found["median"], found["min"], found["max"], cpu[name]["median"]]
        more = [f"{above[kind][name]:.0f}" if name in above[kind] else "" for kind in ("wall", "cpu")]
        rows.append([name, *(f"{x:.0f}" for x in numbers), f"{found['median'] / wall['loop']['median']:.2f}", *more])
    header = ["us a step", "median", "min", "max", "cpu", "ratio", "restrain above it", "(cpu)"]
    reporting.table(header, rows)
    print("aims: restrain at most 120 us above fit and 350 us above the loop")
    if "resnet50" in results:
        real = results["resnet50"]
        print(
            f"ResNet-50, {args.image_size} px, batch {args.batch}: {real['step']:.3f} s a step. Share of the framework "
            f"{100 * real['share']:.3f} %; with norm, guard and statistics of so many parameters "
            f"{100 * real['share_with_update']:.2f} % (aim <= 1 %)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2000, help="timed steps of a variant in a round")
    parser.add_argument("--image-size", type=int, default=224, help="of the ResNet-50 step; 0 leaves that part out")
    parser.add_argument("--batch", type=int, default=32, help="of the ResNet-50 step")
    parser.add_argument("--repeats", type=int, default=5, help="ResNet-50 steps")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    with quiet():
        found = overhead(args.rounds, args.steps)
    results: dict[str, Any] = {"microseconds": {}, "above": {}}
    for clock, kind in enumerate(("wall", "cpu")):
        figures = {name: [pair[clock] for pair in pairs] for name, pairs in found.items()}
        results["microseconds"][kind] = {name: reporting.spread(values) for name, values in figures.items()}
        ours = figures.pop("restrain")
        results["above"][kind] = {
            name: statistics.median(mine - base for mine, base in zip(ours, values, strict=True))
            for name, values in figures.items()
        }
    if args.image_size:
        real = real_step(args.image_size, args.batch, args.repeats, threads)
        fixed = 1e-6 * results["above"]["wall"]["loop"] / real["step"]
        results["resnet50"] = real | {"share": fixed, "share_with_update": fixed + real["update"] / real["step"]}

    show(results, args)
    reporting.write(args.json, vars(args), results)


if __name__ == "__main__":
    main()
