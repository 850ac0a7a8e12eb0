"""What a script or an installed package brings to a run: networks, tasks, callbacks."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restrain import packages
from restrain.errors import UserError, nearest
from restrain.models.build import is_foreign, is_timm
from restrain.models.foreign import SCRIPT, Build, elsewhere
from restrain.recipe import Recipe
from restrain.training.classify import Classify


class Callback:
    """Looks on while a run trains: any of these, on the process that writes the run (rank 0), between two steps.

    It is given plain numbers and changes nothing. Steps count from 1. After a kill, steps that are computed again are
    seen again. An exception ends the run, which goes on from its last checkpoint when it is started again.
    """

    def on_step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each optimizer step; ``metrics`` is its line of the journal, ``train/loss`` and others."""

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """After the last step of an epoch, counted from 0; ``metrics`` is that step's line."""

    def on_evaluate_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each evaluation; ``metrics``: ``eval/loss``, ``eval/top1`` and others."""


HOOKS = ("on_step_end", "on_epoch_end", "on_evaluate_end")


@dataclass(frozen=True)
class Own:
    """What a script gives to a run. ``model``: ``build(section) -> Module``; ``task``: ``(model, loss, mean, std) ->
    Classify``, such as a subclass of it."""

    model: Build | None = None
    task: Callable[..., Classify] | None = None
    callbacks: tuple[Any, ...] = ()

    def check(self) -> None:
        """Raises UserError for what would not do what somebody wants of it."""
        for key, given in (("model", self.model), ("task", self.task)):
            if given is not None and not callable(given):
                raise UserError(f"fit({key}=...) takes a function or a class, not {type(given).__name__}.")
        for one in self.callbacks:
            _check_callback(one)

    def overrides(self) -> list[str]:
        """What these make of the recipe's keys, so that recipe and lock name them."""
        found = {"model.name": self.model, "task": self.task}
        return [f"{key}={SCRIPT}{_name(given)}" for key, given in found.items() if given is not None]

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """What a run's lock says of code that is not ours: a package's version, or the SHA-256 of a script."""
        found = {}
        for key, name, given in (("model", recipe.model.name, self.model), ("task", recipe.task, self.task)):
            if not is_foreign(name) or is_timm(name):
                continue
            if name.startswith(SCRIPT):
                if given is None:
                    raise UserError(elsewhere("model.name" if key == "model" else key, name))
                found[f"{key}_code"] = _digest(given)
            else:
                found[f"{key}_package"] = packages.version("model.name" if key == "model" else "task", name)
        if recipe.data.name == "package":
            found["data_package"] = packages.version("data.set", recipe.data.set)
        return found

    def make_task(self, recipe: Recipe) -> Callable[..., Classify]:
        """What makes the recipe's task."""
        if recipe.task == "classify":
            return Classify
        make = self.task
        if not recipe.task.startswith(SCRIPT):
            make = packages.find("task", recipe.task)
        elif make is None:
            raise UserError(elsewhere("task", recipe.task))

        def checked(*arguments: Any) -> Classify:
            task = make(*arguments)
            if not isinstance(task, Classify):
                raise UserError(f"task: {recipe.task} made {type(task).__name__}, which is no restrain Classify.")
            return task

        return checked


def _check_callback(one: Any) -> None:
    name = type(one).__name__ if not isinstance(one, type) else one.__name__
    if isinstance(one, type):
        raise UserError(f"callbacks: {name} is a class. Give an object of it: {name}(...).")
    if any(base.__module__.startswith(("lightning.", "pytorch_lightning.")) for base in type(one).__mro__):
        raise UserError(
            f"callbacks: {name} is a Lightning callback. In a run Lightning sees a single epoch without evaluations, "
            f"logging and checkpoints, so it would be misled. Write it as a restrain.Callback, with "
            f"{', '.join(HOOKS)}; checkpoints, early stops and learning rates are keys of the recipe."
        )
    own = [key for key in dir(one) if key.startswith("on_") and callable(getattr(one, key))]
    unknown = [key for key in own if key not in HOOKS]
    if unknown:
        raise UserError(
            f"callbacks: {name} has {unknown[0]}, which is never called.{nearest(unknown[0], HOOKS)} There are "
            f"{', '.join(HOOKS)}."
        )
    if not own:
        raise UserError(f"callbacks: {name} has none of {', '.join(HOOKS)}, so it would never be called.")


def _name(given: Any) -> str:
    name = getattr(given, "__name__", type(given).__name__)
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def _digest(given: Any) -> str:
    """SHA-256 of the file that holds the code; in a notebook of its source."""
    code = inspect.unwrap(given)
    code = getattr(code, "func", code)  # of a partial
    if not (inspect.isclass(code) or inspect.isroutine(code)):
        code = type(code)
    try:
        path = inspect.getsourcefile(code)
        text = Path(path).read_bytes() if path and Path(path).is_file() else inspect.getsource(code).encode()
    except (OSError, TypeError):
        raise UserError(
            f"The source of {_name(given)} cannot be found, so nobody could say later what this run trained. Write it "
            f"into a file."
        ) from None
    return hashlib.sha256(text).hexdigest()
