"""A run whose error goes down through random matrices: they are drawn again when it goes on, and never saved."""

from pathlib import Path

import pytest

from restrain.errors import UserError
from restrain.recipe import load
from restrain.run import journal
from restrain.training.from_script import fit

WORDS = ["model.feedback=random", "length=4st", "checkpoint.every=1st"]


class Cut:
    def on_step_end(self, step: int, metrics: dict) -> None:
        if step == 2:
            raise RuntimeError("cut")


def test_a_run_that_goes_on_has_the_same_matrices(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit("digits_resnet20", WORDS, run=whole)
    with pytest.raises(Exception, match="cut"):
        fit("digits_resnet20", WORDS, run=cut, callbacks=[Cut()])
    assert 0 < len(journal.read(cut / "metrics.jsonl")) < 4
    fit("digits_resnet20", WORDS, run=cut)
    losses = [[line["train/loss"] for line in journal.read(run / "metrics.jsonl")] for run in (whole, cut)]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    exact = tmp_path / "exact"
    fit("digits_resnet20", WORDS[1:], run=exact)
    assert [line["train/loss"] for line in journal.read(exact / "metrics.jsonl")] != losses[0]


def test_timm_models_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"model\.feedback.*timm/resnet18"):
        load("digits_resnet20", ["model.name=timm/resnet18", "model.feedback=sign"])
    with pytest.raises(UserError, match=r"model\.feedback"):
        load("digits_resnet20", ["model.feedback=exakt"])
    assert load("digits_resnet20", []).recipe.model.feedback == "exact"
