"""Synthetic sequences that ask a recurrent network to remember: the adding problem and the copy problem.

Shapes: N samples, T steps of a sequence.

Nothing is stored: a sample is a pure function of (seed of the set, task, split, index), so a set of any size takes no
room, and order, plan, ring and ledger treat it as they treat every set.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from restrain import draws
from restrain.data.checksum import crc32
from restrain.data.reader import Sample
from restrain.errors import UserError

PURPOSE = draws.name_key("restrain data sequences")
VERSION = 1  # of what the generators draw; it goes into the fingerprint
SPLITS = ("train", "eval")

FIRST_TEN = 10  # the first marked pair is one of these
SHORTEST_ADDING = 20  # below, marks would meet the end of the sequence
CORRECT_WITHIN = 0.04  # an answer counts as correct when its absolute error is below this

SYMBOLS, MEMORY = 8, 10  # different symbols, and how many of them are to be remembered
BLANK, RECALL = SYMBOLS, SYMBOLS + 1
VOCABULARY = SYMBOLS + 2
SHORTEST_COPY = 2 * MEMORY + 1  # one blank between the symbols and their recall


def adding(key_N: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The adding problem, experiment 4 of Hochreiter and Schmidhuber 1997 ("Long short-term memory", section 5.4).

    Returns (x float32 [N, T, 2], target float32 [N]). A step is a pair: a value in [-1, 1] and a marker. Two pairs are
    marked 1: one of the first ten, and one of the first T/2 - 1 others. The first and the last pair have the marker -1,
    all others 0. The target is 0.5 + (X1 + X2) / 4 with X1 and X2 the marked values; where a mark falls on the first
    pair, its marker stays -1 and its value counts as 0. The paper draws lengths between T and 1.1 T; here all have T.
    """
    x_NT2 = np.zeros((len(key_N), length, 2), np.float32)
    x_NT2[..., 0] = 2.0 * draws.uniform(draws.extend(key_N[:, None], np.arange(length))) - 1.0
    first_N = draws.integers(draws.extend(key_N, length), FIRST_TEN)
    second_N = draws.integers(draws.extend(key_N, length + 1), length // 2 - 1)
    second_N += second_N >= first_N  # counted among the pairs that are not marked yet
    rows = np.arange(len(key_N))
    target_N = np.full(len(key_N), 0.5)
    for marked_N in (first_N, second_N):
        x_NT2[rows, marked_N, 1] = 1.0
        target_N += np.where(marked_N == 0, 0.0, x_NT2[rows, marked_N, 0]) / 4.0
    x_NT2[:, (0, -1), 1] = -1.0
    return x_NT2, target_N.astype(np.float32)


def copying(key_N: np.ndarray, length: int) -> np.ndarray:
    """The copy problem: tokens uint16 [N, T + 1], of which a model sees the first T and predicts the last T.

    ::

        10 symbols ─ blanks ─ recall ─ the same 10 symbols

    Only the last 10 tokens can be known before they are read, so they alone count (Hochreiter and Schmidhuber 1997
    have such a task in section 5.2; these sizes are those of Arjovsky et al. 2016, arXiv:1511.06464, section 5.1, where
    the recalled symbols are not given to the network in turn).
    """
    tokens = np.full((len(key_N), length + 1), BLANK, np.uint16)
    symbols = draws.integers(draws.extend(key_N[:, None], np.arange(MEMORY)), SYMBOLS)
    tokens[:, :MEMORY] = tokens[:, -MEMORY:] = symbols
    tokens[:, -MEMORY - 1] = RECALL
    return tokens


class SequenceSource:
    """One shard of samples that are made when they are asked for. Safe to use from several threads."""

    classes = None
    channels = 0  # no images
    documents = False

    def __init__(self, task: str, split: str, length: int, count: int, seed: int = 0):
        """task: ``adding`` or ``copy``; split: ``train`` or ``eval``, which share no key; seed: of the set, apart from
        the run's. Raises UserError for a length that holds no such task."""
        shortest = SHORTEST_ADDING if task == "adding" else SHORTEST_COPY
        if length < shortest:
            raise UserError(f"data.length={length}: the {task} problem needs at least {shortest} steps.")
        self.task, self.length, self.seed = task, length, seed
        self.context = length  # what a `TokenSource` calls it
        self._prefix = draws.key(seed, PURPOSE, draws.name_key(task), SPLITS.index(split))
        if task == "copy":
            self.vocabulary = VOCABULARY
        self.names = [f"{task}-{split}"]
        self.counts = np.array([count], np.int64)

    @property
    def fingerprint(self) -> str:
        """sha256 over what determines the samples, and over the first of them: a generator that changed is seen."""
        made = [VERSION, self.task, self.length, self.seed, int(self.counts[0]), self._prefix]
        stored, labels, _ = self.rows(np.zeros(16, np.int64), np.arange(16))
        return hashlib.sha256(json.dumps(made).encode() + stored.tobytes() + labels.tobytes()).hexdigest()

    def crcs(self, shard: int) -> np.ndarray:
        """CRC-32 of each sample, uint32 [count]. All are made for it (0.2 s for 50,000 of 200 steps)."""
        count = int(self.counts[shard])
        parts = (np.arange(first, min(first + 1024, count)) for first in range(0, count, 1024))
        return np.concatenate([self.rows(np.full(len(j), shard), j)[2] for j in parts]).astype(np.uint32)

    def read(self, shard: int, j: int) -> Sample:
        stored, labels, crcs = self.rows(np.array([shard]), np.array([j]))
        return Sample(f"{self.task} {j}", stored[0], labels[0], int(crcs[0]))

    def rows(self, shard: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(samples, labels, CRC-32 uint64 [N]): float32 [N, T, 2] with float32 [N] of ``adding``; of ``copy`` uint16
        [N, T + 1] with int32 [N, 0], as a `TokenSource` has them."""
        key_N = draws.extend(np.uint64(self._prefix), j)
        if self.task == "adding":
            stored, labels = adding(key_N, self.length)
        else:
            stored, labels = copying(key_N, self.length), np.empty((len(j), 0), np.int32)
        return stored, labels, np.array([crc32(row) for row in stored], np.uint64)

    def describe_tokenizer(self) -> dict[str, str]:
        """What the tokens of the copy problem mean."""
        return {"name": "copy", "symbols": f"0-{SYMBOLS - 1}", "blank": str(BLANK), "recall": str(RECALL)}

    def close(self) -> None:
        pass
