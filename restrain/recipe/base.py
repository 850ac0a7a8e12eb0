"""What every section of a recipe is, and the small types they share."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from restrain.recipe.durations import Duration, Units


class Section(BaseModel):
    """A closed, frozen group of keys: an unknown key or a value of another type is an error, never a guess."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


AsTuple = BeforeValidator(_as_tuple)
"""Annotation: a list from Python is taken where the recipe, being frozen, keeps a tuple."""


class FrozenDict(dict[str, str]):
    """Keys of another program within a recipe, which is hashed like everything that is frozen."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(frozenset(self.items()))


Auto = Literal["auto"]
Positive = Annotated[int, Field(gt=0)]
Threads = Annotated[int, Field(gt=0, le=1024)]
Unit = Annotated[float, Field(ge=0, le=1)]
"""A share or a probability, 0 to 1."""
NonNegative = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]

Length = Annotated[Duration, Units(("ep", "st"))]
Moment = Annotated[Duration, Units(("ep", "st", "%"))]
Span = Annotated[Duration, Units(("ep", "st", "%"), zero=True)]
Every = Annotated[Duration, Units(("ep", "st", "%"))]
Steps = Annotated[Duration, Units(("st",))]
Cadence = Annotated[Duration, Units(("ep", "st", "%", "s", "min", "h"))]
