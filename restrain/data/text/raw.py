"""A manifest for raw token files that another program wrote (``train.bin`` of nanoGPT, say). No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from restrain.data.index import replace
from restrain.data.indexing import Reporter
from restrain.data.text import manifest
from restrain.data.text.manifest import DTYPES, Manifest, Shard
from restrain.errors import UserError, WorldError

STEP = 1 << 22  # tokens looked at a time


def describe(
    root: Path, dtype: str, vocab_size: int | None, end: int | None, reporter: Reporter | None = None
) -> Manifest:
    """Write the manifest beside the ``.bin`` files of a folder, which stay as they are.

    vocab_size: None for the largest token found and one. end: the token after each document, from which the places of
    documents are found; None: a file is one document. Raises UserError for a type that cannot be, WorldError for files
    that do not hold it.
    """
    reporter = reporter or Reporter()
    if dtype not in DTYPES:
        raise UserError(f"--raw {dtype}: raw tokens are u16 or u32, little-endian.")
    most = 1 << 8 * DTYPES[dtype].itemsize
    if vocab_size is not None and not 0 < vocab_size <= most:
        raise UserError(
            f"--vocab-size {vocab_size}: tokens of {dtype} are of at most {most} kinds. Correct one of the two."
        )
    if manifest.load(root) is not None:
        raise UserError(f"{root} has a manifest already ({manifest.MANIFEST}). Remove it first if it is wrong.")
    paths = manifest.raw_files(root) if root.is_dir() else []
    if not paths:
        raise UserError(f"{root} holds no .bin files. Name the folder of the raw tokens.")
    shards, largest = [], 0
    for done, path in enumerate(paths):
        shard, top = _described(path, DTYPES[dtype], end)
        if vocab_size is not None and top >= vocab_size:
            raise WorldError(
                f"{path} holds token {top}, beyond --vocab-size {vocab_size}: the vocabulary is larger, or the tokens "
                f"are not {dtype}."
            )
        shards.append(shard)
        largest = max(largest, top)
        reporter.progress(done + 1, len(paths))
    known = {"name": "raw", "sha256": ""}
    made = Manifest(dtype, vocab_size or largest + 1, known, end, shards, {"raw": dtype})
    manifest.save(root, made)
    reporter.say(f"{root}: {len(shards)} shard(s), {sum(s.tokens for s in shards):,} tokens below {made.vocab_size:,}")
    return made


def _described(path: Path, stored: np.dtype, end: int | None) -> tuple[Shard, int]:
    """The record of a file, and its largest token. Writes the places of its documents."""
    size = path.stat().st_size
    if size == 0 or size % stored.itemsize:
        raise WorldError(
            f"{path} has {size} bytes, which are no whole tokens of {stored.itemsize} bytes. Name the type that it was "
            f"written in with --raw, or restore it."
        )
    tokens = np.memmap(path, stored, "r")
    digest, largest, places = hashlib.sha256(), 0, [np.zeros(1, np.int64)]
    for first in range(0, len(tokens), STEP):
        part = tokens[first : first + STEP]
        digest.update(part.data)
        largest = max(largest, int(part.max()))
        if end is not None:
            places.append(first + 1 + np.flatnonzero(part == end))
    starts = np.concatenate(places)
    content = starts[starts < len(tokens)].astype("<u8").tobytes()
    replace(path.with_suffix(".idx"), content)
    shard = Shard(path.name, len(tokens), len(content) // 8, digest.hexdigest(), hashlib.sha256(content).hexdigest())
    return shard, largest
