"""The table of claims: complete, with expectations as data and commands that exist."""

import re
import shlex

import pytest

from restrain.errors import UserError
from restrain.lineage.table import CLAIMS, chosen
from restrain.recipe import load


def test_all_eighteen_claims_are_there_in_order():
    assert [claim.number for claim in CLAIMS] == list(range(1, 19))
    assert len({claim.title for claim in CLAIMS}) == 18
    for claim in CLAIMS:
        assert claim.checks, claim.number
        assert re.search(r"19\d\d|20\d\d", claim.source), claim.number
        assert len(set(map(str, claim.checks))) == len(claim.checks), claim.number


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: str(claim.number))
def test_the_recipes_of_long_forms_load(claim):
    for line in claim.long:
        program, verb, name, *words = shlex.split(line)
        assert program == "restrain" and verb in ("train", "probe", "grow", "resume"), line  # noqa: PT018
        if verb in ("train", "probe"):
            load(name, words[: words.index("--run")] if "--run" in words else words)


def test_claims_are_chosen_by_number():
    assert [claim.number for claim in chosen(["12", "5", "5"])] == [5, 12]
    assert chosen([]) == list(CLAIMS)
    with pytest.raises(UserError, match=r"no claim '19': they are 1, 2, .*18.*--list"):
        chosen(["5", "19"])
