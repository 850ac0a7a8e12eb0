"""The stream is the sum of its branches where it must be, and where it is not, that is said and why."""

import pytest
import torch
from torch import nn

from restrain.insight import propagation
from restrain.models import build_model
from restrain.models.norm import GroupedBatchNorm
from restrain.models.residual import NoJoin
from tests.insight.nets import add, net, values


def check(model: nn.Module, x: torch.Tensor):
    x = x.requires_grad_(True)
    loss, passed = propagation.record(model, lambda: (model(x) ** 3).mean())
    return propagation.check(loss, passed)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_a_trunk_of_identities_is_a_sum_forward_and_backward(dtype: torch.dtype, tolerance: float) -> None:
    (found,) = check(net(add(12), dtype=dtype), values(3, 4, dtype=dtype))
    assert (found.first, found.last, found.joins, found.shape) == ("0.join", "11.join", 12, (4,))
    assert found.holds
    assert found.error <= tolerance
    assert found.grad_error <= tolerance


def test_the_gradients_two_sides_are_worked_out_apart() -> None:
    """The left one is autograd's; the right one must move when a branch's part is left out."""
    model, x = net(add(3)), values(3, 4).requires_grad_(True)
    loss, passed = propagation.record(model, lambda: (model(x) ** 3).mean())
    short = [passed[0], passed[2]]  # as if the second block did not add
    found = propagation._checked(loss, short)
    assert found.error > 1e-3
    assert found.grad_error > 1e-3


@pytest.mark.parametrize(
    ("after", "because"),
    [(nn.ReLU, "post-activation"), (lambda: nn.LayerNorm(4), "post-norm"), (nn.Tanh, "something else")],
)
def test_what_follows_a_join_is_named(after, because: str) -> None:
    (found,) = check(net(add(3), after=after), values(3, 4))
    assert because in found.because
    assert not found.holds
    assert found.error > 1e-3


def test_a_plain_network_has_no_sum() -> None:
    (found,) = check(net([NoJoin(), NoJoin()]), values(3, 4))
    assert "y = f(x)" in found.because


def test_one_block_alone_is_a_sum_whatever_follows_it() -> None:
    (found,) = check(net(add(1), after=nn.ReLU), values(3, 4))
    assert found.holds
    assert found.error == 0.0


def test_the_trunk_is_cut_where_the_stream_changes_its_shape() -> None:
    first, second = net(add(2), width=4), net(add(3), width=6)
    model = nn.Sequential(first, nn.ConstantPad1d((0, 2), 1.0), second).double()
    found = check(model, values(3, 4))
    assert [(one.joins, one.shape) for one in found] == [(2, (4,)), (3, (6,))]
    assert all(one.holds and one.error <= 1e-14 and one.grad_error <= 1e-14 for one in found)


TOKENS = {"depth": 4, "width": 32, "heads": 2}
FAMILIES = [
    ({"name": "cifar_preresnet56"}, (4, 3, 16, 16), [9, 9, 9]),
    ({"name": "resnetv2_50"}, (2, 3, 64, 64), [3, 4, 6, 3]),
    ({"name": "vit", "shape": {**TOKENS, "patch": 4}}, (4, 3, 16, 16), [8]),
    ({"name": "deit3_small_patch16_224", "shape": TOKENS}, (4, 3, 32, 32), [8]),
    ({"name": "gpt", "shape": {**TOKENS, "context": 16}}, (4, 16), [8]),
    ({"name": "bert", "shape": {**TOKENS, "context": 16}, "transformer": {"order": "pre"}}, (4, 16), [8]),
]


def of_family(section: dict, shape: tuple[int, ...]):
    """Checks of a network in fp32 whose branches matter, BatchNorms by the statistics of the batch."""
    model = build_model({"classes": 7, "zero_init": False, **section}, seed=3, sides=(shape[-1],))
    model.eval()
    for module in model.modules():
        if isinstance(module, GroupedBatchNorm):
            module.train()
    x = values(*shape, dtype=torch.float32)
    if len(shape) == 2:
        x = (x.abs() * 1000).long() % 7
    loss, passed = propagation.record(model, lambda: model(x).float().logsumexp(-1).mean())
    return propagation.check(loss, passed)


@pytest.mark.parametrize(("section", "shape", "joins"), FAMILIES, ids=[one[0]["name"] for one in FAMILIES])
def test_families_propagate_signals_in_fp32(section: dict, shape: tuple[int, ...], joins: list[int]) -> None:
    found = of_family(section, shape)
    assert [one.joins for one in found] == joins
    for one in found:
        assert one.holds, one.because
        assert one.error <= 1e-5
        assert one.grad_error <= 1e-5


@pytest.mark.parametrize(
    ("section", "because"),
    [
        ({"name": "gpt", "shape": {**TOKENS, "context": 16}, "transformer": {"order": "post"}}, "post-norm"),
        ({"name": "gpt", "shape": {**TOKENS, "context": 16}, "transformer": {"order": "deepnorm"}}, "DeepNorm"),
        ({"name": "gpt", "shape": {**TOKENS, "context": 16}, "join": {"name": "gate"}}, "gate"),
    ],
    ids=["post", "deepnorm", "gate"],
)
def test_families_that_cannot_say_why(section: dict, because: str) -> None:
    (found,) = of_family(section, (4, 16))
    assert because in found.because
    assert found.error > 1e-3


def test_a_stream_before_any_weight_and_one_that_the_loss_does_not_read() -> None:
    """The first state of a recurrent network has no gradient; a trunk may be left before its end."""
    model, x = net(add(3)), values(3, 4)
    loss, passed = propagation.record(model, lambda: model(x).sum())
    (found,) = propagation.check(loss, passed)
    assert (found.first, found.joins) == ("1.join", 2)
    assert found.grad_error <= 1e-14
    loss, passed = propagation.record(model, lambda: (model(x), model[0].linear.weight.sum())[1])
    (found,) = propagation.check(loss, passed)
    assert found.grad_error == 0.0
