"""Every layout of a number of processes, each timed in a world of its own, so that none sees what another left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restrain.bench import predicted
from restrain.bench.stepping import settle
from restrain.errors import RestrainError
from restrain.insight.units import size
from restrain.parallel.layout import ZERO
from restrain.parallel.world import World
from restrain.recipe import load
from restrain.training import opening, placement
from restrain.training.placement import Placement

REMATS = ("none", "block")
GRACE = 20.0  # seconds that a world gets to end once it is told to


@dataclass(frozen=True)
class Candidate:
    """A layout with a remat. ``words``: the ``key=value`` that make it."""

    name: str
    remat: str
    processes: int
    words: tuple[str, ...]


@dataclass
class Row:
    """What came of a candidate. ``needed``: bytes a process that were predicted. ``figures``: those of
    :class:`restrain.bench.step.Figures`; None: it was not timed, and ``because`` says why. ``refused``: it was not even
    started."""

    candidate: Candidate
    needed: int | None = None
    figures: dict[str, Any] | None = None
    because: str = ""
    refused: bool = False

    @property
    def rate(self) -> float:
        return self.figures["rate"] if self.figures else 0.0

    def as_dict(self) -> dict[str, Any]:
        one = self.candidate
        return {"layout": one.name, "remat": one.remat, "processes": one.processes, "changes": list(one.words)} | {
            "needed": self.needed,
            "figures": self.figures,
            "because": self.because,
            "refused": self.refused,
        }


def candidates(devices: int) -> Iterator[Candidate]:
    """All layouts of so many processes, and one process beside them."""
    for remat in REMATS:
        yield _candidate("single", remat, 1, "single")
        several = [("fsdp", {}), *((zero, {}) for zero in ZERO)]
        if devices > 1:
            divisors = [n for n in range(2, devices + 1) if devices % n == 0]
            several = [("ddp", {}), *several, *(("hsdp", {"shard": n}) for n in divisors[:-1])]
            several += [("ddp", {"tensor": n}) for n in divisors]
            several += [("fsdp", {"tensor": n}) for n in divisors[:-1]]
        for strategy, more in several:
            of = "".join(f", {key} {n}" for key, n in more.items())
            yield _candidate(f"{strategy}{of}", remat, devices, strategy, **more)


def _candidate(name: str, remat: str, processes: int, strategy: str, tensor: int = 1, shard: int | None = None):
    keys = {"strategy": strategy, "tensor": tensor, "shard": shard or "null", "remat": remat, "devices": processes}
    return Candidate(name, remat, processes, tuple(f"parallel.{key}={value}" for key, value in keys.items()))


def sweep(
    name: str,
    overrides: Sequence[str],
    devices: int,
    options: Sequence[str],
    limit: float,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Time each layout, the fastest first, those that were not timed last.

    ``options``: of ``restrain bench step``, for each. limit: seconds that one gets, start-up and compilation included.
    """
    rows, every = [], list(candidates(devices))
    for number, candidate in enumerate(every, 1):
        tell(f"{number} of {len(every)}: {candidate.name}, remat {candidate.remat}")
        words = [*overrides, *candidate.words]
        row = _before(name, words, candidate)
        if not row.refused:
            _time(row, ["bench", "step", name, *words, *options], limit)
        rows.append(row)
    return sorted(rows, key=lambda row: -row.rate)


def _before(name: str, words: Sequence[str], candidate: Candidate) -> Row:
    """What can be said without starting anything."""
    row = Row(candidate)
    world = World(size=candidate.processes, local_size=candidate.processes)
    try:
        recipe = load(name, words).recipe
        device = placement.device_of(recipe, World())
        autos, where = settle(recipe, world, device)
        recipe, where = opening.settle(recipe, autos), Placement(**where)
        row.needed = predicted.needed(recipe, where.layout(world), where.micro, recipe.precision)
        held = predicted.room(device, candidate.processes)
    except RestrainError as error:
        row.because, row.refused = str(error), True
        return row
    if row.needed > held:
        row.because = f"would run out of memory: it needs about {size(row.needed)} a process, which has {size(held)}"
        row.refused = True
    return row


def _time(row: Row, arguments: Sequence[str], limit: float) -> None:
    """In processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        figures, said = Path(folder) / "figures.json", Path(folder) / "said"
        command = [sys.executable, "-m", "restrain", *arguments, "--json", str(figures)]
        with said.open("w") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=log, stdin=subprocess.DEVNULL, env=os.environ.copy()
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                row.because = f"was not done after {limit:g} s (--limit)"
                return
            finally:
                _end(process)
        if code == 0:
            row.figures = json.loads(figures.read_text())
            return
        errors = [line for line in said.read_text(errors="replace").splitlines() if line.startswith("error: ")]
        row.because = errors[0].removeprefix("error: ") if errors else f"failed with exit code {code}"


def _end(process: subprocess.Popen) -> None:
    """A launcher hands the signal on to its ranks, and these leave with it where it must be killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
