"""timm's short form of a RandAugment, such as ``rand-m9-mstd0.5-inc1``."""

import math
from dataclasses import dataclass, field

MOVES = ["ShearX", "ShearY", "TranslateXRel", "TranslateYRel"]
FACTORS = ["Color", "Contrast", "Brightness", "Sharpness"]
PLAIN = ["AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", *FACTORS, *MOVES]
RISING = {"Posterize", "Solarize", *FACTORS}
INCREASING = [name + "Increasing" if name in RISING else name for name in PLAIN]
THREE = ("SolarizeIncreasing", "Desaturate", "GaussianBlur")
WEIGHTS = {"Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0, "TranslateXRel": 1.0, "TranslateYRel": 1.0}
WEIGHTS |= dict.fromkeys(("ColorIncreasing", "SharpnessIncreasing", "AutoContrast"), 0.25)
WEIGHTS |= dict.fromkeys(("SolarizeIncreasing", "SolarizeAdd", "ContrastIncreasing", "BrightnessIncreasing"), 0.05)
WEIGHTS |= dict.fromkeys(("Equalize", "PosterizeIncreasing", "Invert"), 0.05)
THREE_WEIGHTS = {**dict.fromkeys(THREE, 6.0), "Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0}
THREE_WEIGHTS |= dict.fromkeys(("PosterizeIncreasing", "AutoContrast", "ColorIncreasing", "SharpnessIncreasing"), 1.0)
THREE_WEIGHTS |= dict.fromkeys(("ContrastIncreasing", "BrightnessIncreasing", "Equalize", "Invert"), 1.0)
UNIFORM_ABOVE = 100.0  # an mstd above it means uniform
FORM = (
    "rand, then any of m (strength, of 10), n (operations), p (probability of each), mstd (noise of m; inf: uniform), "
    "mmax (largest m), inc (1: a larger m always changes more), t (the set: weights, 3a, 3aw), joined by dashes: "
    "rand-m9-mstd0.5-inc1"
)


@dataclass(frozen=True)
class Policy:
    """What a short form says. ``choices``: operation -> weight; ``weighted``: none is drawn twice."""

    m: int = 10
    n: int = 2
    p: float = 0.5
    mstd: float = 0.0
    mmax: int = 10
    choices: dict[str, float] = field(default_factory=dict)
    weighted: bool = False


def parse_policy(text: str) -> Policy:
    """timm's ``rand_augment_transform`` string to what it means, with timm's defaults. Raises ValueError.

    Stricter than timm, which passes over a part that it cannot read.
    """
    head, *parts = text.split("-")
    if head != "rand":
        raise ValueError(f"begins with {head!r}; it is {FORM}")
    found: dict[str, str] = {}
    for part in parts:
        key = next((k for k in ("mstd", "mmax", "inc", "m", "n", "p", "t") if part.startswith(k)), None)
        if key is None or part == key:
            raise ValueError(f"has the part {part!r}, which means nothing; it is {FORM}")
        if key in found:
            raise ValueError(f"sets {key} twice")
        found[key] = part.removeprefix(key)
    sets = {"weights": WEIGHTS, "3aw": THREE_WEIGHTS, "3a": dict.fromkeys(THREE, 1.0)}
    named = found.get("t")
    if named is not None and named not in sets:
        raise ValueError(f"has the part 't{named}'; the sets of operations are {', '.join(sets)}")
    increasing = _number(found, "inc", 0, 0, 1)
    if named is not None and "inc" in found:
        raise ValueError(f"has inc, which does nothing beside t{named}: the set says which operations increase")
    choices = dict.fromkeys(INCREASING if increasing else PLAIN, 1.0) if named is None else sets[named]
    weighted = named in ("weights", "3aw")
    n = _number(found, "n", 2, 1, len(choices) if weighted else 16)
    mmax = _number(found, "mmax", 10, 1, 100)
    m = _number(found, "m", 10, 0, 100)
    if "mmax" not in found and m > mmax:
        raise ValueError(f"has m{m}, above the largest, 10; set mmax with it, as in rand-m15-mmax30")
    mstd = _share(found, "mstd", 0.0, math.inf)
    return Policy(
        m, n, _share(found, "p", 0.5, 1.0), math.inf if mstd > UNIFORM_ABOVE else mstd, mmax, choices, weighted
    )


def _number(found: dict[str, str], key: str, default: int, least: int, most: int) -> int:
    text = found.get(key, str(default))
    if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
        raise ValueError(f"has the part '{key}{text}'; {key} is a whole number from {least} to {most}")
    return int(text)


def _share(found: dict[str, str], key: str, default: float, most: float) -> float:
    text = found.get(key, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most or "_" in text:
        up = "" if most == math.inf else f" to {most:g}"
        raise ValueError(f"has the part '{key}{text}'; {key} is a number from 0{up}")
    return value
