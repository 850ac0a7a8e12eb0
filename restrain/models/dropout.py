"""Dropout of single elements, its masks a function of keys.

torch's own draws from the device's generator, whose state depends on ranks, micro-batches and restarts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from restrain.draws import extend_torch, uniform_torch
from restrain.errors import UserError
from restrain.models.fill import ZERO, Fill


class KeyedDropout(nn.Module):
    """Zero each element with probability ``rate`` and scale the others by 1 / (1 - rate) (Srivastava et al. 2014).

    ``keys`` int64 [R]: one a row, written by :func:`set_dropout_keys` before a micro-step's forward; the mask of a row
    is a function of its key and the element's place, so recomputation and compilation see the same one.
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise UserError(f"A dropout rate of {rate}: it lies in [0, 1).")
        self.rate = rate
        self.keys: Tensor
        self.register_buffer("keys", torch.empty(0, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        if self.keys.shape[0] != x.shape[0]:
            raise RuntimeError(
                f"Dropout of rate {self.rate} holds {self.keys.shape[0]} keys for {x.shape[0]} rows: call "
                f"restrain.models.set_dropout_keys before each forward in training mode."
            )
        size = x[0].numel()
        drawn = extend_torch(self.keys[:, None], torch.arange(size, device=x.device))
        kept = (uniform_torch(drawn) >= self.rate).view(x.shape)
        return x * kept * (1.0 / (1.0 - self.rate))

    def fills(self) -> dict[str, Fill]:
        return {"keys": ZERO}

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def named_dropouts(model: nn.Module) -> list[tuple[str, KeyedDropout]]:
    """The model's dropouts that drop anything, with their dotted names, which key their draws."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, KeyedDropout) and m.rate > 0.0]


def set_dropout_keys(dropouts: Sequence[KeyedDropout], keys: Tensor) -> None:
    """Write the keys, int64 [dropouts, R], into the buffers, in place; they are allocated anew when R changes."""
    if keys.dim() != 2 or keys.shape[0] != len(dropouts):
        raise ValueError(
            f"Keys of shape {list(keys.shape)} for {len(dropouts)} dropouts: [dropouts, rows] is expected."
        )
    for dropout, row in zip(dropouts, keys, strict=True):
        if dropout.keys.shape != row.shape:
            dropout.keys = torch.empty_like(row, device=dropout.keys.device)
        dropout.keys.copy_(row)
