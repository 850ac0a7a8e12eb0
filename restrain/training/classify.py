"""Image classification as a Lightning module: the model, its loss and its metric. Shapes: B images, K classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restrain.data import mix
from restrain.training.task import Example, Task, hits

TOP5_ABOVE = 10  # classes; with fewer, five guesses say little


class CrossEntropy:
    """Softmax cross-entropy with label smoothing (Szegedy et al. 2016), computed in fp32 or wider, per row."""

    def __init__(self, smoothing: float = 0.0):
        self.smoothing = smoothing

    def __call__(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        """``target``: int64 [B], or probabilities [B, K] after mixup. Returns [B]."""
        return F.cross_entropy(logits_BK, target, label_smoothing=self.smoothing, reduction="none")


class BinaryCrossEntropy:
    """One sigmoid a class (Wightman et al. 2021, "ResNet strikes back", section 2).

    ``threshold``: mixed targets above it count as 1, the others as 0 (after smoothing); null keeps them soft.
    ``over_classes``: a row's loss is the ``sum`` or the ``mean`` over its classes. LAMB limits the gradient's norm, so
    the two are not the same recipe with another learning rate.
    """

    def __init__(self, smoothing: float = 0.0, threshold: float | None = None, over_classes: str = "sum"):
        self.smoothing, self.threshold, self.over_classes = smoothing, threshold, over_classes

    def __call__(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        classes = logits_BK.shape[-1]
        soft = F.one_hot(target, classes).to(logits_BK.dtype) if target.ndim == 1 else target.to(logits_BK.dtype)
        soft = soft * (1 - self.smoothing) + self.smoothing / classes
        if self.threshold is not None:
            soft = (soft > self.threshold).to(logits_BK.dtype)
        each = F.binary_cross_entropy_with_logits(logits_BK, soft, reduction="none")
        return each.sum(-1) if self.over_classes == "sum" else each.mean(-1)


def build_loss(section: Any) -> CrossEntropy | BinaryCrossEntropy:
    """The loss of a recipe's ``loss`` section."""
    if section.name == "bce":
        return BinaryCrossEntropy(section.smoothing, section.threshold, section.over_classes)
    return CrossEntropy(section.smoothing)


class Classify(Task):
    """A classifier: ``model`` maps images [B, C, H, W] to logits [B, K].

    A plain Lightning module with automatic optimisation: it trains, validates, logs and checkpoints under any
    ``lightning.Trainer`` with any loader of ``(images, labels)``. Under ``restrain train`` the step of
    :class:`restrain.training.step.Run` holds it.

    Args:
        model: the network.
        loss: per-row loss, ``(logits [B, K], target) -> [B]``.
        mean, std: of the pixels, per channel, on the scale 0 to 1. uint8 images are normalised with them on the
            device; float images are taken as they are.
        optimizer: makes the optimizer under a plain Trainer; SGD at 0.1 with momentum 0.9 when not given.
    """

    scale_C11: Tensor
    shift_C11: Tensor

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    ):
        super().__init__()
        self.model = model
        self.classes = -1  # of labels that are mixed; one_hot then takes the largest that it sees
        self.loss = loss or CrossEntropy()
        self.make_optimizer = optimizer
        # One multiplication and one addition an image: (x / 255 - mean) / std = x * scale + shift.
        scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale_C11", scale.view(-1, 1, 1), persistent=False)
        self.register_buffer("shift_C11", shift.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.normalise(images))

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """uint8 -> (x / 255 - mean) / std in the dtype of the weights; float images pass unchanged."""
        if images_BCHW.dtype != torch.uint8:
            return images_BCHW
        dtype = next(self.model.parameters()).dtype
        return images_BCHW.to(dtype).mul_(self.scale_C11.to(dtype)).add_(self.shift_C11.to(dtype))

    def rows(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        """The loss of each row, [B], in fp32 or wider whatever the precision of the logits."""
        return self.loss(logits_BK if logits_BK.dtype == torch.float64 else logits_BK.float(), target)

    # ---------------------------------------------------------------------------------------------- of a run's step

    def example(
        self, samples: Tensor, labels: Tensor, mixed: mix.MixDraw | None = None, step: int = 0, first: int = 0
    ) -> Example:
        inputs = self.normalise(samples)
        if mixed is None:
            return Example(inputs, labels, labels)
        soft = F.one_hot(labels, self.classes).to(inputs.dtype)
        return Example(*mix.apply(inputs, soft, mixed), labels)

    def question(self, samples: Tensor, labels: Tensor, index: Tensor | None = None) -> Example:
        return Example(self.normalise(samples), labels, labels)

    def correct(self, outputs: Tensor, answer: Tensor) -> Tensor:
        return (outputs.argmax(-1) == answer).sum()

    def sums(self, outputs: Tensor, asked: Example, valid: Tensor) -> Tensor:
        # where, not a product: a padded row may hold anything, and 0 x NaN is NaN
        loss = torch.where(valid, self.rows(outputs, asked.target).double(), 0.0).sum()
        best, among = hits(outputs, asked.answer, 5 if outputs.shape[-1] > TOP5_ABOVE else 1)
        count = valid.sum().double()
        return torch.stack([loss, (best & valid).sum().double(), (among & valid).sum().double(), count, count])

    def metrics(self, sums: Sequence[float], width: int) -> dict[str, float]:
        """``loss``, ``top1`` and, above ten classes, ``top5`` (percent) and ``count``."""
        loss, top1, top5, count, _ = sums
        found = {"loss": loss / count, "top1": 100.0 * top1 / count, "count": int(count)}
        return found | ({"top5": 100.0 * top5 / count} if width > TOP5_ABOVE else {})

    def blank(self, rows: int, shape: Sequence[int], device: torch.device) -> Tensor:
        images = torch.zeros(rows, *shape, dtype=torch.uint8, device=device)
        return self.normalise(images.contiguous(memory_format=torch.channels_last))

    # ------------------------------------------------------------------------------- under a plain lightning.Trainer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = self.rows(logits, labels).mean()
        self.log("train/loss", loss)
        self.log("train/top1", 100.0 * (logits.argmax(-1) == labels).float().mean(), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.log("eval/loss", self.rows(logits, labels).mean(), batch_size=len(labels), sync_dist=True)
        top1 = 100.0 * (logits.argmax(-1) == labels).float().mean()
        self.log("eval/top1", top1, batch_size=len(labels), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.make_optimizer is not None:
            return self.make_optimizer(self.model)
        return torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
