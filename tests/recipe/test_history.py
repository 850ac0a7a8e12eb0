"""What a recipe may say of highway networks, perceptrons and recurrent networks."""

import pytest

from restrain.errors import UserError
from restrain.recipe import Recipe, load


@pytest.fixture
def recipe(tmp_path):
    def made(model: str) -> Recipe:
        file = tmp_path / "one.yaml"
        file.write_text(f"base: digits_resnet20\nmodel: {{{model}, classes: 10, in_chans: 1}}\n")
        return load(str(file)).recipe

    return made


@pytest.mark.parametrize(
    ("model", "join"),
    [
        ("name: highway_mlp, shape: {depth: 5}", "gate"),
        ("name: highway_19", "gate"),
        ("name: skip_perceptron, shape: {width: 5}", "add"),
        ("name: rnn, shape: {width: 5}", "none"),
        ("name: lstm1997, shape: {width: 5}", "add"),
        ("name: lstm, shape: {width: 5}, recurrent: {forget_bias: 3}", "add"),
    ],
)
def test_a_network_has_the_join_of_its_lineage(model, join, recipe, tmp_path):
    """Where no recipe below names one: a recipe's own word, and that of its bases, stand."""
    alone = tmp_path / "alone.yaml"
    body = "data: {name: digits}\nbatch: {global: 8, group: 8}\nlength: 1ep\n"
    body += "optimizer: {name: sgd, lr: 0.1}\nschedule: {name: cosine}\n"
    alone.write_text(f"model: {{{model}, classes: 10, in_chans: 1}}\n{body}")
    assert load(str(alone)).recipe.model.join.name == join
    alone.write_text(f"model: {{{model}, classes: 10, in_chans: 1, join: {{name: none}}}}\n{body}")
    assert load(str(alone)).recipe.model.join.name == "none"
    assert load(str(alone), ["model.join.name=add"]).recipe.model.join.name == "add"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("name: highway_mlp", r"model\.shape\.depth is missing"),
        ("name: highway_19, shape: {depth: 4}", r"model\.shape\.depth = 4 does nothing"),
        ("name: highway_mlp, shape: {depth: 4, heads: 2}", r"model\.shape\.heads = 2 does nothing"),
        ("name: lstm", r"model\.shape\.width is missing"),
        (
            "name: lstm1997, shape: {width: 5}, recurrent: {forget_bias: 1.0}",
            r"forget_bias = 1 does nothing.* for lstm",
        ),
        ("name: skip_perceptron, shape: {width: 5}, transformer: {bias: false}", r"transformer\.bias = false does"),
    ],
)
def test_keys_that_do_nothing_and_keys_that_are_missing(model, said, recipe):
    with pytest.raises(UserError, match=said):
        recipe(model)
