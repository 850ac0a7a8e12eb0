"""Where the runs of claims lie, and how they are made: by ``restrain.fit``, as the command on the page makes them."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from restrain.errors import RestrainError
from restrain.recipe import Recipe, load
from restrain.run.history import Column, columns
from restrain.run.summary import summarise
from restrain.training.from_script import fit

# One process: a claim compares runs with one another, and tiny nets gain nothing by several devices.
ALONE = ("parallel.devices=1",)


class Stopped(RestrainError):
    """A signal ended a run; what is finished is kept."""

    exit_code = 130


@dataclass(frozen=True)
class Trained:
    """A finished run. ``words``: the recipe and the overrides that made it."""

    path: Path
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """What a person types."""
        return command("train", *self.words)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Of the end: ``train/loss`` is the mean of the last epoch, ``eval/...`` those of the last evaluation."""
        return summarise(self.path).metrics

    @property
    def loss(self) -> float:
        """Training loss, the mean of the last epoch."""
        return self.metrics["train/loss"]

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The journal, a column a metric."""
        return columns(self.path / "metrics.jsonl")

    @cached_property
    def recipe(self) -> Recipe:
        """What it trained, every ``auto`` resolved."""
        return load(str(self.path / "recipe.lock.yaml")).recipe

    @property
    def checkpoints(self) -> list[Path]:
        """Those that are kept, oldest first."""
        found = (self.path / "checkpoints").glob("step-*[0-9]")
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    @property
    def step_seconds(self) -> float:
        """Seconds of a step: the batch over the median of the journal's rate, which passes over pauses."""
        return self.recipe.batch.global_ / float(np.median(self.columns["train/samples_per_s"].values))

    def by_epoch(self, metric: str = "train/loss") -> tuple[list[float], list[float]]:
        """Epochs, from 1, and the metric's mean in each; of a run of one epoch, its steps."""
        values, epochs = self.columns[metric], self.columns["epoch"]
        of = epochs.values[np.searchsorted(epochs.steps, values.steps)]
        found = np.unique(of)
        if len(found) < 2:
            return values.steps.tolist(), values.values.tolist()
        return (found + 1).tolist(), [float(values.values[of == one].mean()) for one in found]


@dataclass(frozen=True)
class Bench:
    """``folder``: of this and of earlier runs. ``budget``: share of each training's length, 1 for a verdict that
    counts, less for trials. ``data``: a folder with text (``tinyshakespeare.txt``), for the claims that read it."""

    folder: Path
    budget: float = 1.0
    data: Path | None = None

    def train(self, recipe: str, *overrides: str) -> Trained:
        """The run of a recipe; one that is finished is taken as it is, one that was begun is gone on with.

        Raises UserError where the recipe does not fit, Stopped after a signal.
        """
        words = (recipe, *self._shortened(recipe, overrides))
        path = self.folder / "runs" / label(words)
        if summarise(path).state != "finished":
            result = fit(words[0], [*words[1:], *ALONE], run=path)
            if result.state != "finished":
                raise Stopped(f"Stopped in {path}; the same command goes on from there.")
        return Trained(path, words)

    def _shortened(self, recipe: str, overrides: Sequence[str]) -> Sequence[str]:
        if self.budget == 1.0:
            return overrides
        length = load(recipe, overrides).recipe.length
        others = [word for word in overrides if not word.startswith("length=")]
        return [*others, f"length={max(1, round(length.value * self.budget))}{length.unit}"]


def command(*words: str) -> str:
    """A command line of ours, quoted for a shell."""
    return shlex.join(["restrain", *words])


def label(words: Sequence[str]) -> str:
    """A folder's name for a recipe and its overrides: readable, and another for each."""
    plain = re.sub(r"[^\w.=+-]+", "-", "_".join(words))[:80].strip("-")
    return f"{plain}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:6]}"
