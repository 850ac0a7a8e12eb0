"""Writes docs/errors.md from the cases that the tests hold Restrain to: ``python -m tests.bad_input.page``."""

from __future__ import annotations

from pathlib import Path

from tests.bad_input import (
    bench_step,
    language,
    packing,
    parallel,
    remat,
    remote,
    runs,
    sets,
    shards,
    slurm,
    survey,
    tokens,
    wds,
    written,
    zero,
)
from tests.bad_input.harness import Case

PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
HEAD = """# What Restrain says when something is wrong

Written by `python -m tests.bad_input.page` from the cases that `tests/bad_input` holds the command line to, word for
word; do not edit. Every error is one paragraph, on standard error. Exit code 2: what was written cannot be done. Exit
code 1: the world is at fault. Exit code 0: it is said, and the work goes on. `RESTRAIN_DEBUG=1` shows the traceback.
"""
PARTS: dict[str, list[Case]] = {
    "Keys": written.KEYS,
    "Values": written.VALUES,
    "Recipe files": written.FILES,
    "Sizes": written.SIZES,
    "Commands": written.ARGUMENTS,
    "Data sets": sets.ROOTS,
    "Remote sets": remote.ROOTS,
    "Images": sets.IMAGES,
    "Labels": shards.LABELS,
    "Shards": shards.SHARDS,
    "Tokens": tokens.TOKENS,
    "Language models": language.LANGUAGE,
    "Looking at a set": survey.SURVEY,
    "Packing": packing.PACKING,
    "Stages and streams": wds.WDS,
    "A run and its recipe": runs.RECIPES,
    "Run folders": runs.FOLDERS,
    "Checkpoints": runs.CHECKPOINTS,
    "Branching off": runs.FORKS,
    "Evaluation": runs.EVALUATIONS,
    "Recomputing and compiling": remat.REMAT,
    "Layouts over processes": parallel.PARALLEL,
    "ZeRO": zero.ZERO,
    "Slurm": slurm.SCRIPTS,
    "Ranks that meet": slurm.MEETING,
    "Timing a step": bench_step.STEP,
}
CASES = {case.what: case for cases in PARTS.values() for case in cases}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, cases in PARTS.items():
        parts.append(f"\n## {title}\n")
        parts += [_entry(case) for case in cases]
    return "".join(parts)


def _entry(case: Case) -> str:
    mark = "error: " if case.code else ""
    return f"\n**{case.what}** (exit code {case.code})\n\n> {_quoted(mark + case.said)}\n\n{case.cure}\n"


def _quoted(text: str) -> str:
    """Text that Markdown leaves alone."""
    return "".join(f"\\{c}" if c in "\\*_[]<>`#|" else c for c in text)


if __name__ == "__main__":
    PAGE.write_text(page())
