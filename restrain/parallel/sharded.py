"""Parameters cut over ranks: FSDP2 (fully_shard) block by block, its hybrid form, and tensor parallelism under either.

A block is gathered before it computes and let go after it, so a rank holds its share of the model and one block. The
model is cut while it is on the meta device and filled by keyed counters, so no rank ever has the whole of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from restrain.models import residual_blocks
from restrain.models.init import fill_box, fills
from restrain.parallel import tensor as tensors
from restrain.parallel.distributed import COLLECTIVE_TIMEOUT
from restrain.parallel.engine import Engine, without_weights
from restrain.parallel.held import Held, local, whole
from restrain.parallel.layout import SHARDED, Layout
from restrain.parallel.partition import cut_model


class Sharded(Engine):
    """Args:
    model: on the meta device, or whole on this rank's device (a network that is not ours fills itself).
    reduce: dtype in which gradients are added up; None: that of the parameters.
    reshard: let a block go after its forward pass and gather it again for its backward pass.
    per_tensor: the optimizer takes norms of whole tensors, and is given them as DTensors.
    """

    shares_norm = True
    is_cut = True

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        rank: int,
        device: torch.device,
        *,
        reduce: torch.dtype | None = None,
        reshard: bool = True,
        per_tensor: bool = False,
    ):
        super().__init__(model, layout, rank)
        self._whole = without_weights(model)
        self.per_tensor = per_tensor
        self._copies: Tensor | None = None  # of each gradient: how many ranks hold the same part
        self.groups = make_groups(layout, rank, device)
        self.partition = cut_model(model, layout, rank, self.groups.tensor)
        self.loose = {name for name, _ in model.named_parameters() if self.partition.is_loose(name)}
        self.partial = {name for name, _ in tensors.partial(model)} if layout.tensor > 1 else set()
        if layout.strategy in SHARDED:
            self._shard(reduce, reshard)
        self._take_leaves()

    def _shard(self, reduce: torch.dtype | None, reshard: bool) -> None:
        ignored: set[nn.Parameter] = {p for name, p in self.model.named_parameters() if name in self.loose}
        options: dict[str, Any] = {
            "mesh": self.groups.mesh,
            "mp_policy": MixedPrecisionPolicy(reduce_dtype=reduce),
            "ignored_params": ignored or None,
        }
        for _, block in residual_blocks(self.model):
            fully_shard(block, reshard_after_forward=reshard, **options)
            block.gathered_to_skip = block.skip_has_parameters()
        fully_shard(self.model, reshard_after_forward=reshard, **options)

    # ------------------------------------------------------------------------------------------------- who holds what

    def leaves(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._leaves.items())

    def _take_leaves(self) -> None:
        """Once the parameters have their memory; later a model may be seen gathered, with others in their places."""
        self._parameters = dict(self.model.named_parameters())
        self._leaves = {
            name: nn.Parameter(local(p).detach(), p.requires_grad) if isinstance(p, DTensor) else p
            for name, p in self._parameters.items()
        }

    def whole(self) -> nn.Module:
        return self._whole

    def optimized(self, parameter: nn.Parameter) -> nn.Parameter:
        if self.per_tensor:
            return parameter
        return next(self._leaves[name] for name, other in self._parameters.items() if other is parameter)

    def share_gradients(self, device: torch.device) -> None:
        """Nothing is wrapped; but what moves a module may give it other memory, and the leaves would train nothing."""
        for name, parameter in self.model.named_parameters():
            if self._leaves[name].data_ptr() != local(parameter).data_ptr():
                raise AssertionError(f"{name} has moved away from the tensor that is optimized")

    def rest(self) -> None:
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def held(self, name: str, local: Tensor) -> Held:
        if name not in self.partition.shapes:  # a buffer
            return whole(local.shape, self.layout.world, self.rank == 0)
        return self.partition.held(name, local.ndim, self.rank)

    @torch.no_grad()
    def materialise(self, device: torch.device, seed: int) -> None:
        """Memory for what this rank holds, filled by the counters of the whole; the model is on the meta device."""
        tied = _tied(self.model)
        rules = fills(self.model)
        self.model.to_empty(device=device)
        _tie(self.model, tied)
        self._take_leaves()
        for name, parameter in self.leaves():
            self.held(name, parameter).fill(
                parameter.detach(),
                lambda view, offset, n=name: fill_box(view, n, rules[n], seed, offset, self.partition.shapes[n]),
            )
        for name, buffer in self.model.named_buffers():
            fill_box(buffer, name, rules[name], seed, (0,) * buffer.ndim, tuple(buffer.shape))

    # --------------------------------------------------------------------------------------------------------- the step

    def clear(self) -> None:
        super().clear()
        for leaf in self._leaves.values():
            leaf.grad = None

    def micro_step(self, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        return nullcontext()

    @torch.no_grad()
    def gradients(self) -> list[Tensor]:
        found, summed, averaged = [], [], []
        for name, parameter in self._parameters.items():
            if not parameter.requires_grad:
                continue
            leaf = self._leaves[name]
            grad = parameter.grad
            if isinstance(grad, DTensor):
                grad = grad.to_local()
            if grad is None:
                grad = torch.zeros_like(leaf)
            if leaf is not parameter:
                leaf.grad = grad
            elif parameter.grad is None:
                parameter.grad = grad
            if name in self.partial:
                summed.append(grad)
            if name in self.loose and self.layout.data > 1:
                averaged.append(grad)
            found.append(grad)
        _reduce(summed, self.groups.tensor, 1)
        _reduce(averaged, self.groups.data, self.layout.data)
        return found

    def square(self, gradients: list[Tensor]) -> Tensor | None:
        names = [name for name, leaf in self._leaves.items() if leaf.requires_grad]
        squares = torch.stack(torch._foreach_norm(gradients)).double().square()  # pyright: ignore[reportPrivateImportUsage]
        if self._copies is None:  # once: bringing numbers to a device is a wait for it
            copies = [self.held(name, grad).copies for name, grad in zip(names, gradients, strict=True)]
            self._copies = torch.tensor(copies, dtype=torch.float64, device=squares.device)
        return (squares / self._copies).sum()


class Groups:
    """Process groups of a layout: ``mesh`` that FSDP2 shards over; those of tensor ranks and of data ranks. None for a
    group is all ranks, or of tensor ranks that each is one of its own."""

    def __init__(self, mesh: Any, tensor: Any, data: Any):
        self.mesh, self.tensor, self.data = mesh, tensor, data


def make_groups(layout: Layout, rank: int, device: torch.device) -> Groups:
    """On all ranks, in the same order.

    All of them wait for each group that is made, so none is made of a single rank: on 4,096 ranks that would be 8,192.
    """
    sizes = {"replicate": layout.replicas, "shard": layout.shard, "tensor": layout.tensor}
    cut = "shard" if layout.strategy in SHARDED else "replicate"
    names = tuple(name for name, size in sizes.items() if size > 1 or name == cut)
    made = init_device_mesh(device.type, tuple(sizes[name] for name in names), mesh_dim_names=names)
    for name in names:  # else gloo's groups of a mesh wait for half an hour
        dist.set_timeout(COLLECTIVE_TIMEOUT, made.get_group(name))
    of_data = tuple(name for name in names if name != "tensor")
    mesh = made if names == of_data else made[of_data]
    if layout.tensor == 1:
        return Groups(mesh, None, None)
    tensor = made.get_group("tensor")
    if len(of_data) == 1:
        return Groups(mesh, tensor, made.get_group(of_data[0]))
    data = None
    for first in range(layout.tensor):
        ranks = layout.data_group(first)
        group = dist.new_group(ranks, timeout=COLLECTIVE_TIMEOUT)
        if rank in ranks:
            data = group
    return Groups(mesh, tensor, data)


def _reduce(gradients: list[Tensor], group: Any, divide: int) -> None:
    if not gradients:
        return
    flat = torch.cat([grad.flatten() for grad in gradients])
    dist.all_reduce(flat, group=group)
    if divide > 1:
        flat /= divide
    for grad, part in zip(gradients, flat.split([grad.numel() for grad in gradients]), strict=True):
        grad.copy_(part.view(grad.shape))


def _tied(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, name))
    return [places for places in owners.values() if len(places) > 1]


def _tie(model: nn.Module, tied: list[list[tuple[nn.Module, str]]]) -> None:
    for (first, first_name), *others in tied:
        for module, name in others:
            setattr(module, name, getattr(first, first_name))
