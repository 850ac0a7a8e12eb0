"""The tasks of synthetic sequences: a number at the end of a sequence, and symbols said again after a gap.

Shapes: B sequences, T steps, D inputs, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from restrain.data.mix import MixDraw
from restrain.data.sequences import CORRECT_WITHIN, MEMORY
from restrain.data.text.nothing import NOTHING
from restrain.training.language import Language
from restrain.training.task import Example, Task


class Regress(Task):
    """A regression: ``model`` maps sequences float [B, T, D] to one number each, [B, 1]; the loss is its squared error.

    An answer is right when it is less than 0.04 away (Hochreiter and Schmidhuber 1997, section 5.4). A plain Lightning
    module with automatic optimisation: it trains under any ``lightning.Trainer`` with any loader of ``(sequences,
    targets)``; Adam at 1e-3 when no ``optimizer`` is given.
    """

    one_label: ClassVar[bool] = False

    def __init__(self, model: nn.Module, optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None):
        super().__init__()
        self.model, self.make_optimizer = model, optimizer

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.model(x_BTD)

    # ---------------------------------------------------------------------------------------------- of a run's step

    def example(
        self, samples: Tensor, labels: Tensor, mixed: MixDraw | None = None, step: int = 0, first: int = 0
    ) -> Example:
        return Example(samples.to(next(self.model.parameters()).dtype), labels, labels)

    def question(self, samples: Tensor, labels: Tensor, index: Tensor | None = None) -> Example:
        return self.example(samples, labels)

    def rows(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The squared error of each row, [B], in fp32 or wider."""
        return self._error(outputs, target).square()

    def correct(self, outputs: Tensor, answer: Tensor) -> Tensor:
        return (self._error(outputs, answer).abs() < CORRECT_WITHIN).sum()

    def sums(self, outputs: Tensor, asked: Example, valid: Tensor) -> Tensor:
        error = self._error(outputs, asked.answer).double()
        # where, not a product: a padded row may hold anything, and 0 x NaN is NaN
        loss = torch.where(valid, error.square(), 0.0).sum()
        right, count = ((error.abs() < CORRECT_WITHIN) & valid).sum().double(), valid.sum().double()
        return torch.stack([loss, right, right, count, count])

    def metrics(self, sums: Sequence[float], width: int) -> dict[str, float]:
        """``loss``, ``top1`` (percent of the answers that are less than 0.04 away) and ``count``."""
        loss, right, _, count, _ = sums
        return {"loss": loss / count, "top1": 100.0 * right / count, "count": int(count)}

    def blank(self, rows: int, shape: Sequence[int], device: torch.device) -> Tensor:
        return torch.zeros(rows, *shape, dtype=next(self.model.parameters()).dtype, device=device)

    def _error(self, outputs: Tensor, target: Tensor) -> Tensor:
        number_B = outputs[:, 0]
        return (number_B if number_B.dtype == torch.float64 else number_B.float()) - target

    # ------------------------------------------------------------------------------- under a plain lightning.Trainer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        example = self.example(*batch)
        loss = self.rows(self(example.inputs), example.target).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        asked = self.question(*batch)
        outputs = self(asked.inputs)
        count = len(asked.inputs)
        self.log("eval/loss", self.rows(outputs, asked.target).mean(), batch_size=count, sync_dist=True)
        self.log("eval/top1", 100.0 * self.correct(outputs, asked.answer) / count, batch_size=count, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.make_optimizer is not None:
            return self.make_optimizer(self.model)
        return torch.optim.Adam(self.model.parameters(), lr=1e-3)


class Recall(Language):
    """A language model of the copy problem: only the symbols that are said again count."""

    def example(
        self, samples: Tensor, labels: Tensor, mixed: MixDraw | None = None, step: int = 0, first: int = 0
    ) -> Example:
        return _recalled(super().example(samples, labels, mixed, step, first))

    def question(self, samples: Tensor, labels: Tensor, index: Tensor) -> Example:
        return _recalled(super().question(samples, labels, index))


def _recalled(asked: Example) -> Example:
    target_BT = asked.target.clone()
    target_BT[:, :-MEMORY] = NOTHING
    return Example(asked.inputs, target_BT, target_BT)
