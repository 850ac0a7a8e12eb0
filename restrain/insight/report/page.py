"""The page itself: text and tables are written here, charts are drawn from its data by plotly, which it carries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from restrain.insight.report.curves import Curves
from restrain.insight.report.maps import Maps, drawn

RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#808080")


@dataclass(frozen=True)
class Event:
    """Something that happened after ``step``: ``kind`` is resume, intervention, skip or tripwire."""

    step: int
    kind: str
    text: str


@dataclass(frozen=True)
class RecipeLine:
    """A line of the recipe; ``changed``: over the recipe it is named after; ``differs``: from another run's."""

    text: str
    changed: bool = False
    differs: bool = False


@dataclass(frozen=True)
class Picture:
    """``sources``: data URIs, side by side."""

    sources: tuple[str, ...]
    caption: str
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures under a sentence; or, without pictures, why there are none. ``runs``: of which runs, by number."""

    runs: tuple[int, ...]
    note: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class RunPage:
    """``facts``: label -> text, the same labels for all runs. ``maps``: of a run with probes."""

    name: str
    path: str
    facts: Mapping[str, str]
    curves: Curves
    events: Sequence[Event] = ()
    recipe: Sequence[RecipeLine] = ()
    maps: Maps | None = None


@dataclass(frozen=True)
class Page:
    """``differences``: rows of a key and its value in each run."""

    title: str
    runs: Sequence[RunPage]
    differences: Sequence[Sequence[str]] = ()
    samples: Sequence[Gallery] = ()
    mistakes: Sequence[Gallery] = ()
    written: str = ""


@dataclass(frozen=True)
class Chart:
    """``metrics`` share an axis; ``unit`` is its title."""

    id: str
    title: str
    unit: str
    metrics: tuple[str, ...]


CHARTS = (
    Chart("loss", "Loss", "loss", ("train/loss", "eval/loss")),
    Chart("accuracy", "Accuracy", "%", ("train/top1", "eval/top1", "eval/top5")),
    Chart("lr", "Learning rate", "learning rate", ("train/lr",)),
    Chart("grad_norm", "Gradient norm", "norm", ("train/grad_norm",)),
    Chart("throughput", "Throughput", "samples/s", ("train/samples_per_s",)),
    Chart("wait", "Data wait", "share of a step", ("train/data_wait",)),
)
NO_CHART = ("epoch", "samples", "wall", "eval/count")


def charts(names: Sequence[str]) -> list[Chart]:
    """The charts of those metrics that there are; a metric that has no chart of its own gets one."""
    known = {name for chart in CHARTS for name in chart.metrics}
    found = [chart for chart in CHARTS if any(name in names for name in chart.metrics)]
    others = [name for name in names if name not in known and name not in NO_CHART]
    return found + [Chart(f"other-{n}", name, name, (name,)) for n, name in enumerate(others)]


def render(page: Page) -> str:
    """The HTML, which needs no other file and no network."""
    from jinja2 import Environment
    from plotly.offline import get_plotlyjs

    here = resources.files("restrain.insight.report")
    names = list(dict.fromkeys(name for run in page.runs for name in run.curves.series))
    shown, mapped = charts(names), drawn([run.maps for run in page.runs])
    data = {
        "charts": [vars(chart) for chart in shown],
        "maps": [vars(quantity) for quantity in mapped],
        "runs": [
            {"name": run.name, "colour": _colour(n)}
            | run.curves.as_dict()
            | {"events": [vars(event) for event in run.events]}
            | {"maps": run.maps.as_dict() if run.maps is not None else None}
            for n, run in enumerate(page.runs)
        ],
    }
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (here / "page.html").read_text("utf-8")
    )
    return template.render(
        page=page,
        charts=shown,
        maps=mapped,
        colour=_colour,
        style=(here / "page.css").read_text("utf-8"),
        script=(here / "page.js").read_text("utf-8"),
        plotly=get_plotlyjs(),
        data=_json(data),
    )


def _colour(number: int) -> str:
    return RUN_COLOURS[number % len(RUN_COLOURS)]


def _json(data: Any) -> str:
    """JSON that may stand inside of a script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
