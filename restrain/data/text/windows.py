"""The side index of a token set for one context: a CRC-32 of each window. ``restrain-index-T.bin``. No torch here.

A u64 with the length of the JSON that follows, which names the shards it was made of, padded to 8 bytes; then the
CRC-32 of each window, u32, shard after shard. It is made at the first opening with that context, when each shard's
SHA-256 and its largest token are checked too.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from restrain.data.index import CHECKED_TABLE, places, replace
from restrain.data.indexing import Reporter
from restrain.data.text.manifest import MANIFEST, Manifest, Shard
from restrain.errors import WorldError

VERSION = 1
CHUNK = 4 << 20  # bytes looked at together


def count(tokens: int, context: int) -> int:
    """Windows of context + 1 tokens that begin at multiples of ``context``; the last, partial one is dropped."""
    return max(0, (tokens - 1) // context)


def dropped(tokens: int, context: int) -> int:
    """Tokens of a shard that are in no window: fewer than ``context``, or all of a shard that is too short."""
    windows = count(tokens, context)
    return tokens - (windows * context + 1 if windows else 0)


def crcs(
    root: Path,
    manifest: Manifest,
    names: Sequence[str],
    context: int,
    cache: str | None = None,
    reporter: Reporter | None = None,
) -> list[np.ndarray]:
    """CRC-32 of each window of the named shards, uint32 [windows] each; read, or made of all shards of the set.

    Raises WorldError for a shard that is not what the manifest says, or a place that cannot be written.
    """
    by_name = {shard.name: (number, shard) for number, shard in enumerate(manifest.shards)}
    for name in names:
        check_size(root, manifest, by_name[name][1])
    header = _header(manifest, context)
    where = [place / f"restrain-index-{context}.bin" for place in places(root, cache)]
    tables = next((found for path in where if (found := _load(path, header)) is not None), None)
    if tables is None:
        tables = _make(root, manifest, context, where, header, reporter or Reporter())
    return [tables[by_name[name][0]] for name in names]


def check_size(root: Path, manifest: Manifest, shard: Shard) -> None:
    """WorldError where a shard is missing, or has not the size that the manifest says."""
    path, wanted = root / shard.name, shard.tokens * manifest.stored.itemsize
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror}. Restore it from its origin.") from error
    if size != wanted:
        raise WorldError(
            f"{path} has {size} bytes, {MANIFEST} says {wanted} ({shard.tokens} tokens of {manifest.dtype}): it was "
            f"cut short or changed. Restore it from its origin, or pack the text again."
        )


def _header(manifest: Manifest, context: int) -> dict[str, Any]:
    shards = [[shard.name, shard.tokens, shard.sha256] for shard in manifest.shards]
    return {"version": VERSION, "context": context, "dtype": manifest.dtype, "shards": shards}


def _counts(manifest_shards: Sequence[Sequence[Any]], context: int) -> list[int]:
    return [count(tokens, context) for _, tokens, _ in manifest_shards]


def _load(path: Path, header: dict[str, Any]) -> list[np.ndarray] | None:
    """The tables, mapped; None where they are absent, damaged, or of another set."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            found = json.loads(file.read(min(length, 1 << 30)))
        crc = found.pop("crc")
        first = 8 + -(-length // 8) * 8
        total = sum(_counts(header["shards"], header["context"]))
        if found != header or path.stat().st_size != first + 4 * total:
            return None
        table: np.ndarray = np.memmap(path, "<u4", "r", offset=first, shape=(total,)) if total else np.empty(0, "<u4")
        return None if table.nbytes <= CHECKED_TABLE and zlib.crc32(table.data) != crc else _split(table, header)
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _split(table: np.ndarray, header: dict[str, Any]) -> list[np.ndarray]:
    return np.split(table.view(np.ndarray), np.cumsum(_counts(header["shards"], header["context"]))[:-1])


def _make(
    root: Path, manifest: Manifest, context: int, where: Sequence[Path], header: dict[str, Any], reporter: Reporter
) -> list[np.ndarray]:
    reporter.say(f"Indexing the windows of {context} tokens of {root}")
    out, total = [], sum(shard.tokens for shard in manifest.shards)
    done = 0
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        for shard, found in zip(
            manifest.shards, pool.map(lambda shard: _scan(root, manifest, shard, context), manifest.shards), strict=True
        ):
            out.append(found)
            done += shard.tokens
            reporter.progress(done, total)
    table = np.concatenate(out)
    ends = sum(dropped(shard.tokens, context) for shard in manifest.shards)
    reporter.say(f"{len(table):,} windows; {ends:,} tokens at the ends of shards are in none")
    text = json.dumps(header | {"crc": zlib.crc32(table.data)}).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8) + table.tobytes()
    reasons = []
    for path in where:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.parent.stat().st_mode & 0o222:  # meant to stay as it is, though root could write it
                raise PermissionError(13, "read-only folder")
            replace(path, content)
            return out
        except OSError as error:
            reasons.append(f"{path.parent}: {error.strerror or error}")
    raise WorldError(
        f"The index of the token set can be written neither beside the data nor into the cache ({'; '.join(reasons)}). "
        f"Make one of them writable, or name a folder that is with data.cache=FOLDER."
    )


def _scan(root: Path, manifest: Manifest, shard: Shard, context: int) -> np.ndarray:
    """CRC-32 of each window, u32; the shard's content is checked on the way."""
    path = root / shard.name
    check_size(root, manifest, shard)
    width, windows = manifest.stored.itemsize, count(shard.tokens, context)
    tokens = np.memmap(path, manifest.stored, "r").view(np.ndarray)
    stored = tokens.data.cast("B")
    out = np.empty(windows, "<u4")
    digest, largest, step = hashlib.sha256(), 0, max(1, CHUNK // (context * width))
    for first in range(0, max(windows, 1), step):
        last = windows if first + step >= windows else first + step
        stop = len(tokens) if last == windows else last * context
        digest.update(stored[first * context * width : stop * width])
        largest = max(largest, int(tokens[first * context : stop].max()))
        for j in range(first, last):
            out[j] = zlib.crc32(stored[j * context * width : ((j + 1) * context + 1) * width])
    if digest.hexdigest() != shard.sha256:
        raise WorldError(
            f"{path} is not what {MANIFEST} says (SHA-256): it was changed, or has rotted. Restore it from its origin, "
            f"or pack the text again."
        )
    if largest >= manifest.vocab_size:
        raise WorldError(
            f"{path} holds token {largest}, beyond the vocabulary of {manifest.vocab_size} in {MANIFEST}: a model of "
            f"that size would read past its embedding. Pack the text again, or describe it with the right --vocab-size."
        )
    return out
