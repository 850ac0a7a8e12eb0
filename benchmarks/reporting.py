"""What every benchmark writes beside its figures: the command, the versions and the hardware they hold for."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from restrain.insight import machine


def write(
    path: str | Path | None,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write one JSON file: circumstances, then ``settings`` (the arguments), ``results``, and ``rows`` if it has such.
    None: nothing."""
    if path is None:
        return
    facts = machine.circumstances({}, 1)
    facts["hardware"].pop("host")
    report = {key: facts[key] for key in ("command", "started", "versions", "hardware", "git")}
    report["command"] = [_placeless(word) for word in report["command"]]
    report |= {"settings": {k: _placeless(v) for k, v in settings.items() if k != "json"}, "results": results}
    if rows is not None:
        report["rows"] = list(rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(f"written: {path}")


def _placeless(word: Any) -> Any:
    """A word of the command; of an absolute path its last part alone, since the rest is of one machine."""
    return Path(word).name if isinstance(word, str | Path) and Path(word).is_absolute() else word


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of several measurements, and how many there were."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "count": len(values)}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a small table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
