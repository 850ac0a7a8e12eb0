"""The binary cross-entropy beside timm's."""

from types import SimpleNamespace

import pytest
import timm.data.mixup
import timm.loss
import torch

from restrain.training.classify import build_loss


@pytest.mark.parametrize("over_classes", ["sum", "mean"])
@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_binary_cross_entropy_is_timms(over_classes, threshold, smoothing, mixed):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 10, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(10, (16,), generator=generator)
    theirs = timm.loss.BinaryCrossEntropy(smoothing, threshold, sum_classes=over_classes == "sum")
    ours = build_loss(SimpleNamespace(name="bce", smoothing=smoothing, threshold=threshold, over_classes=over_classes))
    if mixed:  # timm smooths mixed targets while it mixes them, ours are smoothed in the loss
        target = timm.data.mixup.mixup_target(labels, 10, 0.7, smoothing)
        plain = timm.data.mixup.mixup_target(labels, 10, 0.7, 0.0)
        wanted, loss = theirs(logits, target.double()), ours(logits, plain.double()).mean()
    else:
        wanted, loss = theirs(logits, labels), ours(logits, labels).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-7)
    (mine,), (its,) = torch.autograd.grad(loss, logits), torch.autograd.grad(wanted, logits)
    torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-7)


def test_a_loss_gives_each_row_its_own():
    loss = build_loss(SimpleNamespace(name="bce", smoothing=0.0, threshold=None, over_classes="mean"))
    assert loss(torch.zeros(3, 7), torch.tensor([0, 1, 2])).shape == (3,)
