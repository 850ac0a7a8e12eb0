"""Progressive resizing: the side of an epoch's training images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sides:
    """Epoch -> side in pixels: ``first`` up to epoch ``begins``, ``last`` from ``ends`` on, a straight line between,
    rounded to a multiple (Leclerc et al. 2023, FFCV; their ``rn50`` recipes). Halves go to the even multiple."""

    first: int
    last: int
    begins: float
    ends: float
    multiple: int

    def __call__(self, epoch: int) -> int:
        if epoch <= self.begins:
            return self.first
        if epoch >= self.ends:
            return self.last
        slope = (self.last - self.first) / (self.ends - self.begins)
        return round((slope * (epoch - self.begins) + self.first) / self.multiple) * self.multiple
