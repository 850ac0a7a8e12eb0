"""The format of a checkpoint, and the proof that one is whole.

``step-N/`` holds ``model-RRRR.safetensors`` and ``optim-RRRR.safetensors`` of each rank (only those that have slices)
and ``manifest.json``: three lines, of which the first carries the SHA-256 of the second, so that every byte of the
checkpoint is covered by a hash. The manifest's body names each file with size and SHA-256, and each tensor with dtype,
global shape and where its slices are. Nothing is ever unpickled: a file that is not safetensors is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restrain.errors import WorldError

FORMAT = "restrain-checkpoint-1"
MANIFEST = "manifest.json"
STEP = re.compile(r"step-(\d{1,18})(\.old-\d+)?")  # .old: set aside for a moment while the same step is saved again
FILE = re.compile(r"(model|optim)-\d{4,9}\.safetensors")
LARGEST_HEADER = 100 << 20  # bytes; safetensors' own bound
LARGEST_MANIFEST = 1 << 30
CHUNK = 4 << 20

_DTYPES = {8: "F64 I64 U64", 4: "F32 I32 U32", 2: "F16 BF16 I16 U16", 1: "I8 U8 BOOL F8_E4M3 F8_E5M2"}
ITEM_SIZES = {name: size for size, names in _DTYPES.items() for name in names.split()}  # bytes


class Damaged(Exception):
    """A checkpoint does not verify; the text says which file and why."""


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that verifies (``step`` and ``path`` None: there is none), and what was wrong with those
    that were passed over, one sentence each."""

    step: int | None
    path: Path | None
    problems: list[str] = field(default_factory=list)


def file_name(name: str, rank: int) -> str:
    """The file of a slice ``name|kind``: weights and buffers in the model's, all else in the optimizer's."""
    kind = name.rpartition("|")[2]
    return f"{'model' if kind in ('param', 'buffer') else 'optim'}-{rank:04d}.safetensors"


def encode_manifest(body: Mapping[str, Any]) -> bytes:
    """The bytes of ``manifest.json``: valid JSON, in three lines."""
    line = json.dumps(body, separators=(",", ":")).encode()
    return b'{"sha256": "%s", "manifest":\n%s\n}\n' % (hashlib.sha256(line).hexdigest().encode(), line)


def read_manifest(path: Path) -> dict[str, Any]:
    """The body of ``path/manifest.json``, checked against its hash and for its form.

    Raises:
        Damaged: it is missing, changed, of another format, or names files outside the checkpoint.
    """
    content = _bytes(path / MANIFEST, LARGEST_MANIFEST)
    lines = content.split(b"\n", 2)
    if len(lines) != 3 or content != b'{"sha256": "%s", "manifest":\n%s\n}\n' % (
        hashlib.sha256(lines[1]).hexdigest().encode(),
        lines[1],
    ):
        raise Damaged(f"{path / MANIFEST} is damaged: its SHA-256 is not the one in its first line")
    try:
        body = json.loads(lines[1])
        if body.get("format") != FORMAT:
            raise Damaged(f"{path / MANIFEST} is not of the format {FORMAT}; it comes from another version of Restrain")
        _check_form(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path / MANIFEST} is malformed ({type(error).__name__}: {error})") from None
    return body


def _check_form(body: Mapping[str, Any]) -> None:
    """Everything that readers rely on: no file outside the folder, no box outside its tensor."""
    for name, facts in body["files"].items():
        if not FILE.fullmatch(name):
            raise ValueError(f"it names the file {name!r}, which no checkpoint has")
        if not isinstance(facts["size"], int) or not isinstance(facts["sha256"], str):
            raise ValueError(f"no size and hash for {name!r}")
    if not isinstance(body["step"], int) or not isinstance(body["scalars"], dict):
        raise ValueError("no step or no scalars")
    for key, entry in body["tensors"].items():
        shape = entry["shape"]
        if entry["dtype"] not in ITEM_SIZES:
            raise ValueError(f"{key!r} has the dtype {entry['dtype']!r}")
        for name, offset, part in entry["slices"]:
            if name not in body["files"]:
                raise ValueError(f"it keeps a slice in {name!r}, a file that it does not list")
            if not len(shape) == len(offset) == len(part):
                raise ValueError(f"a slice of {key!r} has another number of dimensions")
            if not all(0 <= o <= o + n <= whole for o, n, whole in zip(offset, part, shape, strict=True)):
                raise ValueError(f"a slice of {key!r} does not lie in it")


def _open(path: Path) -> int:
    """Open a plain file for reading: no symbolic link, no device."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Damaged(f"{path} is not a plain file")
    return fd


def _bytes(path: Path, most: int) -> bytes:
    with os.fdopen(_open(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise Damaged(f"{path} is larger than {most} bytes")
        try:
            return file.read()
        except OSError as error:
            raise Damaged(f"{path} cannot be read: {error.strerror}") from None


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, checked: bounded, JSON, known dtypes, and extents that fill the file exactly.

    Raises:
        Damaged: it is none; a pickle or zip archive is named as such. Nothing is unpickled.
    """
    with os.fdopen(_open(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little") if len(start) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            _refuse_archive(path)
            raise Damaged(f"{path} is not a safetensors file: it has no header")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            at = 0
            for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
                begin, end = entry["data_offsets"]
                if begin != at or end - begin != math.prod(entry["shape"]) * ITEM_SIZES[entry["dtype"]]:
                    raise ValueError("extents do not fit")
                at = end
            if at != size - 8 - length:
                raise ValueError("extents do not fill the file")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Damaged(f"{path} is not a safetensors file: its header is wrong ({error})") from None
    return header


def _refuse_archive(path: Path) -> None:
    """Name a pickle, or a zip archive of torch.save, where a safetensors file should be: no fault of a disk."""
    with os.fdopen(_open(path), "rb") as file:
        start, size = file.read(8), os.fstat(file.fileno()).st_size
    # A safetensors file begins with its header's length, whose lowest byte may be any: only an absurd one is none.
    if (start[:2] == b"PK" or start[:1] == b"\x80") and int.from_bytes(start, "little") > size:
        raise Damaged(
            f"{path} is not a safetensors file but a pickle or a zip archive of torch.save, which Restrain never loads"
        )


def check_headers(path: Path, name: str, slices: Mapping[str, tuple[str, list[int]]]) -> None:
    """Compare a file's header with the manifest: the same slices, of the same dtype and shape.

    Raises:
        Damaged: they differ.
    """
    header = {key: (entry["dtype"], entry["shape"]) for key, entry in read_header(path / name).items()}
    if header != dict(slices):
        raise Damaged(f"{path / name} holds other slices than {MANIFEST} says")


def in_files(name: str, slices: Iterable[Sequence[Any]]) -> Iterator[tuple[str, str, list[int], list[int]]]:
    """(file, key there, offset, shape) of the slices of the tensor ``name``.

    A file has several of one tensor where a rank holds what does not lie together in the whole, such as its heads'
    queries, keys and values: the first is under the name itself, the others under ``name#1``, ``name#2``.
    """
    before: dict[str, int] = {}
    for file, offset, shape in slices:
        number = before[file] = before.get(file, -1) + 1
        yield file, f"{name}#{number}" if number else name, offset, shape


def slices_by_file(body: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, list[int]]]]:
    """file -> slice key -> (dtype, shape), from the manifest's tensors."""
    result: dict[str, dict[str, tuple[str, list[int]]]] = {name: {} for name in body["files"]}
    for key, entry in body["tensors"].items():
        for name, inside, _, shape in in_files(key, entry["slices"]):
            result[name][inside] = (entry["dtype"], shape)
    return result


def digest(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    value, size, buffer = hashlib.sha256(), 0, bytearray(CHUNK)
    with os.fdopen(_open(path), "rb", buffering=0) as file:
        try:
            while count := file.readinto(buffer):
                value.update(memoryview(buffer)[:count])
                size += count
        except OSError as error:
            raise Damaged(f"{path} cannot be read: {error.strerror}") from None
    return size, value.hexdigest()


def verify(path: Path) -> dict[str, Any]:
    """Read every byte of a checkpoint and compare sizes, hashes and headers; returns the manifest's body.

    Raises:
        Damaged: the first file that is missing or changed, and how.
    """
    body = read_manifest(path)
    slices = slices_by_file(body)

    def one(item: tuple[str, dict[str, Any]]) -> None:
        name, facts = item
        size, value = digest(path / name)
        if size != facts["size"] or value != facts["sha256"]:
            _refuse_archive(path / name)
        if size != facts["size"]:
            raise Damaged(f"{path / name} has {size} bytes instead of {facts['size']}")
        if value != facts["sha256"]:
            raise Damaged(f"{path / name} is damaged: its SHA-256 is not the one in {MANIFEST}")
        check_headers(path, name, slices[name])

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(one, body["files"].items()))
    return body


def saved(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, path) of what looks like a checkpoint, newest first; an untouched one before one set aside."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise WorldError(f"Cannot read the checkpoints in {folder}: {error.strerror}.") from None
    matches = [match for name in names if (match := STEP.fullmatch(name))]
    for match in sorted(matches, key=lambda match: (-int(match[1]), match[2] or "")):
        yield int(match[1]), folder / match[0]


def newest(folder: Path) -> Found:
    """The newest checkpoint in ``checkpoints/`` that verifies. LATEST is a hint for people and is not read.

    Returns:
        Found, its ``problems`` naming each newer one that was passed over, with the file at fault. ``path`` None with
        problems means that checkpoints are there and none is whole: never start over silently then.
    """
    problems = []
    for step, path in saved(Path(folder)):
        try:
            body = verify(path)
            if body["step"] != step:
                raise Damaged(f"{path / MANIFEST} is that of step {body['step']}")
            return Found(step, path, problems)
        except Damaged as error:
            problems.append(str(error))
    return Found(None, None, problems)
