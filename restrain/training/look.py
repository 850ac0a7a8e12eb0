"""The samples of a step as the network will see them: real loader, real keys, mixing and labels included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from restrain.data import images, mix
from restrain.data.images import DecodeError, working_decoder
from restrain.data.reader import BadSample
from restrain.errors import UserError
from restrain.insight.grid import Tile
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.training import build
from restrain.training.inputs import refuse_text
from restrain.training.placement import Placement

SHOWN_SHARE = 0.005  # of a mixed label; less is not worth words


@dataclass(frozen=True)
class Look:
    """``tiles``: one a sample, the untouched image beside the augmented one. ``step`` and ``epoch`` count from 0."""

    tiles: list[Tile]
    step: int
    epoch: int
    side: int


def look(recipe: Recipe, count: int, step: int = 0) -> Look:
    """The first ``count`` rows of ``step``, whatever the number of processes will be.

    Raises UserError for a step that the run does not have, and what opening the data raises.
    """
    refuse_text(recipe, "look", "restrain check shows sizes and vocabulary; the text itself is in data.root.")
    data = build.open_data(recipe)
    plan = build.build_plan(recipe, data, [])
    total = build.total_steps(recipe, plan)
    if not 0 <= step < total:
        raise UserError(f"--step {step}: the run has the steps 0 to {total - 1:,}.")
    rows = min(recipe.batch.global_, -(-count // recipe.batch.group) * recipe.batch.group)
    # Whole groups, since mixing happens inside of them: any such micro-batch has the rows of any other.
    micro = next(m for m in range(rows, recipe.batch.global_ + 1, recipe.batch.group) if recipe.batch.global_ % m == 0)
    where = Placement("cpu", micro, 1, 2)
    loader = build.build_train_loader(recipe, data, plan, World(), where, step, total)
    try:
        batch = next(iter(loader))
        seen, labels = _mixed(recipe, batch.micros[0])
    finally:
        loader.close()
    epoch, positions = plan.rows(step)
    shard, j = build.build_order(recipe, data)(epoch, positions[0])
    names = getattr(data.train, "classes", None)
    tiles = []
    for row in range(min(count, len(seen))):
        untouched = _untouched(recipe, data, int(shard[row]), int(j[row]))
        pictures = (seen[row],) if untouched is None else (untouched, seen[row])
        tiles.append(Tile(pictures, _told(labels[row], names), f"{data.train.names[int(shard[row])]} {int(j[row])}"))
    return Look(tiles, step, epoch, seen.shape[1])


def _mixed(recipe: Recipe, micro) -> tuple[np.ndarray, np.ndarray]:
    """Images as bytes [n, H, W, C] and labels as shares [n, classes], after mixing."""
    shares = F.one_hot(micro.labels, recipe.model.classes).float()
    pictures = micro.images.float()
    if micro.mix is not None:
        pictures, shares = mix.apply(pictures, shares, micro.mix)
    stored = pictures.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return stored.contiguous().numpy(), shares.numpy()


def _untouched(recipe: Recipe, data: build.Data, shard: int, j: int) -> np.ndarray | None:
    """The stored image; None where it cannot be decoded."""
    try:
        stored = data.train.read(shard, j).data
        return stored if isinstance(stored, np.ndarray) else images.decode(stored, working_decoder(recipe.data.decode))
    except (BadSample, DecodeError):
        return None


def _told(shares: np.ndarray, names: list[str] | None) -> str:
    """``cat`` or ``cat 0.70 + dog 0.30``."""
    order = np.argsort(-shares, kind="stable")
    found = [(int(k), float(shares[k])) for k in order if shares[k] > SHOWN_SHARE]
    words = [(names[k] if names else f"class {k}", share) for k, share in found]
    return words[0][0] if len(words) == 1 else " + ".join(f"{name} {share:.2f}" for name, share in words)
