"""What ``parallel.remat`` says: which blocks are computed again in the backward pass."""

from __future__ import annotations

import re
from dataclasses import dataclass

FORMS = "none, block, every=4 (segments of 4 blocks), sqrt, or budget=12GiB"
_EVERY = re.compile(r"every=([0-9]{1,18})")
_BUDGET = re.compile(r"budget=([0-9]{1,9}(?:\.[0-9]{1,6})?)(MiB|GiB)")
UNITS = {"MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Remat:
    """``mode``: none, block, every, sqrt or budget. ``every``: blocks of a segment. ``budget``: bytes of a process."""

    mode: str
    every: int = 0
    budget: int = 0

    @classmethod
    def parse(cls, text: str) -> Remat:
        """Read ``"every=4"``; ValueError says what is wrong."""
        if text in ("none", "block", "sqrt"):
            return cls(text)
        if match := _EVERY.fullmatch(text):
            if int(match[1]) == 0:
                raise ValueError("has segments of 0 blocks; every=1 recomputes each block on its own, as block does")
            return cls("every", every=int(match[1]))
        if match := _BUDGET.fullmatch(text):
            budget = int(float(match[1]) * UNITS[match[2]])
            if budget == 0:
                raise ValueError("leaves no memory at all; say how much a process may use, such as budget=12GiB")
            return cls("budget", budget=budget)
        if re.fullmatch(r"budget=[0-9.]+\s*[A-Za-z]*", text):
            raise ValueError("has no unit that is known here: write MiB or GiB, such as budget=12GiB")
        raise ValueError(f"is not one of {FORMS}")


def checked(text: str) -> str:
    """``text`` as it is; ValueError where it cannot be read."""
    Remat.parse(text)
    return text
