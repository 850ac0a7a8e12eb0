"""Lightning launches, places and strategises a run; it saves, logs, counts and catches nothing of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from restrain.parallel import distributed
from restrain.parallel.world import World


class _Environment(LightningEnvironment):
    def teardown(self) -> None:
        """Lightning's would remove WORLD_SIZE, which a second run of the process needs."""


def make_trainer(world: World, device: torch.device) -> L.Trainer:
    """The Trainer of a run, with everything off that Restrain does itself."""
    one = [device.index] if device.type == "cuda" else 1
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=one if world.size == 1 else world.local_size,
        num_nodes=world.nodes,
        strategy="auto" if world.size == 1 else distributed.LaidOut(),
        plugins=[_Environment()],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    # Both are private; tests/training/test_lightning.py fails when Lightning renames them. The first would put
    # Lightning's handlers over ours, the second asks all ranks for a signal, with a host synchronisation, every batch.
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's banners, and the warnings that do not apply to a run that Restrain drives."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*No `?val_dataloader.*|.*`val_dataloader`.*")
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            # The logits of a network may be a view of what its head computed; nothing works on them in place.
            warnings.filterwarnings("ignore", message=".*FSDP2-wrapped module.*returned a view tensor.*")
            warnings.filterwarnings("ignore", message=".*srun.*command is available on your system.*")
            yield
    finally:
        logger.setLevel(level)
