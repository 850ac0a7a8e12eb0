"""The data sets a recipe can name, behind one function."""

from __future__ import annotations

from typing import Any

from restrain.data.digits import DigitsSource
from restrain.data.reader import Source
from restrain.errors import UserError


def open_source(data: Any, split: str, *, classes: int | None = None) -> Source | None:
    """The ``train`` or ``eval`` split of a recipe's ``data`` section; None where there is no evaluation set.

    classes: ``model.classes``, to check labels against.
    """
    if data.name == "digits":
        return DigitsSource(split, classes)
    raise UserError(f"data.name={data.name}: unknown data set.")
