"""What an attempt says of itself."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from restrain.parallel.world import World
from restrain.recipe import load
from restrain.training.attempt import Attempt
from restrain.training.placement import Placement


def attempt(strategy: str, *words: str) -> Attempt:
    recipe = load("digits_resnet20", [f"parallel.strategy={strategy}", *(f"parallel.{word}" for word in words)]).recipe
    where = Placement("cpu", 16, 1, 1, strategy, 1, 2 if strategy == "fsdp" else 1)
    rest: Any = dict.fromkeys(("folder", "lease", "device", "data", "opened", "own"))
    return Attempt(recipe=recipe, world=World(rank=0, size=2), where=where, **rest)


def notices(before: Attempt, now: Attempt) -> list[str]:
    """Of a run that goes on from a checkpoint, whose manifest is JSON."""
    placement = json.loads(json.dumps(before.circumstances))
    return now.not_bit_equal(cast(Any, SimpleNamespace(placement=placement)))


@pytest.mark.parametrize(
    ("strategy", "word", "told"),
    [
        ("fsdp", "reduce=bf16", "reduce fp32 -> bf16"),
        ("ddp", "compile=block", "compile none -> block"),
        ("zero2", "deepspeed={overlap_comm: true}", "deepspeed {} -> {'overlap_comm': 'true'}"),
        ("fsdp", "offload=cpu", "offload none -> cpu"),
    ],
)
def test_what_moves_the_last_bits_is_told(strategy: str, word: str, told: str) -> None:
    plain, other = attempt(strategy), attempt(strategy, word)
    assert notices(plain, plain) == notices(other, other) == []
    assert notices(plain, other) == [f"not bit-equal from here on ({told}); samples, draws and schedule are the same"]


def test_what_does_not_move_them_is_not() -> None:
    assert not notices(attempt("ddp"), attempt("ddp", "reduce=bf16"))  # ddp adds them as they are
    assert not notices(attempt("fsdp"), attempt("fsdp", "reduce=fp32"))
    assert not notices(attempt("fsdp"), attempt("fsdp", "remat=block", "reshard=false"))


def test_a_checkpoint_that_does_not_say_it() -> None:
    """Of an earlier version."""
    now = attempt("fsdp", "compile=block")
    placement = {name: value for name, value in now.circumstances.items() if name != "compile"}
    assert now.not_bit_equal(cast(Any, SimpleNamespace(placement=placement))) == []
