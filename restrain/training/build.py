"""From a recipe to the objects of a run. The only module that imports everything; each function makes one part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from restrain.data import augment, gpu, sets
from restrain.data.filling import MIN_BAD, read_into
from restrain.data.images import GPU, DecodeError, decode, resolve_decoder, working_decoder
from restrain.data.indexing import Reporter
from restrain.data.laps import Laps
from restrain.data.loader import EvalLoader, TrainLoader
from restrain.data.mix import Mix
from restrain.data.order import ORDER_VERSION, Order, Plan, Segment, resolve_shuffle
from restrain.data.progressive import Sides
from restrain.data.reader import BadSample, Source
from restrain.data.wds.stages import Stage
from restrain.errors import UserError, WorldError
from restrain.models.build import build_model, is_foreign
from restrain.models.foreign import Build
from restrain.models.init import materialise
from restrain.models.norm import set_group
from restrain.optim import schedules
from restrain.optim.ema import Ema
from restrain.optim.optimizers import build_optimizer
from restrain.parallel import blocks, precision
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.recipe.checks import DIGITS_SIDE
from restrain.recipe.durations import Duration
from restrain.training.border import Cadence
from restrain.training.classify import Classify, build_loss
from restrain.training.own import Own, check_rows
from restrain.training.placement import Placement
from restrain.training.state import RunState


@dataclass(frozen=True)
class Data:
    """The data of a run: the sets, how an image is made from a sample, and what identifies them."""

    train: Source
    evaluation: Source | None
    train_pipeline: augment.Pipeline
    eval_pipeline: augment.Pipeline
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def pixels(self) -> int:
        """Height x width of a training image, the largest of the run."""
        return self.train_pipeline.size**2


def open_data(recipe: Recipe, reporter: Reporter | None = None, stages: Sequence[Stage] = ()) -> Data:
    """Open the sets of a recipe, indexing them first where they have no index; ``reporter`` tells of it. stages: a
    script's own."""
    classes = recipe.model.classes
    train = sets.open_source(recipe.data, "train", classes=classes, reporter=reporter, stages=stages)
    assert train is not None
    evaluation = sets.open_source(recipe.data, "eval", classes=classes, reporter=reporter, stages=stages)
    if train.channels != recipe.model.in_chans:
        raise UserError(
            f"model.in_chans={recipe.model.in_chans}, but the images of data.name={recipe.data.name} have "
            f"{train.channels} channel(s). Set model.in_chans={train.channels}."
        )
    # The digits are arrays: no library is loaded to decode them.
    decoder = "pil" if recipe.data.name == "digits" else working_decoder(recipe.data.decode)
    size = recipe.resolution.train or own_size(train, decoder)
    channels = train.channels
    data = Data(
        train,
        evaluation,
        augment.train_pipeline(
            recipe.data.augment,
            size,
            channels=channels,
            decoder=decoder,
            mean=recipe.data.mean,
            std=recipe.data.std,
        ),
        augment.eval_pipeline(
            recipe.resolution.eval or size,
            recipe.resolution.eval_resize,
            channels=channels,
            decoder=decoder,
            kernel=recipe.resolution.interpolation,
        ),
        recipe.data.mean,
        recipe.data.std,
    )
    if reporter is not None:
        _try(train, data.train_pipeline)
        if evaluation is not None:
            _try(evaluation, data.eval_pipeline)
    return data


def use_decoder(data: Data, recipe: Recipe) -> str:
    """Let both pipelines decode by ``data.decode``, once that is known; returns its name and version.

    Raises UserError where that decoder does not work here: a run keeps to one.
    """
    if recipe.data.name == "digits":
        return ""
    name, version = resolve_decoder(recipe.data.decode)
    if name == GPU:
        gpu.check(data.train_pipeline)
        data.train_pipeline.decoder = data.eval_pipeline.decoder = working_decoder(name)
    else:
        data.train_pipeline.decoder = data.eval_pipeline.decoder = name
    return f"{name} {version}"


def _try(source: Source, pipeline: augment.Pipeline) -> None:
    """Make one image, so that sizes that do not fit are told before a run begins and not after its first epoch."""
    with suppress(BadSample):  # there is a budget for these
        read_into(source, pipeline, 0, 0, 0, np.empty(pipeline.shape, np.uint8))


def own_size(source: Source, decoder: str) -> int:
    """Side of a set's first image: what ``resolution.train: null`` means. Raises UserError where it is not square."""
    for j in range(min(int(source.counts[0]), MIN_BAD)):
        try:
            data = source.read(0, j).data
            height, width = (data if isinstance(data, np.ndarray) else decode(data, decoder)).shape[:2]
            break
        except (BadSample, DecodeError):
            continue
    else:
        raise WorldError(f"None of the first samples of {source.names[0]} can be decoded. Restore it from its origin.")
    if height != width:
        raise UserError(
            f"resolution.train is null, and the first image is {width} x {height} pixels, not square. "
            f"Set resolution.train, and put a step into data.augment that makes images of that size."
        )
    return height


def resolved_autos(recipe: Recipe, data: Data, device: torch.device) -> dict[str, Any]:
    """What each defining ``auto`` of a recipe becomes on this device with these data."""
    samples = int(data.train.counts.sum())
    lanes, window = resolve_shuffle(samples, recipe.data.lanes, recipe.data.window)
    found = {"precision": precision.resolve(recipe.precision, device), "data.lanes": lanes, "data.window": window}
    if recipe.data.name != "digits":  # which are arrays, not files
        found["data.decode"] = resolve_decoder(recipe.data.decode)[0]
    return found


def identity(name: str, recipe: Recipe, data: Data) -> dict[str, Any]:
    """What identifies a run's data, for its lock: a changed byte of a shard is another run."""
    embedded = recipe.data.name == "digits"
    return {
        "recipe": name,
        "order_version": ORDER_VERSION,
        "samples": int(data.train.counts.sum()),
        "fingerprint": data.train.fingerprint,
        "decoder": None if embedded else " ".join(resolve_decoder(recipe.data.decode)),
    }


def build_plan(recipe: Recipe, data: Data, segments: list[dict[str, int]]) -> Plan:
    """The plan of steps. ``segments``: those that interventions appended, as a checkpoint stores them."""
    samples = int(data.train.counts.sum())
    lanes, _ = resolve_shuffle(samples, recipe.data.lanes, recipe.data.window)
    first = segments[0] if segments else {"batch": recipe.batch.global_, "group": recipe.batch.group}
    later = [Segment(**s) for s in segments[1:]]
    return Plan(samples, first["batch"], first["group"], lanes, later, recipe.data.repeats)


def total_steps(recipe: Recipe, plan: Plan) -> int:
    """Length of the run in optimizer steps."""
    return step_of(recipe.length, plan, None)


def step_of(duration: Duration, plan: Plan, total: int | None) -> int:
    """The step at which a duration from the run's start ends; epochs are those of the plan, whatever its batches."""
    if duration.unit == "ep":
        return plan.step_at(duration.value)
    return duration.steps(plan.steps_per_epoch, total)


def image_sides(recipe: Recipe) -> tuple[int, ...]:
    """Sides in pixels of the images that a run shows its network: that of training first, then what else there is."""
    sizes = recipe.resolution
    train = sizes.train or DIGITS_SIDE  # the digits alone may leave it out
    found = [train, sizes.eval or train]
    if sizes.schedule is not None:
        found += range(sizes.schedule.first, train, sizes.schedule.multiple)
    return tuple(dict.fromkeys(found))


def build_model_on(recipe: Recipe, device: torch.device, seed: int, own: Build | None = None) -> nn.Module:
    """The recipe's model on its device: built without memory, then filled by keyed initialisation.

    A model that is not ours fills itself while it is constructed, from keys as well: it is built on the host. ``own``:
    what builds a script's.
    """
    section = recipe.model.model_dump()
    dtype = precision.dtype_of_weights(recipe.precision)
    if is_foreign(recipe.model.name):
        model = build_model(section, seed, image_sides(recipe), own).to(dtype).to(device)
    else:
        with torch.device("meta"):
            model = build_model(section)
        materialise(model.to(dtype), device, seed)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    set_group(model, recipe.batch.group)
    return model


def check_model(recipe: Recipe, own: Build | None = None) -> None:
    """Raises UserError for a model that cannot be built or trained, before a run folder is made for it."""
    with torch.device("meta"):
        build_model(recipe.model.model_dump(), recipe.seed, image_sides(recipe), own)


def check_task(recipe: Recipe, data: Data, own: Own) -> None:
    """Raises UserError for a task that is not ours and cannot be trained, before a run folder is made for it."""
    if recipe.task != "classify":
        check_rows(build_task(recipe, data, torch.device("cpu"), own), recipe)


def build_task(recipe: Recipe, data: Data, device: torch.device, own: Own | None = None) -> Classify:
    """Model, loss and normalisation, with frozen parts, recomputation and compilation applied in that order."""
    own = own or Own()
    model = build_model_on(recipe, device, recipe.seed, own.model)
    if recipe.parallel.remat == "block":
        blocks.apply_remat(model)
    if recipe.parallel.compile == "block":
        blocks.apply_compile(model)
    make = own.make_task(recipe)
    return make(model, build_loss(recipe.loss), data.mean, data.std).to(device)


def build_state(recipe: Recipe, task: Classify, plan: Plan, total: int, device: torch.device) -> RunState:
    """Optimizer, EMA and scaler around a model, at step 0."""
    optimizer = build_optimizer(recipe.optimizer, task.model, batch_global=recipe.batch.global_)
    ema = None
    if recipe.ema is not None:
        ema = Ema(task.model, recipe.ema.decay, recipe.ema.every.steps(plan.steps_per_epoch, total))
    scaler = precision.LossScale(device) if recipe.precision == "fp16" else None
    segments = [{"from_step": 0, "epoch": 0, "position": 0, "batch": plan.batch, "group": plan.group}]
    return RunState(task.model, optimizer, ema, scaler, segments=segments)


def build_factor(recipe: Recipe, plan: Plan, total: int) -> Callable[[int], float]:
    """Step (0-based) -> factor of the base learning rate."""
    schedule = recipe.schedule
    # Moments become steps of this plan once, so that a batch that was changed on the way does not move them.
    moments: dict[str, Any] = {"warmup": Duration(step_of(schedule.warmup, plan, total), "st")}
    if schedule.name == "step":
        moments["at"] = tuple(Duration(step_of(at, plan, total), "st") for at in schedule.at)
    elif schedule.name == "one_cycle":
        moments["peak"] = Duration(step_of(schedule.peak, plan, total), "st")
    elif schedule.name == "wsd" and schedule.decay.unit == "ep":
        begins = plan.step_at(max(0.0, plan.epochs(total) - schedule.decay.value))
        moments["decay"] = Duration(total - begins, "st")
    begin: Callable[[int], int] = lambda step: step  # noqa: E731
    if schedule.per == "epoch":
        moments["per"] = "step"
        begin = lambda step: plan.step_at(plan.place(step)[0])  # noqa: E731
    section = schedule.model_copy(update=moments)
    per_epoch = plan.steps_per_epoch
    return lambda step: schedules.factor(section, begin(step), steps_per_epoch=per_epoch, total_steps=total)


def every(duration: Duration, plan: Plan, total: int) -> Callable[[int], bool]:
    """Finished steps -> whether something that happens every ``duration`` is due. Wall-clock durations: never here."""
    if duration.is_wall_clock:
        return lambda step: False
    if duration.unit == "ep" and len(plan.segments) > 1:
        wanted = {plan.step_at(n * duration.value) for n in range(1, int(plan.epochs(total) / duration.value) + 2)}
        return lambda step: step in wanted
    steps = max(1, duration.steps(plan.steps_per_epoch, total))
    return lambda step: step % steps == 0


def build_cadence(recipe: Recipe, plan: Plan, total: int, has_evaluation: bool) -> Cadence:
    clock = recipe.checkpoint.every
    return Cadence(
        total=total,
        evaluate=every(recipe.evaluate.every, plan, total),
        save=every(clock, plan, total),
        save_seconds=clock.seconds() if clock.is_wall_clock else None,
        best=recipe.checkpoint.best if has_evaluation else None,
        better="lower" if recipe.checkpoint.best == "eval/loss" else "higher",
        max_bad=recipe.data.max_bad,
        seen=plan.seen,
    )


def build_order(recipe: Recipe, data: Data) -> Order:
    """Which sample stands at which position of each epoch."""
    lanes, window = resolve_shuffle(int(data.train.counts.sum()), recipe.data.lanes, recipe.data.window)
    return Order(data.train.counts, recipe.seed, lanes, window, recipe.data.shuffle, recipe.data.repeats)


def build_sides(recipe: Recipe, plan: Plan, total: int) -> Sides | None:
    """Epoch -> side of its training images; None where all have one."""
    schedule, last = recipe.resolution.schedule, recipe.resolution.train
    if schedule is None or last is None:
        return None
    begins, ends = (d.value if d.unit == "ep" else plan.epochs(step_of(d, plan, total)) for d in schedule.ramp)
    return Sides(schedule.first, last, begins, ends, schedule.multiple)


def build_train_loader(
    recipe: Recipe,
    data: Data,
    plan: Plan,
    world: World,
    placement: Placement,
    start: int,
    stop: int,
    laps: Laps | None = None,
) -> TrainLoader:
    mix = None
    if recipe.mix.mixup or recipe.mix.cutmix:
        off = step_of(recipe.mix.off, plan, stop) if recipe.mix.off is not None else None
        mix = Mix(recipe.seed, recipe.mix.mixup, recipe.mix.cutmix, off)
    return TrainLoader(
        data.train,
        build_order(recipe, data),
        plan,
        data.train_pipeline,
        seed=recipe.seed,
        rank=world.rank,
        world=world.size,
        micro=placement.micro,
        start=start,
        stop=stop,
        threads=placement.data_threads,
        max_bad=recipe.data.max_bad,
        pixels=recipe.track.pixels,
        mix=mix,
        sides=build_sides(recipe, plan, stop),
        pin=placement.device.startswith("cuda"),
        laps=laps,
        processes=recipe.data.processes,
        device=torch.device(placement.device) if recipe.data.decode == GPU else None,
    )


def build_eval_loader(recipe: Recipe, data: Data, world: World, placement: Placement) -> EvalLoader:
    assert data.evaluation is not None
    batch = recipe.evaluate.batch if recipe.evaluate.batch != "auto" else max(placement.micro, 64)
    batch = min(batch, -(-int(data.evaluation.counts.sum()) // world.size))  # no rows of padding alone
    return EvalLoader(
        data.evaluation,
        data.eval_pipeline,
        batch=batch,
        rank=world.rank,
        world=world.size,
        threads=placement.data_threads,
        max_bad=recipe.data.max_bad,
        pin=placement.device.startswith("cuda"),
    )
