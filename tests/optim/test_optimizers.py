"""Groups that partition, learning-rate rules, and optimizers whose every step can be masked."""

import copy

import pytest
import torch
from torch import nn

from restrain.errors import UserError
from restrain.models import build_model
from restrain.optim.groups import parameter_groups
from restrain.optim.optimizers import build_optimizer

SGD = {"name": "sgd", "lr": 0.1, "lr_per": None, "lr_rule": "linear", "momentum": 0.9, "nesterov": False}
ADAMW = {"name": "adamw", "lr": 1e-3, "lr_per": None, "lr_rule": "linear", "betas": [0.9, 0.99], "eps": 1e-8}
DECAY = {"weight_decay": 1e-2, "no_decay": "none"}
SECTIONS = [SGD | DECAY, SGD | DECAY | {"nesterov": True}, SGD | DECAY | {"momentum": 0.0}, ADAMW | DECAY]


def small(channels_last: bool = True) -> nn.Module:
    model = build_model({"name": "cifar_resnet20", "classes": 10}, seed=1)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def set_gradients(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * scale
        parameter.grad = torch.empty_like(parameter).copy_(drawn)  # in the parameter's memory format


def torchs_own(section, model: nn.Module) -> torch.optim.Optimizer:
    if section["name"] == "sgd":
        keys = ("lr", "momentum", "nesterov", "weight_decay")
        return torch.optim.SGD(model.parameters(), **{key: section[key] for key in keys})
    keys = ("lr", "eps", "weight_decay")
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), **{key: section[key] for key in keys}, fused=True)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    tensors = list(model.parameters())
    tensors += [tensor for state in optimizer.state.values() for tensor in state.values() if tensor is not None]
    return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_masked_first_step_leaves_no_trace(section, channels_last):
    model = small(channels_last)
    other = copy.deepcopy(model)
    optimizer, theirs = build_optimizer(section, model, batch_global=64), torchs_own(section, other)
    before = everything(model, optimizer)

    set_gradients(model, 0, scale=float("nan"))
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, everything(model, optimizer), strict=True))

    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    for seed in (1, 2):
        for mine, its in ((model, optimizer), (other, theirs)):
            set_gradients(mine, seed)
            its.step()
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            # fused and unfused SGD may round differently in the last bit; fused AdamW is compared with itself
            torch.testing.assert_close(a, b, rtol=1e-6 if section["name"] == "sgd" else 0, atol=1e-7)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_first_step_from_zero_momentum_is_bit_equal_to_torchs(nesterov):
    section = SGD | DECAY | {"nesterov": nesterov}
    model = small()
    other = copy.deepcopy(model)
    optimizer = build_optimizer(section, model, batch_global=64)
    theirs = torch.optim.SGD(other.parameters(), 0.1, 0.9, weight_decay=1e-2, nesterov=nesterov, fused=True)
    for seed in range(3):
        for mine, its in ((model, optimizer), (other, theirs)):
            set_gradients(mine, seed)
            its.step()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("section", SECTIONS)
def test_state_exists_at_once_in_the_parameters_memory_format(section):
    model = small()
    optimizer = build_optimizer(section, model, batch_global=64)
    kinds = {
        "sgd": {"momentum_buffer"} if section.get("momentum") else set(),
        "adamw": {"step", "exp_avg", "exp_avg_sq"},
    }
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert set(state) == kinds[section["name"]]
        for name, tensor in state.items():
            assert not tensor.any()
            assert name == "step" or tensor.stride() == parameter.stride()


@pytest.mark.parametrize(
    ("lr_per", "rule", "expected"),
    [(None, "linear", 0.1), (256, "linear", 0.4), (256, "sqrt", 0.2), (256, "none", 0.1)],
)
def test_the_learning_rate_follows_its_rule(lr_per, rule, expected):
    section = SGD | DECAY | {"lr_per": lr_per, "lr_rule": rule}
    group = build_optimizer(section, nn.Linear(2, 2), batch_global=1024).param_groups[0]
    assert group["lr"] == group["initial_lr"] == pytest.approx(expected)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"optimizer\.name is 'adam'.*Did you mean 'adamw'"):
        build_optimizer(ADAMW | DECAY | {"name": "adam"}, nn.Linear(2, 2), batch_global=1)
    with pytest.raises(UserError, match=r"optimizer\.lr_rule is 'cubic'"):
        build_optimizer(SGD | DECAY | {"lr_per": 1, "lr_rule": "cubic"}, nn.Linear(2, 2), batch_global=1)
    with pytest.raises(UserError, match=r"optimizer\.no_decay is 'biases'"):
        parameter_groups(nn.Linear(2, 2), 0.1, "biases")


def test_no_decay_goes_by_kind_not_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_like = nn.Linear(3, 3)  # a name that a search for "norm" would find
            self.scale = nn.LayerNorm([2, 3])  # a normalisation whose weight is a matrix

    model = Named()
    decayed, spared = parameter_groups(model, 0.1, "norm_and_bias")
    assert [id(p) for p in decayed["params"]] == [id(model.norm_like.weight)]
    assert {id(p) for p in spared["params"]} == {
        id(p) for p in (model.norm_like.bias, model.scale.weight, model.scale.bias)
    }
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("no_decay", ["none", "norm_and_bias"])
def test_groups_partition_the_trainable_parameters(no_decay):
    model = build_model({"name": "cifar_resnet20", "classes": 10, "freeze": ["stem", "block:0"]})
    groups = parameter_groups(model, 0.1, no_decay)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    assert sum(len(group["params"]) for group in parameter_groups(tied, 0.1, no_decay)) == 3


def test_a_wholly_frozen_model_is_refused():
    with pytest.raises(UserError, match="nothing to train"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1, "none")
