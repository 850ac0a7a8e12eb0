"""Reading wandb's own transaction files (``run-ID.wandb``): what a run really has, kills and torn ends included.

The framing is LevelDB's log format, with a header of its own: blocks of 32 KiB, in them records of CRC (4 bytes),
length (2), kind (1: whole, 2: first, 3: middle, 4: last) and payload, a serialised ``Record`` of wandb's protocol.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IDENT, HEADER = b":W&B", 7
BLOCK, FRAME = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def segments(folder: Path, run_id: str) -> list[Path]:
    """The transaction files of a run, one a start, in the order of their dates."""
    return sorted(folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb"), key=lambda path: (path.parent.name[-24:], path))


def payloads(path: Path) -> Iterator[bytes]:
    """The whole records of a file; it ends at the first one that is torn or damaged."""
    data = path.read_bytes()
    if data[:4] != IDENT:
        return
    at, parts = HEADER, b""
    while at + FRAME <= len(data):
        left = BLOCK - at % BLOCK
        if left < FRAME:  # a block's end too short for a frame is filled with zeros
            at += left
            continue
        crc, length, kind = struct.unpack("<IHB", data[at : at + FRAME])
        payload = data[at + FRAME : at + FRAME + length]
        if len(payload) < length or crc != zlib.crc32(bytes([kind]) + payload):
            return
        at += FRAME + length
        if kind in (WHOLE, FIRST):
            parts = payload
        elif kind in (MIDDLE, LAST):
            parts += payload
        else:
            return
        if kind in (WHOLE, LAST):
            yield parts


def history(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, metrics) of each history record of a file, in its order."""
    from wandb.proto import wandb_internal_pb2

    for payload in payloads(path):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(payload)
        if record.WhichOneof("record_type") != "history":
            continue
        metrics = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        step = metrics.pop("_step", None)
        yield int(record.history.step.num if step is None else step), metrics


def wait_for_writers(paths: list[Path], seconds: float = 10.0) -> None:
    """Wait until no process has one of the files open: wandb's service outlives a killed run for a moment, writing."""
    deadline = time.monotonic() + seconds
    while paths and time.monotonic() < deadline and _open_anywhere({os.path.realpath(path) for path in paths}):
        time.sleep(0.1)


def _open_anywhere(paths: set[str]) -> bool:
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) in paths:
                return True
    return False


def last_step(folder: Path, run_id: str) -> int:
    """The last step that the files of a run hold, -1 for none."""
    steps = [step for path in segments(folder, run_id) for step, _ in history(path)]
    return max(steps, default=-1)
