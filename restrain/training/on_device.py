"""Batches on a GPU: copied on a stream of their own, while the step before is still computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch

from restrain.data.batches import MicroBatch, StepBatch
from restrain.data.loader import TrainLoader


class OnDevice:
    """A `TrainLoader` whose images and labels are on a CUDA device.

    The host is ahead of the device, so when it asks for a batch the step before is being computed: the copy runs beside
    it. The loader's buffers are page-locked, and one is filled again when the batch two later is asked for; its copy,
    which has long been over, is waited for then.
    """

    def __init__(self, loader: TrainLoader, device: torch.device):
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[StepBatch]:
        copying, copied = torch.cuda.Stream(self.device), deque()
        batches = iter(self.loader)
        while True:
            if len(copied) == 2:
                copied.popleft().synchronize()
            if (batch := next(batches, None)) is None:
                return
            computing = torch.cuda.current_stream(self.device)
            with torch.cuda.stream(copying):
                batch = replace(batch, micros=[self._copied(micro, computing) for micro in batch.micros])
                copied.append(copying.record_event())
            computing.wait_event(copied[-1])
            yield batch

    def close(self) -> None:
        """As of the loader."""
        self.loader.close()

    def _copied(self, micro: MicroBatch, computing: torch.cuda.Stream) -> MicroBatch:
        # What was decoded on the device lies in a buffer that is filled again: the step gets a copy of that too.
        images = micro.images.clone() if micro.images.is_cuda else micro.images.to(self.device, non_blocking=True)
        labels = micro.labels.to(self.device, non_blocking=True)
        for tensor in (images, labels):
            tensor.record_stream(computing)  # its memory is not given to anybody before the step is done with it
        return replace(micro, images=images, labels=labels)
