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

from restrain import __version__
from restrain.errors import RestrainError
from restrain.models.foreign.contract import Build
from restrain.recipe import Recipe, load, to_yaml
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
    """A finished run. ``words``: the recipe and the overrides that made it; ``model``: a network beside them."""

    path: Path
    words: tuple[str, ...]
    model: Build | None = None

    @property
    def command(self) -> str:
        """What a person types; with a network of its own, in Python."""
        if self.model is None:
            return command("train", *self.words)
        given = f"{self.words[0]!r}, {list(self.words[1:])!r}, model={self.model.__name__}"
        return f"from {self.model.__module__} import {self.model.__name__}; restrain.fit({given})"

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
    counts, less for trials."""

    folder: Path
    budget: float = 1.0

    def train(self, recipe: str, *overrides: str, model: Build | None = None) -> Trained:
        """The run of a recipe; one that is finished is taken as it is, one that was begun is gone on with.

        ``model``: what builds another network than the recipe's, as of :func:`restrain.fit`. Raises UserError where the
        recipe does not fit, Stopped after a signal.
        """
        words = (recipe, *self.shortened(recipe, overrides))
        path = self.folder / "runs" / label((*words, model.__qualname__) if model else words, content(*words))
        return self._finished(words[0], words[1:], Trained(path, words, model))

    def resume(self, path: Path, words: tuple[str, ...]) -> Trained:
        """A run that exists, trained to its end; ``words`` say what it is."""
        return self._finished(str(path / "recipe.lock.yaml"), (), Trained(path, words))

    def _finished(self, recipe: str, overrides: Sequence[str], run: Trained) -> Trained:
        if summarise(run.path).state != "finished":
            result = fit(recipe, [*overrides, *ALONE], run=run.path, model=run.model)
            if result.state != "finished":
                raise Stopped(f"Stopped in {run.path}; the same command goes on from there.")
        return run

    def shortened(self, recipe: str, overrides: Sequence[str]) -> Sequence[str]:
        """The overrides, with the budget's share of the length that the recipe would have with them."""
        if self.budget == 1.0:
            return overrides
        # The others may only fit together with a network of one's own, which is not at hand here.
        length = load(recipe, [word for word in overrides if word.startswith("length=")]).recipe.length
        others = [word for word in overrides if not word.startswith("length=")]
        return [*others, f"length={max(1, round(length.value * self.budget))}{length.unit}"]


def command(*words: str) -> str:
    """A command line of ours, quoted for a shell."""
    return shlex.join(["restrain", *words])


def content(recipe: str, *overrides: str) -> str:
    """What a run's recipe holds today and what would train it: where it changes, a kept run is of another recipe."""
    try:
        resolved = to_yaml(load(recipe, overrides).recipe)
    except RestrainError:  # which only fits together with a network that is not at hand here
        resolved = to_yaml(load(recipe).recipe)
    return f"{__version__} {resolved}"


def label(words: Sequence[str], content: str = "") -> str:
    """A folder's name for a recipe and its overrides: readable, and another for each, and for another ``content``."""
    plain = re.sub(r"[^\w.=+-]+", "-", "_".join(words))[:80].strip("-")
    return f"{plain}-{hashlib.sha256(' '.join([*words, content]).encode()).hexdigest()[:6]}"
