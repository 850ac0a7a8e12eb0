"""A plain text file as a set of windows: characters or bytes, split by position, without packing. No torch here.

The text is held in memory, four bytes a token. Larger ones: ``restrain data tokens``.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from restrain import draws
from restrain.data.order import Order
from restrain.data.reader import Sample
from restrain.data.text.codes import Bytes, Characters
from restrain.data.text.nothing import NOTHING
from restrain.data.text.source import crcs_of
from restrain.draws import Purpose
from restrain.errors import UserError, WorldError

TOKENIZERS = ("characters", "bytes")


class TextSource:
    """Windows of T + 1 tokens of one text; a sample (0, j) begins at token ``j * stride``.

    Training takes stride 1: the order (:class:`ShiftedOrder`) says where windows begin, another place each epoch.
    Evaluation takes stride T, so that every token but the first is said once; the last window is padded with NOTHING.
    ``counts`` is the number of windows of an epoch.
    """

    classes = None
    channels = 0  # no images

    def __init__(self, name: str, tokens: np.ndarray, context: int, tokenizer: Bytes | Characters, training: bool):
        """tokens: int32 [n]. Raises UserError for a text that holds no window."""
        self.tokenizer, self.context, self.vocabulary = tokenizer, context, tokenizer.size
        windows = len(tokens) // context - 1 if training else -(-(len(tokens) - 1) // context)
        if windows < 1:
            raise UserError(_too_short(name, len(tokens), context, training))
        self.names, self.counts = [name], np.array([windows], np.int64)
        self.stride = 1 if training else context
        self.length = len(tokens)
        if not training:
            pad = windows * context + 1 - len(tokens)
            tokens = np.concatenate([tokens, np.full(pad, NOTHING, np.int32)])
        self._tokens = np.ascontiguousarray(tokens, np.int32)
        self._windows = np.lib.stride_tricks.sliding_window_view(self._tokens, context + 1)[:: self.stride]
        facts = json.dumps([tokenizer.sha256, context])
        self.fingerprint = hashlib.sha256(facts.encode() + self._tokens.tobytes()).hexdigest()

    def crcs(self, shard: int) -> np.ndarray:
        """Of each place at which a window can begin, so that an audit finds those of any epoch."""
        stored, windows = self._tokens.data.cast("B"), len(self._windows)
        width, step = 4 * (self.context + 1), 4 * self.stride
        return np.array([zlib.crc32(stored[step * j : step * j + width]) for j in range(windows)], np.uint32)

    def read(self, shard: int, j: int) -> Sample:
        """data: the window, int32 [T + 1]; label: nothing, int32 [0]."""
        window = np.ascontiguousarray(self._windows[j])
        label: Any = np.empty(0, np.int32)
        return Sample(f"token {j * self.stride}", window, label, zlib.crc32(window.data))

    def rows(self, shard: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(windows int32 [n, T + 1], int32 [n, 0], CRC-32 uint64 [n])."""
        stored = self._windows[j]
        return stored, np.empty((len(j), 0), np.int32), crcs_of(stored, stored)

    def describe_tokenizer(self) -> dict[str, str]:
        """As a manifest describes it: name, and vocabulary of characters."""
        return describe(self.tokenizer)

    def close(self) -> None:
        pass


def _too_short(name: str, tokens: int, context: int, training: bool) -> str:
    """Why a text holds no window, and what would."""
    held = f"{name} has {tokens} token{'' if tokens == 1 else 's'}"
    if not training:
        return f"{held} to evaluate on, and a window needs two. Use a larger data.holdout, or a longer text."
    if tokens < 2:
        return f"{held} to train on, too few for any data.context. Use a longer text, or a smaller data.holdout."
    most = tokens // 2
    return (
        f"data.context={context}: {held} to train on, and training takes two windows. Use data.context={most} or less, "
        f"or a longer text."
    )


class ShiftedOrder(Order):
    """The order of windows, which begin at multiples of ``context`` from an offset on that each epoch draws anew.

    So no token always stands at the same place of a window. Its j is the first token of the window. Without
    ``shuffle`` the offset is 0.
    """

    def __init__(self, context: int, *order: Any):
        super().__init__(*order)
        self.context = context

    def __call__(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shard, j = super().__call__(epoch, positions)
        return shard, j * self.context + self.offset(epoch)

    def offset(self, epoch: int) -> int:
        return int(draws.integers(draws.key(self.seed, Purpose.OFFSET, epoch), self.context)) if self.shuffle else 0


def open_text(data: Any, root: Path, split: str) -> TextSource | None:
    """The ``train`` or ``eval`` split of a recipe's ``data`` section of the name ``text``; None where none is held out.

    The vocabulary is that of the whole file ``data.train``. Raises UserError for a text that is not there or too
    short, WorldError for bytes that are no UTF-8.
    """
    text = _read(root / data.train, "data.train")
    tokenizer = Bytes() if data.tokenizer == "bytes" else Characters("".join(sorted(set(text))))
    if tokenizer.size == 1:
        raise UserError(f"data.train: {root / data.train} is {text[0]!r} alone, of which there is nothing to learn.")
    if data.eval is not None:
        if split == "eval":
            name, text = data.eval, _read(root / data.eval, "data.eval")
        else:
            name = data.train
        return TextSource(name, encode(tokenizer, text), data.context, tokenizer, split == "train")
    tokens = encode(tokenizer, text)
    first = int(len(tokens) * (1 - data.holdout))
    if split == "train":
        return TextSource(data.train, tokens[:first], data.context, tokenizer, True)
    if first == len(tokens):
        return None
    return TextSource(f"{data.train} from token {first:,}", tokens[first:], data.context, tokenizer, False)


def encode(tokenizer: Bytes | Characters, text: str) -> np.ndarray:
    """Tokens of a text, int32 [n]. Raises UserError for a character outside the vocabulary."""
    codes = tokenizer.encode([text])[0]
    return (tokenizer.finish(codes) if isinstance(tokenizer, Characters) else codes).astype(np.int32)


def describe(tokenizer: Bytes | Characters) -> dict[str, str]:
    """A tokenizer as a manifest describes it."""
    known = {"name": tokenizer.name, "sha256": tokenizer.sha256}
    return known | ({"vocabulary": tokenizer.vocabulary} if isinstance(tokenizer, Characters) else {})


def _read(path: Path, key: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror}. Name a text file below data.root.") from error
    if not content:
        raise UserError(f"{key}: {path} is empty. Name a text file below data.root that holds some text.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise WorldError(
            f"{path} is no UTF-8 from byte {error.start} on. Convert it (iconv -t utf-8), or restore it."
        ) from error
