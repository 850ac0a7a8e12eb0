"""Exponential moving average of the weights (Polyak and Juditsky 1992), masked like the optimizer's own step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Shadows of a model's parameters and persistent buffers.

    torchvision states the decay of an update, scaled: d every n steps there is
    ``(1 - min(1, (1 - d) * images a step * n / epochs)) ** (1 / n)`` here. It averages running statistics too, and
    keeps copying the weights while the learning rate warms up.

    Every ``every`` steps: parameters shadow <- shadow + (1 - decay^every) (parameter - shadow), so that ``decay`` means
    one optimizer step whatever ``every`` is; buffers (running statistics) are copied. Shadows keep dtype, device and
    memory format. Made once the model is on its device. ``parameters``: what stands for the model's own by their names,
    where these are cut over ranks. ``changed``: is called when these were given other values.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        every: int = 1,
        parameters: Mapping[str, Tensor] | None = None,
        changed: Callable[[], None] = lambda: None,
    ):
        if not 0.0 <= decay < 1.0 or every < 1:
            raise ValueError(f"An EMA has a decay in [0, 1) and an interval of at least 1, not {decay} and {every}.")
        self.decay, self.every, self._changed = decay, every, changed
        self._is_cut = parameters is not None
        persistent = model.state_dict(keep_vars=True)
        parameters = dict(model.named_parameters()) if parameters is None else dict(parameters)
        buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
        self._parameters = list(parameters.values())
        self._buffers = list(buffers.values())
        self._shadows = [parameter.detach().clone() for parameter in self._parameters]
        self._buffer_shadows = [tensor.clone() for tensor in self._buffers]
        self._names = [*parameters, *buffers]

    @torch.no_grad()
    def update(self, step: int, ok: Tensor | None = None) -> None:
        """After the optimizer's step ``step`` (from 0); where ``ok`` (0-dim bool on the device) is false nothing moves.

        The host never reads ``ok``. The weights must be finite, which the guard that computes ``ok`` sees to.
        """
        if (step + 1) % self.every:
            return
        weight = 1.0 - self.decay**self.every
        if ok is None:
            torch._foreach_lerp_(self._shadows, self._parameters, weight)  # pyright: ignore
            if self._buffers:
                torch._foreach_copy_(self._buffer_shadows, self._buffers)  # pyright: ignore
            return
        moved = torch._foreach_sub(self._parameters, self._shadows)  # pyright: ignore
        torch._foreach_mul_(moved, ok.to(moved[0]) * weight)  # pyright: ignore
        torch._foreach_add_(self._shadows, moved)  # pyright: ignore
        for shadow, buffer in zip(self._buffer_shadows, self._buffers, strict=True):
            shadow.copy_(torch.where(ok, buffer, shadow))

    def tensors(self) -> dict[str, Tensor]:
        """The shadows by their names in the model's state dict; writing into them restores the average."""
        return dict(zip(self._names, [*self._shadows, *self._buffer_shadows], strict=True))

    @contextmanager
    def swap(self, model: nn.Module, agreed: type[Exception] | tuple[()] = ()) -> Iterator[None]:
        """Inside, ``model`` computes with the averaged weights. Contents change places, so addresses stay.

        ``agreed``: what all ranks raise together. After any other error the weights stay as they are: putting them back
        may need the other ranks, which wait for this one elsewhere and would never learn of its error.
        """
        self._exchange(model)
        try:
            yield
        except agreed:
            self._exchange(model)
            raise
        self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        live = dict(zip(self._names, [*self._parameters, *self._buffers], strict=True))
        if not self._is_cut:
            live = model.state_dict(keep_vars=True)
        for name, shadow in self.tensors().items():
            held = live[name].clone()
            live[name].copy_(shadow)
            shadow.copy_(held)
        self._changed()
