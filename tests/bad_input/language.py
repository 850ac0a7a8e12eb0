# ruff: noqa: E501  (a paragraph is longer than a line)
"""Bad recipes, texts and prompts of language models."""

from __future__ import annotations

from collections.abc import Callable

from tests.bad_input.harness import Case, Outcome, Place, show
from tests.training.speech import RECIPE, overrides, write_text


def _train(*argv: str, text: bytes | None = None, **changes: str) -> Callable[[Place], Outcome]:
    """Train the small GPT on a text of one's own."""

    def do(place: Place) -> Outcome:
        path = write_text(place.folder)
        if text is not None:
            path.write_bytes(text)
        words = overrides(place.folder, 4, **changes)
        return place.cli("train", RECIPE, *words, *argv, "--run", "{dir}/run")

    return do


def _sample(*argv: str, **changes: str) -> Callable[[Place], Outcome]:
    """Sample from a run of four steps."""

    def do(place: Place) -> Outcome:
        trained = _train(**changes)(place)
        assert trained.codes == [0], trained.said
        return place.cli("sample", "{dir}/run", *argv)

    return do


BERT = {"model": "{name: bert, classes: auto, shape: {depth: 1, width: 16, heads: 2, context: 16}}"}

LANGUAGE = [
    Case(
        "A language model is to learn images",
        "recipes/digits_resnet20.yaml:10: data.name = digits, but task = language reads tokens: use data.name=text or data.name=tokens.",
        2,
        "Name a text, or leave the task to the recipe.",
        show("digits_resnet20", "task=language"),
    ),
    Case(
        "A classifier has its number of classes left open",
        "command line: model.classes = auto is for task = language, whose data say how many tokens there are; give a number.",
        2,
        "Give the number of classes.",
        show("digits_resnet20", "model.classes=auto"),
    ),
    Case(
        "Windows are longer than the model's positions",
        "command line: data.context = 65 is longer than the 64 positions of the model (model.shape.context). Make one of them fit the other.",
        2,
        "Set model.shape.context=65 too, or leave data.context.",
        show(RECIPE, "data.context=65"),
    ),
    Case(
        "Windows are longer than the positions of a named size",
        "A sequence of 2048 tokens does not fit the model, whose positions end at 1024 (model.shape.context). Shorten the sequences of the data, or build the model with model.shape.context=2048.",
        2,
        "Set data.context=1024.",
        _train(
            model="{name: gpt2, classes: auto}",
            text=b"to be or not to be " * 500,
            **{"data.context": "2048", "model.shape": "{depth: 1}"},
        ),
    ),
    Case(
        "The model has fewer outputs than the data have tokens",
        "model.classes=10, but the data of data.name=text have 19 tokens: the model has no place for the last ones. Set model.classes=auto, or a number from 19 on.",
        2,
        "Set model.classes=auto.",
        _train("model.classes=10"),
    ),
    Case(
        "A network for images is to read text",
        "model.name=resnet18 does not read windows of 16 tokens: Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [1, 16]. Name a language model, such as gpt.",
        2,
        "Set model.name=gpt.",
        _train(model="{name: resnet18, classes: auto}"),
    ),
    Case(
        "A loss that is for labels",
        "command line: loss.name = bce, but task = language has one right token at a time: cross_entropy.",
        2,
        "Leave the loss as it is.",
        show(RECIPE, "loss.name=bce"),
    ),
    Case(
        "Tokens are to be mixed",
        "command line: mix does nothing: tokens are not mixed (task = language).",
        2,
        "Leave mix out.",
        show(RECIPE, "mix.mixup=0.2"),
    ),
    Case(
        "A masked objective for labels",
        "command line: objective does nothing: task = classify has labels.",
        2,
        "Leave it out, or set task=language.",
        show("digits_resnet20", "objective.name=masked_token"),
    ),
    Case(
        "The text file is not there",
        "data.train: other.txt cannot be read: No such file or directory. Name a text file below data.root.",
        2,
        "Correct data.train or data.root.",
        _train(**{"data.train": "other.txt"}),
    ),
    Case(
        "The text is no UTF-8",
        "text.txt is no UTF-8 from byte 2 on. Convert it (iconv -t utf-8), or restore it.",
        1,
        "Convert the file.",
        _train(text="déjà vu ".encode("latin-1").replace(b"d", b"dd") * 100),
    ),
    Case(
        "The text is too short for its windows",
        "data.context=16: text.txt has 27 tokens to train on, and training takes two windows. Use data.context=13 or less, or a longer text.",
        2,
        "Take a longer text.",
        _train(text=b"to be or not to be that is the"),
    ),
    Case(
        "Text is wanted from a classifier",
        "run has task=classify: text comes from runs of task=language.",
        2,
        "Name a run of a language model.",
        lambda place: (place.stopped(), place.cli("sample", "{dir}/run"))[1],
    ),
    Case(
        "The next token is wanted from a model of masked ones",
        "run has objective.name=masked_token: it fills in what is masked and says no next token. Text comes from runs of objective.name=next_token.",
        2,
        "Name a run that learned the next token.",
        _sample(objective="{name: masked_token}", **BERT),
    ),
    Case(
        "A prompt has a character that the model never saw",
        "--prompt has the character 'X' (U+0058), which the text that the run was trained on never had. Its 19 characters are '\\n abdefhilmnoqrstuw'.",
        2,
        "Use its characters.",
        _sample("--prompt", "X"),
    ),
    Case(
        "A prompt is empty",
        "The prompt is empty: text goes on from at least one token.",
        2,
        "Give a prompt.",
        _sample("--prompt", ""),
    ),
    Case(
        "Images are predicted with a language model",
        "restrain predict is for images, and this is a language model (task=language). Use restrain sample run --prompt TEXT.",
        2,
        "Use restrain sample.",
        lambda place: (_train()(place), place.cli("predict", "{dir}/run", "{dir}/text.txt"))[1],
    ),
    Case(
        "A model that sees both sides is to say the next token",
        "objective.name = next_token, but bert sees the tokens after each as well, so it would read the answers off its input. Use objective.name=masked_token.",
        2,
        "Let it say masked tokens, or choose a gpt.",
        show(RECIPE, "model.name=bert"),
    ),
    Case(
        "A branch and its factor would both start at zero",
        "command line: model.zero_init = true with model.join.scale = rezero: a branch and its factor would both start at zero, and neither would ever learn; use auto.",
        2,
        "Leave out one of them.",
        show("digits_resnet20", "model.join.scale=rezero", "model.zero_init=true"),
    ),
]
