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
from restrain.training.task import Task


class Interrupted(Exception):
    """A flag asked the run to leave in the middle of an evaluation; nothing of it is kept."""


@torch.no_grad()
def evaluate(
    task: Task,
    batches: EvalLoader,
    *,
    device: torch.device,
    number_format: str,
    world: int = 1,
    rows: int | None = None,
    counts: bool = True,
    leave: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    flip: bool = False,
    observe: Callable[[Tensor, EvalBatch], None] | None = None,
) -> dict[str, float]:
    """The task's metrics over all ranks: ``loss``, ``top1`` (percent), ``count`` and others.

    Padded and undecodable rows carry ``valid=False`` and count nowhere. ``leave`` is asked at each batch; ranks agree
    on the answer (all have the same number of batches), and :class:`Interrupted` is raised on all of them together.
    With ``flip`` the logits are the mean of those of each image and of its mirror image. ``observe`` is given each
    batch's outputs, on the device, and the batch, on the host. ``rows``: ranks that see different rows, if not all of
    ``world`` do; ``counts``: whether this rank's rows are counted, or another tells of the same ones.
    """
    model = task.model
    model.eval()
    sums, width = torch.zeros(task.SUMS, dtype=torch.float64, device=device), 0
    try:
        for number, batch in enumerate(batches, 1):
            _agree_to_go_on(leave, device, world)
            if progress is not None:
                for bad in batch.bad:
                    where = f"sample {bad.j} ({bad.key}) of {batches.source.names[bad.shard]}"
                    progress.notice(f"evaluation: {where} left out: {bad.reason}")
            samples = batch.images.to(device, non_blocking=True)
            labels, valid = batch.labels.to(device), batch.valid.to(device)
            with precision.autocast(number_format, device):
                asked = task.question(samples, labels, batch.index)
                outputs = model(asked.inputs)
                if flip:
                    outputs = (outputs + model(asked.inputs.flip(-1))) / 2
            width = outputs.shape[-1]
            sums += task.sums(outputs, asked, valid)
            if observe is not None:
                observe(outputs, batch)
            if progress is not None:
                progress.evaluating(min(number * len(labels) * (rows or world), batches.samples), batches.samples)
    finally:
        batches.close()
        model.train()
    if world > 1:
        if not counts:
            sums.zero_()
        dist.all_reduce(sums)
    found = sums.tolist()
    check_left_out(batches.samples - int(found[-1]), batches.samples, batches.max_bad)
    return task.metrics(found, width)


def _agree_to_go_on(leave: Callable[[], bool], device: torch.device, world: int) -> None:
    asked = leave()
    if world > 1:
        flag = torch.tensor(float(asked), device=device)
        dist.all_reduce(flag)
        asked = flag.item() > 0
    if asked:
        raise Interrupted
