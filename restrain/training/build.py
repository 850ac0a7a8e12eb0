"""From a recipe to the objects of a run. The only module that imports everything; each function makes one part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from restrain.data import augment, gpu, sets
from restrain.data.filling import MIN_BAD, Rows, read_into
from restrain.data.images import GPU, DecodeError, decode, resolve_decoder, working_decoder
from restrain.data.indexing import Reporter
from restrain.data.laps import Laps
from restrain.data.loader import EvalLoader, TrainLoader
from restrain.data.mix import Mix
from restrain.data.order import ORDER_VERSION, Order, Plan, Segment, resolve_shuffle
from restrain.data.progressive import Sides
from restrain.data.reader import BadSample, Source
from restrain.data.rows import SequenceRows, TokenRows
from restrain.data.text.plain import ShiftedOrder, TextSource
from restrain.data.wds.stages import Stage
from restrain.errors import UserError, WorldError
from restrain.optim import schedules
from restrain.optim.ema import Ema
from restrain.optim.optimizers import build_optimizer
from restrain.optim.stepping import create_state
from restrain.parallel import precision
from restrain.parallel.engine import Engine
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.recipe.durations import Duration
from restrain.training.border import Cadence
from restrain.training.classify import Classify, build_loss
from restrain.training.language import Language, MaskedTokens
from restrain.training.micro import PIXELS_A_STEP, PIXELS_A_TOKEN
from restrain.training.network import build_engine
from restrain.training.own import Own, check_rows
from restrain.training.placement import Placement
from restrain.training.sequences import Recall, Regress
from restrain.training.state import RunState
from restrain.training.task import Task

NOTHING_OWN = Own()
UNKNOWN_VOCABULARY = 256


@dataclass(frozen=True)
class Data:
    """The data of a run: the sets, how a row is made from a sample, and what identifies them."""

    train: Source
    evaluation: Source | None
    train_pipeline: Rows
    eval_pipeline: Rows
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def pixels(self) -> int:
        """Height x width of a training image, the largest of the run; of tokens what is as much work."""
        side, axes = self.train_pipeline.size, len(self.train_pipeline.shape)
        return {3: side**2, 2: side * PIXELS_A_STEP, 1: side * PIXELS_A_TOKEN}[axes]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a training sample as it is handed over: channels, height, width of an image; tokens of a window; steps and
        numbers of a sequence."""
        shape = self.train_pipeline.shape
        return (shape[2], *shape[:2]) if len(shape) == 3 else shape


def open_data(recipe: Recipe, reporter: Reporter | None = None, stages: Sequence[Stage] = ()) -> Data:
    """Open the sets of a recipe, indexing them first where they have no index; ``reporter`` tells of it. stages: a
    script's own."""
    if recipe.data.kind == "tokens":
        return _open_tokens(recipe, reporter)
    if recipe.data.kind == "sequences":
        train, rows = sets.open_source(recipe.data, "train"), SequenceRows(recipe.data.context)
        assert train is not None
        return Data(train, sets.open_source(recipe.data, "eval"), rows, rows, (), ())
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


def _open_tokens(recipe: Recipe, reporter: Reporter | None) -> Data:
    train = sets.open_source(recipe.data, "train", reporter=reporter)
    assert train is not None
    evaluation = sets.open_source(recipe.data, "eval", reporter=reporter)
    needed, classes = outputs_needed(recipe, train), recipe.model.classes
    if isinstance(classes, int) and classes < needed:
        mask = " and one that masks" if recipe.objective.name == "masked_token" else ""
        raise UserError(
            f"model.classes={classes}, but the data of data.name={recipe.data.name} have {needed} tokens{mask}: the "
            f"model has no place for the last ones. Set model.classes=auto, or a number from {needed} on."
        )
    rows = TokenRows(recipe.data.context, False)
    return Data(train, evaluation, rows, rows, (), ())


def outputs_needed(recipe: Recipe, train: Source) -> int:
    """The tokens that a language model must know: the vocabulary of its data, and the one that masks others."""
    vocabulary: int = train.vocabulary  # type: ignore[attr-defined]
    return vocabulary + (recipe.objective.name == "masked_token")


def described_tokenizer(data: Data) -> dict[str, str]:
    """What the tokens of a set mean, for run.json."""
    return data.train.describe_tokenizer()  # type: ignore[attr-defined]


def check_tokens(recipe: Recipe, data: Data, told: Mapping[str, Any] | None, run: Path) -> None:
    """UserError where the tokens of the data do not mean what those of a run do; ``told``: what its run.json says."""
    if recipe.data.kind != "tokens" or not told:
        return
    now = described_tokenizer(data)
    for key, value in told.items():
        if key not in ("root", "file") and now.get(key) != value:
            raise UserError(
                f"The tokens of data.name={recipe.data.name} are not those that {run} was trained on ({key} differs), "
                f"so the same numbers mean other text, and no figure would mean anything. Name the text or the set "
                f"that the run learnt, with data.root and data.train."
            )


def with_classes(recipe: Recipe, data: Data | None) -> Recipe:
    """The recipe with ``model.classes: auto`` settled; where the data are not there, as if they had 256 tokens."""
    if isinstance(recipe.model.classes, int):
        return recipe
    found = outputs_needed(recipe, data.train) if data is not None else UNKNOWN_VOCABULARY
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"classes": found})})


def use_decoder(data: Data, recipe: Recipe) -> str:
    """Let both pipelines decode by ``data.decode``, once that is known; returns its name and version.

    Raises UserError where that decoder does not work here: a run keeps to one.
    """
    if not _decodes(recipe):
        return ""
    name, version = resolve_decoder(recipe.data.decode)
    train, evaluation = data.train_pipeline, data.eval_pipeline
    assert isinstance(train, augment.Pipeline)
    assert isinstance(evaluation, augment.Pipeline)
    if name == GPU:
        gpu.check(train)
        train.decoder = evaluation.decoder = working_decoder(name)
    else:
        train.decoder = evaluation.decoder = name
    return f"{name} {version}"


def _decodes(recipe: Recipe) -> bool:
    """Whether the set is of image files: the digits are arrays, and tokens no images."""
    return recipe.data.kind == "images" and recipe.data.name != "digits"


def _try(source: Source, pipeline: Rows) -> None:
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
    if _decodes(recipe):
        found["data.decode"] = resolve_decoder(recipe.data.decode)[0]
    if recipe.data.kind == "tokens":
        found["model.classes"] = outputs_needed(recipe, data.train)
    return found


def identity(name: str, recipe: Recipe, data: Data) -> dict[str, Any]:
    """What identifies a run's data, for its lock: a changed byte of a shard is another run."""
    return {
        "recipe": name,
        "order_version": ORDER_VERSION,
        "samples": int(data.train.counts.sum()),
        "fingerprint": data.train.fingerprint,
        "decoder": " ".join(resolve_decoder(recipe.data.decode)) if _decodes(recipe) else None,
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


def check_task(recipe: Recipe, data: Data, own: Own) -> None:
    """Raises UserError for a task that is not ours and cannot be trained, before a run folder is made for it."""
    if recipe.task not in OWN_TASKS:
        task = build_task(recipe, data, torch.device("cpu"), own)
        assert isinstance(task, Classify)
        check_rows(task, recipe)


def build_task(recipe: Recipe, data: Data, device: torch.device, own: Own | None = None) -> Task:
    """Model, loss and normalisation in one process, with recomputation and compilation."""
    own = own or Own()
    return task_around(recipe, build_engine(recipe, device, own.model).model, data, own).to(device)


def task_around(recipe: Recipe, model: nn.Module, data: Data, own: Own | None = None) -> Task:
    """The recipe's task around a model that is there already."""
    make = OWN_TASKS.get(recipe.task) or partial(_classify, own=own or Own())
    return make(recipe, model, data)


def _classify(recipe: Recipe, model: nn.Module, data: Data, own: Own = NOTHING_OWN) -> Task:
    task = own.make_task(recipe)(model, build_loss(recipe.loss), data.mean, data.std)
    task.classes = recipe.model.classes
    return task


def _language(recipe: Recipe, model: nn.Module, data: Data) -> Task:
    objective, masked = recipe.objective, None
    if objective.name == "masked_token":
        # The last output is the mask's own: a larger model.classes leaves tokens between that nobody uses.
        masked = MaskedTokens(outputs_needed(recipe, data.train) - 1, objective.rate)
    make = Recall if recipe.data.name == "sequences" else Language
    return make(model, recipe.loss.smoothing, masked, recipe.seed)


def _regress(recipe: Recipe, model: nn.Module, data: Data) -> Task:
    return Regress(model)


# Another task of ours is a line here. That of a script or a package is a Classify.
OWN_TASKS: dict[str, Callable[[Recipe, nn.Module, Data], Task]] = {
    "classify": _classify,
    "language": _language,
    "regress": _regress,
}


def build_state(
    recipe: Recipe, task: Task, plan: Plan, total: int, device: torch.device, engine: Engine | None = None
) -> RunState:
    """Optimizer, EMA and scaler around a model, at step 0; ``engine``: how it lies over ranks."""
    engine = engine or Engine(task.model)
    optimizer = build_optimizer(
        recipe.optimizer,
        engine.grouped(),
        batch_global=recipe.batch.global_,
        leaf=engine.optimized,
        adopt=lambda optimizer: engine.adopt(optimizer, create_state),
    )
    ema = None
    if recipe.ema is not None:
        cut = dict(engine.leaves()) if engine.is_cut else None
        every = recipe.ema.every.steps(plan.steps_per_epoch, total)
        ema = Ema(task.model, recipe.ema.decay, every, cut, engine.refresh)
    scaler = precision.LossScale(device) if recipe.precision == "fp16" else None
    segments = [{"from_step": 0, "epoch": 0, "position": 0, "batch": plan.batch, "group": plan.group}]
    return RunState(task.model, optimizer, ema, scaler, segments=segments, engine=engine)


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
        better="lower" if recipe.checkpoint.best in ("eval/loss", "eval/perplexity") else "higher",
        max_bad=recipe.data.max_bad,
        seen=plan.seen,
    )


def build_order(recipe: Recipe, data: Data) -> Order:
    """Which sample stands at which position of each epoch."""
    lanes, window = resolve_shuffle(int(data.train.counts.sum()), recipe.data.lanes, recipe.data.window)
    settings = data.train.counts, recipe.seed, lanes, window, recipe.data.shuffle, recipe.data.repeats
    if isinstance(data.train, TextSource):
        return ShiftedOrder(data.train.context, *settings)
    return Order(*settings)


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
