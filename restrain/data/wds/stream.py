"""Sets without an index: shards drawn with replacement, read from front to back, shuffled in a buffer.

This is plain webdataset with resampling, and has its limits: `LOST` says them. The archives are opened here, remote
ones fetched whole first, and not by webdataset's ``gopen``, which runs a shell for ``pipe:`` and ``curl`` for others.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from restrain.data.indexing import expand, match_shards
from restrain.data.reader import BadSample, Sample, check_label
from restrain.data.remote.fetching import Patience, fetch
from restrain.data.remote.indexing import FileSink, list_remote
from restrain.data.remote.opening import transport_of
from restrain.data.remote.urls import check, is_remote, join, redact
from restrain.data.wds.staged import made
from restrain.data.wds.stages import Stage, StageError
from restrain.errors import UserError, WorldError

BUFFER = 1000  # samples shuffled together
LOST = (
    "data.mode=stream: the order of samples is not exact. Shards are drawn with replacement, so an epoch is "
    "data.samples_per_epoch samples of which some come twice and some not at all; going on after a kill or on other "
    "processes draws anew; a shard that was cut is not noticed; and the ledger of this run cannot be audited. Plain "
    "tars with an index (data.mode=shards) have none of this."
)


class StreamSource:
    """One endless shard: ``read`` gives the next sample, whatever is asked for. By any number of threads, in turn."""

    def __init__(self, data: Any, stages: Sequence[Stage], classes: int | None = None):
        """data: a recipe's section with ``mode: stream``.

        Raises UserError where the epoch's length is missing, no archive matches, or a shell would be run unasked.
        """
        if data.samples_per_epoch is None:
            raise UserError(
                "data.mode=stream needs data.samples_per_epoch: without an index nobody knows how many samples there "
                "are. Give their number, or what is to count as an epoch."
            )
        self._places = _places(data)
        self._stages, self._classes = list(stages), classes
        self.names, self.channels, self.classes = ["stream"], 3, None
        self.counts = np.array([data.samples_per_epoch], np.int64)
        self.fingerprint = "stream-" + hashlib.sha256("\n".join(self._places).encode()).hexdigest()
        self._lock = threading.Lock()
        self._samples: Iterator[dict[str, Any]] | None = None
        self._broken: WorldError | None = None

    def crcs(self, shard: int) -> np.ndarray:
        """Raises UserError: what will be read is not known."""
        raise UserError("A run with data.mode=stream cannot be audited: its samples are drawn anew each time.")

    def read(self, shard: int, j: int) -> Sample:
        """The next sample. Raises BadSample, UserError or WorldError."""
        with self._lock:
            if self._samples is None:
                self._samples = _shuffled(self._endless())
            if self._broken is not None:
                raise self._broken
            try:
                stored = next(self._samples)
            except WorldError as error:
                self._broken = error  # for every thread: what was being read has ended
                raise
        place, key = redact(str(stored["__url__"])), str(stored.get("__key__"))
        where = f"sample {key} of {place}"
        try:
            pixels, label = made(self._stages, stored, where)
        except (StageError, ValueError) as error:
            raise BadSample("stream", j, key, f"{error} [{place}]") from error
        crc = zlib.crc32(pixels.tobytes() if isinstance(pixels, np.ndarray) else pixels)
        return Sample(key, pixels, check_label(label, self._classes, where), crc)

    def close(self) -> None:
        """End what is being read."""
        with self._lock:
            self._samples = None

    def _endless(self) -> Iterator[dict[str, Any]]:
        """Samples of shards drawn by a generator of this process alone, so that ranks and restarts differ."""
        draw = random.Random()
        while True:
            place, empty = draw.choice(self._places), True
            for sample in _read(place):
                empty = False
                yield sample
            if empty:
                raise _placed(f"{redact(place)} holds no samples (files named key.extension).")


def _places(data: Any) -> list[str]:
    """Files, or ``pipe:`` commands."""
    if data.train.startswith("pipe:"):
        if not data.allow_pipe:
            raise UserError(
                f"data.train={redact(data.train)!r} is a command that a shell would run. Restrain runs none unless "
                f"data.allow_pipe=true says so: look at the command first."
            )
        return [f"pipe:{command}" for command in expand(data.train.removeprefix("pipe:"))]
    if data.root is None:
        raise UserError("data.root is not set: data.mode=stream needs the archives' folder. Give data.root=FOLDER.")
    if is_remote(data.root):
        root = check(data.root)
        return [join(root, name) for name in list_remote(root, data.train, transport_of(root))]
    root = Path(os.path.expanduser(data.root))
    if not root.is_dir():
        raise UserError(f"data.root={data.root}: there is no such folder. Name the folder of the data set.")
    names = match_shards(root, data.train)
    if not names:
        raise UserError(f"No file of {root} matches data.train={data.train!r}. Correct the pattern, or data.root.")
    return [str(root / name) for name in names]


def _read(place: str) -> Iterator[dict[str, Any]]:
    """Webdataset's samples of one archive, compressed or not. Raises WorldError that names it."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with _opened(place) as stream:
        try:
            yield from group_by_keys(tar_file_expander([{"url": place, "stream": stream}]))
        except WorldError:
            raise
        except Exception as error:  # tarfile, zlib, lzma and webdataset raise what they like
            said = " ".join(str(error.args[0] if error.args else error).split()).partition(" @ <")[0][:200]
            raise _placed(
                f"{redact(place)} cannot be read to its end: {type(error).__name__}: {said}. Restore it from its "
                f"origin."
            ) from error


@contextmanager
def _opened(place: str) -> Iterator[IO[bytes]]:
    if is_remote(place) and not place.startswith("pipe:"):
        with tempfile.TemporaryFile(prefix="restrain-") as file:
            fetch(transport_of(place), place, FileSink(file), Patience())
            file.seek(0)
            yield file
        return
    if not place.startswith("pipe:"):
        try:
            file = open(place, "rb")  # noqa: SIM115
        except OSError as error:
            raise _placed(f"{place} cannot be opened: {error.strerror}. Restore it from its origin.") from error
        with file:
            yield file
        return
    process = subprocess.Popen(place.removeprefix("pipe:"), shell=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    failed: Exception | None = None
    try:
        yield process.stdout
    except Exception as error:  # the reader's; a command that failed is the reason, not what the reader made of it
        failed = error
    except BaseException:  # left in the middle
        process.stdout.close()
        process.kill()
        process.wait()
        raise
    with process.stdout:
        process.stdout.read()  # tar ends before its padding does
    if code := process.wait():
        raise _placed(f"{redact(place)} failed with exit code {code}. Try the command in a shell.") from failed
    if failed is not None:
        raise failed


def _placed(text: str) -> WorldError:
    """An error that names the archive: which sample was asked for says nothing here."""
    error = WorldError(text)
    error.placed = True
    return error


def _shuffled(samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    from webdataset.filters import shuffle

    return iter(shuffle(BUFFER, initial=100)(samples))
