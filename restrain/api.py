"""Restrain from Python: runs and recipes in a notebook. Nothing here writes into a run.

>>> import restrain
>>> recipe = restrain.load("digits_resnet20", ["optimizer.lr=0.2"])
>>> recipe.recipe.optimizer.lr
0.2
>>> recipe.origins["optimizer.lr"].layer
'command line'
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restrain.errors import UserError
from restrain.recipe import Recipe, load
from restrain.run import journal
from restrain.run.summary import Summary, find_runs, summarise

if TYPE_CHECKING:
    from torch import nn

    from restrain.models.foreign.contract import Build
    from restrain.training.classify import Classify
    from restrain.training.evaluate_run import Evaluation
    from restrain.training.from_script import fit
    from restrain.training.own import Callback

__all__ = ["Callback", "Classify", "Run", "fit", "load", "open_run", "runs"]

_HEAVY = {"fit": "from_script", "Callback": "own", "Classify": "classify"}  # these import torch and Lightning


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        return getattr(importlib.import_module(f"restrain.training.{_HEAVY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Run:
    """A run folder, read as it stands: while it trains, after it ended or was killed."""

    path: Path

    @cached_property
    def recipe(self) -> Recipe:
        """What the run trains, every ``auto`` resolved."""
        return load(str(self.path / "recipe.lock.yaml")).recipe

    @property
    def summary(self) -> Summary:
        """State, best and last results, the judgement against what was expected; read anew each time."""
        return summarise(self.path)

    @property
    def state(self) -> str:
        """running, finished, interrupted, killed or failed."""
        return self.summary.state

    @property
    def best(self) -> dict[str, Any] | None:
        """``{metric, value, step}`` of the best evaluation."""
        return self.summary.best

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The journal: one dict a step, ``eval/...`` where it was evaluated."""
        return journal.read(self.path / "metrics.jsonl")

    @property
    def metrics(self) -> Any:
        """The journal as a table, a row a step: a pandas DataFrame where pandas is installed, else a dict of columns
        (lists of one length, None where a step has no such value)."""
        lines = self.lines
        names = list(dict.fromkeys(name for line in lines for name in line))
        table = {name: [line.get(name) for line in lines] for name in names}
        if find_spec("pandas") is None:
            return table
        import pandas

        return pandas.DataFrame(table).set_index("step") if lines else pandas.DataFrame()

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that are there, oldest first."""
        found = (self.path / "checkpoints").glob("step-*[0-9]")
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def model(self, weights: str = "auto", build: Build | None = None) -> nn.Module:
        """The network with the weights of the best checkpoint, in evaluation mode on the CPU.

        weights: ``ema``, ``raw``, or ``auto``: the moving average where the run keeps one. It takes normalised images
        [B, C, H, W] and gives logits [B, K]. ``build``: what :func:`fit` was given as ``model``, where it was.
        """
        from restrain.training.loaded import load_weights

        return load_weights(self.path, weights, build).model

    def evaluate(self, *overrides: str) -> Evaluation:
        """Exact metrics of the best checkpoint, on other sizes or another set by ``key=value``."""
        from restrain.training.evaluate_run import evaluate_run

        return evaluate_run(self.path, overrides)


def open_run(path: str | Path) -> Run:
    """A run folder. Raises UserError where there is none."""
    folder = Path(path)
    if not (folder / "recipe.lock.yaml").is_file():
        raise UserError(
            f"{folder} is not a run folder: it has no recipe.lock.yaml. restrain.runs(DIR) finds those below."
        )
    return Run(folder)


def runs(top: str | Path = "runs") -> list[Run]:
    """The runs at and below a folder."""
    return [Run(path) for path in find_runs(Path(top)) if (path / "recipe.lock.yaml").is_file()]
