"""What must hold in the recipe of a language model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from restrain.recipe.model_names import family_of

if TYPE_CHECKING:
    from restrain.recipe.schema import Recipe
    from restrain.recipe.schema_data import Data

Pair = tuple[str, str]
IMAGES_ONLY = (
    ("resolution", "a text has no pixels"),
    ("mix", "tokens are not mixed"),
    ("evaluate.flip", "a text has no mirror image"),
    ("model.in_chans", "tokens have no channels"),
)


def kinds(recipe: "Recipe") -> Iterator[Pair]:
    """Task and data that are not for one another; whatever else is amiss comes of this."""
    task, data = recipe.task, recipe.data
    if (task == "regress") != (data.kind == "sequences"):
        yield "task", f"= {task}, but data.name = {data.name}{_task_of(data)} has {_asks(data.kind)}"
    elif task == "language" and data.kind != "tokens":
        yield "data.name", f"= {data.name}, but task = language reads tokens: use data.name=text or data.name=tokens"
    elif task != "language" and data.kind == "tokens":
        yield (
            "data.name",
            f"= {data.name}, but task = {task} trains on images. Use task=language with a language model, or name a "
            f"set of images",
        )


def _task_of(data: "Data") -> str:
    return f" with data.task = {data.task}" if data.name == "sequences" else ""


def _asks(kind: str) -> str:
    return {
        "sequences": "numbers to say: use task=regress",
        "tokens": "tokens to say: use task=language",
        "images": "images: use task=classify, or data.name=sequences for a regression",
    }[kind]


def problems(recipe: "Recipe") -> Iterator[Pair]:
    """What a language model has no place for, and sizes that do not fit."""
    data, model = recipe.data, recipe.model
    for key, because in IMAGES_ONLY:
        if is_set(recipe, key):
            yield key, f"does nothing: {because} (task = language)"
    if recipe.loss.name != "cross_entropy":
        yield "loss.name", f"= {recipe.loss.name}, but task = language has one right token at a time: cross_entropy"
    if data.name == "tokens" and data.documents:
        yield "data.documents", "= true does nothing: task = language gives a model its tokens alone"
    if data.name == "text" and data.eval is not None and data.holdout != type(data).model_fields["holdout"].default:
        yield "data.holdout", f"= {data.holdout:g} does nothing: data.eval = {data.eval} is what is evaluated"
    found = family_of(model.name)
    sees_all = found is not None and found[0] == "bert"
    if sees_all and recipe.objective.name == "next_token":
        yield (
            "objective.name",
            f"= next_token, but {model.name} sees the tokens after each as well, so it would read the answers off its "
            f"input. Use objective.name=masked_token",
        )
    elif found is not None and not sees_all and recipe.objective.name == "masked_token":
        yield (
            "objective.name",
            f"= masked_token, but {model.name} sees only what stands before a masked token. Use a model of bert's "
            f"family, or objective.name=next_token",
        )
    if data.name == "sequences" and recipe.objective.name != "next_token":
        yield "objective.name", f"= {recipe.objective.name}, but data.task = copy asks for the next token: next_token"
    shape = getattr(model, "shape", None)
    positions = getattr(shape, "context", None)
    if positions is not None and data.kind == "tokens" and data.context > positions:
        yield (
            "data.context",
            f"= {data.context} is longer than the {positions} positions of the model (model.shape.context). Make one "
            f"of them fit the other",
        )


def images(recipe: "Recipe") -> Iterator[Pair]:
    """What a recipe of images has no place for."""
    if not isinstance(recipe.model.classes, int):
        yield "model.classes", "= auto is for task = language, whose data say how many tokens there are; give a number"
    elif recipe.model.classes < 2:
        yield "model.classes", f"= {recipe.model.classes}, but task = {recipe.task} has at least 2 classes"
    if is_set(recipe, "objective"):
        yield "objective", f"does nothing: task = {recipe.task} has labels"


def is_set(recipe: "Recipe", key: str) -> bool:
    """Whether a key holds something other than its default."""
    section, inner = recipe, key.split(".")
    for part in inner[:-1]:
        section = getattr(section, part)
    field = type(section).model_fields[inner[-1]]
    return getattr(section, inner[-1]) != field.get_default(call_default_factory=True)
