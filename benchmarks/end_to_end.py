"""Whole runs on a device: the digits, CIFAR-10, and a run that is killed, resumed and compared bit for bit.

``python benchmarks/step.py --end-to-end`` calls :func:`measure`. Each run is the command a user would give.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

KILLED = ["deterministic=true", "length=6ep", "checkpoint.every=20st", "checkpoint.best=null", "evaluate.every=6ep"]
KILL_AFTER = 40  # steps in the checkpoint after which the run is killed; 6 epochs of the digits are 132


def train(recipe: str, run: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """``restrain train`` to its end: seconds, state, steps and metrics."""
    begin = time.perf_counter()
    subprocess.run(_command(recipe, run, overrides), check=True)
    info = json.loads((run / "run.json").read_text())
    return {"seconds": round(time.perf_counter() - begin, 2), "state": info["state"], "step": info["step"]} | info.get(
        "metrics", {}
    )


def kill_and_resume(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train once without a break and once with SIGKILL in the middle; whether the last checkpoints are bit-equal."""
    whole, broken = folder / "whole", folder / "broken"
    train("digits_resnet20", whole, [*overrides, *KILLED])
    process = subprocess.Popen(_command("digits_resnet20", broken, [*overrides, *KILLED]))
    while process.poll() is None and _saved(broken) < KILL_AFTER:
        time.sleep(0.005)
    if process.poll() is not None:
        raise RuntimeError(f"the run ended (code {process.returncode}) before it could be killed")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed_after = _saved(broken)
    last = train("digits_resnet20", broken, [*overrides, *KILLED])["step"]
    left, right = _tensors(whole, last), _tensors(broken, last)
    different = [name for name in left if name not in right or not torch.equal(left[name], right[name])]
    ledgers = [(run / "ledger.jsonl").read_bytes() for run in (whole, broken)]
    return {
        "killed_after_checkpoint": killed_after,
        "steps": last,
        "tensors": len(left),
        "tensors_that_differ": len(different) + len(right.keys() - left.keys()),
        "ledgers_equal": ledgers[0] == ledgers[1],
    }


def measure(device: str, cifar: str | None, cifar_length: str) -> dict[str, Any]:
    """All of it on ``device``. ``cifar``: folder of the CIFAR-10 shards."""
    here = [f"parallel.accelerator={device}", "parallel.devices=1"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {"digits_resnet20": train("digits_resnet20", folder / "digits", here)}
        if cifar is not None:
            overrides = [*here, f"data.root={Path(cifar).resolve()}", f"length={cifar_length}"]
            # its milestones are for the paper's 64,000 steps
            overrides += ["schedule.name=cosine"]
            found["cifar10_resnet20"] = train("cifar10_resnet20", folder / "cifar", overrides)
        found["kill_and_resume"] = kill_and_resume(folder, here)
    return found


def _command(recipe: str, run: Path, overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "restrain", "train", recipe, *overrides, "--run", str(run)]


def _saved(run: Path) -> int:
    """Step of the newest committed checkpoint; 0 before there is one."""
    names = [path.name[5:] for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
    return max(map(int, names), default=0)


def _tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    files = sorted((run / "checkpoints" / f"step-{step}").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
