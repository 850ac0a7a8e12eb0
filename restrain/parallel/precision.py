"""Number formats: what ``precision: auto`` becomes on a device, and where the casts are.

Weights, optimizer state, BatchNorm statistics and the loss are fp32 (fp64 for ``fp64``); ``bf16`` and ``fp16`` mean
autocast of the forward pass, and ``fp8`` is ``bf16`` with the linear layers of residual blocks in float8. Casting is
ours rather than Lightning's so that it covers the model and nothing else of a step.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from restrain.errors import UserError
from restrain.models import float8

CHOICES = ("fp32", "bf16", "fp16", "fp8", "fp64")
FLOAT8_SINCE = (8, 9)  # compute capability


def resolve(precision: str, device: torch.device) -> str:
    """``auto`` -> ``bf16`` where the hardware multiplies it (CUDA >= 8.0, AMX, AVX512-BF16), else ``fp32``."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_multiplies_bf16() else "fp32"


def _cpu_multiplies_bf16() -> bool:
    # oneDNN also *emulates* bf16 on AVX512 without the instructions, which is slower than fp32.
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def dtype_of_weights(precision: str) -> torch.dtype:
    return torch.float64 if precision == "fp64" else torch.float32


def autocast_dtype(precision: str) -> torch.dtype | None:
    """In what matrices are multiplied, where that is not the weights' own."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}.get(precision)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context of a forward pass; nothing for fp32 and fp64."""
    dtype = autocast_dtype(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def check_float8(device: torch.device | None, model: nn.Module, tensor: int) -> None:
    """Raises UserError where ``precision=fp8`` cannot be. ``device``: None for one of another machine; ``model`` may be
    on the meta device."""
    if device is not None and (device.type == "cpu" or torch.cuda.get_device_capability(device) < FLOAT8_SINCE):
        here = "a CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        raise UserError(
            f"precision=fp8 needs a GPU that multiplies float8, from compute capability 8.9 on (L4, L40S, RTX 4090, "
            f"H100 and later), and this is {here}. Take bf16, or auto."
        )
    if tensor > 1:
        raise UserError(
            f"precision=fp8 with parallel.tensor={tensor}: a row's scale is that of the whole row, and a rank has a "
            f"part of it. Set parallel.tensor=1, or take bf16."
        )
    if not float8.layers(model):
        raise UserError(
            f"precision=fp8 is for linear layers of residual blocks whose sizes divide by {float8.MULTIPLE}, and "
            f"{type(model).__name__} has none of ours. It is for transformers; take bf16."
        )


class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al. 2018), on the device: no host synchronisation a step.

    The scale halves after a step with non-finite gradients and doubles after 2,000 without one.
    """

    def __init__(self, device: torch.device, start: float = 2.0**16):
        self.scale = torch.full((), start, dtype=torch.float32, device=device)
        self.growth = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, found_inf: torch.Tensor) -> None:
        """``found_inf``: 0-dim float tensor, 1.0 after a step whose gradients were not finite."""
        torch._amp_update_scale_(  # pyright: ignore[reportPrivateImportUsage]
            self.scale, self.growth, found_inf, 2.0, 0.5, 2000
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"loss_scale|scaler": self.scale, "growth|scaler": self.growth}
