"""What must hold in the recipe of a language model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restrain.recipe.schema import Recipe

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
    if task == "language" and data.kind != "tokens":
        yield "data.name", f"= {data.name}, but task = language reads tokens: use data.name=text or data.name=tokens"
    elif task != "language" and data.kind == "tokens":
        yield (
            "data.name",
            f"= {data.name}, but task = {task} trains on images. Use task=language with a language model, or name a "
            f"set of images",
        )


def problems(recipe: "Recipe") -> Iterator[Pair]:
    """What a language model has no place for, and sizes that do not fit."""
    data, model = recipe.data, recipe.model
    for key, because in IMAGES_ONLY:
        if _set(recipe, key):
            yield key, f"does nothing: {because} (task = language)"
    if recipe.loss.name != "cross_entropy":
        yield "loss.name", f"= {recipe.loss.name}, but task = language has one right token at a time: cross_entropy"
    if data.name == "tokens" and data.documents:
        yield "data.documents", "= true does nothing: no model here keeps its attention inside a document"
    if data.name == "text" and data.eval is not None and data.holdout != type(data).model_fields["holdout"].default:
        yield "data.holdout", f"= {data.holdout:g} does nothing: data.eval = {data.eval} is what is evaluated"
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
    if _set(recipe, "objective"):
        yield "objective", f"does nothing: task = {recipe.task} has labels"


def _set(recipe: "Recipe", key: str) -> bool:
    """Whether a key holds something other than its default."""
    section, inner = recipe, key.split(".")
    for part in inner[:-1]:
        section = getattr(section, part)
    field = type(section).model_fields[inner[-1]]
    return getattr(section, inner[-1]) != field.get_default(call_default_factory=True)
