"""A report's curves keep what they stand for, and its page carries text of any kind without being changed by it."""

import html
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restrain.insight.report import Curves, Event, Gallery, Maps, Page, Picture, RecipeLine, RunPage, render
from restrain.insight.report import reduce as reduced
from restrain.insight.report.page import charts


@given(st.integers(1, 400), st.integers(2, 50), st.integers(0, 2**31))
def test_points_are_means_between_the_extremes(count: int, most: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    steps = np.cumsum(draw.integers(1, 4, count))
    values = np.where(draw.random(count) < 0.1, np.nan, draw.standard_normal(count))
    axes = {"step": steps, "samples": steps * 64.0}
    found = reduced({"train/loss": (steps, values)}, axes, most)
    series = found.series["train/loss"]
    assert len(series.step) == min(count, most)
    assert series.step[-1] == steps[-1]
    if series.low is None or series.high is None:
        assert np.array_equal(series.mean, values, equal_nan=True)
        return
    finite = values[np.isfinite(values)]
    if len(finite):
        assert np.nanmin(series.low) == finite.min()
        assert np.nanmax(series.high) == finite.max()
    ends = np.searchsorted(steps, series.step, side="right")
    for n, (a, b) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        assert b - a <= series.span
        part = values[a:b][np.isfinite(values[a:b])]
        assert series.mean[n] == pytest.approx(part.mean()) if len(part) else math.isnan(series.mean[n])


def test_axes_are_exact_at_the_points() -> None:
    steps = np.arange(1, 5001)
    axes = {"step": steps, "epoch": steps / 100, "hours": np.sqrt(steps)}
    found = reduced(
        {"train/loss": (steps, steps * 1.0), "eval/top1": (steps[99::100], steps[99::100] * 1.0)}, axes, 300
    )
    kept = dict(zip(found.axes["step"].tolist(), found.axes["hours"].tolist(), strict=True))
    for series in found.series.values():
        for step in series.step.tolist():
            assert kept[step] == math.sqrt(step)
    assert len(found.series["eval/top1"].step) == 50
    assert found.series["eval/top1"].low is None


def test_plain_data_are_strict_json_and_share_their_steps() -> None:
    steps = np.array([1, 2, 3])
    values = np.array([1.0, math.inf, 1 / 3])
    found = reduced({"a": (steps, values), "b": (steps, values)}, {"step": steps}, 10).as_dict()
    assert len(found["grids"]) == 1
    assert found["series"]["a"]["mean"] == [1.0, None, 0.333333]
    json.dumps(found, allow_nan=False)


def test_every_metric_has_a_chart() -> None:
    names = ["train/loss", "eval/top1", "eval/ece", "epoch", "wall"]
    assert [chart.id for chart in charts(names)] == ["loss", "accuracy", "other-0"]
    assert charts(names)[-1].metrics == ("eval/ece",)
    assert charts([]) == []


NASTY = "</script><script>document.title='broken'</script> & <b>\u2028\"'"


@pytest.fixture(scope="module")
def nasty() -> str:
    steps = np.array([1, 2])
    curves: Curves = reduced({"train/loss": (steps, np.array([1.0, 2.0]))}, {"step": steps}, 10)
    run = RunPage(NASTY, NASTY, {"state": NASTY}, curves, [Event(1, "skip", NASTY)], [RecipeLine(NASTY, True, True)])
    pictures = (Picture(("data:image/webp;base64,AAAA",), NASTY, NASTY),)
    gallery = Gallery((0,), NASTY, pictures)
    return render(Page(NASTY, [run], [], [gallery], [gallery], NASTY))


def test_text_of_a_run_is_text_in_the_page(nasty: str) -> None:
    assert "<script>document.title" not in nasty
    assert nasty.count("<script") == 3  # data, plotly, ours
    assert html.escape("</script><script>") in nasty
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', nasty, re.DOTALL)
    assert data is not None
    run = json.loads(data[1])["runs"][0]
    assert (run["name"], run["events"][0]["text"]) == (NASTY, NASTY)


def test_nothing_is_fetched(nasty: str) -> None:
    without_library = re.sub(r"<script>.*?</script>", "", nasty, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", without_library)
    assert "default-src 'none'" in nasty


def test_maps_of_depth_keep_first_and_last_and_nothing_that_was_not_read() -> None:
    values = np.arange(400.0 * 3).reshape(400, 3)
    values[0, 0], values[399, 2] = np.nan, np.inf
    found = Maps([1, 10, 20], [f"j{n}" for n in range(400)], {"ratio": values}).as_dict()
    assert found["steps"] == [1, 10, 20]
    assert len(found["joins"]) == len(found["values"]["ratio"]) == 150
    assert (found["joins"][0], found["joins"][-1]) == ("j0", "j399")
    assert found["values"]["ratio"][0] == [None, 1.0, 2.0]
    assert found["values"]["ratio"][-1] == [1197.0, 1198.0, None]
    json.dumps(found, allow_nan=False)


def test_maps_stand_in_the_page_of_the_runs_that_have_them() -> None:
    steps = np.array([1, 2])
    curves = reduced({"train/loss": (steps, np.array([1.0, 2.0]))}, {"step": steps}, 10)
    maps = Maps([1, 2], ["a", NASTY], {"gate": np.array([[0.1, 0.2], [0.3, 0.4]])})
    page = Page(
        "t", [RunPage("plain", "p", {"state": "s"}, curves), RunPage("read", "r", {"state": "s"}, curves, maps=maps)]
    )
    html_text = render(page)
    assert 'id="map-gate-1"' in html_text
    assert 'id="map-gate-0"' not in html_text
    assert 'id="map-ratio-1"' not in html_text
    assert "<script>document.title" not in html_text
    without = render(Page("t", [RunPage("plain", "p", {"state": "s"}, curves)]))
    assert 'id="depth"' not in without
