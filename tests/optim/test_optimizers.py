"""Groups that partition, learning-rate rules, and optimizers whose every step can be masked."""

import copy
import json

import pytest
import timm
import timm.optim
import torch
from torch import nn

from restrain.errors import UserError
from restrain.models import build_model
from restrain.optim.groups import layers, parameter_groups
from restrain.optim.optimizers import build_optimizer, state_slots
from restrain.optim.stepping import guarded_step
from restrain.training.state import RunState
from tests.optim import references

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
    with pytest.raises(UserError, match=r"optimizer\.name is 'adam_w'.*Did you mean 'adamw'"):
        build_optimizer(ADAMW | DECAY | {"name": "adam_w"}, nn.Linear(2, 2), batch_global=1)
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


# --------------------------------------------------------------------------------- each optimizer beside its reference


@pytest.mark.parametrize("case", references.CASES)
def test_fifty_steps_are_those_of_the_reference(case):
    mine, theirs, start = references.small(), references.small(), references.small()
    references.ours(case, mine, range(references.STEPS))
    references.reference(case, theirs)
    assert references.difference(mine, theirs) <= 1e-6
    assert references.difference(mine, start) > 1e-2  # they have moved at all
    if case.split()[0] not in ("sgd", "adamw"):  # those are fused here, which rounds otherwise than the reference
        assert references.difference(mine, theirs) == 0


@pytest.mark.parametrize("case", references.CASES)
@pytest.mark.parametrize("bad", [0, 1, 20])
def test_a_step_that_is_not_finite_leaves_no_trace(case, bad):
    model = references.small()
    optimizer = references.ours(case, model, range(bad))
    before = references.snapshot(model, optimizer)
    references.ours(case, model, range(bad, bad + 1), optimizer, bad=bad)
    after = references.snapshot(model, optimizer)
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("case", references.CASES)
@pytest.mark.parametrize("bad", [0, 20])
def test_training_goes_on_as_if_the_bad_step_had_no_update(case, bad):
    mine, theirs = references.small(), references.small()
    references.ours(case, mine, range(references.STEPS), bad=bad)
    references.reference(case, theirs, skip=bad)
    assert references.difference(mine, theirs) <= 1e-6


class Stored:
    """A checkpoint in memory: contiguous tensors, as files hold them, and scalars that went through JSON."""

    path = "memory"

    def __init__(self, state: RunState):
        self.tensors = {name: t.detach().contiguous().clone() for name, t in state.named_tensors().items()}
        self.scalars = json.loads(json.dumps(state.scalars()))

    def names(self):
        return list(self.tensors)

    def shape(self, name):
        return tuple(self.tensors[name].shape)

    def read_into(self, name, tensor, offset, shape):
        assert not any(offset)
        assert tuple(shape) == tuple(tensor.shape)
        tensor.copy_(self.tensors[name])


@pytest.mark.parametrize("case", references.CASES)
def test_ten_steps_are_five_a_restore_and_five(case):
    straight = references.small()
    references.ours(case, straight, range(10))
    first = references.small()
    stored = Stored(RunState(first, references.ours(case, first, range(5)), step=5))
    second = references.small()
    with torch.no_grad():
        for p in second.parameters():
            p.normal_(generator=torch.Generator().manual_seed(1))  # all must come from the checkpoint
    state = RunState(second, build_optimizer(references.section_of(case), second, batch_global=8))
    state.restore(stored)
    for (name, ours), theirs in zip(first.named_buffers(), second.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    references.ours(case, second, range(5, 10), state.optimizer)
    assert references.difference(straight, second) == 0


@pytest.mark.parametrize("case", references.CASES)
def test_the_state_before_the_first_step_is_that_of_a_step_later(case):
    """The slots and strides that the optimizer itself would make, all at their first values; weights untouched."""
    model, untouched = references.small(), references.small()
    optimizer = build_optimizer(references.section_of(case), model, batch_global=8)
    assert references.difference(model, untouched) == 0
    assert all(p.grad is None for p in model.parameters())
    kinds = {p: set(optimizer.state[p]) for p in model.parameters()}
    for p in model.parameters():
        for slot, value in optimizer.state[p].items():
            if isinstance(value, torch.Tensor):
                assert (value == (1.0 if slot == "mu_product" else 0.0)).all()
                assert value.ndim == 0 or value.stride() == p.stride()
    references.ours(case, model, range(1), optimizer)
    assert kinds == {p: set(optimizer.state[p]) for p in model.parameters()}


def test_checkpoints_of_before_that_count_nothing_are_taken():
    model = references.small()
    state = RunState(model, references.ours("sgd", model, range(2)), step=2)
    stored = Stored(state)
    assert stored.scalars.pop("updates") is None
    state.restore(stored)
    model = references.small()
    state = RunState(model, references.ours("lamb", model, range(2)), step=2)
    assert state.scalars()["updates"] == 2


def test_what_an_optimizer_keeps():
    assert (
        state_slots(references.section_of("sgd")) == state_slots(references.section_of("lars")) == {"momentum_buffer"}
    )
    assert state_slots(references.section_of("adamw")) == {"step", "exp_avg", "exp_avg_sq"}
    assert state_slots(references.section_of("lamb")) == {"exp_avg", "exp_avg_sq"}
    assert state_slots(references.section_of("nadam")) == {"step", "mu_product", "exp_avg", "exp_avg_sq"}


def test_decoupled_decay_does_not_follow_the_learning_rate():
    """With a gradient of zero the weights shrink by decay x factor, at any rate."""
    for lr in (0.1, 10.0):
        model = nn.Linear(4, 4)
        before = model.weight.detach().clone()
        section = SGD | DECAY | {"decay": "decoupled", "lr": lr}
        optimizer = build_optimizer(section, model, batch_global=1)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * 0.5
        guarded_step(optimizer, torch.zeros(()))
        torch.testing.assert_close(model.weight, before * (1 - 1e-2 * 0.5))


# ------------------------------------------------------------------------------------------------ groups of parameters


def test_no_decay_norm_spares_norms_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    decayed, spared = parameter_groups(model, 0.1, "norm")
    assert [p.shape for p in decayed["params"]] == [(4, 3, 1, 1), (4,)]
    assert {id(p) for p in spared["params"]} == {id(p) for p in model[1].parameters()}


def test_a_model_says_itself_what_must_not_decay():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, depth=2)
    decayed, spared = parameter_groups(model, 0.1, "norm_and_bias")
    names = {id(p): name for name, p in model.named_parameters()}
    assert {"pos_embed", "cls_token"} <= {names[id(p)] for p in spared["params"]}
    assert all(p.ndim > 1 for p in decayed["params"])
    wrapped = nn.ModuleDict({"inner": model})  # the statement is relative to the module that makes it
    assert len(parameter_groups(wrapped, 0.1, "norm_and_bias")[1]["params"]) == len(spared["params"])


def test_layer_decay_counts_from_the_head_down():
    model = build_model({"name": "cifar_resnet20", "classes": 10})
    number = layers(model)
    stem = [n for n in number if number[n] == 0]
    assert [n for n in number if number[n] == 10] == [n for n in number if n.startswith("fc.")]
    assert {n.partition(".")[0] for n in stem} == {"conv1", "bn1"}
    assert set(number.values()) == set(range(11))  # the stem, nine blocks, the head
    section = SGD | {"weight_decay": 0.1, "no_decay": "norm_and_bias", "layer_decay": 0.5}
    optimizer = build_optimizer(section, model, batch_global=1)
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert rates[id(p)] == pytest.approx(0.1 * 0.5 ** (10 - number[name])), name
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)  # the head's, which the journal tells
    assert sorted(rates) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(("name", "otherwise"), [("vit_tiny_patch16_224", {"norm"}), ("resnet18", set())])
def test_layer_decay_is_timms(name, otherwise):
    """timm counts by patterns over names, we by blocks. BEiT's last norm has the head's rate; in timm, its block's."""
    model = build_model({"name": f"timm/{name}", "classes": 4})
    names = {id(p): key for key, p in model.named_parameters()}
    theirs = timm.optim.param_groups_layer_decay(model, 0.05, layer_decay=0.75)
    ours = parameter_groups(model, 0.05, "norm_and_bias", 0.75)
    rates = [
        {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]} for groups in (ours, theirs)
    ]
    assert rates[0].keys() == rates[1].keys()
    assert {key.partition(".")[0] for key in rates[0] if rates[0][key] != rates[1][key]} == otherwise


def test_layer_decay_needs_blocks():
    with pytest.raises(UserError, match=r"optimizer\.layer_decay needs a model with residual blocks"):
        parameter_groups(nn.Linear(2, 2), 0.1, "none", 0.75)
