"""What a probe reads at each join, in words: the titles of tables, maps and figures. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """``log``: drawn over decades; ``signed``: around zero."""

    name: str
    title: str
    meaning: str
    log: bool = False
    signed: bool = False


QUANTITIES = (
    Quantity("ratio", "Branch to stream", "norm of the branch over the norm of the stream that it joins", log=True),
    Quantity("cosine", "Cosine", "between branch and stream", signed=True),
    Quantity("grad", "Gradient norm", "of the mean loss by the stream behind the join", log=True),
    Quantity("mean", "Mean", "of the stream behind the join", signed=True),
    Quantity("variance", "Variance", "of the stream behind the join", log=True),
    Quantity(
        "dead", "Dead units", "share of the units of ReLU modules, since the join before, that are zero in every row"
    ),
    Quantity("rank", "Rank", "participation ratio of a sequence's tokens, at most the smaller of T and D", log=True),
    Quantity(
        "gate",
        "Gate",
        "mean share t that a join gives to the branch; of a forget gate, f that it leaves the stream",
    ),
)
NAMES = tuple(quantity.name for quantity in QUANTITIES)
