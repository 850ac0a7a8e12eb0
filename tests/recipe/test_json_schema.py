"""What an editor is told of a recipe agrees with what ``load`` says of it."""

import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from restrain.errors import UserError
from restrain.recipe import available, find, json_schema, load, to_yaml
from restrain.recipe.header import EDITOR_LINE

FULL = """\
model: {name: resnet18, classes: 5}
data: {name: folder, augment: [{name: flip, p: 0.3}]}
resolution: {train: 64}
batch: {global: 64, group: 16}
length: 2ep
optimizer: {name: sgd, lr: 1e-1}
schedule: {name: step, at: [50%, 600st]}
checkpoint: {every: 10min}
"""


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = json_schema.recipe_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def read(text: str):
    return YAML(typ="safe", pure=True).load(text)


def test_the_shipped_file_is_up_to_date() -> None:
    assert json_schema.path().read_text(encoding="utf-8") == json_schema.text(), (
        "the schema has changed: run python docs/reference.py"
    )


@pytest.mark.parametrize("name", available())
def test_shipped_recipes(name: str, validator) -> None:
    """As they are written, most of them deltas; and whole, as ``show`` prints them."""
    text = find(name).read_text(encoding="utf-8")
    validator.validate(read(text))
    validator.validate(read(to_yaml(load(name).recipe)))


@pytest.mark.parametrize("name", available())
def test_the_first_line_leads_to_it(name: str) -> None:
    path = find(name)
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first == EDITOR_LINE
    named = path.parent / first.partition("$schema=")[2]
    assert json.loads(named.read_text(encoding="utf-8"))["title"] == "A recipe of Restrain"


@pytest.mark.parametrize(
    "delta",
    [
        "base: imagenet_resnet50\n",
        "base: imagenet_resnet50\nschedule: {warmup: 5ep}\nexpect: {value: 78.0}\n",
        "base: digits_resnet20\noptimizer: {momentum: 0.8}\nmodel: {join: {name: none}}\n",
        "base: digits_resnet20\nclip: null\ndata: {threads: auto, lanes: 4}\n",
    ],
)
def test_a_delta_needs_no_keys(delta: str, validator, tmp_path: Path) -> None:
    validator.validate(read(delta))
    (tmp_path / "mine.yaml").write_text(delta)
    load(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("was", "broken"),
    [
        ("length: 2ep", "lenght: 2ep"),  # a misspelt key
        ("length: 2ep\n", ""),  # a missing one
        ("length: 2ep", "length: 2"),  # no unit
        ("length: 2ep", "length: 2min"),  # a unit that makes no sense there
        ("length: 2ep", "length: 2.5st"),  # half a step
        ("name: sgd, lr", "name: sdg, lr"),  # no such optimizer
        ("name: sgd, lr", "name: adamw, momentum: 0.9, lr"),  # a key of another optimizer
        ("lr: 1e-1", "lr: fast"),
        ("lr: 1e-1", "lr: -0.1"),
        ("classes: 5", "classes: 5.5"),
        ("classes: 5", "classes: 5, join: residual"),
        ("name: resnet18", "name: resnet19"),
        ("p: 0.3", "p: 30"),
        ("{name: flip, p: 0.3}", "{p: 0.3}"),  # an entry of a list merges with nothing
        ("every: 10min", "every: 10 min"),
        ("at: [50%, 600st]", "at: []"),
        ("length: 2ep", "length: 2ep\nbase: 5"),
    ],
)
def test_broken_recipes(was: str, broken: str, validator, tmp_path: Path) -> None:
    assert FULL.count(was) == 1
    file = tmp_path / "mine.yaml"
    file.write_text(FULL)
    load(str(file))
    validator.validate(read(FULL))
    file.write_text(FULL.replace(was, broken))
    with pytest.raises(UserError):
        load(str(file))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(read(file.read_text()))


def test_every_key_has_a_hover_text() -> None:
    schema = json_schema.recipe_schema()
    for name, section in schema["definitions"].items():
        assert section["description"], name
        for key, value in section["properties"].items():
            assert key == "name" or value["description"], f"{name}.{key}"
    rate = schema["definitions"]["Sgd"]["properties"]["momentum"]
    assert rate["description"] == "Momentum of the gradient's average. Default: 0.9."
