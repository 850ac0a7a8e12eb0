"""What must hold inside ``data.augment``, and between it and the size of the images."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from restrain.recipe.policy import parse_policy

if TYPE_CHECKING:
    from restrain.recipe.schema import Recipe

BY_PIL = ("rand_augment", "trivial_augment", "auto_augment", "three_augment", "color_jitter", "lighting")
COLOURED = {
    "three_augment": "turns a third of the images grey",
    "lighting": "moves colours along the components of RGB",
}
RESIZING = ("random_resized_crop", "resize", "random_short_side", "random_crop", "centre_crop")

Told = tuple[str, str]  # dotted key, rest of the sentence that begins with it


def problems(recipe: "Recipe") -> Iterator[Told]:
    """Everything in ``data.augment`` that cannot be, or does nothing."""
    last = len(recipe.data.augment) - 1
    for number, operation in enumerate(recipe.data.augment):
        key = f"data.augment[{number}]"
        yield from _values(key, operation)
        yield from _channels(key, operation, recipe.model.in_chans)
        if operation.name == "random_erasing" and number != last:
            yield key, "= random_erasing is not the last: what comes after would change what was erased"


def _values(key: str, operation: Any) -> Iterator[Told]:
    if operation.name in ("random_resized_crop", "random_erasing"):
        for name in ("scale", "ratio"):
            low, high = getattr(operation, name)
            if low > high:
                yield f"{key}.{name}", f"= [{low:g}, {high:g}] ends before it begins"
        if operation.scale[1] > 1:
            yield f"{key}.scale", "takes more than the whole image; its largest value is 1"
    if operation.name == "random_short_side" and operation.sizes[0] > operation.sizes[1]:
        yield f"{key}.sizes", f"= [{operation.sizes[0]}, {operation.sizes[1]}] ends before it begins"
    if operation.name in ("flip", "random_erasing") and operation.p == 0:
        what = "the flip" if operation.name == "flip" else "random_erasing"
        yield f"{key}.p", f"= 0 does nothing: leave {what} out"
    if operation.name == "color_jitter" and not any(
        (operation.brightness, operation.contrast, operation.saturation, operation.hue)
    ):
        yield key, "= color_jitter does nothing: set brightness, contrast, saturation or hue"
    if operation.name == "rand_augment" and operation.policy is not None:
        try:
            parse_policy(operation.policy)
        except ValueError as error:
            yield f"{key}.policy", f"= {operation.policy} {error}"
        for name, letter in (("ops", "n"), ("magnitude", "m")):
            value = getattr(operation, name)
            if value != type(operation).model_fields[name].default:
                yield f"{key}.{name}", f"= {value} does nothing: the policy has its own, {letter}"


def _channels(key: str, operation: Any, channels: int) -> Iterator[Told]:
    if operation.name in BY_PIL and channels not in (1, 3):
        yield key, f"= {operation.name} takes grey or RGB images, and model.in_chans = {channels}"
    if channels != 1:
        return
    if operation.name in COLOURED:
        yield key, f"= {operation.name} {COLOURED[operation.name]}, and model.in_chans = 1 is grey"
    if operation.name == "color_jitter":
        for name in ("saturation", "hue"):
            if getattr(operation, name):
                yield f"{key}.{name}", "does nothing: model.in_chans = 1 is grey"


def progressive(recipe: "Recipe") -> Iterator[Told]:
    """Everything that keeps ``resolution.schedule`` from working."""
    schedule, last = recipe.resolution.schedule, recipe.resolution.train
    if schedule is None or last is None:
        return
    if schedule.first >= last:
        yield "resolution.schedule.first", f"= {schedule.first} is not smaller than resolution.train = {last}"
    for key, side in (("resolution.schedule.first", schedule.first), ("resolution.train", last)):
        if side % schedule.multiple:
            yield key, f"= {side} is not a multiple of resolution.schedule.multiple = {schedule.multiple}"
    begins, ends = schedule.ramp
    if begins.unit == ends.unit and begins.value > ends.value:
        yield "resolution.schedule.ramp", f"= [{begins}, {ends}] ends before it begins"
    if begins.unit == "%" and begins.value >= 100:
        yield "resolution.schedule.ramp", f"begins at {begins}: the side would never grow"
    named = [operation.name for operation in recipe.data.augment if operation.name in RESIZING]
    if not named or named[-1] != "random_resized_crop":
        told = f"{named[-1]} makes images of one size" if named else "nothing in data.augment resizes"
        yield (
            "resolution.schedule",
            f"needs random_resized_crop as the last step that sizes images, and {told}: the side could not grow",
        )


def repeats(recipe: "Recipe") -> Iterator[Told]:
    """Everything that keeps ``data.repeats`` from working."""
    copies, whole, group = recipe.data.repeats, recipe.batch.global_, recipe.batch.group
    if copies == 1:
        return
    if not recipe.data.augment:
        yield "data.repeats", f"= {copies} would show {copies} equal copies of an image: data.augment is empty"
    if not recipe.data.shuffle:
        yield "data.repeats", f"= {copies} would show the same first images in each epoch: data.shuffle is false"
    if copies > whole // group:
        works = [size for size in range(1, whole + 1) if whole % size == 0 and size * copies <= whole][-4:]
        cure = f"batch.group of {', '.join(map(str, works))} does" if works else "a larger batch.global is needed"
        yield (
            "data.repeats",
            f"= {copies} needs as many groups, one for each copy of an image, and batch.global = {whole} has "
            f"{whole // group} of batch.group = {group}; {cure}",
        )
