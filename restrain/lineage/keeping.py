"""Reports on disk, one JSON file a claim, so that a page holds what earlier commands have shown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from restrain.lineage.claim import Claim, Outcome, Report, Verdict, judge
from restrain.run.files import write_atomic


def path_of(folder: Path, claim: Claim) -> Path:
    """Where a claim's report lies."""
    return folder / "claims" / f"{claim.number:02d}.json"


def write(folder: Path, report: Report) -> None:
    """Keep a report; one that was not run is not kept, so that it takes nothing away."""
    if report.outcome is None:
        return
    kept: dict[str, Any] = {"claim": report.claim.number, "outcome": asdict(report.outcome)}
    numbers = report.outcome.numbers
    kept["outcome"]["numbers"] = {
        name: value if math.isfinite(value) else str(value) for name, value in numbers.items()
    }
    kept |= {name: getattr(report, name) for name in ("seconds", "budget", "written", "facts")}
    path = path_of(folder, report.claim)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(kept, indent=1) + "\n")


def read(folder: Path, claim: Claim) -> Report | None:
    """A report that was kept, judged by what the claim expects now; None where there is none that can be read."""
    try:
        kept = json.loads(path_of(folder, claim).read_text("utf-8"))
        said = kept["outcome"]
        numbers = {name: float(value) for name, value in said["numbers"].items()}
        outcome = Outcome(numbers, said["figure"], tuple(said["commands"]), tuple(said["notes"]))
        facts = {str(key): str(value) for key, value in kept["facts"].items()}
        took = float(kept["seconds"]), float(kept["budget"]), str(kept["written"])
        return Report(claim, outcome, judge(claim.checks, numbers), *took, facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def all_reports(folder: Path, claims: Sequence[Claim], new: Sequence[Report]) -> list[Report]:
    """Of each claim the new report, else the kept one, else that it was not run; what could not run now says why."""
    found = {report.claim.number: report for report in new}
    reports = []
    for claim in claims:
        fresh = found.get(claim.number)
        if fresh is not None and (fresh.outcome is not None or fresh.verdict.why):
            reports.append(fresh)
            continue
        reports.append(read(folder, claim) or Report(claim, None, Verdict("not run", why="It has not been asked for.")))
    return reports
