"""RandAugment, TrivialAugment, AutoAugment and 3-Augment: which operations an image gets, and how strong.

Two houses have these: torchvision's magnitudes are tables, its edges black and its pixels the nearest; timm's are
levels of 0 to 10 with noise on them, its edges the mean of the set and its kernel bilinear or bicubic at random.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from restrain import draws
from restrain.data.augment import operations
from restrain.data.augment.base import Params, below, between
from restrain.data.augment.operations import MOVING, Step
from restrain.recipe.policy import Policy

PARAMETERS = ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast")
PARAMETERS = (*PARAMETERS, "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize")
UNSIGNED = ("Posterize", "Solarize")


class _Steps:
    """An operation whose params are the `Step`s that an image gets."""

    fill: tuple[int, ...]

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        return operations.run(image, params, self.fill)


# -------------------------------------------------------------------------------------------------- torchvision's


@cache
def magnitudes(bins: int, height: int, width: int, wide: bool = False) -> dict[str, np.ndarray]:
    """Operation -> its ``bins`` magnitudes; those without are not in it. ``wide``: TrivialAugment's ranges.

    Rounded to float32, half of each line counted from either end, as torchvision's come: a translation is cut to whole
    pixels, and its 16 of 32 is 15.999999.
    """
    shear, turn, factor, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    across, down = (32.0, 32.0) if wide else (150.0 / 331.0 * width, 150.0 / 331.0 * height)
    ends = {"ShearX": shear, "ShearY": shear, "TranslateX": across, "TranslateY": down, "Rotate": turn}
    ends |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), factor)
    table = {name: _line(0.0, end, bins) for name, end in ends.items()}
    table["Posterize"] = 8 - np.round(np.arange(bins) / ((bins - 1) / bits))
    table["Solarize"] = _line(255.0, 0.0, bins)
    return table


def _line(first: float, last: float, bins: int) -> np.ndarray:
    step = float((np.float32(last) - np.float32(first)) / np.float32(bins - 1))
    index = np.arange(bins)
    up, down = np.float32(first) + step * index, np.float32(last) - step * (bins - 1 - index)
    return np.where(index < bins // 2, up, down).astype(np.float32)


def tabled(name: str, magnitude: float) -> Step:
    """An operation at a magnitude of torchvision's tables."""
    if name in ("ShearX", "ShearY"):
        return Step(name, operations.slope_of(magnitude))
    if name in ("TranslateX", "TranslateY", "Posterize"):
        return Step(name, int(magnitude))
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return Step(name, 1.0 + magnitude)
    return Step(name, magnitude)


def _at(table: dict[str, np.ndarray], name: str, bin: int, negative: bool) -> Step:
    if name not in table:
        return Step(name)
    magnitude = float(table[name][bin])
    return tabled(name, -magnitude if negative and name not in UNSIGNED else magnitude)


class RandAugment(_Steps):
    """``ops`` of 14 operations, all at one magnitude of 31 bins, signs at random (Cubuk et al. 2020,
    arXiv:1909.13719); torchvision's."""

    def __init__(self, ops: int = 2, magnitude: int = 9, *, channels: int = 3):
        self.ops, self.magnitude, self.fill = ops, magnitude, (0,) * channels

    def params(self, key: int, height: int, width: int) -> tuple[Step, ...]:
        table = magnitudes(31, height, width)
        drawn = [[draws.extend_key(key, k, part) for part in range(2)] for k in range(self.ops)]
        return tuple(
            _at(table, PARAMETERS[below(which, len(PARAMETERS))], self.magnitude, bool(below(sign, 2)))
            for which, sign in drawn
        )


class TrivialAugment(_Steps):
    """One of 14 operations at one of 31 magnitudes of a wide range (Mueller and Hutter 2021, arXiv:2103.10158)."""

    def __init__(self, *, channels: int = 3):
        self.fill = (0,) * channels

    def params(self, key: int, height: int, width: int) -> tuple[Step, ...]:
        which, bin, sign = (below(draws.extend_key(key, k), n) for k, n in enumerate((len(PARAMETERS), 31, 2)))
        return (_at(magnitudes(31, 0, 0, wide=True), PARAMETERS[which], bin, bool(sign)),)


# Cubuk et al. 2019, arXiv:1805.09501, tables 7 to 9: each line one policy, operation, probability and magnitude twice.
AUTO_AUGMENT = {
    "imagenet": """
        Posterize .4 8 Rotate .6 9        Solarize .6 5 AutoContrast .6 -   Equalize .8 - Equalize .6 -
        Posterize .6 7 Posterize .6 6     Equalize .4 - Solarize .2 4       Equalize .4 - Rotate .8 8
        Solarize .6 3 Equalize .6 -       Posterize .8 5 Equalize 1 -       Rotate .2 3 Solarize .6 8
        Equalize .6 - Posterize .4 6      Rotate .8 8 Color .4 0            Rotate .4 9 Equalize .6 -
        Equalize 0 - Equalize .8 -        Invert .6 - Equalize 1 -          Color .6 4 Contrast 1 8
        Rotate .8 8 Color 1 2             Color .8 8 Solarize .8 7          Sharpness .4 7 Invert .6 -
        ShearX .6 5 Equalize 1 -          Color .4 0 Equalize .6 -          Equalize .4 - Solarize .2 4
        Solarize .6 5 AutoContrast .6 -   Invert .6 - Equalize 1 -          Color .6 4 Contrast 1 8
        Equalize .8 - Equalize .6 -""",
    "cifar10": """
        Invert .1 - Contrast .2 6         Rotate .7 2 TranslateX .3 9       Sharpness .8 1 Sharpness .9 3
        ShearY .5 8 TranslateY .7 9       AutoContrast .5 - Equalize .9 -   ShearY .2 7 Posterize .3 7
        Color .4 3 Brightness .6 7        Sharpness .3 9 Brightness .7 9    Equalize .6 - Equalize .5 -
        Contrast .6 7 Sharpness .6 5      Color .7 7 TranslateX .5 8        Equalize .3 - AutoContrast .4 -
        TranslateY .4 3 Sharpness .2 6    Brightness .9 6 Color .2 8        Solarize .5 2 Invert 0 -
        Equalize .2 - AutoContrast .6 -   Equalize .2 - Equalize .6 -       Color .9 9 Equalize .6 -
        AutoContrast .8 - Solarize .2 8   Brightness .1 3 Color .7 0        Solarize .4 5 AutoContrast .9 -
        TranslateY .9 9 TranslateY .7 9   AutoContrast .9 - Solarize .8 3   Equalize .8 - Invert .1 -
        TranslateY .7 9 AutoContrast .9 -""",
    "svhn": """
        ShearX .9 4 Invert .2 -           ShearY .9 8 Invert .7 -           Equalize .6 - Solarize .6 6
        Invert .9 - Equalize .6 -         Equalize .6 - Rotate .9 3         ShearX .9 4 AutoContrast .8 -
        ShearY .9 8 Invert .4 -           ShearY .9 5 Solarize .2 6         Invert .9 - AutoContrast .8 -
        Equalize .6 - Rotate .9 3         ShearX .9 4 Solarize .3 3         ShearY .8 8 Invert .7 -
        Equalize .9 - TranslateY .6 6     Invert .9 - Equalize .6 -         Contrast .3 3 Rotate .8 4
        Invert .8 - TranslateY 0 2        ShearY .7 6 Solarize .4 8         Invert .6 - Rotate .8 4
        ShearY .3 7 TranslateX .9 3       ShearX .1 6 Invert .6 -           Solarize .7 2 TranslateY .6 7
        ShearY .8 4 Invert .8 -           ShearX .7 9 TranslateY .8 3       ShearY .8 5 AutoContrast .7 -
        ShearX .7 2 Invert .1 -""",
}
Choice = tuple[str, float, int]  # operation, probability, magnitude of 10 bins


@cache
def auto_augment_table(policy: str) -> list[tuple[Choice, Choice]]:
    """The 25 pairs of a learned policy."""
    words = AUTO_AUGMENT[policy].split()
    ones = [(words[i], float(words[i + 1]), int(words[i + 2].replace("-", "0"))) for i in range(0, len(words), 3)]
    return list(zip(ones[::2], ones[1::2], strict=True))


class AutoAugment(_Steps):
    """One of 25 learned pairs of operations, each with its probability, signs at random; torchvision's."""

    def __init__(self, policy: str = "imagenet", *, channels: int = 3):
        self.table, self.fill = auto_augment_table(policy), (0,) * channels

    def params(self, key: int, height: int, width: int) -> tuple[Step, ...]:
        table = magnitudes(10, height, width)
        pair = self.table[below(draws.extend_key(key, 0), len(self.table))]
        drawn = [[draws.extend_key(key, 1 + k, part) for part in range(2)] for k in range(2)]
        return tuple(
            _at(table, name, bin, bool(below(sign, 2)))
            for (name, p, bin), (whether, sign) in zip(pair, drawn, strict=True)
            if draws.uniform(whether) < p
        )


# -------------------------------------------------------------------------------------------------------- timm's

Level = Callable[[float, int], float]


def _signed(most: float) -> Level:
    return lambda level, sign: sign * (level / 10.0 * most)


def _factor(level: float, sign: int) -> float:
    return level / 10.0 * 1.8 + 0.1


def _factor_increasing(level: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * (level / 10.0 * 0.9))


def _clipped(low: float, high: float) -> Level:
    return lambda level, sign: max(low, min(high, low + (high - low) * (level / 10.0)))


# name -> argument of (level of 0 to 10, sign of +1 or -1). An operation that is not here has no argument.
LEVELS: dict[str, Level] = {
    "Rotate": _signed(30.0),
    "ShearX": _signed(0.3),
    "ShearY": _signed(0.3),
    "TranslateXRel": _signed(0.45),
    "TranslateYRel": _signed(0.45),
    "Posterize": lambda level, sign: int(level / 10.0 * 4),
    "PosterizeIncreasing": lambda level, sign: 4 - int(level / 10.0 * 4),
    "Solarize": lambda level, sign: min(256, int(level / 10.0 * 256)),
    "SolarizeIncreasing": lambda level, sign: 256 - min(256, int(level / 10.0 * 256)),
    "SolarizeAdd": lambda level, sign: min(128, int(level / 10.0 * 110)),
    "Desaturate": _clipped(0.5, 1.0),
    "GaussianBlur": _clipped(0.1, 2.0),
} | {
    name + ending: level
    for name in ("Color", "Contrast", "Brightness", "Sharpness")
    for ending, level in (("", _factor), ("Increasing", _factor_increasing))
}


class TimmRandAugment(_Steps):
    """RandAugment as timm has it, by its short form (`restrain.recipe.policy.parse_policy`).

    Each of n operations is applied with probability p, at level m with normal noise on it, cut to 0 and ``mmax``.
    """

    def __init__(self, policy: Policy, fill: tuple[int, ...]):
        self.policy, self.fill = policy, fill
        weights = np.array(list(policy.choices.values()))
        self.names, self.weights = list(policy.choices), weights / weights.sum()

    def params(self, key: int, height: int, width: int) -> tuple[Step, ...]:
        layers = [draws.extend_key(key, k) for k in range(self.policy.n)]
        found = [self._layer(layer, name) for layer, name in zip(layers, self._names(layers), strict=True)]
        return tuple(step for step in found if step is not None)

    def _names(self, layers: list[int]) -> list[str]:
        """An operation a layer: with equal weights each of its own, else never the same twice."""
        if not self.policy.weighted:
            return [self.names[below(draws.extend_key(layer, 0), len(self.names))] for layer in layers]
        left, chosen = self.weights.copy(), []
        for layer in layers:
            at = np.searchsorted(np.cumsum(left), draws.uniform(draws.extend_key(layer, 0)) * left.sum(), side="right")
            chosen.append(self.names[at])
            left[at] = 0.0
        return chosen

    def _layer(self, key: int, name: str) -> Step | None:
        whether, strength, sign, kernel = (draws.extend_key(key, k) for k in range(1, 5))
        if draws.uniform(whether) >= self.policy.p:
            return None
        plain = name.removesuffix("Increasing")
        argument = 0.0
        if name in LEVELS:
            argument = LEVELS[name](self._level(strength), 1 - 2 * below(sign, 2))
        if plain in MOVING:
            return Step(plain, argument, ("bilinear", "bicubic")[below(kernel, 2)])
        return Step(plain, argument)

    def _level(self, key: int) -> float:
        policy, level = self.policy, float(self.policy.m)
        if policy.mstd == float("inf"):
            level = between(key, (0.0, level))
        elif policy.mstd > 0:
            level += policy.mstd * float(draws.normal(key))
        return max(0.0, min(level, float(policy.mmax)))


class ThreeAugment(_Steps):
    """Grey, solarised or blurred, with equal chances (Touvron et al. 2022, DeiT III, arXiv:2204.07118, section 3).

    The threshold is 128 and the blur's radius uniform in 0.1 to 2 pixels.
    """

    def __init__(self, *, channels: int = 3):
        self.fill = (0,) * channels

    def params(self, key: int, height: int, width: int) -> tuple[Step, ...]:
        radius = between(draws.extend_key(key, 1), (0.1, 2.0))
        steps = (Step("Solarize", 128), Step("Desaturate", 1.0), Step("GaussianBlur", radius))
        return (steps[below(draws.extend_key(key, 0), 3)],)
