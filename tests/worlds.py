"""Whole runs of one to four ranks, each rank a process forked from one that has only imported what a run needs.

A cold start imports torch and Lightning for seconds; a fork takes a few hundredths of one. Nothing is computed in the
parent of the forks, because OpenMP does not survive one.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    "restrain.training.fit",
    "restrain.cli.main",
    "restrain.parallel.sharded",
    "torch.distributed.algorithms.ddp_comm_hooks",
    "sklearn.datasets",
    "tests.planted",
]
CONTEXT.set_forkserver_preload(PRELOADED)
TIMING = ("wall", "train/samples_per_s", "train/data_wait")

# A fault is (name of a function in tests/planted.py, its arguments); it is planted in the rank before it starts.
Fault = tuple[str, dict[str, Any]]


def preload(*modules: str) -> None:
    """Let every rank have imported these besides; to be called before the first is started."""
    CONTEXT.set_forkserver_preload([*PRELOADED, *modules])


@dataclass
class Ended:
    """How the ranks of a run left: exit codes (negative: killed by that signal) and what each said."""

    codes: list[int]
    said: list[str]
    steps: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.said)


def _rank(argv: list[str], env: dict[str, str], log: str, faults: Sequence[Fault]) -> None:
    os.environ.update(env)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    sys.argv = ["restrain", *argv]
    for name, arguments in faults:
        getattr(importlib.import_module("tests.planted"), name)(**arguments)
    from restrain.cli.main import run

    code = run(argv)
    sys.stdout.flush()
    os._exit(code)  # pytest's own exit handlers are none of a rank's business


@dataclass
class Started:
    """Ranks under way."""

    processes: list[Any]
    logs: list[Path]

    def signal(self, number: int, rank: int = 0) -> None:
        os.kill(self.processes[rank].pid, number)

    def wait(self, timeout: float = 120.0) -> Ended:
        """Wait for all ranks; those that are left after ``timeout`` seconds are killed, and that is a failure."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [process for process in self.processes if process.exitcode is None]
        for process in late:
            process.kill()
            process.join()
        said = [log.read_text() for log in self.logs]
        assert not late, f"{len(late)} rank(s) still there after {timeout:.0f} s:\n" + "\n".join(said)
        return Ended([process.exitcode for process in self.processes], said)


def start(
    argv: Sequence[str],
    world: int,
    logs: Path,
    faults: dict[int, Sequence[Fault]] | None = None,
    env: dict[str, str] | None = None,
) -> Started:
    """Start ``restrain`` with ``argv`` on ``world`` ranks; ``faults``: rank -> what is planted in it; env: added."""
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = Started([], [])
    stamp = time.monotonic_ns()
    for rank in range(world):
        its = (env or {}) | ({} if world == 1 else _environment(rank, world, port))
        log = logs / f"{stamp}-{rank}.log"
        planted = list((faults or {}).get(rank, ()))
        process = CONTEXT.Process(target=_rank, args=(list(argv), its, str(log), planted))
        process.start()
        started.processes.append(process)
        started.logs.append(log)
    return started


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    return {
        "RESTRAIN_LAUNCHED": "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def train(
    run: Path,
    overrides: Sequence[str] = (),
    world: int = 1,
    faults: dict[int, Sequence[Fault]] | None = None,
    **more: Any,
) -> Ended:
    """``restrain train`` of the digits in the run folder ``run``, waited for."""
    recipe = more.get("recipe", "digits_resnet20")
    argv = ["train", recipe, *overrides, "--run", str(run), *more.get("options", [])]
    return start(argv, world, run.parent / "logs", faults, more.get("env")).wait(more.get("timeout", 120.0))


# ------------------------------------------------------------------------------------------------- what a run leaves


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ledger(run: Path) -> list[dict[str, Any]]:
    return lines(run / "ledger.jsonl")


def journal(run: Path) -> list[dict[str, Any]]:
    """The journal without its timing metrics."""
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines(run / "metrics.jsonl")]


def tensors(run: Path, step: int) -> dict[str, Any]:
    """``name|kind`` -> tensor of a checkpoint, whole, whatever ranks have saved parts of it."""
    from restrain.run.checkpoint import Reader

    with Reader(run / "checkpoints" / f"step-{step}") as reader:
        return {name: reader.read(name) for name in reader.names()}


def assert_bit_equal(a: Path, b: Path, step: int) -> None:
    """Weights, buffers, optimizer and EMA of two runs' checkpoints are equal to the last bit."""
    import torch

    left, right = tensors(a, step), tensors(b, step)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"{len(different)} of {len(left)} tensors differ, such as {different[:3]}"


SIGNALS = {"TERM": signal.SIGTERM, "USR1": signal.SIGUSR1, "INT": signal.SIGINT}
