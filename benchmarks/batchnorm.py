"""Ways to normalise several groups of rows inside one micro-batch, side by side: one BatchNorm forward and backward.

``python benchmarks/batchnorm.py [--device cuda] [--threads 2] [--json FILE]``. Every variant runs in turn in each
round, so that other load falls on all of them. The table shows medians, and ratios to one BatchNorm over the whole
batch (which is another function, and the floor). Before anything is timed, outputs and gradients of each variant are
checked in float64 against separately normalised groups.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from restrain.models.norm import grouped_batch_norm

Variant = Callable[[Tensor, Tensor, Tensor, int], Tensor]
EPS = 1e-5
SHAPES = {  # (groups, rows a group, channels, pixels)
    "digits 8x8": (4, 16, 16, 8),
    "digits 2x2": (4, 16, 64, 2),
    "cifar 32x32": (4, 32, 16, 32),
    "resnet50 56x56": (2, 32, 64, 56),
    "resnet50 14x14": (2, 32, 1024, 14),
}


def plain(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """One BatchNorm over all groups: the floor, not the same function."""
    return F.batch_norm(x, None, None, weight, bias, True, 0.1, EPS)


def split(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """A BatchNorm a group, outputs concatenated."""
    return torch.cat([F.batch_norm(part, None, None, weight, bias, True, 0.1, EPS) for part in x.split(group)])


def fold(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """Groups become channels: one BatchNorm over [g, G x C, H, W] between two transposing copies."""
    rows, chans, height, width = x.shape
    groups = rows // group
    folded = x.view(groups, group, chans, height, width).permute(1, 3, 4, 0, 2).reshape(-1, groups * chans)
    y = F.batch_norm(folded, None, None, weight.repeat(groups), bias.repeat(groups), True, 0.1, EPS)
    y = y.view(group, height, width, groups, chans).permute(3, 0, 4, 1, 2)
    return y.reshape(rows, chans, height, width).contiguous(memory_format=torch.channels_last)


def view(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """Reductions over a [G, g, C, H, W] view, differentiated by autograd."""
    x_GgCHW = x.unflatten(0, (-1, group))
    variance, mean = torch.var_mean(x_GgCHW.to(weight.dtype), dim=(1, 3, 4), correction=0, keepdim=True)
    scale = weight.view(1, 1, -1, 1, 1) * torch.rsqrt(variance + EPS)
    return (x_GgCHW * scale + (bias.view(1, 1, -1, 1, 1) - mean * scale)).to(x.dtype).flatten(0, 1)


class Slices(torch.autograd.Function):
    """The same kernels as split, the forward writing into slices of one output."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, group: int):  # type: ignore[override]
        y = torch.empty_like(x)
        saved = torch.zeros(2, x.shape[0] // group, x.shape[1], dtype=weight.dtype, device=x.device)
        for index, (part, out) in enumerate(zip(x.split(group), y.split(group), strict=True)):
            torch.ops.aten.native_batch_norm.out(
                part,
                weight,
                bias,
                None,
                None,
                True,
                0.1,
                EPS,
                out=out,
                save_mean=saved[0, index],
                save_invstd=saved[1, index],
            )
        ctx.save_for_backward(x, weight, saved)
        ctx.group = group
        return y

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        x, weight, saved = ctx.saved_tensors
        gradients = [
            torch.ops.aten.native_batch_norm_backward(dy, part, weight, None, None, mean, invstd, True, EPS, [True] * 3)
            for dy, part, mean, invstd in zip(upstream[0].split(ctx.group), x.split(ctx.group), *saved, strict=True)
        ]
        dx, dweight, dbias = zip(*gradients, strict=True)
        return torch.cat(dx), torch.stack(dweight).sum(0), torch.stack(dbias).sum(0), None


def slices(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """See Slices."""
    return Slices.apply(x, weight, bias, group)  # type: ignore[return-value]


def ours(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """What restrain.models.norm does on this device."""
    return grouped_batch_norm(x, weight, bias, EPS, group)[0]


VARIANTS: dict[str, Variant] = {
    "plain": plain,
    "split": split,
    "fold": fold,
    "view": view,
    "slices": slices,
    "ours": ours,
}


def check(variant: Variant) -> None:
    """AssertionError unless output and gradients equal those of separately normalised groups to 1e-12."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, 6, 7, dtype=torch.float64, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.rand(2, 5, dtype=torch.float64, generator=generator).unbind()
    upstream = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    results = []
    for function in (split, variant):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        y = function(*leaves, 4)  # type: ignore[arg-type]
        results.append([y, *torch.autograd.grad(y, leaves, upstream)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def measure(
    variants: dict[str, Variant], shape: tuple[int, int, int, int], dtype: torch.dtype, rounds: int, device: str
):
    """Median seconds of forward and backward of each variant."""
    groups, group, chans, pixels = shape
    x = torch.randn(groups * group, chans, pixels, pixels, device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.ones(chans, device=device).requires_grad_(), torch.zeros(chans, device=device).requires_grad_()
    upstream = torch.randn_like(x)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    repeats = max(1, 2_000_000 // x.numel())
    for _ in range(rounds):
        for name, variant in variants.items():
            begin = time.perf_counter()
            for _ in range(repeats):
                torch.autograd.grad(variant(x, weight, bias, group), (x, weight, bias), upstream)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - begin) / repeats)
    return {name: statistics.median(times[2:]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="add compiled variants")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    variants = dict(VARIANTS)
    for name, variant in VARIANTS.items():
        if name != "plain":
            check(variant)
    if args.compile:
        for name in ("ours", "view"):
            variants[f"{name}+compile"] = torch.compile(VARIANTS[name], dynamic=False, recompile_limit=64)  # type: ignore[call-overload]
    rows = []
    for label, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            medians = measure(variants, shape, dtype, args.rounds, args.device)
            rows.append({"shape": label, "dtype": str(dtype)[6:], "seconds": medians})
            cells = "  ".join(f"{name} {s * 1e3:8.3f} ms {s / medians['plain']:5.2f}x" for name, s in medians.items())
            print(f"{label:16s} {str(dtype)[6:]:9s} {cells}", flush=True)
    if args.json:
        hardware = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
        report = {"torch": torch.__version__, "hardware": hardware, "threads": args.threads, "rows": rows}
        with open(args.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
