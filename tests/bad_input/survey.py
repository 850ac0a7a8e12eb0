# ruff: noqa: E501  (a paragraph is longer than a line)
"""Sets that are looked at before they are trained on, and made-up ones."""

from __future__ import annotations

from tests.bad_input.harness import Case, Outcome, Place
from tests.data.making import write_shards


def _data(*argv: str):
    return lambda place: place.cli("data", *argv)


def _indexed(place: Place) -> None:
    write_shards(place.folder / "set", 2, 4)
    assert place.cli("data", "index", "{dir}/set").codes == [0]


def _not_empty(place: Place) -> Outcome:
    _indexed(place)
    return place.cli("data", "synth", "4", "{dir}/set")


def _batch(place: Place) -> Outcome:
    _indexed(place)
    return place.cli("data", "plan", "{dir}/set", "--batch", "12", "--group", "4")


def _no_index(place: Place) -> Outcome:
    write_shards(place.folder / "set", 1, 2)
    return place.cli("data", "verify", "{dir}/set")


SURVEY = [
    Case(
        "A set without an index is verified",
        "set has no index. Make one first: restrain data index set",
        2,
        "Index it.",
        _no_index,
    ),
    Case(
        "A folder that is not there is verified",
        "nowhere is no folder. Name the folder of a data set.",
        2,
        "Correct the path.",
        _data("verify", "nowhere"),
    ),
    Case(
        "A plan of a set in memory",
        "data.name=digits has no index, so there is nothing to plan: it lies in memory.",
        2,
        "Name another recipe, or a folder.",
        _data("plan", "digits_resnet20"),
    ),
    Case(
        "A plan with a batch larger than the set",
        "batch.global=12 is more than the 8 training samples of the data set: an epoch would have no step. Use a batch of at most 8.",
        2,
        "Give a smaller --batch.",
        _batch,
    ),
    Case(
        "A made-up set over another",
        "set is not empty. Name a new folder.",
        2,
        "Name another folder.",
        _not_empty,
    ),
    Case(
        "A made-up set of odd pictures",
        "--size big: WIDTHxHEIGHT in pixels, such as 500x375.",
        2,
        "Write it so.",
        _data("synth", "4", "{dir}/new", "--size", "big"),
    ),
    Case(
        "An index of a URL without a folder for it",
        "https://example.org/set: name a folder for its index with --to FOLDER.",
        2,
        "Add --to FOLDER.",
        _data("index", "https://example.org/set"),
    ),
    Case(
        "An index of a URL that would have to be listed",
        "The pattern '*.tar': a web server does not list what it has. Name the shards by numbers, such as train-{000000..000146}.tar.",
        2,
        "Add --pattern with the numbers.",
        _data("index", "https://example.org/set", "--to", "{dir}/index"),
    ),
]
