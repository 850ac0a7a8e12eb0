"""What must hold between the keys of a recipe: sizes that divide, and no key that is legal but does nothing.

A key counts as "does nothing" only when it holds something other than its default, so that a recipe printed with all
its defaults is valid again.
"""

import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from restrain.recipe import augmenting, language, sequences
from restrain.recipe.durations import Duration
from restrain.recipe.model_names import FAMILIES, family_of

if TYPE_CHECKING:
    from restrain.recipe.schema import Recipe

DIGITS_CLASSES = 10
DIGITS_SIDE = 8
_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")  # s3://user:password@host
TOP5_ABOVE = 10  # classes; with fewer, five guesses say little


class Problem(NamedTuple):
    """One thing wrong: the dotted key, and the rest of the sentence that begins with it."""

    key: str
    text: str


class Misfit(ValueError):
    """The recipe's values are each legal but do not fit together."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{problem.key} {problem.text}" for problem in problems))
        self.problems = problems


def problems(recipe: "Recipe") -> Iterator[Problem]:
    """Everything in ``recipe`` that does not fit together."""
    if found := [Problem(*one) for one in language.kinds(recipe)]:
        yield from found
        return
    own = {"language": language.problems, "regress": sequences.problems}.get(recipe.task, language.images)
    for one in itertools.chain(own(recipe), sequences.reading(recipe)):
        yield Problem(*one)
    kind = (_order,) if recipe.data.kind != "images" else (_data, _order, _resolution, _mix)
    for check in (_secrets, _batch, _model, *kind, _optimizer, _schedule, _parallel, _checkpoint, _expect):
        yield from check(recipe)


def _idle(section: Any, name: str, key: str, because: str) -> Iterator[Problem]:
    """A problem when ``section.name`` was set although it does nothing."""
    value = getattr(section, name)
    if value != type(section).model_fields[name].get_default(call_default_factory=True):
        yield Problem(f"{key}.{name}", f"= {show(value)} does nothing: {because}")


def show(value: Any) -> str:
    """A value as a recipe writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return "[" + ", ".join(show(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)


def _secrets(recipe: "Recipe") -> Iterator[Problem]:
    """A recipe is written into the lock, run.json and the trackers: nothing secret may be in it."""
    for key, text in _texts(recipe.model_dump(), ""):
        if _PASSWORD.search(text):
            told = "holds a user and a password; keep these in the environment, or in the storage's own configuration"
            yield Problem(key, told)


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}".lstrip("."))


def _batch(recipe: "Recipe") -> Iterator[Problem]:
    whole, group, micro = recipe.batch.global_, recipe.batch.group, recipe.batch.micro
    if whole % group:
        divisors = [size for size in range(1, whole + 1) if whole % size == 0]
        near = sorted(sorted(divisors, key=lambda size: abs(size - group))[:4])
        yield Problem("batch.group", f"= {group} does not divide batch.global = {whole}; {listed(near)} do")
    elif isinstance(micro, int) and (micro % group or whole % micro):
        legal = [size for size in range(group, whole + 1, group) if whole % size == 0]
        yield Problem(
            "batch.micro",
            f"= {micro} is impossible: a multiple of batch.group = {group} that divides batch.global = {whole} is "
            f"needed; auto, {listed(legal)} work",
        )


def listed(numbers: list[int], most: int = 12) -> str:
    """``"1, 2, 4"``, cut in the middle when long."""
    shown = [str(number) for number in numbers[:most]]
    return ", ".join(shown) + (f", ... {numbers[-1]}" if len(numbers) > most else "")


def _model(recipe: "Recipe") -> Iterator[Problem]:
    model = recipe.model
    drop = model.drop_path
    if model.join.name == "add" and model.join.scale in (None, "one"):
        yield from _idle(model.join, "init", "model.join", "without a model.join.scale nothing is learned")
    if model.zero_init is True and model.join.name == "add" and model.join.scale in ("rezero", "skipinit"):
        yield Problem(
            "model.zero_init",
            f"= true with model.join.scale = {model.join.scale}: a branch and its factor would both start at zero, and "
            f"neither would ever learn; use auto",
        )
    if model.join.name == "scale" and model.join.branch == 0:
        yield Problem("model.join.branch", "= 0: no branch would ever count, or learn; use another number")
    if model.join.name == "none":
        yield from _idle(drop, "rate", "model.drop_path", "with model.join.name = none no path is left when one drops")
        if model.zero_init is True:
            yield Problem("model.zero_init", "= true would make a plain network output zero; use auto or false")
    if drop.rate == 0:
        for name in ("decay", "mode"):
            yield from _idle(drop, name, "model.drop_path", "model.drop_path.rate is 0")
    yield from _sizes(recipe)
    if model.name.startswith("timm/"):
        yield from _timm(recipe)
    elif "/" not in model.name:
        yield from _own(recipe)
    for part in model.freeze:
        first, _, last = part.removeprefix("block:").partition("-")
        if last and int(last) < int(first):
            yield Problem("model.freeze", f"has {part}, which ends before it begins")


def _sizes(recipe: "Recipe") -> Iterator[Problem]:
    """Keys of ``model.shape`` and its like that the network's family has no place for, or needs."""
    model = recipe.model
    if "/" in model.name and not model.name.startswith("timm/"):
        return  # code of one's own says itself what it takes
    found = family_of(model.name)
    for section in ("shape", "transformer", "recurrent"):
        taken = getattr(found[1], section) if found else ()
        for name in type(getattr(model, section)).model_fields:
            if name not in taken:
                owners = [key for key, family in FAMILIES.items() if name in getattr(family, section)]
                because = f"model.name = {model.name} has its own"
                because += f"; it is for {', '.join(owners)}" if owners else ""
                yield from _idle(getattr(model, section), name, f"model.{section}", because)
    for name in found[1].needed if found else ():
        if getattr(model.shape, name) is None:
            yield Problem(f"model.shape.{name}", f"is missing: model.name = {model.name} is of any size")


def _timm(recipe: "Recipe") -> Iterator[Problem]:
    """What a timm model has no place for."""
    model = recipe.model
    options = ("stem", "downsample", "blurpool", "feedback", *(["zero_init"] if model.zero_init is True else []))
    for name in options:  # zero_init = false wants nothing, and stands in recipes that another network is put into
        yield from _idle(model, name, "model", f"it is an option of our own ResNets, and model.name = {model.name}")
    if model.join.name != "add":
        yield Problem("model.join.name", f"= {model.join.name}, but {model.name} adds its branches itself: use add")
    else:
        yield from _idle(model.join, "scale", "model.join", f"{model.name} adds its branches itself")
    if model.drop_path.mode != "sample":
        yield Problem("model.drop_path.mode", f"= {model.drop_path.mode}, but {model.name} drops by row: use sample")
    if model.drop_path.decay != "linear":
        yield Problem("model.drop_path.decay", f"= {model.drop_path.decay}, but {model.name} has timm's rule: linear")
    if "." in model.name and (model.init is None or model.init.from_ != "timm"):
        plain = model.name.partition(".")[0]
        yield Problem(
            "model.name", f"= {model.name} names weights that are not asked for: use {plain}, or model.init.from=timm"
        )


def _own(recipe: "Recipe") -> Iterator[Problem]:
    """What only some of our own networks have a place for."""
    model = recipe.model
    is_cifar = model.name.startswith("cifar_")
    is_resnet = model.name in FAMILIES["resnet"].names
    if is_cifar or not is_resnet:
        for name in ("stem", "downsample", "blurpool"):
            sizes = "the ImageNet sizes of ResNets" if is_resnet else "ResNets"
            yield from _idle(model, name, "model", f"it is for {sizes}, and model.name = {model.name}")
        if is_cifar and model.init is not None and model.init.from_ == "timm":
            yield Problem("model.init.from", f"= timm, which has no weights for {model.name}")
    elif model.join.name == "none":
        yield from _idle(model, "downsample", "model", "with model.join.name = none there is no shortcut")


def _data(recipe: "Recipe") -> Iterator[Problem]:
    data, model = recipe.data, recipe.model
    for name in ("mean", "std"):
        channels = len(getattr(data, name))
        if channels != model.in_chans:
            yield Problem(f"data.{name}", f"has length {channels}, but model.in_chans = {model.in_chans}")
    if data.name == "digits":
        if isinstance(model.classes, int) and model.classes != DIGITS_CLASSES:
            yield Problem("model.classes", f"= {model.classes}, but data.name = digits has {DIGITS_CLASSES} classes")
        for name in ("decode", "max_bad", "cache"):
            yield from _idle(data, name, "data", "the digits are arrays, not files")
    for key, text in itertools.chain(augmenting.problems(recipe), augmenting.repeats(recipe)):
        yield Problem(key, text)


def _order(recipe: "Recipe") -> Iterator[Problem]:
    if not recipe.data.shuffle:
        yield from _idle(recipe.data, "window", "data", "data.shuffle is false")


def _resolution(recipe: "Recipe") -> Iterator[Problem]:
    sizes = recipe.resolution
    if recipe.data.name == "digits":
        for name in ("train", "eval"):
            if getattr(sizes, name) not in (None, DIGITS_SIDE):
                yield Problem(
                    f"resolution.{name}", f"= {getattr(sizes, name)} does nothing: the digits are 8 x 8 and stay so"
                )
        for name in ("eval_resize", "interpolation", "schedule"):
            yield from _idle(sizes, name, "resolution", "the digits are 8 x 8 and stay so")
        return
    if sizes.train is None:
        yield Problem("resolution.train", f"is missing: data.name = {recipe.data.name} needs the side in pixels")
    if sizes.eval_resize is None:
        yield from _idle(sizes, "interpolation", "resolution", "resolution.eval_resize is null")
    for key, text in augmenting.progressive(recipe):
        yield Problem(key, text)
    final = sizes.eval or sizes.train
    if sizes.eval_resize is not None and final is not None and sizes.eval_resize < final:
        yield Problem(
            "resolution.eval_resize", f"= {sizes.eval_resize} is smaller than the crop of {final} taken of it"
        )


def _mix(recipe: "Recipe") -> Iterator[Problem]:
    mix = recipe.mix
    if recipe.batch.group == 1:
        for name in ("mixup", "cutmix"):
            yield from _idle(mix, name, "mix", "partners come from the same group, and batch.group = 1")
    if mix.mixup == 0 and mix.cutmix == 0:
        yield from _idle(mix, "off", "mix", "mix.mixup and mix.cutmix are 0")


def _optimizer(recipe: "Recipe") -> Iterator[Problem]:
    optimizer = recipe.optimizer
    if optimizer.lr_per is None:
        yield from _idle(optimizer, "lr_rule", "optimizer", "optimizer.lr_per, the batch that lr is for, is null")
    elif optimizer.lr_rule == "none":
        yield Problem("optimizer.lr_per", f"= {optimizer.lr_per} needs optimizer.lr_rule: linear or sqrt")
    if optimizer.weight_decay == 0:
        yield from _idle(optimizer, "no_decay", "optimizer", "optimizer.weight_decay is 0")
        if optimizer.name == "sgd":
            yield from _idle(optimizer, "decay", "optimizer", "optimizer.weight_decay is 0")
    if (optimizer.name == "sgd" or optimizer.name == "lars") and optimizer.nesterov and optimizer.momentum == 0:
        yield Problem("optimizer.nesterov", "= true does nothing: optimizer.momentum is 0")


def _schedule(recipe: "Recipe") -> Iterator[Problem]:
    schedule, length = recipe.schedule, recipe.length
    if schedule.warmup.value == 0:
        yield from _idle(schedule, "warmup_from", "schedule", "schedule.warmup is 0")
    if schedule.name == "step":
        for one, other in itertools.pairwise(schedule.at):
            if _not_before(one, other):
                yield Problem("schedule.at", f"must rise, but {other} comes after {one}")
        for moment in schedule.at:
            # In epochs or steps it may lie beyond the end: a recipe that was shortened for a try is still that recipe.
            if moment.unit == "%" and moment.value >= 100:
                yield Problem("schedule.at", f"has {moment}, which does nothing: length = {length}")
    elif schedule.name == "one_cycle":
        if schedule.warmup.value:
            yield Problem(
                "schedule.warmup", f"= {schedule.warmup}, but one_cycle has its own rise, up to schedule.peak"
            )
        if schedule.peak.unit == "%" and schedule.peak.value > 100:
            yield Problem("schedule.peak", f"= {schedule.peak} is never reached: length = {length}")
    elif schedule.name == "wsd":
        if schedule.decay.value == 0:
            yield from _idle(schedule, "final", "schedule", "schedule.decay is 0")
    elif schedule.name == "inverse_sqrt" and schedule.warmup.value == 0:
        yield Problem("schedule.warmup", "= 0, but inverse_sqrt is 1 / sqrt(step / warmup): it needs a warm-up")
    elif schedule.name == "cosine" and schedule.warmup.value == 0:
        yield from _idle(schedule, "warmup_prefix", "schedule", "schedule.warmup is 0")
    if recipe.profile is not None and _not_before(recipe.profile.at, length):
        yield Problem("profile.at", f"= {recipe.profile.at} is never reached: length = {length}")


def _not_before(one: Duration, other: Duration) -> bool:
    """Whether ``one`` is known, without the size of an epoch, not to come before ``other``."""
    if one.unit == "%" and other.unit != "%":
        return one.value >= 100
    return one.unit == other.unit and one.value >= other.value


def _parallel(recipe: "Recipe") -> Iterator[Problem]:
    parallel = recipe.parallel
    if parallel.strategy == "single":
        for name in ("devices", "nodes"):
            if getattr(parallel, name) not in ("auto", 1):
                yield Problem(
                    f"parallel.{name}", f"= {getattr(parallel, name)}, but parallel.strategy = single is one process"
                )
    if parallel.compile != "none" and recipe.track.probe is not None:
        yield Problem(
            "track.probe",
            f"= {recipe.track.probe} reads inside of the blocks, which parallel.compile = {parallel.compile} fuses: "
            "the steps that are read would compute other last bits. Set one of them to null or none",
        )
    if parallel.compile == "step":
        yield from _whole(recipe)


def _whole(recipe: "Recipe") -> Iterator[Problem]:
    """What does not go with one compiled graph of the whole network."""
    parallel, key = recipe.parallel, "parallel.compile"
    if parallel.remat != "none":
        yield Problem(
            key,
            f"= step is one graph, whose compiler decides what it computes again, and parallel.remat = "
            f"{parallel.remat} says which blocks are. Use parallel.compile=block, or parallel.remat=none",
        )
    if recipe.model.drop_path.rate and recipe.model.drop_path.mode == "batch":
        yield Problem(
            key,
            "= step is one graph, and model.drop_path.mode = batch calls other blocks in every step, each time a graph "
            "of its own. Use parallel.compile=block, or model.drop_path.mode=sample",
        )
    if parallel.strategy in ("fsdp", "hsdp") or parallel.tensor > 1:
        chosen = f"tensor = {parallel.tensor}" if parallel.tensor > 1 else f"strategy = {parallel.strategy}"
        yield Problem(
            key,
            f"= step is one graph, and parallel.{chosen} communicates between and inside of the blocks. Use "
            f"parallel.compile=block",
        )


def _expect(recipe: "Recipe") -> Iterator[Problem]:
    if recipe.expect is None:
        return
    known = ["train/loss", "train/top1", "train/grad_norm", *_measured(recipe)]
    for number, wire in enumerate(recipe.expect.at):
        key = f"expect.at[{number}]"
        if wire.metric not in known:
            yield Problem(f"{key}.metric", f"= {wire.metric} is not measured; {', '.join(known)} are")
        if wire.min is None and wire.max is None:
            yield Problem(key, "has no bound: give min, max or both")
        elif wire.min is not None and wire.max is not None and wire.min > wire.max:
            yield Problem(f"{key}.min", f"= {show(wire.min)} is above max = {show(wire.max)}: no value is between them")
        if _not_before(wire.at, recipe.length):
            yield Problem(f"{key}.at", f"= {wire.at} is never reached: length = {recipe.length}")


def _measured(recipe: "Recipe") -> list[str]:
    """The metrics of an evaluation."""
    classes = recipe.model.classes
    told = ["eval/loss", "eval/perplexity", "eval/top1"] if recipe.task == "language" else ["eval/loss", "eval/top1"]
    return [*told, *(["eval/top5"] if not isinstance(classes, int) or classes > TOP5_ABOVE else [])]


def _checkpoint(recipe: "Recipe") -> Iterator[Problem]:
    best = recipe.checkpoint.best
    measured = _measured(recipe)
    if best is not None and best not in measured:
        told = f"= {best} is not measured; {', '.join(measured)} are"
        if best == "eval/top5":
            told = (
                f"= eval/top5 is measured above {TOP5_ABOVE} classes only, and model.classes = {recipe.model.classes}"
            )
        yield Problem("checkpoint.best", told)
