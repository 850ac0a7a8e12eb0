"""What a report says of runs, gathered from their folders; images from their data, where those are at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from restrain.errors import RestrainError, UserError
from restrain.insight.report import Curves, Event, Gallery, Maps, Page, Picture, RecipeLine, RunPage, data_uri, reduce
from restrain.recipe import Recipe, leaves
from restrain.recipe.writing import flow
from restrain.run import probes
from restrain.run.folder import RunFolder
from restrain.run.history import Column, clock, columns, training_seconds
from restrain.run.numbers import loose
from restrain.run.side_by_side import locked_recipe, recipe_differences, short_names
from restrain.run.summary import Summary, summarise

POINTS = 1000  # of a curve, while there are few runs
ALL_POINTS = 4000  # of a metric over all runs: a page stays small
SAMPLES, MISTAKES = 12, 24  # pictures, shared by all runs


def gather(paths: Sequence[Path], images: bool = True) -> Page:
    """The page of one run or several, each as it stands.

    Raises UserError for a folder that holds no run, or one that cannot be read. Data that cannot be reached are said
    in the page, in place of the images.
    """
    runs = [_readable(path) for path in paths]
    recipes = [locked_recipe(path) for path in paths]
    names = short_names(paths)
    infos = [RunFolder(path).read_info() for path in paths]
    histories = [columns(path / "metrics.jsonl") for path in paths]
    # What was expected stands among the results.
    differing = [row for row in recipe_differences(recipes) if not row[0].startswith("expect.")]
    differs = {row[0] for row in differing}
    most = max(100, min(POINTS, ALL_POINTS // len(runs)))
    pages = [
        RunPage(
            names[n],
            str(paths[n]),
            _facts(runs[n], recipes[n], infos[n], histories[n]),
            _curves(histories[n], most),
            _events(paths[n], infos[n], histories[n]),
            list(_recipe_lines(recipes[n], runs[n].changes, differs)),
            _maps(paths[n]),
        )
        for n in range(len(runs))
    ]
    return Page(
        title=names[0] if len(names) == 1 else f"{len(names)} runs",
        runs=pages,
        differences=differing,
        samples=_samples(recipes) if images else (),
        mistakes=_mistakes(paths, recipes) if images else (),
        written=f"written {datetime.now():%Y-%m-%d %H:%M}",
    )


def _readable(path: Path) -> Summary:
    found = summarise(path)
    if found.state == "unreadable":
        raise UserError(f"{path} cannot be reported on: {found.why}. Name run folders; restrain runs lists them.")
    return found


# --------------------------------------------------------------------------------------------------------------- facts


def _facts(run: Summary, recipe: Recipe, info: dict[str, Any], history: dict[str, Column]) -> dict[str, str]:
    """The same labels for every run; ``-`` where there is nothing to say."""
    best, expect, verdict = run.best, recipe.expect, run.verdict
    last = [f"{name} {c.values[-1]:.5g}" for name, c in history.items() if name.startswith("eval/")]
    judged = "-"
    if verdict is not None:
        judged = f"missed by {abs(verdict['short']):.2f}" if verdict["word"] == "missed" else verdict["word"]
        if verdict["word"] == "not comparable":
            judged += " with the recipe as it ships"
    hardware, versions, placement = (info.get(name) or {} for name in ("hardware", "versions", "placement"))
    gpus = hardware.get("gpus") or []
    devices = f"{len(gpus)} x {gpus[0]}" if gpus else f"{hardware.get('cpu', '?')}, {hardware.get('cores', '?')} cores"
    git = info.get("git") or {}
    commit = git.get("commit", "")[:12] + (" with changes" if git.get("dirty") else "")
    return {
        "recipe": run.recipe,
        "changed": " ".join(run.changes) or "-",
        "state": run.told,
        "best": f"{best['metric']} {best['value']:.5g} (step {best['step']:,})" if best else "-",
        "last evaluation": ", ".join(last) or "-",
        "expected": f"{expect.metric} {expect.value:g} (tolerance {expect.tolerance:g}, {expect.source})"
        if expect
        else "-",
        "against expected": judged,
        "time of training": clock(training_seconds(history["wall"].values)[-1]) if "wall" in history else "-",
        "samples/s, median": _speed(recipe, history),
        "data wait, median": _median(history, "train/data_wait", "{:.1%}"),
        "hardware": f"{devices}, {placement.get('world', 1)} process(es)" if hardware else "-",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or "-",
        "commit": commit or "-",
        "started": str(info.get("started") or "-"),
        "folder": str(run.path),
    }


def _speed(recipe: Recipe, history: dict[str, Column]) -> str:
    """Of a language model also in tokens: its samples are windows."""
    told = _median(history, "train/samples_per_s", "{:,.0f}")
    if recipe.data.kind != "tokens" or told == "-":
        return told
    tokens = np.median(history["train/samples_per_s"].values) * recipe.data.context
    return f"{told} windows of {recipe.data.context}: {tokens:,.0f} tokens/s"


def _median(history: dict[str, Column], name: str, form: str) -> str:
    return form.format(np.median(history[name].values)) if name in history else "-"


def _recipe_lines(recipe: Recipe, changes: Sequence[str], differs: set[str]) -> Iterator[RecipeLine]:
    changed = [one.partition("=")[0] for one in changes]
    for key, value in leaves(recipe).items():
        mine = any(key == one or key.startswith(one + ".") for one in changed)
        yield RecipeLine(f"{key}={flow(value)}", mine, key in differs)


# -------------------------------------------------------------------------------------------------- curves and events


def _curves(history: dict[str, Column], most: int) -> Curves:
    shown = {name: (c.steps, c.values) for name, c in history.items() if name.startswith(("train/", "eval/"))}
    shown.pop("eval/count", None)
    lines = history.get("wall")
    axes: dict[str, np.ndarray] = {"step": lines.steps if lines else np.zeros(0, np.int64)}
    for name in ("epoch", "samples"):
        column = history.get(name)
        whole = column is not None and np.array_equal(column.steps, axes["step"])
        axes[name] = column.values if column is not None and whole else np.full(len(axes["step"]), np.nan)
    axes["epoch"] = _smooth_epochs(axes["epoch"], axes["step"])
    axes["hours"] = (training_seconds(lines.values) if lines else np.zeros(0)) / 3600
    return reduce(shown, axes, most)


def _smooth_epochs(epoch: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Epochs with their fraction [n], from those that lines say: line i is of step i's epoch, counted from 0."""
    if not len(epoch):
        return epoch
    begins = np.flatnonzero(np.diff(epoch, prepend=-1) > 0)
    if len(begins) < 2:
        return epoch
    length = np.diff(step[begins], append=0.0)
    length[-1] = length[-2]  # the last epoch may not be over
    place = np.searchsorted(begins, np.arange(len(step)), side="right") - 1
    return epoch + np.minimum(1.0, (step - step[begins][place] + 1) / length[place])


def _events(path: Path, info: dict[str, Any], history: dict[str, Column]) -> list[Event]:
    found = []
    for one in info.get("attempts") or []:
        if one["number"] > 1 and one["after_step"]:
            processes = f" on {one['world']} processes" if one["world"] > 1 else ""
            found.append(Event(one["after_step"], "resume", f"attempt {one['number']}{processes}, {one['at']}"))
    for one in info.get("interventions") or []:
        if one["kind"] == "allow":
            text = f"{one['key']}: {one['was']} -> {one['now']}"
        else:
            text = f"{one['kind']} from {one['from']}" if "from" in one else one["kind"]
        found.append(Event(one.get("at_step", 0), "intervention", text))
    skipped: set[int] = set()
    for name in ("train/loss", "train/grad_norm"):
        if name in history:
            skipped |= set(history[name].steps[~np.isfinite(history[name].values)].tolist())
    found += [Event(step, "skip", "loss or gradient was not finite: the update was skipped") for step in skipped]
    for one in info.get("tripwires") or []:
        text = f"{one['metric']} was {one['value']:.5g}" + (", the run was stopped" if one.get("act") == "stop" else "")
        found.append(Event(one["step"], "tripwire", text))
    return sorted(found, key=lambda event: (event.step, event.kind))


def _maps(path: Path) -> Maps | None:
    """What the run's probes have read; None where it has none."""
    found = probes.read(RunFolder(path).probes)
    return Maps(found.steps, found.joins, found.values) if found.steps else None


# --------------------------------------------------------------------------------------------------------------- images

LOOKS = ("data", "resolution", "mix", "batch", "seed", "model.classes", "model.in_chans")  # what samples depend on


def _samples(recipes: Sequence[Recipe]) -> list[Gallery]:
    """A gallery for each way in which samples are made; runs that share it share the pictures."""
    alike: dict[tuple, list[int]] = {}
    for n, recipe in enumerate(recipes):
        if recipe.data.kind != "images":
            continue
        key = tuple((k, str(v)) for k, v in leaves(recipe).items() if k in LOOKS or k.split(".")[0] in LOOKS)
        alike.setdefault(key, []).append(n)
    most = max(2, SAMPLES // max(1, len(alike)))
    return [_sample_gallery(tuple(numbers), recipes[numbers[0]], most) for numbers in alike.values()]


def _sample_gallery(numbers: tuple[int, ...], recipe: Recipe, most: int) -> Gallery:
    from restrain.training.look import look

    try:
        found = look(recipe, most)
    except RestrainError as error:
        return Gallery(numbers, f"No samples: {error}")
    note = f"Stored, and as the network saw it in the first step, {found.side} pixels, with the label that it learns."
    return Gallery(
        numbers,
        note,
        tuple(Picture(tuple(map(data_uri, t.images)), t.caption, t.note) for t in found.tiles),
    )


def _mistakes(paths: Sequence[Path], recipes: Sequence[Recipe]) -> list[Gallery]:
    most = max(6, MISTAKES // len(paths))
    return [
        _mistake_gallery(n, path, recipe, most)
        for n, (path, recipe) in enumerate(zip(paths, recipes, strict=True))
        if recipe.data.kind == "images"
    ]


def _mistake_gallery(number: int, path: Path, recipe: Recipe, most: int) -> Gallery:
    file = RunFolder(path).mistakes
    try:
        kept = loose(json.loads(file.read_text()))
        step, surest = int(kept["step"]), list(kept["mistakes"])
    except FileNotFoundError:
        return Gallery((number,), f"There is no {file.name} in the run's folder: an evaluation of the run writes it.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Gallery((number,), f"{file} cannot be read ({error}); the next evaluation writes it anew.")
    if not surest:
        return Gallery((number,), f"The evaluation after step {step:,} made none.")
    note = f"Of the evaluation after step {step:,}, the surest first."
    try:
        return Gallery((number,), note, tuple(_mistake_pictures(recipe, surest[:most])))
    except RestrainError as error:
        return Gallery((number,), f"No pictures: {error}")


def _mistake_pictures(recipe: Recipe, surest: Sequence[dict[str, Any]]) -> Iterator[Picture]:
    from restrain.data.filling import read_into
    from restrain.data.reader import BadSample
    from restrain.training import build

    data = build.open_data(recipe)
    source = data.evaluation
    if source is None:
        raise UserError("the evaluation set is not there any more.")
    names = getattr(data.train, "classes", None) or [f"class {k}" for k in range(recipe.model.classes)]
    ends = np.cumsum(source.counts)
    for one in surest:
        if not 0 <= one["index"] < ends[-1]:
            raise UserError("the evaluation set has fewer samples now than when the run was evaluated.")
        shard = int(np.searchsorted(ends, one["index"], side="right"))
        j = int(one["index"] - (ends[shard - 1] if shard else 0))
        image = np.empty(data.eval_pipeline.shape, np.uint8)
        try:
            read_into(source, data.eval_pipeline, shard, j, 0, image)
        except BadSample:
            continue
        told = f"{names[one['predicted']]}, {100 * one['confidence']:.1f} % sure"
        yield Picture((data_uri(image),), told, f"labelled {names[one['label']]}; {source.names[shard]} {j}")
