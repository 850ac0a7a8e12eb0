"""Which document goes where: the keyed order, the split, and the cut into shards. Arithmetic on lengths alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from restrain import draws
from restrain.errors import UserError

PURPOSE = draws.name_key("restrain data tokens: order of the documents")


@dataclass(frozen=True)
class Lengths:
    """The documents of a part: tokens and characters, int64 [documents]. split: train, val, or None: not said."""

    part: int
    split: str | None
    tokens: np.ndarray
    characters: np.ndarray


@dataclass(frozen=True)
class Dealt:
    """The documents of a shard in their order: part, first token in it, tokens; int64 [documents]."""

    name: str
    part: np.ndarray
    first: np.ndarray
    tokens: np.ndarray


def deal(
    lengths: Sequence[Lengths], share: Fraction | None, shuffle: bool, seed: int, size: int, end: int
) -> list[Dealt]:
    """The shards of a set. end: tokens added after each document.

    The documents of a split are put in the order of hash(seed, split, document), or stay in that of the text. With a
    share, the last documents of that order, those that begin in the last ``share`` of the characters, are held out.
    Shard k takes the documents that begin in tokens [k size, (k + 1) size); numbers without a document are closed up.
    Raises UserError where a split would be empty.
    """
    if any(one.split is None for one in lengths):
        assert share is not None
        columns = _ordered(_columns(lengths), shuffle, seed, 0)
        characters = columns[3]
        begins = np.cumsum(characters) - characters
        held = begins * share.denominator >= int(characters.sum()) * (share.denominator - share.numerator)
        if held.all() or not held.any():
            raise UserError(
                f"--eval-share of {len(held)} document(s) leaves a split without any. Name an evaluation text with "
                f"--eval, another share, or the separator of the documents with --split-on."
            )
        splits = {"train": ~held, "val": held}
        return [s for name, rows in splits.items() for s in _cut(name, tuple(c[rows] for c in columns), size, end)]
    out = []
    for number, name in enumerate(("train", "val")):
        parts = [one for one in lengths if one.split == name]
        if parts and not sum(len(one.tokens) for one in parts):
            raise UserError(f"The {'evaluation' if name == 'val' else 'training'} text is empty.")
        out += _cut(name, _ordered(_columns(parts), shuffle, seed, number), size, end)
    return out


Columns = tuple[np.ndarray, ...]


def _columns(parts: Sequence[Lengths]) -> Columns:
    """(part, first token, tokens, characters) of all documents of some parts."""
    empty = np.empty(0, np.int64)
    part = np.concatenate([empty, *(np.full(len(one.tokens), one.part) for one in parts)])
    first = np.concatenate([empty, *(np.cumsum(one.tokens) - one.tokens for one in parts)])
    tokens = np.concatenate([empty, *(one.tokens for one in parts)])
    return part, first, tokens, np.concatenate([empty, *(one.characters for one in parts)])


def _ordered(columns: Columns, shuffle: bool, seed: int, split: int) -> Columns:
    if not shuffle:
        return columns
    order = draws.permutation(len(columns[0]), seed, PURPOSE, split)
    return tuple(column[order] for column in columns)


def _cut(name: str, columns: Columns, size: int, end: int) -> list[Dealt]:
    part, first, tokens, _ = columns
    if len(tokens) == 0:
        return []
    lengths = tokens + end
    shard = (np.cumsum(lengths) - lengths) // size
    cuts = np.flatnonzero(np.diff(shard)) + 1
    runs = np.split(np.arange(len(tokens)), cuts)
    return [Dealt(f"{name}-{k:06d}.bin", part[run], first[run], tokens[run]) for k, run in enumerate(runs)]
