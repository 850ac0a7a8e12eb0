"""Each number of a shipped recipe agrees with its source, and a delta stays short."""

import math
import re
from pathlib import Path

import pytest

from restrain.recipe import available, find, leaves, load

from .sources import AUGMENTATIONS
from .sources import SOURCES as OF_CONVOLUTIONS
from .sources_transformers import SOURCES as OF_TRANSFORMERS

SOURCES = OF_CONVOLUTIONS | OF_TRANSFORMERS
OF_OUR_OWN = re.compile(r"adding_|copy_|digits_|cifar10_plain|cifar10_fast|cifar10_shared|shakespeare_")
MOST_LINES = 20


def values(name: str) -> dict[str, object]:
    return leaves(load(name).recipe)


@pytest.mark.parametrize("name", SOURCES)
def test_every_number_agrees_with_its_source(name: str) -> None:
    found = values(name)
    wrong = [
        f"{key}: {found[key]!r}, but {source} has {value!r}"
        for key, value, source in SOURCES[name]
        if found[key] != (pytest.approx(value) if isinstance(value, float) else value)
    ]
    assert not wrong, wrong


def test_every_published_recipe_has_its_source() -> None:
    assert {name for name in available() if not OF_OUR_OWN.match(name)} <= set(SOURCES)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_agree_with_their_source(name: str) -> None:
    wanted, _ = AUGMENTATIONS[name]
    augment = values(name)["data.augment"]
    assert isinstance(augment, list)
    found = augment[-len(wanted) :]
    assert [{key: section.get(key) for key in one} for one, section in zip(wanted, found, strict=True)] == wanted


def test_the_average_of_v2_is_torchvisions() -> None:
    """torchvision rescales its decay: alpha = (1 - decay) x world x batch x steps / epochs, at every 32nd step."""
    alpha = (1 - 0.99998) * 8 * 128 * 32 / 600
    ema = load("imagenet_resnet50_v2").recipe.ema
    assert ema is not None
    assert math.isclose(1 - ema.decay**32, alpha, rel_tol=1e-3)


@pytest.mark.parametrize("name", available())
def test_a_delta_is_short(name: str) -> None:
    lines = Path(find(name)).read_text().splitlines()
    if any(line.startswith("base:") for line in lines):
        assert sum(not line.startswith("#") for line in lines) < MOST_LINES
