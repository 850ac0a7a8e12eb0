"""From claims to reports: each is run, judged and kept before the next begins."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import torch

from restrain import __version__
from restrain.errors import RestrainError
from restrain.insight import machine
from restrain.lineage import keeping
from restrain.lineage.bench import Bench, Stopped
from restrain.lineage.claim import Claim, Report, Verdict, judge


def go(claims: Sequence[Claim], bench: Bench, told: Callable[[str], None]) -> Iterator[Report]:
    """Run each; one that cannot run here says why and the next one begins. Raises Stopped after a signal."""
    for at, claim in enumerate(claims, 1):
        told(f"[{at}/{len(claims)}] claim {claim.number}: {claim.title}")
        report = examine(claim, bench)
        keeping.write(bench.folder, report)
        told(f"claim {claim.number}: {report.word}, {report.seconds:.0f} s {report.verdict.why}".rstrip())
        yield report


def examine(claim: Claim, bench: Bench) -> Report:
    """One claim, run and judged. Anything but a sentence for a person, and a signal, is raised."""
    began = time.perf_counter()
    try:
        outcome = claim.run(bench)
    except Stopped:
        raise
    except RestrainError as error:
        return Report(claim, None, Verdict("not run", why=str(error)), time.perf_counter() - began, bench.budget)
    verdict = judge(claim.checks, outcome.numbers)
    written = f"{datetime.now():%Y-%m-%d %H:%M}"
    return Report(claim, outcome, verdict, time.perf_counter() - began, bench.budget, written, facts())


def facts() -> dict[str, str]:
    """What the runs were made with and on."""
    found = machine.hardware()
    processors = found.get("gpus") or [f"{found['cpu']}, {found['cores']} cores"]
    versions = f"restrain {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return {"machine": ", ".join(processors), "versions": versions}
