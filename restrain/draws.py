"""Counter-based randomness: the only source of random numbers in a run.

A draw is a pure function of a key, and a key is ``mix(seed, PURPOSE, ...)``: a chain of splitmix64 finalisers
(Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"). Nothing here has state, so threads,
ranks, restarts and the order of calls cannot matter.

There are two back ends of one specification: numpy on the host (``mix``), and torch int64 operations on any device
(``mix_torch``; int64 arithmetic wraps exactly as uint64 does). Integers are bit-equal between them and frozen: changing
any of them changes every run ever made (tests/test_draws.py holds golden values). torch is imported by the torch back
end alone.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    import torch

GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
MASK = (1 << 64) - 1
_GOLDEN, _FIRST, _SECOND = np.uint64(GOLDEN), np.uint64(FIRST), np.uint64(SECOND)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


class Purpose(IntEnum):
    """What a key is for. Two purposes never share a key. Frozen: append, never renumber."""

    SHARDS = 1  # (epoch, shard): order of the shards
    STAGGER = 2  # (epoch, lane): where a lane's first window is cut
    WINDOW = 3  # (epoch, lane, window, slot): order inside a window
    AUGMENT = 4  # (epoch, position, copy, operation): parameters of an augmentation
    MIX = 5  # (step, group): mixup and cutmix
    DROP_PATH = 6  # (step, join name, row): dropped branches
    INIT = 7  # (parameter name, element): initial weights
    HELD_OUT = 8  # (sample): which samples a built-in set holds out
    DROPOUT = 9  # (step, module name, row): dropout masks
    OFFSET = 10  # (epoch): where the windows of a text begin
    MASKED = 11  # (step, row, token): masked tokens in training
    MASKED_EVAL = 12  # (sample, token): masked tokens in an evaluation
    SAMPLE = 13  # (token number): the next token of generated text


# ---------------------------------------------------------------------------------------------- numpy, on the host


def mix(*xs) -> np.ndarray:
    """Hash integers (or broadcastable integer arrays) to uint64; arrays give an array of the broadcast shape.

    A chain: ``mix(a, b, c) == extend(mix(a, b), c)``, so a common prefix can be hashed once.
    """
    return extend(np.asarray(GOLDEN, np.uint64), *xs)


def extend(h, *xs) -> np.ndarray:
    """Continue the chain ``h`` (uint64, from :func:`mix`) with more integers."""
    h = np.asarray(h, np.uint64)
    with np.errstate(over="ignore"):
        for x in xs:
            h = (h ^ np.asarray(x).astype(np.uint64)) + _GOLDEN
            h = (h ^ (h >> _30)) * _FIRST
            h = (h ^ (h >> _27)) * _SECOND
            h = h ^ (h >> _31)
    return h


def extend_array(h: np.ndarray, x: np.ndarray) -> np.ndarray:
    """:func:`extend` of an array by one int64 array of its shape, in a third of the time: every step needs it."""
    h = h ^ x.view(np.uint64)
    h += _GOLDEN
    t = h >> _30
    t ^= h
    t *= _FIRST
    h = t >> _27
    h ^= t
    h *= _SECOND
    t = h >> _31
    t ^= h
    return t


def key(*xs: int) -> int:
    """:func:`mix` of plain Python integers, as a Python integer; ten times faster than numpy on scalars."""
    return extend_key(GOLDEN, *xs)


def extend_key(h: int, *xs: int) -> int:
    """:func:`extend` of plain Python integers."""
    for x in xs:
        h = ((h ^ (x & MASK)) + GOLDEN) & MASK
        h = ((h ^ (h >> 30)) * FIRST) & MASK
        h = ((h ^ (h >> 27)) * SECOND) & MASK
        h ^= h >> 31
    return h


def name_key(name: str) -> int:
    """A name as a key part: the first 8 bytes (big-endian) of the SHA-256 of its UTF-8 form."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def uniform(h):
    """Uniform in [0, 1) from a key: the top 53 bits times 2^-53. Python int -> float, uint64 array -> float64 array."""
    if isinstance(h, int):
        return (h >> 11) * 2.0**-53
    return (np.asarray(h, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(h, n: int):
    """Uniform integer in [0, n), n < 2^53, from a key: its top 53 bits modulo n. Python int or uint64 array."""
    if isinstance(h, int):
        return (h >> 11) % n
    return ((np.asarray(h, np.uint64) >> np.uint64(11)) % np.uint64(n)).astype(np.int64)


def normal(h):
    """Standard normal from a key, by Box and Muller's (1958) transform of the key and of its extension by 1."""
    first, second = uniform(np.asarray(h, np.uint64)), uniform(extend(h, 1))
    return np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)


def beta(h, a: float, b: float):
    """Beta(a, b) from a key, by inverting its distribution function at :func:`uniform`."""
    from scipy.special import betaincinv

    return betaincinv(a, b, uniform(h))


def permutation(n: int, *xs: int) -> np.ndarray:
    """A permutation of range(n), int64 [n], from the key (*xs): a stable argsort of one hash an element."""
    return np.argsort(mix(*xs, np.arange(n)), kind="stable")


# ------------------------------------------------------------------------------------- torch int64, on any device


def signed(x: int) -> int:
    """The int64 that has the bits of the uint64 ``x``: how a key enters a torch operation."""
    x &= MASK
    return x - (1 << 64) if x >> 63 else x


def _shift(h: torch.Tensor, bits: int) -> torch.Tensor:
    return (h >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts int64 arithmetically; mask the copied sign bits


def mix_torch(*xs: int | torch.Tensor) -> torch.Tensor:
    """:func:`mix` with int64 tensors (at least one) and ints; int64 of the broadcast shape, bit-equal to numpy's."""
    return extend_torch(signed(GOLDEN), *xs)


def extend_torch(h: int | torch.Tensor, *xs: int | torch.Tensor) -> torch.Tensor:
    """:func:`extend` with int64 tensors; leading plain ints are hashed on the host."""
    golden, first, second = signed(GOLDEN), signed(FIRST), signed(SECOND)
    for x in xs:
        if isinstance(x, int):
            x = signed(x)
            if isinstance(h, int):
                h = signed(extend_key(h & MASK, x))
                continue
        mixed = cast("torch.Tensor", x ^ h) + golden
        mixed = (mixed ^ _shift(mixed, 30)) * first
        mixed = (mixed ^ _shift(mixed, 27)) * second
        h = mixed ^ _shift(mixed, 31)
    if isinstance(h, int):
        raise TypeError("mix_torch needs at least one tensor; use mix or key for plain integers")
    return h


def uniform_torch(h: torch.Tensor) -> torch.Tensor:
    """:func:`uniform` of int64 keys, float64."""
    return _shift(h, 11).double() * 2.0**-53


def integers_torch(h: torch.Tensor, n: int) -> torch.Tensor:
    """:func:`integers` of int64 keys, int64."""
    return _shift(h, 11) % n


def normal_torch(h: torch.Tensor) -> torch.Tensor:
    """:func:`normal` of int64 keys, float64; equal to numpy's up to the last bits of log and cos."""
    first, second = uniform_torch(h), uniform_torch(extend_torch(h, 1))
    return (-2.0 * (-first).log1p()).sqrt() * (2.0 * np.pi * second).cos()
