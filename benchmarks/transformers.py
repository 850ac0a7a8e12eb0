"""The training step of ViT-B/16 and GPT-2 124M: time, rate, and the share of the device's peak.

``python benchmarks/transformers.py [--json FILE]`` needs a CUDA device. Data stay on the device; bf16, eager and
compiled (Restrain a block at a time, the peers the whole model). ViT-B/16 is ``imagenet_deit_b`` without mixing beside
timm's network in a bare loop; GPT-2 is ``gpt2_124m`` beside a bare loop over the same network; both with the same fused
AdamW. Restrain's is its own ``Run.step`` and border with everything that a run does on the device. MFU counts three
forward passes of multiply-adds a step (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) over the dense peak.

All variants of a row are warmed up first and then run in turn, a window of steps each, so that clocks and heat fall on
all.
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

import numpy as np
import reporting
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restrain import draws
from restrain.data.batches import MicroBatch, StepBatch
from restrain.data.order import Plan
from restrain.insight.cost import input_macs
from restrain.insight.throughput import peak
from restrain.models import build_model
from restrain.optim.optimizers import build_optimizer
from restrain.parallel import blocks
from restrain.parallel.world import World
from restrain.recipe import Recipe, load
from restrain.run.checkpoint import Writer
from restrain.training import build, network
from restrain.training.border import Border
from restrain.training.classify import Classify
from restrain.training.inputs import like_inputs
from restrain.training.language import Language
from restrain.training.step import Run, StepSettings
from restrain.training.task import Task

STEPS_PER_EPOCH = 5000
Step = Callable[[], None]


@dataclass(frozen=True)
class Job:
    """What all variants of one row have in common. samples: images uint8 [B, 3, H, W], or windows int64 [B, T + 1];
    ``units``: images or tokens a step."""

    recipe: Recipe
    samples: Tensor
    labels: Tensor
    units: int
    compiled: bool
    folder: Path

    @property
    def device(self) -> torch.device:
        return self.samples.device

    @property
    def is_text(self) -> bool:
        return self.samples.dtype == torch.int64


def vit_job(args: argparse.Namespace, device: torch.device, compiled: bool, folder: Path) -> Job:
    rows, side = args.images, args.image_size
    changes = [
        "mix.mixup=0",
        "mix.cutmix=0",
        "loss.smoothing=0",
        "model.drop_path.rate=0",
        "data.repeats=1",
        "ema=null",
    ]
    changes += [f"resolution.{key}={side}" for key in ("train", "eval", "eval_resize")]
    recipe = load("imagenet_deit_b", [*_common(rows, compiled), *changes]).recipe
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (rows, 3, side, side), generator=generator, dtype=torch.uint8).to(device)
    labels = torch.randint(recipe.model.classes, (rows,), generator=generator).to(device)
    return Job(recipe, images.contiguous(memory_format=torch.channels_last), labels, rows, compiled, folder)


def gpt_job(args: argparse.Namespace, device: torch.device, compiled: bool, folder: Path) -> Job:
    rows, context = args.windows_of_tokens, args.context
    changes = [
        *_common(rows, compiled),
        "model.classes=50304",
        f"data.context={context}",
        f"model.shape.context={context}",
    ]
    recipe = load("gpt2_124m", changes).recipe
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(50257, (rows, context + 1), generator=generator).to(device)
    return Job(recipe, tokens, tokens[:, :0], rows * context, compiled, folder)


def _common(rows: int, compiled: bool) -> list[str]:
    compiling = "block" if compiled else "none"
    return [f"batch.global={rows}", "batch.group=1", "precision=bf16", f"parallel.compile={compiling}"]


def restrain_step(job: Job) -> Step:
    """One step of a run of the recipe on one device, with its border."""
    recipe, rows = job.recipe, len(job.samples)
    plan = Plan(STEPS_PER_EPOCH * rows, rows, 1, 1)
    total = build.total_steps(recipe, plan)
    model = network.build_model_on(recipe, job.device, recipe.seed)
    if job.compiled:
        blocks.apply_compile(model)
    task: Task = Language(model) if job.is_text else Classify(model)
    task = task.to(job.device).train()
    state = build.build_state(recipe, task, plan, total, job.device)
    writer = Writer(Path(tempfile.mkdtemp(dir=job.folder)), 0, 1, 1, None)
    border = Border(state, build.build_cadence(recipe, plan, total, has_evaluation=False), writer, evaluate=None)
    settings = StepSettings(
        seed=recipe.seed,
        micro=rows,
        shape=tuple(job.samples.shape[1:]),
        precision=recipe.precision,
        factor=build.build_factor(recipe, plan, total),
        clip=recipe.clip,
    )
    run = Run(task, state, plan, World(), border, settings)
    micro = MicroBatch(job.samples, job.labels, 0, None, draws.mix(0, np.arange(rows), 0), None)

    def step() -> None:
        run.step(StepBatch(state.step, 0, [micro], 0.0, []))
        border.after_step(run.vector)

    return step


def peer_step(job: Job) -> Step:
    """The same arithmetic in a bare loop: timm's ViT-B/16, or our own GPT-2, whose peers have no package."""
    recipe = job.recipe
    if job.is_text:
        model: nn.Module = network.build_model_on(recipe, job.device, recipe.seed)
        inputs, target = job.samples[:, :-1], job.samples[:, 1:]
    else:
        model = timm.create_model("vit_base_patch16_224", img_size=job.samples.shape[-1]).to(job.device)
        inputs, target = (job.samples.float() / 255 - 0.45) / 0.225, job.labels
    optimizer = build_optimizer(recipe.optimizer, model, batch_global=recipe.batch.global_)
    compiled = torch.compile(model.train()) if job.compiled else model.train()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(job.device.type, dtype=torch.bfloat16):
            logits = compiled(inputs)
        loss = F.cross_entropy(logits.flatten(0, -2).float(), target.flatten())
        loss.backward()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()

    return step


def measure(job: Job, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds a step of each variant."""

    def wait() -> None:
        if job.device.type == "cuda":
            torch.cuda.synchronize(job.device)

    def window(step: Step, steps: int) -> float:
        wait()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        return (time.perf_counter() - begin) / steps

    torch._dynamo.reset()
    made = {"bare loop": peer_step(job), "restrain": restrain_step(job)}
    for step in made.values():
        window(step, args.warmup)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(args.windows):
        for name, step in made.items():
            seconds[name].append(window(step, args.steps))
    return {name: reporting.spread(values) for name, values in seconds.items()}


JOBS: dict[str, Callable[[argparse.Namespace, torch.device, bool, Path], Job]] = {
    "ViT-B/16": vit_job,
    "GPT-2 124M": gpt_job,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the command")
    parser.add_argument("--images", type=int, default=256, help="images a step")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--windows-of-tokens", type=int, default=32, help="windows a step")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20, help="of a window")
    parser.add_argument("--windows", type=int, default=7, help="of each variant")
    parser.add_argument("--warmup", type=int, default=5, help="steps of each variant before the first window")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "benchmarks/transformers.py needs a CUDA device, and torch finds none. Run it on a machine with one; "
            "--device cpu --images 2 --windows-of-tokens 1 --context 64 --steps 1 --windows 1 --no-compile tries the "
            "command, not the speed.",
            file=sys.stderr,
        )
        return 1
    device = torch.device(args.device)
    top = peak(torch.cuda.get_device_name(device), "bf16") if device.type == "cuda" else None
    results, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for compiled in [False] if args.no_compile else [False, True]:
            for name, make in JOBS.items():
                job = make(args, device, compiled, Path(folder))
                row = f"{name}, {'compiled' if compiled else 'eager'}"
                found = measure(job, args)
                with torch.device("meta"):
                    model = build_model(job.recipe.model.model_dump())
                macs = input_macs(model, like_inputs(job.recipe, 1, torch.float32)) * len(job.samples)
                results[row] = {"seconds": found, "units": job.units, "macs": macs}
                for variant, spread in found.items():
                    rate = job.units / spread["median"]
                    mfu = f"{6 * macs / spread['median'] / top:.1%}" if top else "-"
                    results[row][f"mfu {variant}"] = mfu
                    rows.append([f"{row}, {variant}", f"{1e3 * spread['median']:.1f}", f"{rate:,.0f}", mfu])
                gc.collect()
    reporting.write(args.json, vars(args), results)
    reporting.table(["", "ms a step", "images or tokens/s", "MFU"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
