"""Writing one token shard and the places of its documents. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from restrain.data.index import replace
from restrain.data.text.dealing import Dealt
from restrain.data.text.manifest import Shard, index_name

BATCH = 1 << 21  # tokens gathered at a time


def write_shard(
    target: Path,
    work: Path,
    dealt: Dealt,
    raw: Mapping[int, np.ndarray],
    stored: np.dtype,
    end: int | None,
    finish: Callable[[np.ndarray], np.ndarray] | None,
) -> Shard:
    """Gather a shard's documents from the parts. A shard that is recorded in ``work`` is left as it is.

    end: token after each document. finish: from the numbers of the parts to tokens.
    """
    record, path = work / f"{dealt.name}.json", target / dealt.name
    if record.exists():
        return Shard(**json.loads(record.read_bytes()))
    digest = hashlib.sha256()
    temporary = work / f"{dealt.name}.half{os.getpid()}"
    lengths = dealt.tokens + (end is not None)
    starts = np.cumsum(lengths) - lengths
    with open(temporary, "wb") as file:
        cuts = np.flatnonzero(np.diff(starts // BATCH)) + 1
        for run in np.split(np.arange(len(lengths)), cuts):
            data = _gathered(dealt, run, raw, stored, end, finish)
            digest.update(data.data)
            file.write(data.data)
    places = starts.astype("<u8").tobytes()
    replace(target / index_name(dealt.name), places)
    os.replace(temporary, path)
    shard = Shard(dealt.name, int(lengths.sum()), len(lengths), digest.hexdigest(), hashlib.sha256(places).hexdigest())
    replace(record, json.dumps(asdict(shard)).encode())
    return shard


def _gathered(dealt: Dealt, run: np.ndarray, raw, stored: np.dtype, end: int | None, finish) -> np.ndarray:
    """Some documents of a shard end to end, in the stored type."""
    ending = [] if end is None else [np.array([end], stored)]
    pieces: list[np.ndarray] = []
    columns = (dealt.part[run].tolist(), dealt.first[run].tolist(), dealt.tokens[run].tolist())
    for part, first, count in zip(*columns, strict=True):
        found = raw[part][first : first + count]
        pieces += [(found if finish is None else finish(found)).astype(stored), *ending]
    return np.concatenate(pieces)
