"""What a classifier takes for what, and how far its confidence can be trusted: exact counts over an evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 15


class Confusion:
    """Counts of (label, predicted) [K, K], and of right answers by confidence in ``BINS`` bins of equal width.

    The calibration error is that of Guo et al. 2017 (arXiv:1706.04599, equation 3): the mean, weighted by samples, of
    the distance between a bin's accuracy and its mean confidence, the largest softmax probability.
    """

    def __init__(self, classes: int):
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        self._bins = torch.zeros(3, BINS, dtype=torch.float64)  # samples, right answers, confidence

    def add(self, logits_BK: Tensor, labels_B: Tensor, valid_B: Tensor) -> None:
        """A batch; rows that are not valid count nowhere."""
        logits, labels = logits_BK[valid_B].double().cpu(), labels_B[valid_B].cpu()
        classes = len(self.counts)
        confidence, predicted = logits.softmax(-1).max(-1)
        pairs = torch.bincount(labels * classes + predicted, minlength=classes * classes)
        self.counts += pairs.view(classes, classes)
        place = (confidence * BINS).long().clamp(max=BINS - 1)
        right = (predicted == labels).double()
        for row, values in enumerate((torch.ones_like(confidence), right, confidence)):
            self._bins[row].index_add_(0, place, values)

    @property
    def calibration_error(self) -> float:
        """In percent."""
        samples, right, confidence = self._bins
        return 100.0 * float((right - confidence).abs().sum() / samples.sum().clamp(min=1))

    def per_class(self) -> list[tuple[int, int, int]]:
        """(class, right, samples) of each class that has samples, the worst first."""
        samples, right = self.counts.sum(1).tolist(), self.counts.diagonal().tolist()
        found = [(k, right[k], samples[k]) for k in range(len(samples)) if samples[k]]
        return sorted(found, key=lambda one: (one[1] / one[2], one[0]))

    def pairs(self, most: int) -> list[tuple[int, int, int]]:
        """(label, predicted, samples) of what is confused most."""
        wrong = self.counts.clone().fill_diagonal_(0)
        values, places = wrong.flatten().topk(min(most, wrong.numel()))
        classes = len(self.counts)
        found = zip(places.tolist(), values.tolist(), strict=True)
        return [(place // classes, place % classes, count) for place, count in found if count]

    def as_dict(self, names: list[str]) -> dict[str, Any]:
        """Everything, as plain data."""
        samples, right, confidence = self._bins.tolist()
        return {
            "calibration_error": self.calibration_error,
            "calibration_bins": [
                {
                    "from": n / BINS,
                    "to": (n + 1) / BINS,
                    "samples": int(s),
                    "right": int(r),
                    "confidence": c / s if s else None,
                }
                for n, (s, r, c) in enumerate(zip(samples, right, confidence, strict=True))
            ],
            "classes": [
                {"class": names[k], "right": r, "samples": s, "accuracy": 100.0 * r / s} for k, r, s in self.per_class()
            ],
            "confusion": {"names": names, "rows_are_labels": self.counts.tolist()},
        }
