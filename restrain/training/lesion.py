"""``restrain lesion``: a run's evaluation under each lesion, its data read once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from restrain.errors import UserError
from restrain.insight.lesions import Lesion, applied, lesions
from restrain.parallel.world import World
from restrain.training import build, placement
from restrain.training.loaded import load_weights

Score = dict[str, float]


@dataclass(frozen=True)
class Scored:
    """``score``: the task's metrics, ``loss``, ``top1`` and others."""

    lesion: Lesion
    score: Score


@dataclass(frozen=True)
class Lesioned:
    """``samples``: how many were evaluated; ``whole``: the network as it is; ``lesions``: kind by kind, by depth."""

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
    data = build.open_data(recipe)
    task = build.task_around(recipe, model, data)
    task.eval()
    if data.evaluation is None:
        raise UserError(f"{path}: data.name={recipe.data.name} has no evaluation set here. Set data.eval to one.")
    device = torch.device("cpu")
    where = placement.place(recipe, World(), device, data.pixels)
    torch.set_num_threads(where.threads)
    loader = build.build_eval_loader(recipe, data, World(), where)
    wanted: list[Lesion | None] = [None]
    sums: list[Tensor] = []
    seen = width = 0
    try:
        for batch in loader:
            if not sums:
                wanted += lesions(model, task.question(batch.images, batch.labels, batch.index).inputs, kinds)
                sums = [torch.zeros(task.SUMS, dtype=torch.float64) for _ in wanted]
            for one, total in zip(wanted, sums, strict=True):
                # Asked anew for each: a network may work in place on what it is given.
                asked = task.question(batch.images, batch.labels, batch.index)
                with applied(model, one) if one is not None else nullcontext():
                    outputs = model(asked.inputs)
                total += task.sums(outputs, asked, batch.valid)
                width = outputs.shape[-1]
            seen += int(batch.valid.sum())
            if samples is not None and seen >= samples:
                break
    finally:
        loader.close()
    if not sums:
        raise UserError(f"{path}: the evaluation set of data.name={recipe.data.name} is empty.")
    scores = [task.metrics(total.tolist(), width) for total in sums]
    scored = [Scored(one, score) for one, score in zip(wanted, scores, strict=True) if one is not None]
    at = loaded.located
    return Lesioned(str(at.checkpoint), loaded.weights, int(sums[0][-1]), scores[0], scored, at.notices)
