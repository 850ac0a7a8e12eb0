"""Durations carry their unit: ``90ep``, ``5%``, ``20000st``, ``10min``. One parser, one resolver."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

UNITS = {
    "ep": "epochs",
    "st": "optimizer steps",
    "%": "of the whole run",
    "s": "seconds",
    "min": "minutes",
    "h": "hours",
}
WALL_CLOCK = {"s": 1, "min": 60, "h": 3600}
_TEXT = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ep|st|%|min|s|h)")


@dataclass(frozen=True)
class Duration:
    """A length of training (``ep``, ``st``, ``%``) or of time on the clock (``s``, ``min``, ``h``)."""

    value: float | int
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unknown unit {self.unit!r}; the units are {', '.join(UNITS)}")
        if self.value < 0 or not math.isfinite(self.value):
            raise ValueError(f"a duration is finite and at least 0, not {self.value}")
        if self.value == int(self.value):
            object.__setattr__(self, "value", int(self.value))
        elif self.unit == "st":
            raise ValueError(f"steps are whole, not {self.value}")

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Read ``"90ep"``; ValueError says what is missing."""
        match = _TEXT.fullmatch(text)
        if match:
            number, unit = match.groups()
            return cls(float(number) if "." in number else int(number), unit)
        try:
            float(text)
        except ValueError:
            raise ValueError("is not a duration") from None
        raise ValueError("has no unit")

    def steps(self, steps_per_epoch: int, total_steps: int | None = None) -> int:
        """The duration in whole optimizer steps, halves rounded up; ``%`` is of ``total_steps``."""
        if self.unit == "st":
            return int(self.value)
        if self.unit == "ep":
            exact = self.value * steps_per_epoch
        elif self.unit == "%":
            if total_steps is None:
                raise ValueError(f"{self} is a share of the run, whose length is not known here")
            exact = self.value * total_steps / 100
        else:
            raise ValueError(f"{self} is time on the clock, not a number of steps")
        return math.floor(exact + 0.5)

    @property
    def is_wall_clock(self) -> bool:
        return self.unit in WALL_CLOCK

    def seconds(self) -> float:
        """Seconds on the clock; ValueError for ``ep``, ``st`` and ``%``."""
        if not self.is_wall_clock:
            raise ValueError(f"{self} is not time on the clock")
        return self.value * WALL_CLOCK[self.unit]

    def __str__(self) -> str:
        # Not repr: 1e-05 has no place in the syntax.
        return f"{Decimal(repr(self.value)):f}{self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any) -> "Duration":
            if isinstance(value, Duration):
                return value
            if isinstance(value, str):
                return cls.parse(value)
            raise ValueError("is not a duration")

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{_TEXT.pattern}$", "examples": ["90ep", "5%", "20000st", "10min"]}


@dataclass(frozen=True)
class Units:
    """Annotation of a field: the units that make sense there, and whether zero does."""

    allowed: tuple[str, ...]
    zero: bool = False

    def check(self, duration: Duration) -> Duration:
        if duration.unit not in self.allowed:
            raise ValueError(f"has a unit that makes no sense here; write {self.describe()}")
        if duration.value == 0 and not self.zero:
            raise ValueError("must be longer than 0")
        return duration

    def describe(self) -> str:
        """``"ep (epochs) or st (optimizer steps)"``."""
        words = [f"{unit} ({UNITS[unit]})" for unit in self.allowed]
        return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        whole, units = r"[0-9]+", [unit for unit in self.allowed if unit != "st"]
        forms = [rf"{whole}(\.[0-9]+)?({'|'.join(units)})"] if units else []
        forms += [rf"{whole}st"] if "st" in self.allowed else []
        return {"type": "string", "pattern": f"^({'|'.join(forms)})$", "examples": [_EXAMPLES[u] for u in self.allowed]}


_EXAMPLES = {"ep": "90ep", "st": "20000st", "%": "5%", "s": "30s", "min": "10min", "h": "2h"}
