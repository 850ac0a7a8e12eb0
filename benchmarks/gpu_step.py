"""The training steps of ResNet-50, ViT-B/16 and GPT-2 124M on one GPU, beside timm's and bare loops, and sharded.

``python benchmarks/gpu_step.py --json FILE`` on a machine with one CUDA device, within nine minutes. It runs, each in a
process of its own, what is measured elsewhere: ``step.py`` (ResNet-50 beside timm's and torchvision's),
``transformers.py`` (ViT-B/16 beside timm's, GPT-2 beside a bare loop), in bf16, eager and compiled, and eager with
other batch sizes; and
``restrain bench step`` of GPT-2 under FSDP2 and ZeRO-3 on one GPU beside a single process. The most important comes
first; what does not fit into ``--minutes``, what is not installed and what fails is listed with the reason.

``--device cpu --small`` tries all of it in a tiny form.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reporting

HERE = Path(__file__).resolve().parent
# Arguments of the benchmarks that make them small enough for any machine.
TINY = {
    "step.py": "--batch 2 --image-size 32 --steps 1 --windows 1 --warmup 1 --no-compile",
    "transformers.py": "--images 2 --image-size 32 --windows-of-tokens 1 --context 16 --steps 1 --windows 1 --warmup 1 "
    "--no-compile",
    "bench": "model.shape.depth=2 model.shape.width=64 model.shape.heads=2 model.shape.context=16 "
    "model.classes=512 data.context=16 batch.global=4 batch.micro=2 precision=fp32",
}
WINDOWS = "--steps 10 --windows 5"


@dataclass(frozen=True)
class Part:
    """``needs``: packages without which it is left out."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()


def parts(device: str, small: bool) -> Iterator[Part]:
    """What is run, in this order."""

    def script(name: str, file: str, arguments: str, *needs: str) -> Part:
        more = f"{TINY[file]} --device {device}" if small else f"{arguments} {WINDOWS} --device {device}"
        return Part(name, (sys.executable, str(HERE / file), *more.split()), needs)

    def sharded(strategy: str, *needs: str) -> Part:
        words = TINY["bench"] if small else "batch.global=32 batch.micro=32 model.classes=50304 precision=bf16"
        effort = "--steps 2 --warm-up 1" if small else "--steps 30 --warm-up 5"
        place = f"parallel.strategy={strategy} parallel.devices=1 parallel.accelerator={device} {effort}"
        command = (sys.executable, "-m", "restrain", "bench", "step", "gpt2_124m", *words.split(), *place.split())
        return Part(f"GPT-2 124M, {strategy} on one device", command, needs)

    resnet, transformer = "--formats bf16 --batch", "--windows-of-tokens"
    yield script("transformers, 256 images and 32 windows", "transformers.py", f"--images 256 {transformer} 32", "timm")
    yield script("ResNet-50, batch 256", "step.py", f"{resnet} 256", "timm", "torchvision")
    yield sharded("single")
    yield sharded("fsdp")
    yield sharded("zero3", "deepspeed")
    if small:
        return
    for images, windows in ((64, 8), (128, 16)):
        name = f"transformers, {images} images and {windows} windows, eager"
        arguments = f"--images {images} {transformer} {windows} --no-compile"
        yield script(name, "transformers.py", arguments, "timm")
        arguments = f"{resnet} {images} --no-compile"
        yield script(f"ResNet-50, batch {images}, eager", "step.py", arguments, "timm", "torchvision")


def run(part: Part, seconds: float) -> dict[str, Any]:
    """Its figures, or why there are none."""
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if missing:
        return {"skipped": f"{', '.join(missing)} is not installed"}
    if seconds <= 0:
        return {"skipped": "the time was used up (--minutes)"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        try:
            done = subprocess.run(
                [*part.command, "--json", str(file)], capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"skipped": f"was not done after the {seconds:.0f} s that were left"}
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            return {"skipped": f"exit code {done.returncode}: {said[:500]}"}
        print(done.stdout, end="", flush=True)
        found = json.loads(file.read_text())
    return {"took": time.monotonic() - began, "figures": found.get("results", found)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tries the commands, not the speed")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all")
    parser.add_argument("--only", default="", help="parts with this in their name")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(
                "benchmarks/gpu_step.py needs a CUDA device, and torch finds none. Run it on a machine with one; "
                "--device cpu --small tries the commands.",
                file=sys.stderr,
            )
            return 1
    end = time.monotonic() + 60 * args.minutes
    results: dict[str, Any] = {}
    for part in parts(args.device, args.small):
        if args.only not in part.name:
            continue
        print(f"-- {part.name}", flush=True)
        found = results[part.name] = run(part, end - time.monotonic())
        if "skipped" in found:
            print(f"skipped: {found['skipped']}")
        reporting.write(args.json, vars(args), results)
    return 0 if any("figures" in one for one in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
