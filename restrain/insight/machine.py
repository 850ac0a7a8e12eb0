"""What a run was computed with and on: kept in ``run.json``, because bit-equality holds only where they are equal."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from restrain import __version__

PACKAGES = ("torch", "torchvision", "lightning", "numpy", "safetensors", "timm", "webdataset", "wandb", "pillow")


def circumstances(placement: Mapping[str, Any], world: int) -> dict[str, Any]:
    """Command, versions, hardware and git commit, for ``run.json``."""
    versions = {"python": platform.python_version(), "restrain": __version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "hardware": hardware(),
        "git": _git(),
        "placement": {**placement, "world": world},
    }


def hardware() -> dict[str, Any]:
    """Host, processor and GPUs."""
    import torch

    facts: dict[str, Any] = {"host": platform.node(), "cpu": _cpu(), "cores": len(os.sched_getaffinity(0))}
    if torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git() -> dict[str, Any] | None:
    """Commit of the working directory, and whether it has changes; None outside a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"commit": head.stdout.strip(), "dirty": bool(dirty.stdout.strip())} if head.returncode == 0 else None
