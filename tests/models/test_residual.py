"""The join: what it computes, what it drops, who may watch."""

import pytest
import torch
from torch import nn

from restrain.errors import UserError
from restrain.models import build_model, joins, named_joins, residual_blocks, set_factors
from restrain.models.blocks import drop_rate
from restrain.models.residual import AddJoin, NoJoin, join_spec


def plain_or_residual(join: str = "add", **kwargs) -> nn.Module:
    return build_model({"name": "cifar_resnet20", "classes": 10, "join": {"name": join}, **kwargs})


def test_what_each_join_computes():
    x, branch = torch.randn(2, 4, 3, 3, 3).unbind()
    assert torch.equal(AddJoin()(x, branch), x + branch)
    assert torch.equal(NoJoin()(x, branch), branch)


def test_an_unknown_join_names_the_nearest():
    with pytest.raises(UserError, match=r"model\.join\.name is 'ad'; .*Did you mean 'add'"):
        join_spec({"name": "ad"})


def test_blocks_and_joins_stand_in_depth_order_with_state_dict_names():
    model = plain_or_residual()
    names = [name for name, _ in residual_blocks(model)]
    assert names == [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(3)]
    assert all(any(key.startswith(name + ".") for key in model.state_dict()) for name in names)
    assert [name for name, _ in joins(residual_blocks(model)[0][1])] == ["join"]
    assert [name for name, _ in named_joins(model)] == [f"{name}.join" for name in names]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_rows_keep_the_stream_and_the_others_are_scaled(dtype):
    join = AddJoin(rate=0.5)
    set_factors([join], torch.tensor([[0.0, 2.0, 0.0]]))
    x, branch = torch.randn(2, 3, 4, 2, 2).to(dtype).unbind()
    y = join(x, branch)
    assert y.dtype == dtype
    assert torch.equal(y[0], x[0])
    assert torch.equal(y[2], x[2])
    assert torch.equal(y[1], x[1] + 2 * branch[1])
    assert torch.equal(join.eval()(x, branch), x + branch)


def test_factors_are_written_in_place_and_resized_only_with_the_rows():
    model = plain_or_residual(drop_path={"rate": 0.5})
    found = [join for _, join in named_joins(model)]
    set_factors(model, torch.rand(9, 4))
    first = [join.factor for join in found]
    factors = torch.rand(9, 4)
    set_factors(found, factors)
    assert all(join.factor is buffer for join, buffer in zip(found, first, strict=True))
    assert torch.equal(torch.stack([join.factor for join in found]), factors)
    set_factors(model, torch.rand(9, 6))
    assert found[0].factor.shape == (6,)
    assert not any("factor" in key for key in model.state_dict())
    with pytest.raises(ValueError, match=r"\[joins, rows\]"):
        set_factors(model, torch.rand(8, 4))


def test_missing_factors_are_an_error_not_a_default():
    model = plain_or_residual(drop_path={"rate": 0.5}).train()
    with pytest.raises(RuntimeError, match="set_factors"):
        model(torch.randn(2, 3, 8, 8))
    model.eval()(torch.randn(2, 3, 8, 8))


def test_rates_follow_depth():
    model = plain_or_residual(drop_path={"rate": 0.9})
    assert [join.rate for _, join in named_joins(model)] == pytest.approx([0.1 * (l + 1) for l in range(9)])
    model = plain_or_residual(drop_path={"rate": 0.2, "decay": "constant"})
    assert [join.rate for _, join in named_joins(model)] == [0.2] * 9
    with pytest.raises(UserError, match="linear or constant"):
        drop_rate(0.1, "cubic", 0, 9)
    with pytest.raises(UserError, match="lies in"):
        AddJoin(rate=1.0)


def test_observers_see_every_join():
    model = plain_or_residual()
    seen = []
    for _, join in named_joins(model):
        join.observers.append(lambda join, x, branch, y: seen.append(torch.equal(y, x + branch)))
    y = model.eval()(torch.randn(2, 3, 8, 8))
    assert seen == [True] * 9
    for _, join in named_joins(model):
        join.observers.clear()
    assert torch.isfinite(y).all()
