import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from restrain.recipe.base import Length, Span, Steps
from restrain.recipe.durations import UNITS, Duration


@pytest.mark.parametrize(
    ("text", "steps"),
    [("90ep", 900), ("0.5ep", 5), ("0.25ep", 3), ("5%", 50), ("20000st", 20000), ("0ep", 0), ("0.1ep", 1)],
)
def test_steps(text: str, steps: int) -> None:
    assert Duration.parse(text).steps(10, 1000) == steps


@pytest.mark.parametrize(("text", "seconds"), [("10min", 600), ("1.5h", 5400), ("30s", 30)])
def test_wall_clock(text: str, seconds: float) -> None:
    duration = Duration.parse(text)
    assert duration.is_wall_clock
    assert duration.seconds() == seconds
    with pytest.raises(ValueError, match="time on the clock"):
        duration.steps(10)


def test_training_time_is_no_wall_clock_time() -> None:
    with pytest.raises(ValueError, match="not time on the clock"):
        Duration(1, "ep").seconds()
    with pytest.raises(ValueError, match="share of the run"):
        Duration(5, "%").steps(10)


@pytest.mark.parametrize("text", ["ep", "-1ep", "1 ep", "1e3st", "1.5st", "1_0st", "٣ep", "1d", "infep", ""])
def test_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError):
        Duration.parse(text)


@pytest.mark.parametrize("text", ["90", "1e3", "0.5", "-3"])
def test_a_missing_unit_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="has no unit"):
        Duration.parse(text)


numbers = st.one_of(st.integers(0, 10**12), st.floats(0, 1e12, allow_nan=False))


@given(numbers, st.sampled_from(sorted(UNITS)))
def test_text_round_trip(value: float, unit: str) -> None:
    if unit == "st":
        value = int(value)
    duration = Duration(value, unit)
    assert Duration.parse(str(duration)) == duration
    assert hash(Duration.parse(str(duration))) == hash(duration)


def test_whole_numbers_are_one_value() -> None:
    assert Duration.parse("90.0ep") == Duration(90, "ep")
    assert str(Duration(90.0, "ep")) == "90ep"


def test_units_of_a_field() -> None:
    assert TypeAdapter(Span).validate_python("0ep") == Duration(0, "ep")
    for kind, text in [(Length, "0ep"), (Length, "5%"), (Span, "5min"), (Steps, "1ep"), (Steps, 3)]:
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python(text)
