"""What must hold in the recipe of a synthetic sequence task."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from restrain.recipe.model_names import family_of

if TYPE_CHECKING:
    from restrain.recipe.schema import Recipe

Pair = tuple[str, str]
RECURRENT = ("rnn", "lstm1997", "lstm")
INPUTS = 2  # numbers a step of the adding problem: a value and a marker
IMAGES_ONLY = ("resolution", "mix", "evaluate.flip", "objective", "loss")


def problems(recipe: "Recipe") -> Iterator[Pair]:
    """Of a regression: keys that do nothing, and sizes that do not fit."""
    from restrain.recipe.language import is_set

    model = recipe.model
    for key in IMAGES_ONLY:
        if is_set(recipe, key):
            because = "the loss is the squared error" if key == "loss" else "a sequence is neither image nor text"
            yield key, f"does nothing: {because} (task = regress)"
    if model.in_chans != INPUTS:
        yield (
            "model.in_chans",
            f"= {model.in_chans}, but a step of data.task = adding has {INPUTS} numbers: use {INPUTS}",
        )
    if model.classes != 1:
        yield "model.classes", f"= {model.classes}, but the target of data.task = adding is one number: use 1"


def reading(recipe: "Recipe") -> Iterator[Pair]:
    """A recurrent network that reads another thing than the data are, and a sequence that nothing else can read."""
    found = family_of(recipe.model.name)
    recurrent = found is not None and found[0] in RECURRENT
    reads = recipe.model.recurrent.reads or "numbers"
    wanted = "tokens" if recipe.task == "language" else "numbers"
    if recurrent and recipe.task == "classify":
        yield (
            "model.name",
            f"= {recipe.model.name} reads sequences, and task = classify has images. Name another network",
        )
    elif found is not None and found[0] in ("gpt", "bert") and recipe.task == "classify":
        yield (
            "model.name",
            f"= {recipe.model.name} reads tokens, and task = classify has images. Name another network, such as vit, "
            f"or set task = language",
        )
    elif recurrent and reads != wanted and "/" not in recipe.task:
        yield "model.recurrent.reads", f"= {reads}, but the data of task = {recipe.task} are {wanted}: use {wanted}"
    elif not recurrent and recipe.task == "regress":
        known = ", ".join(RECURRENT)
        yield "model.name", f"= {recipe.model.name} does not read sequences of numbers (task = regress): {known} do"
