"""A small text and a small GPT, for runs that take seconds."""

from __future__ import annotations

from pathlib import Path

from restrain import draws

WORDS = ("to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler", "in", "mind", "suffer")
RECIPE = "shakespeare_gpt"


def write_text(folder: Path, words: int = 400) -> Path:
    """``text.txt``: words drawn from keys, a line of eight."""
    drawn = draws.integers(draws.mix(0, list(range(words))), len(WORDS))
    lines = [" ".join(WORDS[k] for k in drawn[i : i + 8]) for i in range(0, words, 8)]
    path = folder / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def overrides(folder: Path, steps: int = 30, **more: str) -> list[str]:
    """Of the recipe: about 120 windows of 16 characters, 10 steps an epoch."""
    chosen = {
        "data.root": str(folder),
        "data.train": "text.txt",
        "data.context": "16",
        "model.shape": "{depth: 2, width: 16, heads: 2, context: 16}",
        "batch.global": "12",
        "length": f"{steps}st",
        "schedule.warmup": "4st",
        "evaluate.every": "10st",
        "checkpoint.every": "5st",
        "expect": "null",
        "parallel.threads": "1",
    } | more
    if "model" in more and "model.shape" not in more:  # which says its own sizes
        del chosen["model.shape"]
    return [f"{key}={value}" for key, value in sorted(chosen.items())]
