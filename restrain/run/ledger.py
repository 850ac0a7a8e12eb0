"""The ledger: which rows each step was trained on, as one 64-bit hash a step.

A row's hash is ``mix(shard, j, crc, epoch, position)``; a step's is the sum of its rows' modulo 2^64. Sums commute, so
the ranks' parts can be added in any order and any split over ranks and micro-batches gives the same number. The sum
travels in the step's one reduced float64 vector as four 16-bit limbs, which add exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from restrain import draws
from restrain.draws import MASK

LIMBS = 4


def row_sum(prefix: np.ndarray, positions: np.ndarray) -> int:
    """Sum modulo 2^64 of the hashes of some rows.

    Args:
        prefix: uint64 [n], ``draws.mix(shard, j, crc, epoch)`` of each row, hashed beforehand by the loader.
        positions: int64 [n], each row's position in the epoch's order, computed from the step, never taken from the
            loader.
    """
    return int(draws.extend_array(prefix, positions).sum())


def pixel_sum(pixels: np.ndarray, epoch: int, positions: np.ndarray) -> int:
    """Sum modulo 2^64 of ``mix(crc, epoch, position)`` over rows; ``pixels`` uint64 [n]: CRC-32 of augmented rows."""
    return int(draws.mix(pixels, epoch, positions).sum(dtype=np.uint64))


def limbs(value: int) -> tuple[float, float, float, float]:
    """A 64-bit value as four 16-bit limbs, lowest first: floats that can be summed over ranks without rounding."""
    return (
        float(value & 0xFFFF),
        float(value >> 16 & 0xFFFF),
        float(value >> 32 & 0xFFFF),
        float(value >> 48 & 0xFFFF),
    )


def from_limbs(sums: Sequence[float]) -> int:
    """The sum modulo 2^64 of values whose :func:`limbs` were added up; exact for up to 2^37 addends.

    Raises:
        ValueError: a limb is not a whole number, so something else was added into the vector.
    """
    total = 0
    for place, limb in enumerate(sums):
        whole = int(limb)
        if whole != limb:
            raise ValueError(f"limb {place} of a ledger hash is {limb}, not a whole number")
        total += whole << (16 * place)
    return total & MASK


def line(step: int, epoch: int, rows: int, hash: int | None, pixels: int | None = None) -> str:
    """One line of ``ledger.jsonl`` (without the line end). An f-string: a fifth of the cost of ``json.dumps``.

    hash: None where no order says which rows a step has, so that nobody could recompute it (``data.mode=stream``).
    """
    if hash is None:
        return f'{{"step": {step}, "epoch": {epoch}, "rows": {rows}, "hash": null, "audit": false}}'
    if pixels is None:
        return f'{{"step": {step}, "epoch": {epoch}, "rows": {rows}, "hash": "{hash:016x}"}}'
    return f'{{"step": {step}, "epoch": {epoch}, "rows": {rows}, "hash": "{hash:016x}", "pixels": "{pixels:016x}"}}'


@dataclass(frozen=True)
class Problem:
    """Something an audit found. ``kind``: missing, doubled, out-of-order, wrong, malformed or unaudited."""

    kind: str
    step: int | None
    text: str

    def __str__(self) -> str:
        return self.text


def audit(
    lines: Iterable[Mapping[str, Any]], expected: Callable[[int], int], steps: range | None = None
) -> list[Problem]:
    """Compare a ledger with what the plan says.

    Args:
        lines: the ledger's lines as dicts, in file order.
        expected: step -> the hash that the order and the index alone give.
        steps: the steps that must be there, each once, in order; None: from the first line's step to the highest.

    Returns:
        The problems in the order of the file, then the missing steps (a run of them as one problem); empty when the
        ledger is what it should be.
    """
    problems: list[Problem] = []
    seen: set[int] = set()
    last: int | None = None
    for number, entry in enumerate(lines, 1):
        step, stored = entry.get("step"), entry.get("hash")
        if entry.get("audit") is False and isinstance(step, int):
            problems.append(
                Problem("unaudited", step, f"step {step} cannot be audited: its samples were drawn, not ordered")
            )
            seen.add(step)
            continue
        if not isinstance(step, int) or not isinstance(stored, str):
            problems.append(Problem("malformed", None, f"line {number} has no step and hash: {dict(entry)!r}"))
            continue
        if step in seen:
            problems.append(Problem("doubled", step, f"step {step} stands twice (line {number})"))
        elif last is not None and step < last:
            problems.append(Problem("out-of-order", step, f"step {step} comes after step {last} (line {number})"))
        seen.add(step)
        last = step if last is None else max(last, step)
        if steps is not None and step not in steps:
            problems.append(
                Problem("wrong", step, f"step {step} is outside the run's steps {steps.start} to {steps.stop - 1}")
            )
        elif stored != (wanted := f"{expected(step) & MASK:016x}"):
            problems.append(
                Problem("wrong", step, f"step {step} was trained on other rows: hash {stored}, expected {wanted}")
            )
    if steps is None:
        steps = range(min(seen), max(seen) + 1) if seen else range(0)
    return problems + _missing(steps, seen)


def _missing(steps: range, seen: set[int]) -> list[Problem]:
    problems, start = [], None
    for step in [*steps, None]:
        absent = step is not None and step not in seen
        if absent and start is None:
            start = step
        elif not absent and start is not None:
            end = steps.stop - 1 if step is None else step - 1
            text = f"step {start} is missing" if start == end else f"steps {start} to {end} are missing"
            problems.append(Problem("missing", start, text))
            start = None
    return problems
