"""One tar shard: the same samples give the same bytes, and its entry of the index is known when it is closed."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from restrain.data import index, tars
from restrain.data.checksum import crc32
from restrain.data.index import Entry
from restrain.errors import UserError

RECORD = tarfile.RECORDSIZE  # archives are filled up to a multiple of this, as tar does
Members = Sequence[tuple[str, bytes]]
"""A sample: (extension, content) of each of its files."""


def write_shard(path: Path, samples: Iterable[tuple[str, Members]]) -> tuple[Entry, bytes]:
    """Write (key, members) as a tar archive; gives its entry and its part of the table, as indexing it would find them.

    It appears under its name when it is whole and on the disk: what a killed process leaves is a file that begins with
    a dot. Members have no times, owners or modes of their own.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    digest, offsets, crcs, at = hashlib.sha256(), [0], [], 0
    try:
        with open(temporary, "wb") as file:
            for key, members in samples:
                sample = b"".join(_member(_name(key, extension), content) for extension, content in members)
                file.write(sample)
                digest.update(sample)
                at += len(sample)
                offsets.append(at)
                crcs.append(crc32(sample))
            end = bytes(-(at + 2 * tarfile.BLOCKSIZE) % RECORD + 2 * tarfile.BLOCKSIZE)
            file.write(end)
            digest.update(end)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    status = path.stat()
    entry = Entry(path.name, len(crcs), status.st_size, digest.hexdigest(), status.st_mtime_ns, 0, 0)
    return entry, index.shard_part(np.array(offsets, np.int64), np.array(crcs, np.uint32))


def _name(key: str, extension: str) -> str:
    """The member's name. Raises UserError for one that leaves its folder, or that readers would take otherwise."""
    name = f"{key}.{extension}"
    if tars.split_name(name) != (key, extension) or key.startswith("/") or ".." in key.split("/"):
        raise UserError(
            f"Sample {key!r} cannot be stored as {name!r}: readers of tar shards split names at their first dot, skip "
            f"names like __this__, and must not leave their folder. Rename it."
        )
    return name


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    # Plain ustar for all names that fit it, which is read fastest; PAX headers for the others.
    head = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return head + content + bytes(-len(content) % tarfile.BLOCKSIZE)
