"""`TokenSource`: windows of a token set as samples, mapped into memory, each checked by CRC-32. No torch here."""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from restrain.data.indexing import Reporter, expand
from restrain.data.order import ORDER_VERSION
from restrain.data.reader import BadSample, Sample
from restrain.data.sources import ROTTEN
from restrain.data.text import windows
from restrain.data.text.manifest import Manifest, index_name, require
from restrain.errors import UserError, WorldError

MAPPED = 256  # shards kept mapped: each holds a file descriptor


class TokenSource:
    """Sample j of a shard: the T + 1 tokens from j T on, so that inputs and targets are it but its last and its first.

    The windows of a shard share no input; its last, partial window is dropped. Safe to use from several threads.
    """

    classes = None
    channels = 0  # no images

    def __init__(
        self,
        root: str | Path,
        pattern: str,
        context: int,
        *,
        documents: bool = False,
        cache: str | None = None,
        reporter: Reporter | None = None,
    ):
        """pattern: shards of the manifest, with * ? [] and {000..146}. context: T, tokens that a model sees.
        documents: also give the document number of each token. A context that is new to the set is indexed first.

        Raises UserError for a folder without manifest, a pattern without shards, a context that no shard holds;
        WorldError for shards that are not what the manifest says.
        """
        if context < 1:
            raise UserError(f"data.context={context}: must be at least 1.")
        self.root, self.context, self.documents = Path(root), context, documents
        self.manifest: Manifest = require(self.root)
        self.names = _chosen(self.manifest, pattern, self.root)
        chosen = {shard.name: shard for shard in self.manifest.shards}
        self.shards = [chosen[name] for name in self.names]
        self.tokens = np.array([shard.tokens for shard in self.shards], np.int64)
        self.counts = np.array([windows.count(shard.tokens, context) for shard in self.shards], np.int64)
        if not self.counts.sum():
            raise UserError(
                f"data.context={context}: no shard of {self.root} that matches {pattern!r} holds context + 1 tokens; "
                f"the longest has {self.tokens.max()}. Use a context of at most {self.tokens.max() - 1}."
            )
        self._crcs = windows.crcs(self.root, self.manifest, self.names, context, cache, reporter)
        self._lock = threading.Lock()
        self._maps: OrderedDict[int, tuple[np.ndarray, np.ndarray | None]] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """sha256 over the context and each shard's name, length and content: the same wherever the set is moved to."""
        listed = [[shard.name, shard.tokens, shard.sha256] for shard in self.shards]
        return hashlib.sha256(json.dumps([self.context, self.manifest.dtype, listed]).encode()).hexdigest()

    @property
    def vocabulary(self) -> int:
        """Tokens that there are; those of the set are below it."""
        return self.manifest.vocab_size

    def describe_tokenizer(self) -> dict[str, str]:
        """What the manifest says of the tokenizer, and the folder that a tokenizer file is in."""
        return self.manifest.tokenizer | {"root": str(self.root.absolute())}

    @property
    def dropped(self) -> int:
        """Tokens that are in no window, since they are the rest of a shard."""
        return sum(windows.dropped(shard.tokens, self.context) for shard in self.shards)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint keeps of the set, beside the step: see :meth:`check_same`."""
        return {"fingerprint": self.fingerprint, "context": self.context, "order_version": ORDER_VERSION}

    def check_same(self, identity: Mapping[str, Any]) -> None:
        """UserError where a run that saved this :meth:`identity` would not go on with the same windows."""
        for name, value in self.identity().items():
            if identity[name] != value and name != "fingerprint":
                raise UserError(f"The run was made with {name} {identity[name]}, and the set is opened with {value}.")
        if identity["fingerprint"] != self.fingerprint:
            raise UserError(
                f"The shards of {self.root} are not those that the run was made with: their content differs."
            )

    def crcs(self, shard: int) -> np.ndarray:
        return self._crcs[shard]

    def read(self, shard: int, j: int) -> Sample:
        """data: the window, u16 or u32 [T + 1]; label: its document numbers, int32 [T + 1] or [0]."""
        index = np.array([shard]), np.array([j])
        stored = self._gathered(*index)
        crc = zlib.crc32(stored.data)
        if crc != self._crcs[shard][j]:
            raise self._rotten(shard, j)
        label: Any = self._documents(*index)[0]
        return Sample(f"tokens {j * self.context}", stored[0], label, crc)

    def rows(self, shard: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(windows u16 or u32 [n, T + 1], document numbers int32 [n, T + 1] or [n, 0], CRC-32 uint64 [n]).

        Raises BadSample where one has rotted.
        """
        stored, wanted = self._gathered(shard, j), self._expected(shard, j)
        crcs = crcs_of(stored, wanted)
        if (crcs != wanted).any():
            row = int(np.flatnonzero(crcs != wanted)[0])
            raise self._rotten(int(shard[row]), int(j[row]))
        return stored, self._documents(shard, j), crcs

    def close(self) -> None:
        with self._lock:
            self._maps.clear()

    def _rotten(self, shard: int, j: int) -> BadSample:
        return BadSample(self.names[shard], j, f"tokens {j * self.context}", ROTTEN, rotten=True)

    def _gathered(self, shard: np.ndarray, j: np.ndarray) -> np.ndarray:
        if len(self.names) == 1:
            return self._map(0)[0][j]
        out = np.empty((len(j), self.context + 1), self.manifest.stored)
        for one, rows in _by_shard(shard):
            out[rows] = self._map(one)[0][j[rows]]
        return out

    def _expected(self, shard: np.ndarray, j: np.ndarray) -> np.ndarray:
        if len(self.names) == 1:
            return self._crcs[0][j]
        out = np.empty(len(j), np.uint32)
        for one, rows in _by_shard(shard):
            out[rows] = self._crcs[one][j[rows]]
        return out

    def _documents(self, shard: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The number of the document of each token, from 0 in each window: 1 from the first token that begins one
        inside the window, and so on."""
        if not self.documents:
            return np.empty((len(j), 0), np.int32)
        out = np.zeros((len(j), self.context + 1), np.int32)
        for one, rows in _by_shard(shard):
            starts = self._map(one)[1]
            assert starts is not None
            begin = j[rows] * self.context
            first = np.searchsorted(starts, begin, side="right")
            inside = np.searchsorted(starts, begin + self.context + 1, side="left") - first
            row = np.repeat(np.arange(len(rows)), inside)
            which = first[row] + np.arange(len(row)) - (np.cumsum(inside) - inside)[row]
            out[rows[row], starts[which] - begin[row]] = 1
        return np.cumsum(out, axis=1, dtype=np.int32)

    def _map(self, shard: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(overlapping windows [n, T + 1] of the mapped shard, places of its documents)."""
        with self._lock:
            if shard not in self._maps:
                self._maps[shard] = self._mapped(shard)
                while len(self._maps) > MAPPED:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(shard)
            return self._maps[shard]

    def _mapped(self, shard: int) -> tuple[np.ndarray, np.ndarray | None]:
        windows.check_size(self.root, self.manifest, self.shards[shard])
        path, stored = self.root / self.names[shard], self.manifest.stored
        tokens = np.memmap(path, stored, "r").view(np.ndarray)
        shape, width = (int(self.counts[shard]), self.context + 1), stored.itemsize
        view = np.lib.stride_tricks.as_strided(tokens, shape, (self.context * width, width), writeable=False)
        return view, self._starts(shard) if self.documents else None

    def _starts(self, shard: int) -> np.ndarray:
        path = self.root / index_name(self.names[shard])
        try:
            content = path.read_bytes()
        except OSError as error:
            raise WorldError(f"{path} cannot be read: {error.strerror}. Restore it from its origin.") from error
        if hashlib.sha256(content).hexdigest() != self.shards[shard].idx_sha256:
            raise WorldError(f"{path} is not what the manifest says (SHA-256). Restore it from its origin.")
        return np.frombuffer(content, "<i8")  # u64 would meet int64 in float64


def crcs_of(stored: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """CRC-32 of each row of ``stored`` [n, k], uint64 [n]. wanted: what they should be; not looked at."""
    view, width = stored.data.cast("B"), stored.shape[1] * stored.itemsize
    return np.array([zlib.crc32(view[i : i + width]) for i in range(0, len(view), width)], np.uint64)


def matching(manifest: Manifest, pattern: str) -> list[str]:
    """The shards of a manifest that match ``* ? []`` and ``{000..146}``, in its order."""
    patterns = expand(pattern)
    return [shard.name for shard in manifest.shards if any(fnmatch(shard.name, one) for one in patterns)]


def _chosen(manifest: Manifest, pattern: str, root: Path) -> list[str]:
    names = matching(manifest, pattern)
    if not names:
        known = [shard.name for shard in manifest.shards]
        listed = ", ".join(known if len(known) <= 4 else [*known[:2], "...", known[-1]])
        raise UserError(f"No shard of {root} matches {pattern!r}. Its shards are {listed}.")
    return names


def _by_shard(shard: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(shard, rows of it) for each shard of a batch."""
    order = np.argsort(shard, kind="stable")
    cuts = np.flatnonzero(np.diff(shard[order])) + 1
    return [(int(shard[rows[0]]), rows) for rows in np.split(order, cuts) if len(rows)]
