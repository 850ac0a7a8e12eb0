"""The wrong predictions that a classifier was surest of: where labels are wrong, or the network's eyes are."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MOST = 24
NOTHING = -1.0  # the confidence of a row that holds no mistake


class Mistakes:
    """Keeps the ``most`` surest of them on the device, without a synchronisation a batch."""

    def __init__(self, device: torch.device, most: int = MOST):
        # Columns: confidence (the largest softmax probability), number of the sample, label, prediction.
        self._kept = torch.full((most, 4), NOTHING, dtype=torch.float64, device=device)

    def add(self, logits_BK: Tensor, labels_B: Tensor, valid_B: Tensor, index_B: Tensor) -> None:
        """A batch; rows that are not valid are no mistakes. ``index_B``: number of each sample in its set."""
        confidence, predicted = logits_BK.double().softmax(-1).max(-1)
        wrong = valid_B & (predicted != labels_B)
        confidence = torch.where(wrong, confidence, NOTHING)
        rows = torch.stack([confidence, index_B.double(), labels_B.double(), predicted.double()], 1)
        self._kept = _surest(torch.cat([self._kept, rows]), len(self._kept))

    def of_all_ranks(self, world: int) -> list[dict[str, Any]]:
        """``{index, label, predicted, confidence}``, the surest first, the same on every rank. Collective."""
        kept = self._kept
        if world > 1:
            parts = [torch.empty_like(kept) for _ in range(world)]
            dist.all_gather(parts, kept)
            kept = _surest(torch.cat(parts), len(kept))
        return [
            {"index": int(index), "label": int(label), "predicted": int(predicted), "confidence": confidence}
            for confidence, index, label, predicted in kept.tolist()
            if confidence != NOTHING
        ]


def _surest(rows: Tensor, most: int) -> Tensor:
    """The first ``most`` by falling confidence, then by number: the same whatever the batches and ranks were."""
    rows = rows[rows[:, 1].argsort(stable=True)]
    return rows[rows[:, 0].argsort(descending=True, stable=True)][:most]
