"""Reading a checkpoint on any number of ranks: each destination is filled from whatever slices overlap it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from restrain.errors import WorldError
from restrain.run.manifest import MANIFEST, Damaged, check_headers, in_files, read_manifest, slices_by_file
from restrain.run.slices import NAMES, Box, covered, overlap, within

MAPPED = 32 << 20


def hold(path: Path, exclusive: bool = False) -> int | None:
    """Lock a checkpoint against being pruned (shared) or against being read (exclusive), without waiting.

    Returns:
        A file descriptor: closing it, or the process's death, unlocks. None where the file system has no locks.

    Raises:
        BlockingIOError: someone holds the other kind.
        FileNotFoundError: the checkpoint is gone.
    """
    fd = os.open(path / MANIFEST, os.O_RDONLY)
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), os.stat(path / MANIFEST)):
            raise FileNotFoundError(f"{path} was replaced")
    except BaseException as error:
        os.close(fd)
        if isinstance(error, (BlockingIOError, FileNotFoundError)) or not isinstance(error, OSError):
            raise
        return None
    return fd


class Reader:
    """A checkpoint, opened lazily by memory map; while it is open, pruning leaves it alone.

    ``manifest`` is the manifest's body; ``scalars``, ``placement``, ``step`` and ``world`` are parts of it. Hashes are
    :func:`restrain.run.manifest.verify`'s matter; here each file's header is checked before it is first read.

    Args:
        path: ``checkpoints/step-N``.

    Raises:
        WorldError: it is not a checkpoint, or its manifest is damaged, or it is being pruned.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._files: dict[str, Any] = {}
        self._checked: set[str] = set()
        self._mapped = 0  # bytes that were read of the files in _files
        self._open = contextlib.ExitStack()
        try:
            lock = hold(self.path)
            if lock is not None:
                self._open.callback(os.close, lock)
            self.manifest = read_manifest(self.path)
        except BlockingIOError:
            raise WorldError(f"The checkpoint {self.path} is just being removed; use a newer one.") from None
        except OSError as error:
            raise WorldError(
                f"{self.path} is no checkpoint: its {MANIFEST} cannot be read ({error.strerror})."
            ) from None
        except Damaged as error:
            self.close()
            raise WorldError(f"The checkpoint {self.path} cannot be used: {error}.") from None
        self._slices = slices_by_file(self.manifest)
        self.step: int = self.manifest["step"]
        self.world: int = self.manifest["world"]
        self.scalars: dict[str, Any] = self.manifest["scalars"]
        self.placement: dict[str, Any] = self.manifest["placement"]

    def names(self) -> list[str]:
        """All ``name|kind``, sorted."""
        return sorted(self.manifest["tensors"])

    def shape(self, name: str) -> tuple[int, ...]:
        """The global shape of a tensor."""
        return tuple(self._entry(name)["shape"])

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return NAMES[self._entry(name)["dtype"]]

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, on the host, contiguous."""
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.read_into(name, tensor)
        return tensor

    def read_into(
        self,
        name: str,
        tensor: torch.Tensor,
        offset: Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        """Fill ``tensor`` in place with the part of a stored tensor that begins at ``offset``.

        The destination keeps its strides and its device (``copy_``): a contiguous momentum under channels-last weights
        would make fused optimizers silently wrong.

        Args:
            tensor: the destination; its dtype must be the stored one.
            offset: where it begins in the whole tensor; None: it is the whole.
            shape: the whole tensor's shape as the caller knows it, compared with the stored one; None with an offset:
                not compared.

        Raises:
            WorldError: the name, shape or dtype is another one, the stored slices do not cover it, or a file is no
                longer what it should be. The destination may then be filled in part.
        """
        entry = self._entry(name)
        stored, part = tuple(entry["shape"]), tuple(tensor.shape)
        known = part if offset is None and shape is None else stored if shape is None else tuple(shape)
        box: Box = (tuple(offset) if offset is not None else (0,) * len(part), part)
        inside = len(box[0]) == len(part) == len(stored) and all(
            0 <= o <= whole - n for o, n, whole in zip(*box, stored, strict=True)
        )
        if known != stored or not inside:
            at = f" at {box[0]}" if offset is not None else ""
            raise self._misfit(name, f"has the shape {stored} there, but {known if known != stored else part}{at} here")
        if tensor.dtype != self.dtype(name):
            raise self._misfit(name, f"is {self.dtype(name)} there, but {tensor.dtype} here")
        parts: list[tuple[str, str, Box]] = [
            (file, key, (tuple(o), tuple(n))) for file, key, o, n in in_files(name, entry["slices"])
        ]
        if not covered(box, [other for *_, other in parts]):
            raise self._misfit(name, f"is not wholly there: no stored slices cover {part} at {box[0]}")
        with torch.no_grad():
            for file, key, other in parts:
                if (common := overlap(box, other)) is not None:
                    source = self._load(file, key, within(common, other[0]), whole=common == other)
                    tensor[within(common, box[0])].copy_(source)
                    if common == box:
                        return

    def close(self) -> None:
        """Close the files; tensors that were read stay."""
        self._files.clear()
        self._open.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _entry(self, name: str) -> dict[str, Any]:
        try:
            return self.manifest["tensors"][name]
        except KeyError:
            raise self._misfit(name, "is not there") from None

    def _misfit(self, name: str, what: str) -> WorldError:
        return WorldError(
            f"The checkpoint {self.path} does not fit this run: {name} {what}. It comes from another model or "
            "optimizer; resume with the recipe it was made with."
        )

    def _load(self, file: str, name: str, index: tuple[slice, ...], whole: bool) -> torch.Tensor:
        try:
            if self._mapped > MAPPED:  # what has been read stays resident for as long as its file is mapped
                self._files.clear()
                self._mapped = 0
            opened = self._files.get(file)
            if opened is None:
                if file not in self._checked:
                    check_headers(self.path, file, self._slices[file])
                    self._checked.add(file)
                opened = self._files[file] = safe_open(self.path / file, framework="pt", device="cpu")
            found = opened.get_tensor(name) if whole or not index else opened.get_slice(name)[index]
            self._mapped += found.nbytes
            return found
        except (Damaged, SafetensorError, OSError) as error:
            raise WorldError(
                f"The checkpoint {self.path} cannot be read: {error}. Remove it; the one before is used then."
            ) from None
