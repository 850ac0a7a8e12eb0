"""Figures: well-formed SVG that shows each value where it belongs."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from restrain.lineage.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Line,
    axis_over,
    bars,
    heat,
    lines,
    short,
)

SVG = "{http://www.w3.org/2000/svg}"


def parts(figure: str, name: str) -> list[ET.Element]:
    return ET.fromstring(figure).findall(f"{SVG}{name}")


def test_a_line_runs_from_corner_to_corner():
    figure = lines("t", "x", "y", [Line("a", [0, 10], [1.0, 100.0])], log=True)
    (line,) = parts(figure, "polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert points[0] == (LEFT, HEIGHT - BOTTOM)
    assert points[1][1] == TOP
    assert 0.95 * (WIDTH - RIGHT) < points[1][0] <= WIDTH - RIGHT


def test_what_is_not_finite_is_a_gap():
    y = [1.0, 2.0, math.nan, 3.0, 4.0, -1.0, 0.0, 5.0]
    found = parts(lines("t", "x", "y", [Line("a", range(8), y)], log=True), "polyline")
    assert [len(one.attrib["points"].split()) for one in found] == [2, 2, 1]
    assert "not finite" in bars("t", "x", [("a", math.nan), ("b", 1.0)])


@pytest.mark.parametrize("value", [1.0, 0.0, -3.0, math.nan])
def test_a_single_value_has_an_axis(value):
    for log in (False, True):
        axis = axis_over([value], log)
        assert axis.low < axis.high
        ET.fromstring(lines("t", "x", "y", [Line("a", [1.0], [value])], log))
        ET.fromstring(bars("t", "x", [("a", value)], log))


def test_ticks_are_round_and_inside():
    assert Axis(0, 15).ticks() == [0, 5, 10, 15]
    assert Axis(0.001, 100, log=True).ticks() == pytest.approx([0.001, 0.01, 0.1, 1, 10, 100])
    assert axis_over([1.3, 2.4], log=True) == Axis(1.0, 5.0, log=True)
    assert Axis(1.0, 5.0, log=True).ticks() == [1.0, 2.0, 5.0]
    assert len(Axis(1e-300, 1, log=True).ticks()) <= 8
    for axis in (Axis(-0.13, 0.92), Axis(3.0, 3.1)):
        assert 3 <= len(axis.ticks()) <= 8
        assert all(axis.low <= tick <= axis.high for tick in axis.ticks())


def test_bars_are_as_long_as_their_values():
    figure = bars("t", "x", [("a", 2.0), ("b", 4.0)])
    widths = [float(rect.attrib["width"]) for rect in parts(figure, "rect")]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)


def test_a_map_is_as_dark_as_its_values():
    figure = heat("t", "x", "y", [[0.0, 0.5], [1.0, 2.0]], 0.0, 1.0)
    assert [float(rect.attrib["fill-opacity"]) for rect in parts(figure, "rect")] == [0.0, 0.5, 1.0, 1.0]


def test_text_is_escaped_and_the_title_is_said():
    figure = lines('<script>"&', "x<y", "y", [Line("a<b>&", [0, 1], [1, 2])])
    assert "<script" not in figure
    title = ET.fromstring(figure).find(f"{SVG}title")
    assert title is not None
    assert title.text == '<script>"&'
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", figure)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (0.123456, "0.1235"), (1e-7, "1.00e-07"), (3295.7, "3296"), (math.inf, "not finite")],
)
def test_numbers_are_short(value, said):
    assert short(value) == said
