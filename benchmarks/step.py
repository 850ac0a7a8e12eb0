"""ResNet-50's training step beside timm's and torchvision's: images a second, data on the device.

``python benchmarks/step.py [--json FILE] [--end-to-end [--cifar DIR]]`` needs a CUDA device. fp16 and bf16, eager and
compiled (Restrain a block at a time, the peers the whole model, as their scripts do). The peers' steps are those of
``train.py`` of timm and ``references/classification/train.py`` of torchvision without their metering, which would only
slow them: autocast, cross-entropy, SGD with momentum, a GradScaler for fp16, cuDNN's search. Restrain's is its own
``Run.step`` and border with everything a run does on the device: normalising uint8 images, guard, gradient norm, hash,
staged statistics. It is there twice: BatchNorm over the whole batch as the peers', and over the recipe's groups of 32.

All variants of a row are warmed up first and then run in turn, a window of steps each, so that clocks and heat fall on
all. ``--end-to-end`` adds whole runs (see ``end_to_end.py``).
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import end_to_end
import numpy as np
import reporting
import timm
import torch
import torchvision
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from restrain import draws
from restrain.data.batches import MicroBatch, StepBatch
from restrain.data.order import Plan
from restrain.parallel import blocks
from restrain.parallel.world import World
from restrain.recipe import load
from restrain.run.checkpoint import Writer
from restrain.training import build, network
from restrain.training.border import Border
from restrain.training.classify import Classify
from restrain.training.step import Run, StepSettings

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CLASSES, STEPS_PER_EPOCH = 1000, 5000
RECIPE_GROUP = 32
RESTRAIN_SEARCHES = True  # fit.py lets cuDNN search too
Step = Callable[[], None]


@dataclass(frozen=True)
class Job:
    """What all variants of one row of the table have in common."""

    images: Tensor  # uint8 [B, 3, H, W], channels-last, on the device
    labels: Tensor  # int64 [B]
    number_format: str
    compiled: bool
    folder: Path

    @property
    def device(self) -> torch.device:
        return self.images.device


def timm_step(job: Job) -> Step:
    """One step as timm's ``train.py`` writes it."""
    model = _placed(job, timm.create_model("resnet50", num_classes=CLASSES))
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
    return _peer_step(job, model, optimizer, zero_first=True)


def torchvision_step(job: Job) -> Step:
    """One step as torchvision's ``references/classification/train.py`` writes it."""
    model = _placed(job, torchvision.models.resnet50(num_classes=CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return _peer_step(job, model, optimizer, zero_first=False)


def _placed(job: Job, model: nn.Module) -> nn.Module:
    return model.to(device=job.device, memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]


def _peer_step(job: Job, model: nn.Module, optimizer: torch.optim.Optimizer, zero_first: bool) -> Step:
    kind = job.device.type
    criterion = nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler(kind) if job.number_format == "fp16" else None
    images = ((job.images.float() / 255 - 0.45) / 0.225).contiguous(memory_format=torch.channels_last)
    network = torch.compile(model) if job.compiled else model

    def step() -> None:
        if zero_first:
            optimizer.zero_grad()
        with torch.autocast(kind, dtype=DTYPES[job.number_format]):
            loss = criterion(network(images), job.labels)
        if not zero_first:
            optimizer.zero_grad()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    return step


def restrain_step(job: Job, group: int) -> Step:
    """One step of a run of ``imagenet_resnet50`` on one device, with its border."""
    batch, size = job.images.shape[0], job.images.shape[-1]
    overrides = [f"batch.global={batch}", f"batch.group={group}", f"precision={job.number_format}"]
    recipe = load("imagenet_resnet50", overrides).recipe
    plan = Plan(STEPS_PER_EPOCH * batch, batch, group, 1)
    total = build.total_steps(recipe, plan)
    model = network.build_model_on(recipe, job.device, recipe.seed)
    if job.compiled:
        blocks.apply_compile(model)
    task = Classify(model, build.build_loss(recipe.loss), recipe.data.mean, recipe.data.std).to(job.device).train()
    state = build.build_state(recipe, task, plan, total, job.device)
    writer = Writer(Path(tempfile.mkdtemp(dir=job.folder)), 0, 1, 1, None)
    border = Border(state, build.build_cadence(recipe, plan, total, has_evaluation=False), writer, evaluate=None)
    settings = StepSettings(
        seed=recipe.seed,
        micro=batch,
        shape=(3, size, size),
        precision=recipe.precision,
        factor=build.build_factor(recipe, plan, total),
    )
    run = Run(task, state, plan, World(), border, settings)
    micro = MicroBatch(job.images, job.labels, 0, None, draws.mix(0, np.arange(batch), 0), None)

    def step() -> None:
        run.step(StepBatch(state.step, 0, [micro], 0.0, []))
        border.after_step(run.vector)

    return step


def variants(batch: int) -> dict[str, tuple[Callable[[Job], Step], bool]]:
    """Name -> (what makes its step, whether cuDNN searches for its fastest kernels)."""
    found: dict[str, tuple[Callable[[Job], Step], bool]] = {
        "timm": (timm_step, True),
        "torchvision": (torchvision_step, True),
        "restrain": (lambda job: restrain_step(job, batch), RESTRAIN_SEARCHES),
    }
    if batch > RECIPE_GROUP and batch % RECIPE_GROUP == 0:
        found[f"restrain, group {RECIPE_GROUP}"] = (lambda job: restrain_step(job, RECIPE_GROUP), RESTRAIN_SEARCHES)
    return found


def measure(job: Job, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Images a second of each variant."""

    def wait() -> None:
        if job.device.type == "cuda":
            torch.cuda.synchronize(job.device)

    def window(step: Step, search: bool, steps: int) -> float:
        torch.backends.cudnn.benchmark = search
        wait()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        return len(job.labels) * steps / (time.perf_counter() - begin)

    torch._dynamo.reset()
    made = {name: (make(job), search) for name, (make, search) in variants(len(job.labels)).items()}
    for step, search in made.values():
        window(step, search, args.warmup)
    rates: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(args.windows):
        for name, (step, search) in made.items():
            rates[name].append(window(step, search, args.steps))
    return {name: reporting.spread(values) for name, values in rates.items()}


def sweep(args: argparse.Namespace, device: torch.device) -> dict[str, dict[str, dict[str, float]]]:
    """``bf16 eager`` and so on -> variant -> images a second."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, 3, args.image_size, args.image_size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (args.batch,), generator=generator).to(device)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number_format in args.formats.split(","):
            for compiled in [False] if args.no_compile else [False, True]:
                row = f"{number_format} {'compiled' if compiled else 'eager'}"
                found[row] = measure(Job(images, labels, number_format, compiled, Path(folder)), args)
                print(f"{row}: " + ", ".join(f"{name} {r['median']:.0f}" for name, r in found[row].items()), flush=True)
                gc.collect()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the command")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20, help="of a window")
    parser.add_argument("--windows", type=int, default=7, help="of each variant")
    parser.add_argument("--warmup", type=int, default=5, help="steps of each variant before the first window")
    parser.add_argument("--formats", default="fp16,bf16")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--end-to-end", action="store_true", help="also whole runs, and a kill with a resume")
    parser.add_argument("--cifar", help="data.root of cifar10_resnet20; without it that run is left out")
    parser.add_argument("--cifar-length", default="10ep")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "benchmarks/step.py needs a CUDA device, and torch finds none. Run it on a machine with one; "
            "--device cpu --batch 4 --steps 2 --image-size 64 tries the command, not the speed.",
            file=sys.stderr,
        )
        return 1
    results: dict = {"images_per_s": sweep(args, torch.device(args.device))}
    if args.end_to_end:
        results["end_to_end"] = end_to_end.measure(args.device, args.cifar, args.cifar_length)

    rates = results["images_per_s"]
    names = list(next(iter(rates.values())))
    rows = [[row, *(f"{found[name]['median']:.0f}" for name in names)] for row, found in rates.items()]
    for line, found in zip(rows, rates.values(), strict=True):
        best = max(found["timm"]["median"], found["torchvision"]["median"])
        line.append(f"{found['restrain']['median'] / best:.2f}")
    reporting.write(args.json, vars(args), results)
    for name, found in results.get("end_to_end", {}).items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    reporting.table(["images/s", *names, "restrain : best peer"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
