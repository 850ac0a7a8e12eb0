"""The recipes that ship: they load, their headers tell the truth, and they differ in what they say they differ in."""

import re

import pytest

from restrain.recipe import Recipe, available, differences, find, load, to_yaml
from restrain.recipe.schema_data import WITHOUT_ROOT

NAMES = [
    "cifar10_densenetbc100",
    "cifar10_plain20",
    "cifar10_plain56",
    "cifar10_preresnet1001",
    "cifar10_preresnet110",
    "cifar10_preresnet164",
    "cifar10_resnet110",
    "cifar10_resnet110_sd",
    "cifar10_resnet1202_sd",
    "cifar10_resnet20",
    "cifar10_resnet56",
    "cifar10_shared_resnet56",
    "digits_plain56",
    "digits_resnet20",
    "digits_resnet56",
    "finetune",
    "imagenet_resnet152",
    "imagenet_resnet152_rsb_a1",
    "imagenet_resnet152_rsb_a2",
    "imagenet_resnet152_rsb_a3",
    "imagenet_resnet152_v2",
    "imagenet_resnet50",
    "imagenet_resnet50_ffcv16",
    "imagenet_resnet50_ffcv88",
    "imagenet_resnet50_mlperf",
    "imagenet_resnet50_mlperf_3k",
    "imagenet_resnet50_rsb_a1",
    "imagenet_resnet50_rsb_a2",
    "imagenet_resnet50_rsb_a3",
    "imagenet_resnet50_v2",
    "shakespeare_gpt",
    "shakespeare_gpt_rotary",
]
OWN = {name for name in NAMES if name.startswith(("digits_", "cifar10_plain", "cifar10_shared", "shakespeare"))}


def trains_differently(one: str, other: str) -> list[str]:
    found = differences(load(one).recipe, load(other).recipe)
    return [key for key, _, _ in found if not key.startswith("expect.")]


def test_available() -> None:
    assert set(NAMES) <= set(available())


@pytest.mark.parametrize("name", available())
def test_header_and_expectation_agree(name: str) -> None:
    header = "".join(re.findall(r"^# (.*\n)", find(name).read_text(encoding="utf-8"), re.M))
    recipe = load(name).recipe
    assert f"restrain train {name}" in header
    assert ("data.root=" in header) == (recipe.data.name not in WITHOUT_ROOT)
    expected = recipe.expect
    if expected is None:  # a form to be filled in: its result is that of its user's data
        assert "Expected: depends on" in header
        return
    kinds = r"% top-1 \(eval/top1|nats a \w+ \(eval/loss|train/loss \(?"
    said = re.search(rf"Expected: ([\d.]+) ({kinds})(?:, )?\s*tolerance ([\d.]+)", header)
    assert said, header
    assert float(said[1]) == expected.value
    assert float(said[3].rstrip(".")) == expected.tolerance
    assert expected.metric in said[2]
    assert ("lower is better" in header) == (expected.better == "lower")


@pytest.mark.parametrize("name", available())
def test_shown_it_reads_back(name: str, tmp_path) -> None:
    file = tmp_path / f"{name}.yaml"
    file.write_text(to_yaml(load(name).recipe))
    assert load(str(file)).recipe == load(name).recipe


@pytest.mark.parametrize(
    ("plain", "residual"),
    [
        ("digits_plain56", "digits_resnet56"),
        ("cifar10_plain20", "cifar10_resnet20"),
        ("cifar10_plain56", "cifar10_resnet56"),
    ],
)
def test_a_plain_net_is_one_value_away(plain: str, residual: str) -> None:
    assert trains_differently(plain, residual) == ["model.join.name"]


def test_the_network_alone_differs() -> None:
    assert trains_differently("cifar10_resnet110", "cifar10_preresnet110") == ["model.name"]
    assert trains_differently("cifar10_preresnet110", "cifar10_preresnet1001") == ["model.name"]
    assert trains_differently("cifar10_resnet56", "cifar10_shared_resnet56") == ["model.name"]


def test_depth_alone_differs() -> None:
    assert trains_differently("cifar10_resnet20", "cifar10_resnet56") == ["model.name"]
    assert trains_differently("imagenet_resnet50", "imagenet_resnet152") == ["model.name"]
    assert trains_differently("cifar10_resnet20", "cifar10_resnet110") == [
        "model.name",
        "schedule.warmup",
        "schedule.warmup_from",
    ]


def test_no_result_is_claimed_that_nobody_published() -> None:
    status = {name: expect.status for name in NAMES if (expect := load(name).recipe.expect) is not None}
    assert {name for name in status if status[name] != "paper"} == OWN


def sections(model) -> set[type]:
    from restrain.recipe.fields import field_of, fields_of, is_section

    found = {model}
    for field, _ in fields_of(model).values():
        for one in field.types:
            inner = field_of(one.__args__[0]).types if getattr(one, "__origin__", None) is tuple else (one,)
            found |= {other for part in inner if is_section(part) for other in sections(part)}
    return found


def test_every_key_is_described() -> None:
    found = sections(Recipe)
    assert len(found) > 25
    for section in found:
        assert section.__doc__, section
        for name, info in section.model_fields.items():
            if name != "name":
                assert info.description, f"{section.__name__}.{name}"


def test_json_schema() -> None:
    schema = Recipe.model_json_schema()
    assert schema["properties"]["length"]["type"] == "string"
    assert schema["additionalProperties"] is False
