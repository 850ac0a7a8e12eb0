"""Our own networks by family: their names, and the keys of ``model.shape`` and ``model.transformer`` that they take.

restrain/models/build.py builds them; a test holds the two equal. No torch here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """``names``: of its sizes. ``shape``, ``transformer``: the keys of these sections that do something; ``needed``:
    those of ``shape`` that a name does not settle."""

    names: tuple[str, ...]
    shape: tuple[str, ...] = ()
    transformer: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "resnet": Family(
        (
            *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            *("cifar_resnet20", "cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet110"),
            "cifar_resnet1202",
        )
    ),
}
NAMES = tuple(name for family in FAMILIES.values() for name in family.names)


def family_of(name: str) -> tuple[str, Family] | None:
    """The family of one of our names; None for a name of other code."""
    return next(((key, family) for key, family in FAMILIES.items() if name in family.names), None)
