"""Random fills of code that is not ours, drawn from keys instead of from torch's generators.

timm's models fill their weights while they are constructed, each in its own way. Inside :class:`KeyedDraws` those fills
keep their distributions, but the n-th of them is a function of (seed, n, element): the same in every process, whatever
the state of a generator, which is neither read nor moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from restrain.draws import Purpose, extend_torch, key, name_key, normal_torch, signed, uniform_torch
from restrain.models.init import CHUNK

aten: Any = torch.ops.aten


class KeyedDraws(TorchDispatchMode):
    """While it is entered, torch's random fills are drawn from keys, in the order in which they are asked for.

    Raises:
        NotImplementedError: an operation would draw from a generator in a way that has no keyed form here.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed, self.count = seed, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func in IN_PLACE:
            target = args[0]
            if not target.is_meta:
                self.fill(target, IN_PLACE[func](*args[1:], **{k: v for k, v in kwargs.items() if k != "generator"}))
            return target
        if func in FRESH:
            make, values = FRESH[func]
            made = make(*args, **{k: v for k, v in kwargs.items() if k != "generator"})
            if not made.is_meta:
                self.fill(made, values)
            return made
        raise NotImplementedError(f"{func} draws from torch's generator, and has no keyed form")

    def fill(self, tensor: Tensor, values: Callable[[Tensor], Tensor]) -> None:
        """Fill ``tensor`` with ``values(keys)``, float64 from int64 keys; elements count in row-major order."""
        prefix = signed(key(self.seed, Purpose.INIT, name_key(f"fill {self.count}")))
        self.count += 1
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
        for start in range(0, len(flat), CHUNK):
            index = torch.arange(start, min(start + CHUNK, len(flat)), dtype=torch.int64)
            flat[start : start + CHUNK] = values(extend_torch(prefix, index))
        tensor.copy_(flat.view(tensor.shape))


def _uniform(low: float = 0.0, high: float = 1.0) -> Callable[[Tensor], Tensor]:
    return lambda keys: uniform_torch(keys) * (high - low) + low


def _normal(mean: float = 0.0, std: float = 1.0) -> Callable[[Tensor], Tensor]:
    return lambda keys: normal_torch(keys) * std + mean


def _bernoulli(p: float = 0.5) -> Callable[[Tensor], Tensor]:
    return lambda keys: (uniform_torch(keys) < p).double()


# Another fill is a line here.
IN_PLACE: dict[Any, Callable[..., Callable[[Tensor], Tensor]]] = {
    aten.uniform_.default: _uniform,
    aten.normal_.default: _normal,
    aten.bernoulli_.float: _bernoulli,
}
FRESH: dict[Any, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]] = {
    aten.rand.default: (aten.empty.memory_format, _uniform()),
    aten.randn.default: (aten.empty.memory_format, _normal()),
    aten.rand_like.default: (aten.empty_like.default, _uniform()),
    aten.randn_like.default: (aten.empty_like.default, _normal()),
}
