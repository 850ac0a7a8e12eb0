"""Parameters and multiply-adds of each network against what is published: the rows of docs/figures/model_table.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from restrain.errors import UserError
from restrain.models import MODELS, build_model
from restrain.models.build import OWN_JOIN, TAKEN, TRANSFORMERS
from restrain.recipe.model_names import FAMILIES, NAMES

SCRIPT = Path(__file__).parents[2] / "docs" / "figures" / "model_table.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model_table"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


TABLE = loaded()


def agrees(row, params: int, macs: int) -> bool:
    return TABLE.agrees(params, 1e6, row.params) and TABLE.agrees(macs, 1e9, row.macs)


@pytest.mark.parametrize("index", range(len(TABLE.ROWS)), ids=[row.name for row in TABLE.ROWS])
def test_counts_are_the_published_ones_or_the_row_says_why_not(index):
    row = TABLE.ROWS[index]
    assert agrees(row, *TABLE.counted(index)) == (not row.why), TABLE.counted(index)


def test_a_count_agrees_to_a_unit_of_the_last_digit():
    assert TABLE.agrees(3_663_761_408, 1e9, "3.6")  # cut in its source
    assert TABLE.agrees(24_990_000, 1e6, "25")
    assert not TABLE.agrees(4_089_184_256, 1e9, "3.8")
    assert not TABLE.agrees(25_557_032, 1e6, "25.54")
    assert TABLE.agrees(1, 1e6, "")


def test_every_network_of_a_size_has_a_row():
    of_any_size = set(FAMILIES) & set(NAMES)  # vit, gpt: the name of a family, whose size a recipe says
    assert set(NAMES) - of_any_size - {row.name for row in TABLE.ROWS} == set()


def test_the_page_is_up_to_date():
    page = TABLE.PAGE.read_text(encoding="utf-8")
    assert page == TABLE.page(page), "run python docs/figures/model_table.py"


def test_recipes_and_models_give_a_network_the_same_join():
    for family in FAMILIES.values():
        for name in family.names:
            assert OWN_JOIN.get(name, "add") == family.join, name
    assert set(OWN_JOIN) <= set(MODELS) == set(NAMES)


def test_recipes_and_models_take_the_same_keys():
    for family in FAMILIES.values():
        for name in family.names:
            own = TAKEN.get(name, {})
            assert own.get("recurrent", ()) == family.recurrent, name
            if name not in TRANSFORMERS:
                assert (own.get("shape", ()), family.transformer) == (family.shape, ()), name


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"name": "cifar_resnet20", "shape": {"depth": 3}}, "shape.depth does nothing for cifar_resnet20: it takes no"),
        ({"name": "vgg16", "transformer": {"order": "pre"}}, "transformer.order does nothing for vgg16"),
        (
            {"name": "lstm", "shape": {"width": 4, "heads": 2}},
            "shape.heads does nothing for lstm, whose keys there are",
        ),
        ({"name": "rnn", "recurrent": {"forget_bias": 1.0}}, "recurrent.forget_bias does nothing for rnn"),
        ({"name": "gpt2", "recurrent": {"reads": "tokens"}}, "recurrent.reads does nothing for gpt2"),
    ],
)
def test_keys_that_do_nothing_are_refused(section, said):
    with pytest.raises(UserError, match=f"model.{said}"):
        build_model(section | {"classes": 10})
