"""What probes cost: a step that is read beside one that is not, and beside a run that has none.

``python benchmarks/probe.py [--rounds 15] [--every 100] [--device cpu] [--json FILE]``. ResNet-20 on 32 pixels and
ViT-S/16 on 224, both in fp32, each a run's own step with everything that it does. A round takes one step of each kind
in turn, so that other load on the machine falls on all; the figures are medians over rounds of the ratio within one.
On a CPU it is the process's own time that counts, on one thread, on a GPU the clock. The file's line is made as well.

``cost`` is the share of run time with one step in ``--every`` read; ``off``: of a run with probes, a step between two
readings against a step without any.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import reporting
import torch

from restrain import draws
from restrain.data.batches import MicroBatch, StepBatch
from restrain.data.order import Plan
from restrain.insight.probe import Probe, Sampler
from restrain.parallel.world import World
from restrain.recipe import load
from restrain.run.checkpoint import Writer
from restrain.run.journal import encode
from restrain.run.probes import line
from restrain.training import build, network
from restrain.training.border import Border
from restrain.training.classify import Classify
from restrain.training.step import Run, StepSettings

NETWORKS = {  # name -> (recipe, model, pixels, batch on a CPU, batch on a GPU)
    "ResNet-20": ("cifar10_resnet20", "cifar_resnet20", 32, 64, 256),
    "ViT-S/16": ("imagenet_resnet50", "timm/vit_small_patch16_224", 224, 4, 64),
}


class Spy(Border):
    """Makes the line that a run would write, and keeps its length."""

    written = 0

    def probed(self, step, joins, values) -> None:
        self.written = len(encode(line(step, joins, values)))


def make(recipe_name: str, model_name: str, side: int, batch: int, device: torch.device, folder: Path) -> Run:
    """A run of random images, with its border."""
    words = [f"model.name={model_name}", f"batch.global={batch}", f"batch.group={batch}", "precision=fp32"]
    recipe = load(recipe_name, words).recipe
    plan = Plan(100_000 * batch, batch, batch, 1)
    total = build.total_steps(recipe, plan)
    model = network.build_model_on(recipe, device, recipe.seed)
    task = Classify(model, build.build_loss(recipe.loss), recipe.data.mean, recipe.data.std).to(device).train()
    state = build.build_state(recipe, task, plan, total, device)
    writer = Writer(folder, 0, 1, 1, None)
    border = Spy(state, build.build_cadence(recipe, plan, total, has_evaluation=False), writer, evaluate=None)
    settings = StepSettings(
        seed=recipe.seed,
        micro=batch,
        shape=(3, side, side),
        precision=recipe.precision,
        factor=lambda step: 1e-3,
    )
    return Run(task, state, plan, World(), border, settings)


def measure(run: Run, batch: int, side: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step without probes, between two readings, and of one that is read; one of each a round."""
    images = torch.from_numpy(draws.integers(draws.mix(0, np.arange(batch * 3 * side * side)), 256)).to(torch.uint8)
    images = images.view(batch, 3, side, side).contiguous(memory_format=torch.channels_last).to(run.place)
    micro = MicroBatch(images, torch.arange(batch) % 10, 0, None, draws.mix(0, np.arange(batch), 0), None)
    probe = Probe(run.task.model)
    kinds: dict[str, Sampler | None] = {
        "none": None,
        "between": Sampler(probe, lambda step: False),
        "read": Sampler(probe, lambda step: True),
    }
    clock: Callable[[], float] = time.process_time if run.place.type == "cpu" else time.perf_counter
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds + 2):
        for kind, sampler in kinds.items():
            run.probes = sampler
            _wait(run.place)
            begin = clock()
            run.step(StepBatch(run.state.step, 0, [micro], 0.0, []))
            run.border.after_step(run.vector)
            _wait(run.place)
            if number > 1:
                found[kind].append(clock() - begin)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    results, rows = {}, []
    for name, (recipe, model, side, small, large) in NETWORKS.items():
        batch = small if device.type == "cpu" else large
        with tempfile.TemporaryDirectory() as folder:
            run = make(recipe, model, side, batch, device, Path(folder))
            times = measure(run, batch, side, args.rounds)
        plain = times["none"]
        read = statistics.median(r / p - 1 for r, p in zip(times["read"], plain, strict=True))
        between = statistics.median(b / p - 1 for b, p in zip(times["between"], plain, strict=True))
        assert isinstance(run.border, Spy)
        results[name] = {
            "batch": batch,
            "step_ms": reporting.spread([1e3 * p for p in plain]),
            "read_over_plain": read,
            "off": between,
            "cost": read / args.every,
            "bytes": run.border.written,
        }
        rows.append(
            [
                *(name, str(batch), f"{1e3 * statistics.median(plain):.1f}", f"{read:+.1%}", f"{between:+.1%}"),
                *(f"{read / args.every:.2%}", f"{run.border.written:,}"),
            ]
        )
    header = ["network", "batch", "step, ms", "read step", "step between", f"cost, 1 in {args.every}", "bytes a line"]
    reporting.table(header, rows)
    reporting.write(args.json, vars(args), results)


if __name__ == "__main__":
    main()
