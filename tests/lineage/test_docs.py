"""docs/lineage.md says of each claim what the table says."""

import json
from pathlib import Path

import pytest

from restrain.lineage.claims.rank import floor_note
from restrain.lineage.table import CLAIMS
from tests import worlds

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lineage.md").read_text("utf-8")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: str(claim.number))
def test_the_page_lists_the_claim(claim):
    assert f"| {claim.number} | **{claim.title}.** {claim.text} | {claim.source} | {claim.short} |" in PAGE
    assert f"\n{claim.number}. {claim.expected}\n" in PAGE
    for line in claim.long:
        assert f"\n{line}\n" in PAGE


def test_every_claim_has_a_long_form():
    assert all(claim.long for claim in CLAIMS)


@pytest.mark.slow
def test_the_long_form_of_growth_runs_on_the_digits(tmp_path):
    """The same commands, on the digits and with 2 steps for 64,000."""
    small = ["evaluate.every=2st", "checkpoint.every=2st", "precision=fp32"]
    places = {"RUN": str(tmp_path / "run"), "GROWN": str(tmp_path / "grown"), "length=128000st": "length=4st"}
    trained, *grown = [line.split()[1:] for line in CLAIMS[2].long[:3]]
    trained[trained.index("cifar10_resnet20")] = "digits_resnet20"
    for words in ([*trained, "length=2st", *small], *grown):
        ended = worlds.start([places.get(word, word) for word in words], 1, tmp_path).wait()
        assert ended.codes == [0], ended.text
    assert json.loads((tmp_path / "grown" / "run.json").read_text())["step"] == 4


def test_the_note_says_from_which_block_on_float64_sees_nothing():
    assert "after block 3 is float64's rounding" in floor_note([1e-2, 1e-7, 1e-16, 1e-16])
    assert "in all 2 blocks" in floor_note([1e-2, 1e-7])
