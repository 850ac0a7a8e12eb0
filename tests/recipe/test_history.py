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
def test_a_network_has_the_join_of_its_lineage(model, join, tmp_path):
    """Where no recipe below names one: a recipe's own word, and that of its bases, stand."""
    alone = tmp_path / "alone.yaml"
    recurrent = "rnn" in model or "lstm" in model
    body = "data: {name: sequences, task: adding}\ntask: regress\n" if recurrent else "data: {name: digits}\n"
    body += "batch: {global: 8, group: 8}\nlength: 1ep\n"
    body += "optimizer: {name: sgd, lr: 0.1}\nschedule: {name: cosine}\n"
    model += ", classes: 1, in_chans: 2" if recurrent else ", classes: 10, in_chans: 1"
    alone.write_text(f"model: {{{model}}}\n{body}")
    assert load(str(alone)).recipe.model.join.name == join
    alone.write_text(f"model: {{{model}, join: {{name: none}}}}\n{body}")
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


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=classify"], r"task = classify, but data\.name = sequences with data\.task = adding has numbers to say"),
        (["data.task=copy"], r"data\.task = copy has tokens|task = regress, but data\.name = sequences"),
        (["model.classes=3"], r"model\.classes = 3, but the target of data\.task = adding is one number"),
        (["model.in_chans=3"], r"model\.in_chans = 3, but a step of data\.task = adding has 2 numbers"),
        (["model.recurrent.reads=tokens"], r"model\.recurrent\.reads = tokens, but .* use numbers"),
        (["mix.mixup=0.2"], r"mix does nothing: a sequence is neither image nor text"),
        (["loss.smoothing=0.1"], r"loss does nothing: the loss is the squared error"),
        (["resolution.train=32"], r"resolution does nothing"),
        (["model.name=cifar_resnet20", "model.shape.width=null"], r"does not read sequences of numbers"),
        (["data.length=0"], r"data\.length"),
        (["data.root=/data"], r"data\.root"),
    ],
)
def test_sequences_that_do_not_fit(overrides, said):
    with pytest.raises(UserError, match=said):
        load("adding_lstm", overrides)


def test_the_copy_problem_needs_a_model_of_tokens():
    with pytest.raises(UserError, match=r"model\.recurrent\.reads = numbers, but .* use tokens"):
        load("copy_lstm", ["model.recurrent.reads=numbers"])
    with pytest.raises(UserError, match=r"objective\.name = masked_token, but data\.task = copy"):
        load("copy_lstm", ["objective.name=masked_token"])
    with pytest.raises(UserError, match=r"lstm reads sequences, and task = classify has images"):
        load("digits_resnet20", ["model.name=lstm", "model.shape.width=4"])
