"""What a run learns, as its step and its evaluation see it: inputs of a micro-batch, loss of a row, what counts.

Each kind of task says these few things, so that the step and the evaluation have no cases. Shapes: B rows of a
micro-batch; what a row is, an image, a window of tokens or a sequence, the task alone knows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from restrain.data.mix import MixDraw
from restrain.training.dropping import Dropping


class Example(NamedTuple):
    """A micro-batch as the network takes it.

    inputs: what the model is called with. target: what :meth:`Task.rows` compares its outputs with. answer: what a
    prediction is counted against; the target itself but for images whose labels are mixed.
    """

    inputs: Tensor
    target: Tensor
    answer: Tensor


class Task(L.LightningModule):
    """A model with its loss and its metrics. Also a plain Lightning module, with automatic optimisation.

    Under ``restrain train`` :class:`restrain.training.step.Run` holds it and uses the methods below alone. The loss of
    a step is the mean of :meth:`rows` over its rows, on any world; the metrics of an evaluation are exact sums.
    """

    model: nn.Module
    one_label: ClassVar[bool] = True
    """Whether a row has one label out of ``model.classes``: what confusions and mistakes are told of."""
    accuracy: ClassVar[bool] = True
    """Whether a prediction is right or wrong; else ``train/top1`` is left out."""
    SUMS: ClassVar[int] = 5
    """Numbers that :meth:`sums` gives."""
    _dropping: Dropping | None = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Under a plain Trainer: write what the next forward pass reads of drop path (by row) and dropout. A run draws
        for itself, and never calls this."""
        if self._dropping is None:
            self._dropping = Dropping(self.model, "sample", seed=0)
        rows = len(batch[0] if isinstance(batch, (tuple, list)) else batch)
        self._dropping.begin((self.current_epoch << 32) + batch_idx, 1)
        self._dropping.write(self.global_rank * rows, rows)

    @abstractmethod
    def example(self, samples: Tensor, labels: Tensor, mixed: MixDraw | None, step: int, first: int) -> Example:
        """A micro-batch of training, on the device. ``step`` and the row ``first``, of the step's canonical list, are
        what draws may depend on: never rank, micro-batch or a generator."""

    @abstractmethod
    def question(self, samples: Tensor, labels: Tensor, index: Tensor) -> Example:
        """A batch of an evaluation. ``index``: int64 [B], the number of each sample in its set, on the host."""

    @abstractmethod
    def rows(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss of each row, [B], in fp32 or wider whatever the precision of the outputs."""

    @abstractmethod
    def correct(self, outputs: Tensor, answer: Tensor) -> Tensor:
        """How many rows are right, a scalar; of a row with many answers the share of them that is."""

    @abstractmethod
    def sums(self, outputs: Tensor, asked: Example, valid: Tensor) -> Tensor:
        """What an evaluation adds up, float64 [SUMS]; the last is the number of valid rows. Rows that are not
        ``valid`` (bool [B]) count nowhere, whatever they hold."""

    @abstractmethod
    def metrics(self, sums: Sequence[float], width: int) -> dict[str, float]:
        """``loss``, ``count`` and others, of the sums of all batches and ranks; ``width``: outputs a prediction."""

    @abstractmethod
    def blank(self, rows: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Inputs for a pass that changes nothing, of samples of ``shape``."""


def hits(logits: Tensor, answer: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Whether the best, and whether one of the best ``k`` of the last axis, is the answer; bool of its shape."""
    found = logits.topk(k, dim=-1).indices == answer[..., None]
    return found[..., 0], found.any(-1)
