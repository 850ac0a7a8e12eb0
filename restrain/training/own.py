"""What a script or an installed package brings to a run: networks, tasks, callbacks."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from restrain import packages
from restrain.data.wds.stages import check_stages, name_of, script_names
from restrain.errors import RestrainError, UserError, nearest
from restrain.models.build import is_foreign, is_timm
from restrain.models.foreign.contract import SCRIPT, Build, elsewhere, generators
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
    stages: tuple[Any, ...] = ()

    def check(self) -> None:
        """Raises UserError for what would not do what somebody wants of it."""
        for key, given in (("model", self.model), ("task", self.task)):
            if given is not None and not callable(given):
                raise UserError(f"fit({key}=...) takes a function or a class, not {type(given).__name__}.")
        for one in self.callbacks:
            _check_callback(one)
        check_stages(self.stages)

    def check_named(self, recipe: Recipe) -> None:
        """Raises UserError where the recipe's last word is another network or task than the one that is given."""
        for key, name, given in (("model", recipe.model.name, self.model), ("task", recipe.task, self.task)):
            if given is not None and name != f"{SCRIPT}{_name(given)}":
                full = "model.name" if key == "model" else key
                raise UserError(
                    f"{full} is {name} by an override, and fit({key}={_name(given)}) gives another: one of them would "
                    f"do nothing. Leave out the override, or {key}=."
                )
        named = script_names(self.stages)
        if self.stages and list(getattr(recipe.data, "stages", ())) != named:
            raise UserError(
                f"fit(stages=...) gives {', '.join(named)}, and the recipe's last word on data.stages is another: they "
                f"would do nothing. Stages need data.name=webdataset, and no override of data.stages."
            )

    def overrides(self) -> list[str]:
        """What these make of the recipe's keys, so that recipe and lock name them."""
        found = {"model.name": self.model, "task": self.task}
        named = [f"{key}={SCRIPT}{_name(given)}" for key, given in found.items() if given is not None]
        return named + ([f"data.stages=[{', '.join(script_names(self.stages))}]"] if self.stages else [])

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
        names = getattr(recipe.data, "stages", ())
        if installed := [name for name in names if not name.startswith(SCRIPT)]:
            found["stages_package"] = ", ".join(packages.version("data.stages", name) for name in installed)
        if self.stages:
            found["stages_code"] = hashlib.sha256("".join(map(_stage_digest, self.stages)).encode()).hexdigest()
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
            try:
                task = make(*arguments)
            except RestrainError:
                raise
            except Exception as error:  # anything may happen in code that is not ours
                raise UserError(f"task: {recipe.task} cannot be made: {_said(error)}.") from error
            if not isinstance(task, Classify):
                raise UserError(f"task: {recipe.task} made {type(task).__name__}, which is no restrain Classify.")
            return task

        return checked


def check_rows(task: Classify, recipe: Recipe) -> None:
    """Raises UserError where a task of one's own does not give each row's loss. Tried on three rows, on the CPU, with
    labels (evaluation always has them) and, where the recipe mixes images, with probabilities."""
    logits = torch.linspace(-1, 1, 3 * recipe.model.classes).view(3, -1)
    labels = torch.arange(3) % recipe.model.classes
    targets = [labels]
    if recipe.mix.mixup or recipe.mix.cutmix:
        targets.append(F.one_hot(labels, recipe.model.classes).float())
    for target in targets:
        before = torch.get_rng_state(), generators()
        given = f"target {str(target.dtype).removeprefix('torch.')} {list(target.shape)}"
        try:
            rows = task.rows(logits, target)
        except RestrainError:
            raise
        except Exception as error:  # anything may happen in code that is not ours
            raise UserError(f"task: rows of {recipe.task} fails with {given}: {_said(error)}.") from error
        if not isinstance(rows, torch.Tensor) or rows.shape != (3,):
            got = list(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
            raise UserError(
                f"task: rows of {recipe.task} gives {got} for 3 rows of logits with {given}; it is to give the loss of "
                f"each row, [3]. The mean over the batch is taken outside."
            )
        if not torch.equal(before[0], torch.get_rng_state()) or before[1] != generators():
            raise UserError(
                f"task: rows of {recipe.task} draws from a generator of torch, random or numpy, so a run that goes on "
                f"after a kill would see other draws. Use the logits and the target alone."
            )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"


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
    for key in own:
        try:
            inspect.signature(getattr(one, key)).bind(1, {})
        except TypeError:
            first = "epoch" if key == "on_epoch_end" else "step"
            raise UserError(f"callbacks: {name}.{key} cannot be called. It is given ({first}, metrics).") from None
        except ValueError:  # written in C: nothing is known of its arguments
            continue


def _name(given: Any) -> str:
    while isinstance(given, functools.partial):
        given = given.func
    name = getattr(given, "__name__", type(given).__name__)
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def _digest(given: Any) -> str:
    """SHA-256 of the file that holds the code, in a notebook of its source, and of what a partial fixes."""
    code, fixed = given, ""
    while isinstance(code, functools.partial):
        fixed += f"{_plainly(code.args, given)} {_plainly(code.keywords, given)}"
        code = code.func
    code = inspect.unwrap(code)
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
    return hashlib.sha256(text + fixed.encode()).hexdigest()


def _stage_digest(stage: Any) -> str:
    """Of a stage that webdataset made of a function (its ``f``, ``args`` and ``kw``): of what it was given as well."""
    if not all(hasattr(stage, name) for name in ("f", "args", "kw")):
        return _digest(stage)
    given = [*stage.args, *(one for pair in sorted(stage.kw.items()) for one in pair)]
    parts = [_digest(one) if callable(one) else _plainly(one, stage) for one in given]
    return hashlib.sha256(" ".join([name_of(stage), *parts]).encode()).hexdigest()


def _plainly(value: Any, given: Any) -> str:
    """A value in words that are the same in every process, as ``repr`` of an object is not."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_plainly(one, given) for one in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_plainly(value[key], given)}' for key in sorted(value, key=str))}}}"
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise UserError(
        f"{_name(given)} is given a {type(value).__name__} by functools.partial, and nobody could say later which. "
        f"Give numbers, texts, lists, classes or functions, or write a function that makes it."
    )
