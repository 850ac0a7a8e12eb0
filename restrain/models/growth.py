"""Depth surgery: which block of a deeper network is which of a shallower one, and what makes the others identities.

He et al. 2015 (arXiv:1512.03385), section 1: a deeper net can copy a shallower one and set the extra layers to the
identity, so it need not be worse. Here that is done to a trained one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from restrain.errors import UserError
from restrain.models.init import fills

PLACES = ("spread", "end")
LAST = ("attn.proj", "mlp.fc2")  # what a transformer's branches end in


def match(shallow: Sequence[str], deep: Sequence[str], place: str = "spread") -> dict[str, str]:
    """Block of the deeper network -> block of the shallower one that it is a copy of; the others are new.

    Blocks are matched stage by stage (``layer1.0`` and ``layer1.1`` are of the stage ``layer1``). ``spread``: new ones
    follow each old one, evenly; ``end``: they follow the last of the stage. The first of a stage, which may change the
    stream's shape, is always a copy of the first.

    Raises:
        UserError: the stages are others, or one has fewer blocks in the deeper network.
    """
    if place not in PLACES:
        raise UserError(f"--place {place}: it is {' or '.join(PLACES)}.")
    before, after = _stages(shallow), _stages(deep)
    if before.keys() != after.keys():
        raise UserError(f"the stages are {', '.join(after)}, those of the run {', '.join(before)}")
    found = {}
    for stage, old in before.items():
        new = after[stage]
        if len(new) < len(old):
            raise UserError(f"{stage} has {len(new)} blocks, fewer than the {len(old)} of the run")
        at = range(len(old)) if place == "end" else [n * len(new) // len(old) for n in range(len(old))]
        found |= {new[there]: one for there, one in zip(at, old, strict=True)}
    return found


def source(name: str, blocks: Iterable[str], matched: Mapping[str, str]) -> str | None:
    """The shallower network's name of a tensor of the deeper one; None for one of a new block."""
    for block in blocks:
        if name.startswith(block + "."):
            return matched[block] + name[len(block) :] if block in matched else None
    return name


def zeroed(zero_init: nn.Module, plain: nn.Module) -> set[str]:
    """The parameters that make a block's branches zero: those that ``model.zero_init`` fills with zeros, else the
    scales of the joins, else the last projections of attention and MLP.

    ``zero_init`` and ``plain``: the network with and without it; they may be on the meta device.
    """
    found, other = fills(zero_init), fills(plain)
    # A learned factor of zero is enough; behind a branch of zero it would never move.
    learned = {name for name, fill in other.items() if name.endswith(".gamma") and fill.scale == 0.0}
    if learned:
        return learned
    names = {name for name, fill in found.items() if fill.scale == 0.0 and other[name].scale != 0.0}
    if not names:
        names = {name for name in found if name.endswith(".gamma")}
    if not names:
        names = {name for name in found if name.rpartition(".")[0].endswith(LAST)}
    return names


def _stages(blocks: Sequence[str]) -> dict[str, list[str]]:
    stages: dict[str, list[str]] = {}
    for block in blocks:
        stages.setdefault(block.rpartition(".")[0], []).append(block)
    return stages
