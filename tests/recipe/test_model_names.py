"""A network has its family's join where a recipe names none, and keeps what a recipe names."""

from pathlib import Path

import pytest

from restrain.errors import UserError
from restrain.recipe import load

RECIPE = """
model: {{name: {name}, classes: 10{join}}}
data: {{name: webdataset, root: /data, train: "a-*.tar", eval: "b-*.tar"}}
resolution: {{train: 64}}
batch: {{global: 64, group: 16}}
length: 10ep
optimizer: {{name: sgd, lr: 0.1}}
schedule: {{name: cosine}}
"""


def join_of(folder: Path, name: str, join: str = "", *overrides: str) -> str:
    file = folder / "one.yaml"
    file.write_text(RECIPE.format(name=name, join=join))
    return load(str(file), list(overrides)).recipe.model.join.name


@pytest.mark.parametrize(
    ("name", "join"),
    [
        ("resnet50", "add"),
        ("cifar_preresnet164", "add"),
        ("densenet121", "concat"),
        ("cifar_densenetbc100_k12", "concat"),
        ("vgg16", "none"),
        ("alexnet", "none"),
        ("timm/densenet121", "add"),
    ],
)
def test_the_join_that_nobody_names_is_the_familys(tmp_path, name, join):
    assert join_of(tmp_path, name) == join


def test_a_named_join_stays(tmp_path):
    assert join_of(tmp_path, "resnet50", ", join: {name: none}") == "none"
    assert join_of(tmp_path, "densenet121", ", join: {name: add}") == "add"  # refused where the network is built
    assert join_of(tmp_path, "resnet50", "", "model.name=densenet121") == "concat"
    assert join_of(tmp_path, "densenet121", "", "model.join.name=add") == "add"


def test_a_name_of_no_family_is_still_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="is no model of ours"):
        join_of(tmp_path, "densenet122")
