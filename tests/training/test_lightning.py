"""Lightning's own contract: Classify is a good citizen of it, and what a run switches off is still there to switch."""

import inspect
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from restrain.models import build_model
from restrain.parallel.world import World
from restrain.training.classify import BinaryCrossEntropy, Classify, CrossEntropy
from restrain.training.lightning import make_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*lr_scheduler.*"
)


def loader() -> DataLoader:
    keyed = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=keyed)
    labels = images.float().mean((1, 2, 3)).gt(127.5).long()
    return DataLoader(TensorDataset(images, labels), batch_size=16)


def test_classify_trains_validates_logs_and_checkpoints_under_a_plain_trainer(tmp_path: Path) -> None:
    model = build_model({"name": "cifar_resnet20", "classes": 2, "in_chans": 3, "join": {"name": "add"}})
    task = Classify(model)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    before = model.conv1.weight.detach().clone()
    trainer.fit(task, loader(), loader())
    assert trainer.global_step == 8
    assert not torch.equal(before, model.conv1.weight)
    assert {"train/loss", "train/top1", "eval/loss", "eval/top1"} <= trainer.callback_metrics.keys()
    checkpoint = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert checkpoint["global_step"] == 8
    assert model.bn1.num_batches_tracked.item() == 8


def test_what_a_run_switches_off_still_exists() -> None:
    """Both are private to Lightning: when one is renamed, the switch in training/lightning.py does nothing."""
    assert inspect.isfunction(_SignalConnector.register_signal_handlers)
    assert inspect.isfunction(_TrainingEpochLoop._broadcast_sigterm_tensor)
    assert "register_signal_handlers()" in inspect.getsource(L.Trainer._run)
    assert "_broadcast_sigterm_tensor()" in inspect.getsource(_TrainingEpochLoop.advance)
    trainer = make_trainer(World(), torch.device("cpu"))
    assert trainer._signal_connector.register_signal_handlers() is None
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None


def test_losses_are_torchs() -> None:
    logits = torch.linspace(-2, 2, 15, dtype=torch.float64).reshape(3, 5)
    labels = torch.tensor([0, 3, 4])
    wanted = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.allclose(CrossEntropy(0.1)(logits, labels).mean(), wanted)
    hot = nn.functional.one_hot(labels, 5).double()
    wanted = nn.functional.binary_cross_entropy_with_logits(logits, hot, reduction="sum") / 3
    assert torch.allclose(BinaryCrossEntropy()(logits, labels).mean(), wanted)
    mixed = 0.7 * hot + 0.3 * hot.roll(1, 0)
    sharp = BinaryCrossEntropy(threshold=0.5)(logits, mixed)
    assert torch.allclose(sharp, BinaryCrossEntropy()(logits, labels))


def test_uint8_images_are_normalised_and_float_images_are_not() -> None:
    task = Classify(nn.Linear(1, 1), mean=(0.5,), std=(0.25,))
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    wanted = (images.float() / 255 - 0.5) / 0.25
    assert torch.allclose(task.normalise(images), wanted, atol=1e-6)
    assert torch.equal(task.normalise(wanted), wanted)
