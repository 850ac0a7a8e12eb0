"""Odd tars give webdataset's samples, or are refused with a reason; the page's table of them is true."""

import re
import warnings
from pathlib import Path

import pytest

from restrain.data import tars
from restrain.errors import WorldError
from tests.data.test_tars import by_index, by_webdataset
from tests.data.zoo import SAME, ZOO, table

PAGE = Path(__file__).parents[2] / "docs" / "webdataset.md"
NAMES = [animal.what for animal in ZOO]


@pytest.mark.parametrize("animal", ZOO, ids=NAMES)
def test_ours_and_theirs(animal, tmp_path):
    path = tmp_path / "x.tar"
    animal.make(path)
    if animal.ours == SAME:
        assert animal.theirs is None
        assert by_index(path) == by_webdataset(path)
        assert len(by_index(path)) > 0
        return
    with pytest.raises(WorldError, match=re.escape(animal.ours)) as told:
        tars.scan(str(path))
    assert str(path) in str(told.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = len(by_webdataset(path))
        except Exception as error:
            theirs = type(error).__name__
    assert theirs == animal.theirs


def test_there_are_forty_of_them_and_the_page_lists_them():
    assert len(set(NAMES)) == len(NAMES) >= 40
    assert table() in PAGE.read_text()
