"""Writes docs/results.md: what each shipped recipe is expected to reach, and what stored runs of it reached.

``python docs/results.py`` writes the page; ``python docs/results.py --add RUN...`` first stores what finished runs
reached in docs/measured.json. tests/docs/test_docs.py holds the page to both.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from restrain.recipe import available, differences, is_placement, load
from restrain.recipe.checks import show

PAGE = Path(__file__).with_name("results.md")
MEASURED = Path(__file__).with_name("measured.json")
HEAD = """# Results

Written by `python docs/results.py`; do not edit. "Expected" is what a recipe's `expect` says, in percent for
accuracies; its status is `paper` where others published it, `reproduced` where a run of this project reached it,
`unverified` where neither is so. `restrain recipes` prints the same table; `restrain train` compares a run with it.
"""
SEEN = """
## Runs of this project

From `docs/measured.json`, which holds every run that was stored, with its overrides, versions and hardware.

"""


def page() -> str:
    """The whole page."""
    rows = "".join(_expected(name) for name in available())
    table = "| recipe | expected | status | source |\n|---|---|---|---|\n" + rows
    return HEAD + "\n" + table + SEEN + "".join(_measured())


def _expected(name: str) -> str:
    expect = load(name).recipe.expect
    if expect is None:
        return f"| `{name}` | depends on the data | | |\n"
    value = f"{expect.metric} {show(expect.value)} ± {show(expect.tolerance)}"
    return f"| `{name}` | {value} | {expect.status} | {expect.source} |\n"


def _measured() -> Iterator[str]:
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in stored():
        runs.setdefault((run["recipe"], run["changes"]), []).append(run)
    columns = ["recipe", "changed", "metric", "reached", "runs", "minutes each", "hardware", "date"]
    yield f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    for (recipe, changes), found in sorted(runs.items()):
        values = [run["value"] for run in found]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        minutes = statistics.median(run["minutes"] for run in found)
        last = max(found, key=lambda run: run["date"])
        changed = f"`{changes}`" if changes else ""
        yield (
            f"| `{recipe}` | {changed} | {last['metric']} | {statistics.mean(values):.2f}{spread} | {len(values)} | "
            f"{minutes:.1f} | {last['hardware']} | {last['date']} |\n"
        )


def stored() -> list[dict[str, Any]]:
    """The stored runs."""
    return json.loads(MEASURED.read_text()) if MEASURED.exists() else []


def measure(path: Path) -> dict[str, Any]:
    """What a finished run reached, and under which circumstances."""
    info = json.loads((path / "run.json").read_text())
    if info.get("state") != "finished":
        sys.exit(f"{path} is {info.get('state', 'no run')}: only finished runs are stored.")
    resolved = load(str(path / "recipe.lock.yaml"))
    shipped = load(resolved.name).recipe
    changes = [
        f"{key}={show(now)}"
        for key, was, now in differences(shipped, resolved.recipe)
        if not is_placement(key) and was != "auto" and key != "seed"
    ]
    metric = resolved.recipe.expect.metric if resolved.recipe.expect is not None else "eval/top1"
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    hardware = info["hardware"]
    return {
        "recipe": resolved.name,
        "changes": " ".join(changes),
        "seed": resolved.recipe.seed,
        "metric": metric,
        "value": info["metrics"][metric],
        "steps": info["step"],
        "minutes": round((lines[-1]["wall"] - lines[0]["wall"]) / 60, 2),
        "hardware": ", ".join(hardware.get("gpus", [])) or f"{hardware['cores']} cores of {hardware['cpu']}",
        "torch": info["versions"]["torch"],
        "date": info["started"][:10],
    }


def main(argv: list[str]) -> None:
    if argv[:1] == ["--add"]:
        new = [measure(Path(path)) for path in argv[1:]]
        identity = [(run["recipe"], run["changes"], run["seed"]) for run in new]
        kept = [run for run in stored() if (run["recipe"], run["changes"], run["seed"]) not in identity]
        lines = ",\n".join(json.dumps(run) for run in sorted([*kept, *new], key=lambda r: (r["recipe"], r["seed"])))
        MEASURED.write_text(f"[\n{lines}\n]\n")
    PAGE.write_text(page())


if __name__ == "__main__":
    main(sys.argv[1:])
