"""What a training step needs of a layout: who computes, which gradients it has afterwards, and who holds what.

The optimizer, the EMA and the checkpoint work on *leaves*: plain tensors of this rank that share memory with what the
network computes with, so that their kernels are those of a single process whatever the layout.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from restrain.parallel.held import Held, local, whole
from restrain.parallel.layout import Layout

DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters  # torch 2.13 renamed one of them


class Engine:
    """One process, which holds everything.

    ``net`` is what a micro-step calls, ``model`` the network whose names are the checkpoint's.
    """

    shares_norm = False  # whether the gradients of a rank are a part of the whole ones
    is_cut = False  # whether a rank may hold only a part of a parameter
    rehearses = True  # whether the first backward pass on several ranks may differ from later ones

    def __init__(self, model: nn.Module, layout: Layout | None = None, rank: int = 0):
        self.model, self.layout, self.rank = model, layout or Layout(), rank
        self.net: nn.Module = model

    def leaves(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each parameter's name and leaf."""
        return self.model.named_parameters()

    def whole(self) -> nn.Module:
        """A model with the names and shapes of the whole; it may be on the meta device."""
        return self.model

    def grouped(self) -> nn.Module:
        """The model whose parameters say which of them decay and how fast each learns."""
        return self.model

    def optimized(self, parameter: nn.Parameter) -> nn.Parameter:
        """What the optimizer is given for a parameter of :meth:`grouped`."""
        return parameter

    def adopt(self, optimizer: Optimizer, create: Callable[[Optimizer], None]) -> None:
        """Make the state of an optimizer that was just built, by ``create``."""
        create(optimizer)

    def held(self, name: str, local: Tensor) -> Held:
        """Where a leaf of that name, or a tensor of its shape that belongs to it, lies in the whole."""
        return whole(local.shape, saves=self.rank == 0)

    def slots(self, optimizer: Optimizer) -> Iterator[tuple[str, str, Tensor]]:
        """Each state tensor of the optimizer: the name of its parameter, its own name there, and what is held of it."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        names |= {id(p): name for name, p in self.leaves()}
        for p, slots in optimizer.state.items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    yield names[id(p)], slot, local(value)

    def refresh(self) -> None:
        """Let the network compute with what was written into the leaves; on all ranks together."""

    def share_gradients(self, device: torch.device) -> None:
        """Arrange what is needed for gradients to be averaged; once, when the ranks are connected."""

    def rest(self) -> None:
        """Let go of what a forward pass without a backward one, such as an evaluation's, has gathered."""

    def clear(self) -> None:
        """Forget all gradients."""
        for parameter in self.model.parameters():
            parameter.grad = None

    def micro_step(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch; gradients are averaged over data ranks in the ``last`` one."""
        return nullcontext()

    def backward(self, rows: Tensor, weight: Tensor) -> None:
        """Differentiate losses, each times its weight."""
        rows.backward(weight)

    def gradients(self) -> list[Tensor]:
        """Of the leaves, in place where the optimizer looks for them; after the last micro-step's backward."""
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def square(self, gradients: list[Tensor]) -> Tensor | None:
        """This rank's share of the squared norm of all gradients, to be added over ranks; None: each has all."""
        return None

    def commit(self, optimizer: Optimizer, found_inf: Tensor, guarded: Callable[..., None]) -> None:
        """Step the optimizer, or change nothing where ``found_inf`` is not zero: ``guarded(optimizer, found_inf)``."""
        guarded(optimizer, found_inf)


class DataParallel(Engine):
    """A replica a rank, gradients averaged by DDP.

    DDP is around the network and not around the run's Lightning module: one Lightning batch is a whole optimizer step
    of several micro-batches, of which the last alone reduces.
    """

    def share_gradients(self, device: torch.device) -> None:
        devices = [device] if device.type == "cuda" else None
        # No buffer is ever sent: running statistics are equal on all ranks, drop factors must differ.
        quiet: Any = {"forward_sync_buffers" if "forward_sync_buffers" in DDP_OPTIONS else "broadcast_buffers": False}
        self.net = DistributedDataParallel(self.model, device_ids=devices, gradient_as_bucket_view=True, **quiet)

    def micro_step(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.net.no_sync()  # pyright: ignore


def without_weights(model: nn.Module) -> nn.Module:
    """A copy on the meta device; the weights are not copied on the way."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, memo)
