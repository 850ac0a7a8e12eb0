"""ZeRO's cuts: parameters of stage 3 made and filled without any rank holding one of them whole, and where each rank's
elements lie in the flat vectors that DeepSpeed's optimizers of stages 1 to 3 keep.

All of what is read here of DeepSpeed (0.19) is internal to it; tests/parallel/test_zero.py fails where it changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Run:
    """The elements [start, stop) of the parameter ``name``, at ``at`` of the flat vector number ``flat``."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    flat: int
    at: int

    def of(self, flat: Tensor) -> Tensor:
        """These elements of a vector that is laid out like the flat one."""
        return flat[self.at : self.at + self.stop - self.start]


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of a parameter that may be cut."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def share(size: int, rank: int, world: int) -> tuple[int, int]:
    """Elements that stage 3 gives a rank of a parameter of ``size``: equal parts, rounded up."""
    part = -(-size // world)
    return min(rank * part, size), min((rank + 1) * part, size)


@torch.no_grad()
def cut_parameters(
    model: nn.Module, rank: int, world: int, device: torch.device, config: dict[str, Any], fill: Callable[..., None]
) -> dict[str, Tensor]:
    """Replace a model's parameters, in place, by stage 3's: each rank has its elements and nothing else.

    Args:
        model: on the meta device, or whole.
        fill: (part, name, parameter, start): write the parameter's elements from ``start`` on into the flat ``part``.

    Returns:
        name -> this rank's elements, which the new parameters keep.
    """
    from deepspeed.runtime.zero.partition_parameters import Init, PartitionedParamStatus

    init = Init(config_dict_or_path=config, enabled=False, dtype=torch.float32)
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, key))
    held = {}
    for name, parameter in list(model.named_parameters()):
        size = parameter.numel()
        start, stop = share(size, rank, world)
        part = torch.zeros(-(-size // world), dtype=parameter.dtype, device=device)
        fill(part[: stop - start], name, parameter, start)
        # One element, repeated: a parameter of the whole shape that takes no memory, until DeepSpeed empties it.
        empty = torch.zeros(1, dtype=parameter.dtype, device=device).expand(parameter.shape)
        cut: Any = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        init._convert_to_deepspeed_param(cut)
        cut.ds_tensor, cut.ds_numel_aligned = part, part.numel() * world
        part.ds_numel, part.status, part.final_location = part.numel(), PartitionedParamStatus.AVAILABLE, None  # pyright: ignore[reportAttributeAccessIssue]
        cut.partition()
        for module, key in places[id(parameter)]:
            module._parameters[key] = cut
        held[name] = part[: stop - start]
    return held


def flats(zero: Any, stage: int) -> list[Tensor]:
    """The vectors that a rank's optimizer updates: fp32, one for each group of parameters."""
    return zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups


def runs(zero: Any, stage: int, names: dict[nn.Parameter, str], rank: int) -> list[Run]:
    """Where this rank's elements lie, in order; the padding between and behind them is nobody's."""
    return _of_stage_3(zero, names, rank) if stage == 3 else _of_stage_1_and_2(zero, names, rank)


def _of_stage_1_and_2(zero: Any, names: dict[nn.Parameter, str], rank: int) -> list[Run]:
    """All parameters of a group one after the other, cut into equal parts wherever that falls."""
    found = []
    for number, flat in enumerate(zero.single_partition_of_fp32_groups):
        low, high = rank * flat.numel(), (rank + 1) * flat.numel()
        for parameter, offset in zip(
            zero.round_robin_bit16_groups[number], zero.round_robin_bit16_offsets[number], strict=True
        ):
            shape = tuple(parameter.shape)
            start, stop = max(low, offset), min(high, offset + math.prod(shape))
            if start < stop:
                found.append(Run(names[parameter], shape, start - offset, stop - offset, number, start - low))
    return found


def _of_stage_3(zero: Any, names: dict[nn.Parameter, str], rank: int) -> list[Run]:
    """Each parameter cut into equal parts, of which a rank's stand one after the other."""
    found = []
    for number, group in enumerate(zero.fp16_groups):
        at = 0
        for parameter in group:
            part = parameter.partition_numel()
            start, stop = min(rank * part, parameter.ds_numel), min((rank + 1) * part, parameter.ds_numel)
            if start < stop:
                found.append(Run(names[parameter], whole_shape(parameter), start, stop, number, at))
            at += part
    return found
