"""docs/lineage.md says of each claim what the table says."""

from pathlib import Path

import pytest

from restrain.lineage.table import CLAIMS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lineage.md").read_text("utf-8")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: str(claim.number))
def test_the_page_lists_the_claim(claim):
    assert f"| {claim.number} | **{claim.title}.** {claim.text} | {claim.source} | {claim.short} |" in PAGE
    assert f"\n{claim.number}. {claim.expected}\n" in PAGE
    for line in claim.long:
        assert f"\n{line}\n" in PAGE
