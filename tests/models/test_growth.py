"""Which block of a deeper network is which of a shallower one."""

import pytest
import torch

from restrain.errors import UserError
from restrain.models import build_model
from restrain.models.growth import match, source, zeroed

SHALLOW, DEEP = ["a.0", "a.1", "b.0"], ["a.0", "a.1", "a.2", "a.3", "b.0", "b.1"]


def test_new_blocks_are_spread_evenly_or_stand_at_the_end() -> None:
    assert match(SHALLOW, DEEP) == {"a.0": "a.0", "a.2": "a.1", "b.0": "b.0"}
    assert match(SHALLOW, DEEP, "end") == {"a.0": "a.0", "a.1": "a.1", "b.0": "b.0"}


def test_stages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="a has 2 blocks, fewer than the 4"):
        match(DEEP, SHALLOW)
    with pytest.raises(UserError, match="the stages are c, those of the run a, b"):
        match(SHALLOW, ["c.0"])
    with pytest.raises(UserError, match="--place middle"):
        match(SHALLOW, DEEP, "middle")


def test_tensors_are_found_under_the_old_blocks_name() -> None:
    matched = match(SHALLOW, DEEP)
    assert source("a.2.bn.weight", DEEP, matched) == "a.1.bn.weight"
    assert source("a.1.bn.weight", DEEP, matched) is None
    assert source("fc.weight", DEEP, matched) == "fc.weight"
    assert source("a.10.w", [*DEEP, "a.10"], {"a.10": "a.7"}) == "a.7.w"  # and not new, as a.1 is


def test_the_last_scale_of_each_branch_makes_it_zero() -> None:
    with torch.device("meta"):
        both = [build_model({"name": "cifar_resnet20", "classes": 10, "zero_init": wanted}) for wanted in (True, False)]
    widening = ("layer2.0", "layer3.0")  # whose shortcuts pad with zeros: they are no identities, and never inserted
    blocks = [f"layer{stage}.{n}" for stage in (1, 2, 3) for n in (0, 1, 2)]
    assert zeroed(*both) == {f"{block}.bn2.weight" for block in blocks if block not in widening}


def test_of_a_learned_factor_of_zero_the_branch_stays_as_it_is():
    """Behind a branch of zero the factor would have no gradient, nor the branch behind a factor of zero."""
    with torch.device("meta"):
        section = {"name": "cifar_resnet20", "classes": 10, "join": {"name": "add", "scale": "rezero"}}
        both = [build_model(section | {"zero_init": wanted}) for wanted in (True, False)]
    assert all(name.endswith(".join.gamma") for name in zeroed(*both))
    assert len(zeroed(*both)) == 9
