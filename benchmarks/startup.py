"""How long one waits: for ``restrain --help``, for ``restrain show``, and for the first step of a run.

``python benchmarks/startup.py [--repeats 5] [--json FILE]``. Each in processes of its own, in turn in each round. The
first step is timed inside its process: from the end of the imports of torch, Lightning and Restrain's training to the
end of the first step of ``digits_resnet20``, so reading the data, the lease, the model, the Trainer and whatever is
imported only then all count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import reporting

AIMS = {"restrain --help": 0.3, "restrain show imagenet_resnet50": 0.5, "first step of digits_resnet20": 3.0}

# Runs in the process that is timed. The step's own end is where the hook after it begins; then nothing else matters.
FIRST_STEP = """
import os, sys, time
from restrain.cli.main import run
from restrain.training import fit
from restrain.training.step import Run
begin = time.perf_counter()
def ended(self, *arguments):
    print(time.perf_counter() - begin, flush=True)
    os._exit(0)
Run.on_train_batch_end = ended
sys.argv = ["restrain", "train", "digits_resnet20", "--run", sys.argv[1]]
run(sys.argv[1:])
"""


def command(*arguments: str) -> float:
    """Wall time in seconds of a ``restrain`` command as its user starts it."""
    script = Path(sys.executable).with_name("restrain")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "restrain"]
    begin = time.perf_counter()
    subprocess.run([*start, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def first_step() -> float:
    """Seconds from the end of the imports to the end of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        argv: Sequence[str] = [sys.executable, "-c", FIRST_STEP, str(Path(folder, "run"))]
        done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in AIMS}
    for number in range(args.repeats + 1):
        for name, values in found.items():
            seconds = first_step() if name.startswith("first") else command(*name.split()[1:])
            if number:  # the first round fills the file system's cache
                values.append(seconds)
    results = {name: reporting.spread(values) | {"aim": AIMS[name]} for name, values in found.items()}
    rows = [[name, *(f"{r[key]:.2f}" for key in ("median", "min", "max", "aim"))] for name, r in results.items()]
    reporting.table(["seconds", "median", "min", "max", "aim"], rows)
    reporting.write(args.json, vars(args), results)


if __name__ == "__main__":
    main()
