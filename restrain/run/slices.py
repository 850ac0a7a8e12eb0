"""Slices: a rank's part of a tensor, where it lies in the whole, and copies between any two ways of cutting."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restrain.run.files import write_all
from restrain.run.manifest import CHUNK

NAMES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPES = {dtype: name for name, dtype in NAMES.items()}

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset and shape


@dataclass(frozen=True)
class Slice:
    """A part of a tensor.

    Args:
        tensor: the part, any strides, any device.
        shape: the whole tensor's shape; None: the part is the whole.
        offset: where the part begins in it, one number a dimension; None: at zero.
    """

    tensor: torch.Tensor
    shape: tuple[int, ...] | None = None
    offset: tuple[int, ...] | None = None

    def placed(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(global shape, offset), checked.

        Raises:
            ValueError: the part does not lie in the whole, or a dtype that safetensors does not know.
        """
        part = tuple(self.tensor.shape)
        shape = part if self.shape is None else tuple(int(n) for n in self.shape)
        offset = (0,) * len(part) if self.offset is None else tuple(int(n) for n in self.offset)
        inside = len(shape) == len(offset) == len(part) and all(
            0 <= o <= whole - n for o, n, whole in zip(offset, part, shape, strict=True)
        )
        if not inside:
            raise ValueError(f"a slice of shape {part} at {offset} does not lie in a tensor of shape {shape}")
        if self.tensor.dtype not in DTYPES:
            raise ValueError(f"a checkpoint cannot hold the dtype {self.tensor.dtype}")
        return shape, offset


def share(names: Mapping[str, int], rank: int, world: int) -> list[str]:
    """Which of the replicated tensors a rank saves: all ranks get about the same bytes, each tensor one rank.

    Args:
        names: name -> bytes, the same on every rank.
    """
    loads, mine = [0] * world, []
    for name, size in sorted(names.items(), key=lambda item: (-item[1], item[0])):
        owner = min(range(world), key=loads.__getitem__)
        loads[owner] += size
        if owner == rank:
            mine.append(name)
    return mine


def overlap(one: Box, other: Box) -> Box | None:
    """The box common to both, in global coordinates; None when they share no element. A scalar's box is ((), ())."""
    begin = tuple(max(a, b) for a, b in zip(one[0], other[0], strict=True))
    end = tuple(min(a + n, b + m) for a, n, b, m in zip(*one, *other, strict=True))
    size = tuple(e - b for b, e in zip(begin, end, strict=True))
    return (begin, size) if all(n > 0 for n in size) else None


def covered(box: Box, parts: Sequence[Box]) -> bool:
    """Whether every element of ``box`` lies in one of ``parts``, which may overlap.

    The boxes' edges cut space into a grid of cells, each wholly inside or outside each box: only cells are counted.
    """
    if math.prod(box[1]) == 0:
        return True
    inner = {common for part in parts if (common := overlap(box, part))}
    if box in inner:
        return True
    edges = [
        np.unique([o, o + n, *itertools.chain.from_iterable((p[0][d], p[0][d] + p[1][d]) for p in inner)])
        for d, (o, n) in enumerate(zip(*box, strict=True))
    ]
    cells = np.zeros([len(edge) - 1 for edge in edges], bool)
    for offset, shape in inner:
        cells[tuple(slice(*np.searchsorted(e, (o, o + n))) for e, o, n in zip(edges, offset, shape, strict=True))] = (
            True
        )
    return bool(cells.all()) and bool(inner)


def within(box: Box, origin: Sequence[int]) -> tuple[slice, ...]:
    """Index of a global box in a tensor that begins at ``origin``."""
    return tuple(slice(o - start, o - start + n) for o, n, start in zip(*box, origin, strict=True))


class Snapshot:
    """Copies of tensors on the host, in buffers kept from one save to the next.

    From a CUDA device the copy goes into pinned memory behind the kernels already queued, so the caller goes on at
    once; :meth:`ready` waits for it, from the writer's thread.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._events: list[Any] = []

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy; the result is contiguous and valid until the next call."""
        self._buffers = {name: buffer for name, buffer in self._buffers.items() if name in tensors}
        devices = set()
        for name, tensor in tensors.items():
            source = tensor.detach()
            cuda = source.device.type == "cuda"
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != source.shape or buffer.dtype != source.dtype:
                buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=cuda)
                self._buffers[name] = buffer
            # Contiguous on the device first: a copy that changes strides on the way to the host would block.
            buffer.copy_(source.contiguous() if cuda else source, non_blocking=cuda)
            if cuda:
                devices.add(source.device)
        self._events = [torch.cuda.current_stream(device).record_event() for device in devices]
        return dict(self._buffers)

    def ready(self) -> None:
        """Wait until the copies have arrived."""
        for event in self._events:
            event.synchronize()


def write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, int | str]:
    """Write contiguous host tensors as a safetensors file and fsync it, hashing on the way.

    Own writer of that (small, public) format: the bytes are hashed as they leave, written once, and every failure is
    an OSError at a known place.

    Returns:
        {"size": bytes, "sha256": hex}

    Raises:
        OSError: disk full and the like.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # large items first: aligned
    header, at = {}, 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    value = hashlib.sha256()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for data in (len(text).to_bytes(8, "little") + text, *(_bytes(tensors[name]) for name in order)):
            for start in range(0, len(data), CHUNK):
                chunk = memoryview(data)[start : start + CHUNK]
                value.update(chunk)
                write_all(fd, chunk)
        os.fsync(fd)
    finally:
        os.close(fd)
    return {"size": 8 + len(text) + at, "sha256": value.hexdigest()}


def _bytes(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
