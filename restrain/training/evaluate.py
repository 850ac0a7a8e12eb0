"""Exact evaluation: every sample once, whatever the world; sums and counts are reduced, never means of means."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from restrain.data.batches import EvalBatch
from restrain.data.filling import check_left_out
from restrain.data.loader import EvalLoader
from restrain.insight.progress import Progress
from restrain.parallel import precision
from restrain.training.classify import Classify


class Interrupted(Exception):
    """A flag asked the run to leave in the middle of an evaluation; nothing of it is kept."""


@torch.no_grad()
def evaluate(
    task: Classify,
    batches: EvalLoader,
    *,
    device: torch.device,
    number_format: str,
    world: int = 1,
    leave: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    flip: bool = False,
    observe: Callable[[Tensor, EvalBatch], None] | None = None,
) -> dict[str, float]:
    """``loss``, ``top1`` and, above ten classes, ``top5`` (percent) and ``count``, over all ranks.

    Padded and undecodable rows carry ``valid=False`` and count nowhere. ``leave`` is asked at each batch; ranks agree
    on the answer (all have the same number of batches), and :class:`Interrupted` is raised on all of them together.
    With ``flip`` the logits are the mean of those of each image and of its mirror image. ``observe`` is given each
    batch's logits [B, K], on the device, and the batch, on the host.
    """
    model = task.model
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, count
    five = False
    try:
        for number, batch in enumerate(batches, 1):
            _agree_to_go_on(leave, device, world)
            if progress is not None:
                for bad in batch.bad:
                    where = f"sample {bad.j} ({bad.key}) of {batches.source.names[bad.shard]}"
                    progress.notice(f"evaluation: {where} left out: {bad.reason}")
            images = batch.images.to(device, non_blocking=True)
            labels, valid = batch.labels.to(device), batch.valid.to(device)
            with precision.autocast(number_format, device):
                inputs = task.normalise(images)
                logits = model(inputs)
                if flip:
                    logits = (logits + model(inputs.flip(-1))) / 2
            five = logits.shape[-1] > 10
            sums += _sums(task, logits, labels, valid, 5 if five else 1)
            if observe is not None:
                observe(logits, batch)
            if progress is not None:
                progress.evaluating(min(number * len(labels) * world, batches.samples), batches.samples)
    finally:
        batches.close()
        model.train()
    if world > 1:
        dist.all_reduce(sums)
    loss, top1, top5, count = sums.tolist()
    check_left_out(batches.samples - int(count), batches.samples, batches.max_bad)
    result = {"loss": loss / count, "top1": 100.0 * top1 / count, "count": int(count)}
    if five:
        result["top5"] = 100.0 * top5 / count
    return result


def _sums(task: Classify, logits_BK: Tensor, labels_B: Tensor, valid_B: Tensor, k: int) -> Tensor:
    # where, not a product: a padded row may hold anything, and 0 x NaN is NaN
    loss = torch.where(valid_B, task.rows(logits_BK, labels_B).double(), 0.0).sum()
    hits = logits_BK.topk(k, dim=-1).indices == labels_B[:, None]
    top1, topk = (hits[:, 0] & valid_B).sum(), (hits.any(-1) & valid_B).sum()
    return torch.stack([loss, top1.double(), topk.double(), valid_B.sum().double()])


def _agree_to_go_on(leave: Callable[[], bool], device: torch.device, world: int) -> None:
    asked = leave()
    if world > 1:
        flag = torch.tensor(float(asked), device=device)
        dist.all_reduce(flag)
        asked = flag.item() > 0
    if asked:
        raise Interrupted
