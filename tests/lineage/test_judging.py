"""What is expected of numbers, and the verdict: it follows from them and from nothing else."""

import math

import pytest

from restrain.lineage.claim import Check, judge

NUMBERS = {"loss of a": 2.0, "loss of b": 0.5, "nothing": math.nan, "endless": math.inf}


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (Check("loss of a", ">", "loss of b", 3.9), True),
        (Check("loss of a", ">", "loss of b", 4.0), False),
        (Check("loss of a", ">=", "loss of b", 4.0), True),
        (Check("loss of a", "<", 2.0), False),
        (Check("loss of a", "<=", 2.0), True),
        (Check("loss of a", "=", 2.0), True),
        (Check("loss of a", "=", "loss of b"), False),
        (Check("nothing", "<", 1.0), False),
        (Check("endless", ">", 1.0), False),
        (Check("loss of a", "<", "endless"), False),
    ],
)
def test_a_check(check, holds):
    assert check.holds(NUMBERS) is holds


def test_a_check_of_a_number_that_is_missing_is_a_fault_and_no_verdict():
    with pytest.raises(KeyError, match="loss of c"):
        judge((Check("loss of a", ">", "loss of c"),), NUMBERS)


def test_a_check_in_words():
    assert str(Check("loss of a", ">", "loss of b", 10.0)) == "loss of a > 10 x loss of b"
    assert str(Check("loss of a", "<=", 1e-5)) == "loss of a <= 1e-05"


@pytest.mark.parametrize(
    ("checks", "word", "held"),
    [
        ((Check("loss of a", ">", 1.0), Check("loss of b", "<", 1.0)), "agrees", (True, True)),
        ((Check("loss of a", ">", 1.0), Check("loss of b", ">", 1.0)), "agrees in part", (True, False)),
        ((Check("loss of a", ">", 1.0, side=True), Check("loss of b", ">", 1.0)), "not shown", (True, False)),
        ((Check("loss of a", "<", 1.0), Check("nothing", "<", 1.0)), "not shown", (False, False)),
    ],
)
def test_the_verdict(checks, word, held):
    verdict = judge(checks, NUMBERS)
    assert (verdict.word, verdict.held) == (word, held)
