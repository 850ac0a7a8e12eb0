"""``restrain lesion``: a run's evaluation under each lesion, its data read once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from restrain.data.batches import EvalBatch
from restrain.errors import UserError
from restrain.insight.lesions import Lesion, applied, lesions
from restrain.parallel.world import World
from restrain.training import build, placement
from restrain.training.classify import Classify
from restrain.training.loaded import load_weights
from restrain.training.subject import task_of


@dataclass(frozen=True)
class Score:
    """``top1`` in percent, ``loss`` the mean over the samples."""

    top1: float
    loss: float


@dataclass(frozen=True)
class Scored:
    lesion: Lesion
    score: Score


@dataclass(frozen=True)
class Lesioned:
    """``whole``: of the network as it is; ``lesions`` in depth order, kind by kind."""

    source: str
    weights: str
    samples: int
    whole: Score
    lesions: list[Scored]
    notices: list[str]


@torch.no_grad()
def lesion(path: Path, kinds: Sequence[str], samples: int | None = None) -> Lesioned:
    """Score the run's BEST (else its newest checkpoint, or the one that is named) whole and under each lesion.

    Raises UserError where there is no evaluation set, or no block.
    """
    loaded = load_weights(path)
    recipe, model = loaded.recipe, loaded.model
    task = task_of(recipe, model)
    data = build.open_data(recipe)
    if data.evaluation is None:
        raise UserError(f"{path}: data.name={recipe.data.name} has no evaluation set here. Set data.eval to one.")
    device = torch.device("cpu")
    where = placement.place(recipe, World(), device, data.pixels)
    torch.set_num_threads(where.threads)
    loader = build.build_eval_loader(recipe, data, World(), where)
    wanted: list[Lesion | None] = [None]
    sums: list[Tensor] = []
    seen = 0
    try:
        for batch in loader:
            if not sums:
                wanted += lesions(model, task.normalise(batch.images), kinds)
                sums = [torch.zeros(3, dtype=torch.float64) for _ in wanted]
            for one, total in zip(wanted, sums, strict=True):
                with applied(model, one) if one is not None else nullcontext():
                    total += _sums(task, batch)
            seen += int(batch.valid.sum())
            if samples is not None and seen >= samples:
                break
    finally:
        loader.close()
    if not sums:
        raise UserError(f"{path}: the evaluation set of data.name={recipe.data.name} is empty.")
    scores = [Score(100.0 * float(s[1] / s[2]), float(s[0] / s[2])) for s in sums]
    scored = [Scored(one, score) for one, score in zip(wanted, scores, strict=True) if one is not None]
    at = loaded.located
    return Lesioned(str(at.checkpoint), loaded.weights, int(sums[0][2]), scores[0], scored, at.notices)


def _sums(task: Classify, batch: EvalBatch) -> Tensor:
    """Loss, right ones and samples of a batch, float64 [3]."""
    logits = task.model(task.normalise(batch.images))
    loss = torch.where(batch.valid, task.rows(logits, batch.labels).double(), 0.0).sum()
    right = ((logits.argmax(-1) == batch.labels) & batch.valid).sum()
    return torch.stack([loss, right.double(), batch.valid.sum().double()])
