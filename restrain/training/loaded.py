"""A run's weights, ready to be used: what evaluation, prediction and export begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from restrain.errors import UserError, WorldError
from restrain.models.foreign.contract import Build
from restrain.parallel import precision
from restrain.recipe import Recipe, load
from restrain.run import checkpoint, lockfile
from restrain.run.folder import RunFolder
from restrain.run.manifest import Damaged, verify
from restrain.training import network


@dataclass(frozen=True)
class Located:
    """``run``: the folder; ``checkpoint``: the one that is used, every byte of it verified; ``notices``: others that
    were passed over."""

    run: Path
    checkpoint: Path
    notices: list[str]

    @property
    def step(self) -> int:
        return int(self.checkpoint.name.removeprefix("step-"))


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode on the CPU, in fp32 (fp64 for a run in fp64). ``weights``: EMA weights, or weights."""

    recipe: Recipe
    model: nn.Module
    located: Located
    weights: str
    info: dict[str, Any]


def locate(path: Path) -> Located:
    """The checkpoint of a run folder (its BEST, else its newest that is whole), or the ``step-N`` that is named.

    Raises UserError for a folder that is neither, WorldError where nothing whole is left.
    """
    if (path / "recipe.lock.yaml").is_file():
        best = checkpoint.pointed(path / "checkpoints", "BEST")
        problem = _damage(best) if best is not None else None
        if best is not None and problem is None:
            return Located(path, best, [])
        found = checkpoint.newest(path / "checkpoints")
        if found.path is None:
            why = f" that is whole: {'; '.join(found.problems)}" if found.problems else ""
            raise WorldError(f"{path} has no checkpoint{why}. A run writes one when it is stopped, and at its end.")
        problems = dict.fromkeys([*([problem] if problem else []), *found.problems])
        return Located(path, found.path, [f"passed over: {one}; using {found.path}" for one in problems])
    run = path.resolve().parent.parent
    if path.is_dir() and (run / "recipe.lock.yaml").is_file():
        if (problem := _damage(path)) is not None:
            raise WorldError(f"{problem}. Name another checkpoint of {run}, or the run itself.")
        return Located(run, path, [])
    raise UserError(f"{path} is neither a run folder nor a checkpoint in one (runs/.../checkpoints/step-N).")


def load_weights(path: Path, weights: str = "auto", own: Build | None = None) -> Loaded:
    """The model of a run with its weights. ``weights``: ``ema``, ``raw``, or ``auto``: the average where there is one;
    ``own``: what builds a network of a script.

    Raises UserError for an average that the run does not keep.
    """
    if weights not in ("auto", "ema", "raw"):
        raise UserError(f"--weights {weights}: it is auto, ema or raw.")
    located = locate(path)
    lockfile.read(located.run / "recipe.lock.yaml")
    recipe = load(str(located.run / "recipe.lock.yaml")).recipe
    if weights == "ema" and recipe.ema is None:
        raise UserError(f"{located.run} keeps no moving average (ema is null). Use --weights raw.")
    averaged = recipe.ema is not None and weights != "raw"
    plain = recipe.model_copy(update={"model": recipe.model.model_copy(update={"init": None})})
    model = network.build_model_on(plain, torch.device("cpu"), recipe.seed, own)
    with checkpoint.Reader(located.checkpoint) as reader:
        kinds = ("ema",) if averaged else ("param", "buffer")
        live = model.state_dict(keep_vars=True)
        for name in reader.names():
            key, _, kind = name.rpartition("|")
            if kind in kinds:
                tensor = live[key].detach()
                reader.read_into(name, tensor, (0,) * tensor.ndim)
    model.eval().requires_grad_(False)
    told = "EMA weights" if averaged else "weights"
    return Loaded(recipe, model.to(precision.dtype_of_weights(recipe.precision)), located, told, _info(located.run))


def _info(run: Path) -> dict[str, Any]:
    try:
        return RunFolder(run).read_info()
    except WorldError:
        return {}


def _damage(path: Path) -> str | None:
    try:
        verify(path)
    except Damaged as error:
        return str(error)
    return None
