"""The eighteen claims, in the order of their numbers. What each expects stands beside its run, in ``claims/``."""

from __future__ import annotations

from collections.abc import Sequence

from restrain.errors import UserError
from restrain.lineage.claim import Claim
from restrain.lineage.claims import (
    degradation,
    densenet,
    everywhere,
    feedback,
    gradients,
    highway,
    identity,
    lstm,
    perceptron,
    preactivation,
    rank,
    sharing,
    shortcuts,
    sizes,
    stochastic,
    surgery,
    transformer,
    warmup,
)

CLAIMS: tuple[Claim, ...] = (
    degradation.CLAIM,
    gradients.CLAIM,
    surgery.CLAIM,
    identity.CLAIM,
    sizes.CLAIM,
    preactivation.CLAIM,
    shortcuts.CLAIM,
    transformer.CLAIM,
    warmup.CLAIM,
    rank.CLAIM,
    perceptron.CLAIM,
    lstm.CLAIM,
    highway.CLAIM,
    densenet.CLAIM,
    stochastic.CLAIM,
    sharing.CLAIM,
    feedback.CLAIM,
    everywhere.CLAIM,
)


def chosen(numbers: Sequence[str]) -> list[Claim]:
    """The claims of the numbers that a person typed, in order and once each; all without any.

    Raises UserError for a number that no claim has.
    """
    if not numbers:
        return list(CLAIMS)
    known = {str(claim.number): claim for claim in CLAIMS}
    for number in numbers:
        if number not in known:
            raise UserError(
                f"There is no claim {number!r}: they are {', '.join(known)}. restrain lineage --list has their titles."
            )
    return [claim for claim in CLAIMS if str(claim.number) in numbers]
