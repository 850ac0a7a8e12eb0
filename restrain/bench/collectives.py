"""What a step says to other ranks and where its host waits, seen by a mode that every operation of torch passes.

Collectives are counted where they enter torch's process group, so those of DDP's C++ reducer, FSDP2, DeepSpeed and ours
count alike. Compiled blocks run uncompiled under such a mode: what they say to others is the same.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMESPACES = ("c10d", "_c10d_functional")
# Names of torch's operations begin so, underscores left out; the first that fits.
KINDS = {
    "allreduce": "all-reduce",
    "allgather": "all-gather",
    "reducescatter": "reduce-scatter",
    "alltoall": "all-to-all",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "gather": "gather",
    "scatter": "scatter",
    "barrier": "barrier",
    "monitoredbarrier": "barrier",
    "send": "send",
    "recv": "receive",
}
ATEN = torch.ops.aten
# The host must know a value, or a size that depends on one, before it goes on.
WAITS = (ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.equal, ATEN._unique2, ATEN.unique_dim)
WRITES = (ATEN.index_put, ATEN.index_put_)  # of one number everywhere, a mask is no wait


@dataclass
class Collective:
    """Of one kind: how many, and bytes of the whole tensors that are added up, gathered or scattered."""

    count: int = 0
    bytes: int = 0


@dataclass
class Seen:
    """``waits``: operations that make the host wait, by name; ``waited``: the seconds that they took.

    On a GPU ``waits`` also has, as ``cuda``, what torch's sync debug mode tells of (copies to the host among them).
    """

    collectives: dict[str, Collective] = field(default_factory=dict)
    waits: dict[str, int] = field(default_factory=dict)
    waited: float = 0.0


class _Watch(TorchDispatchMode):
    def __init__(self, seen: Seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in NAMESPACES:
            self._collective(func, args)
        elif (name := wait(func, args)) is not None:
            self.seen.waits[name] = self.seen.waits.get(name, 0) + 1
            began = time.perf_counter()
            result = func(*args, **(kwargs or {}))
            self.seen.waited += time.perf_counter() - began
            return result
        return func(*args, **(kwargs or {}))

    def _collective(self, func: Any, args: Any) -> None:
        name = func.overloadpacket.__name__.replace("_", "")
        kind = next((kind for start, kind in KINDS.items() if name.startswith(start)), None)
        if kind is not None:
            entry = self.seen.collectives.setdefault(kind, Collective())
            entry.count += 1
            entry.bytes += max((_bytes(tree_leaves(arg)) for arg in args), default=0)  # the larger of input and output


def wait(func: Any, args: Any) -> str | None:
    """The name of an operation that makes the host wait for the device, were the tensors there; None of others.

    A choice by a mask asks for the places where it is true, below what such a mode sees.
    """
    packet = func.overloadpacket
    masks = packet is ATEN.index or (packet in WRITES and args[2].numel() > 1)
    if packet in WAITS or (masks and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])):
        return packet.__name__
    return None


@contextmanager
def watched() -> Iterator[Seen]:
    """What happens inside, of this thread and of backward passes that it starts."""
    seen = Seen()
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    before = torch.cuda.get_sync_debug_mode() if cuda else 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            with _Watch(seen):
                yield seen
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode(before)
    count = sum("synchronizing CUDA operation" in str(warning.message) for warning in told)
    if count:
        seen.waits["cuda"] = count


def _bytes(leaves: Iterable[Any]) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, torch.Tensor))


def spoken(step: Any, steps: int) -> float:
    """Share of the time in which a collective was under way on this rank; ``step()`` is called ``steps`` times.

    By torch's profiler. On the CPU a collective is under way from the call until gloo is done, the wait for slower
    ranks included; on a GPU while NCCL's kernels run, which is a wait too where another rank is late. Times that
    overlap count once. Computation may go on meanwhile, so this is not what communication adds to a step.
    """
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        began = time.perf_counter()  # steps under a profiler take longer than others, so only a share can be told
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()
        took = time.perf_counter() - began
    events = profiler.events() or []
    wanted = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.name.startswith("gloo:") or (event.name.startswith("nccl") and _on_device(event))
    ]
    return min(1.0, covered(wanted) * 1e-6 / took)


def _on_device(event: Any) -> bool:
    return event.device_type == torch.autograd.DeviceType.CUDA  # pyright: ignore[reportPrivateImportUsage]


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total
