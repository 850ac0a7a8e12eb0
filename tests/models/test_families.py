"""What every network of ours keeps, whatever its family: the contract that passes, runs and checkpoints rely on."""

import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from restrain.models import (
    build_model,
    init_model,
    materialise,
    named_dropouts,
    named_joins,
    residual_blocks,
    set_dropout_keys,
    set_factors,
)
from restrain.models.foreign.trial import NoDraws
from restrain.models.norm import grouped_norms
from restrain.recipe.model_names import FAMILIES

ROWS = 4


class Case(NamedTuple):
    """A network of a family, small enough to be tried: its section, the kind of its input, and whether it drops
    paths."""

    section: dict[str, Any]
    kind: str = "image"
    side: int = 16
    drops: bool = True


MODERN = {"position": "rotary", "norm": "rmsnorm", "activation": "swiglu", "tied": False, "dropout": 0.1}
RECURRENT = {"in_chans": 2, "shape": {"depth": 2, "width": 12}}
# One line a family, or several where its networks differ in kind.
CASES = {
    "resnet": [Case({"name": "cifar_resnet20"}), Case({"name": "resnet50"}, side=64)],
    "preact": [Case({"name": "cifar_preresnet20"}), Case({"name": "resnetv2_50"}, side=64)],
    "shared": [Case({"name": "cifar_shared_resnet20"})],
    "densenet": [Case({"name": "cifar_densenetbc100_k12"}, side=8), Case({"name": "densenet121"}, side=64)],
    "plain": [Case({"name": "cifar_vgg16_bn"}, side=32)],
    "vit": [
        Case({"name": "vit", "shape": {"depth": 3, "width": 32, "heads": 2, "patch": 4}}),
        Case({"name": "vit_tiny_patch16_224", "shape": {"depth": 2}, "transformer": {"order": "post"}}, side=32),
        Case({"name": "deit3_small_patch16_224", "shape": {"depth": 2, "width": 64, "heads": 2}}, side=32),
    ],
    "gpt": [
        Case({"name": "gpt", "shape": {"depth": 3, "width": 32, "heads": 2, "context": 16}}, "tokens"),
        Case({"name": "gpt2", "shape": {"depth": 2, "width": 32, "heads": 2}, "transformer": MODERN}, "tokens"),
    ],
    "bert": [Case({"name": "bert", "shape": {"depth": 3, "width": 32, "heads": 2, "context": 16}}, "tokens")],
    "highway_mlp": [Case({"name": "highway_mlp", "shape": {"depth": 4, "width": 12}})],
    "highway_mlp_tanh": [
        Case({"name": "highway_mlp_tanh", "shape": {"depth": 4, "width": 12}, "join": {"name": "add"}}),
    ],
    "highway": [Case({"name": "highway_19"}), Case({"name": "highway_32", "join": {"name": "none"}})],
    "skip_perceptron": [Case({"name": "skip_perceptron", "shape": {"depth": 2, "width": 12}})],
    "rnn": [Case({**RECURRENT, "name": "rnn"}, "sequence", drops=False)],
    "lstm1997": [Case({**RECURRENT, "name": "lstm1997"}, "sequence", drops=False)],
    "lstm": [
        Case({**RECURRENT, "name": "lstm"}, "sequence", drops=False),
        Case({**RECURRENT, "name": "lstm", "recurrent": {"reads": "tokens"}}, "tokens", drops=False),
    ],
}
ALL = [(family, case) for family, cases in CASES.items() for case in cases]
IDS = [case.section["name"] for _, case in ALL]


def made(case: Case, **more: Any) -> nn.Module:
    return build_model({"classes": 7, **case.section, **more}, 3, (case.side,) if case.kind == "image" else ())


def has_paths(case: Case) -> bool:
    """Whether there are any to drop."""
    joined = case.section.get("join", {}).get("name") != "none"
    return case.drops and joined and bool(residual_blocks(made(case)))


def inputs(case: Case) -> Tensor:
    torch.manual_seed(1)
    if case.kind == "tokens":
        return torch.randint(0, 7, (ROWS, case.side))
    if case.kind == "sequence":
        return torch.randn(ROWS, case.side, 2)
    return torch.randn(ROWS, 3, case.side, case.side)


def ready(model: nn.Module, rate: float = 0.0) -> nn.Module:
    """In training mode, with factors for the paths and keys for the dropouts."""
    count = len(named_joins(model))
    keep = (
        (torch.arange(count * ROWS).view(count, ROWS) % 3 > 0).float() / (1 - rate) if rate else torch.ones(count, ROWS)
    )
    set_factors(model, keep)
    dropouts = [dropout for _, dropout in named_dropouts(model)]
    set_dropout_keys(dropouts, torch.arange(len(dropouts) * ROWS).view(len(dropouts), ROWS))
    return model.train()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    model(x).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_every_family_is_tried():
    assert set(CASES) == set(FAMILIES)


@pytest.mark.parametrize(("family", "case"), ALL, ids=IDS)
def test_the_constructor_draws_nothing_and_the_meta_device_gives_the_same(family, case):
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    model = made(case)
    with torch.device("meta"):
        twin = made(case)
    assert all(tensor.is_meta for tensor in [*twin.parameters(), *twin.buffers()])
    materialise(twin, "cpu", 3)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))
    assert twin.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, twin.get_buffer(name)), name


@pytest.mark.parametrize(("family", "case"), ALL, ids=IDS)
def test_filling_leaves_nothing_of_what_memory_held(family, case):
    model = made(case)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(float("nan") if tensor.is_floating_point() else 99)
    init_model(model, 3)
    fresh = made(case)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        other = dict(fresh.named_parameters()).get(name)
        assert torch.equal(tensor, other if other is not None else fresh.get_buffer(name)), name


@pytest.mark.parametrize(("family", "case"), ALL, ids=IDS)
def test_every_parameter_is_trained(family, case):
    found = gradients(ready(made(case, zero_init=False)), inputs(case))
    silent = [name for name, gradient in found.items() if gradient is None or not gradient.abs().sum() > 0]
    assert not silent


@pytest.mark.slow
@pytest.mark.parametrize(("family", "case"), ALL, ids=IDS)
def test_no_generator_is_read_in_twenty_steps(family, case, monkeypatch):
    """With paths and elements dropped and labels mixed. torch's operations that would draw raise, as do the others."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a process-wide generator was asked")

    for name in ("random", "uniform", "randint", "shuffle", "choice"):
        monkeypatch.setattr(random, name, refuse)
    for name in ("random", "rand", "randn", "randint", "uniform", "permutation", "choice", "shuffle"):
        monkeypatch.setattr(np.random, name, refuse)
    paths = has_paths(case)
    model = made(case, **({"drop_path": {"rate": 0.3}} if paths else {}))
    x, before = inputs(case), torch.get_rng_state()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    with NoDraws():
        for step in range(20):
            ready(model, 0.3 if paths else 0.0)
            mixed = (0.7 * x + 0.3 * x.flip(0)).roll(step, 0) if x.is_floating_point() else x
            optimizer.zero_grad()
            model(mixed).square().mean().backward()
            optimizer.step()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("family", "case"), ALL, ids=IDS)
def test_recomputing_blocks_changes_nothing(family, case):
    x = inputs(case)
    residual = has_paths(case)
    rate = 0.4 if residual else 0.0
    section = {"drop_path": {"rate": rate}} if residual else {}
    plain, again = ready(made(case, **section), rate), ready(made(case, **section), rate)
    for _, block in residual_blocks(again):
        block.remat = True
    one, other = gradients(plain, x), gradients(again, x)
    for name, gradient in one.items():
        assert gradient is not None
        assert torch.equal(gradient, other[name]), name  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("family", "case"), ALL, ids=IDS)
def test_parts_and_names(family, case):
    model = made(case)
    for part in ("stem", "head"):
        pieces = model.part(part)  # pyright: ignore[reportCallIssue]
        assert pieces
        frozen = made(case, freeze=[part])
        assert 0 < sum(not p.requires_grad for p in frozen.parameters()) < len(list(frozen.parameters()))
    blocks = [name for name, _ in residual_blocks(model)]
    keys = list(model.state_dict())
    assert all(any(key.startswith(name + ".") for key in keys) for name in blocks)
    assert len({name for name, _ in named_joins(model)}) == len(named_joins(model))
    assert not any(key.endswith((".factor", ".keys", ".rows")) for key in keys)


@pytest.mark.parametrize(("family", "case"), ALL, ids=IDS)
def test_evaluation_takes_each_row_on_its_own(family, case):
    model = made(case).double().eval()
    x = inputs(case)
    x = x.double() if x.is_floating_point() else x
    with torch.no_grad():
        whole, alone = model(x), torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(whole, alone, rtol=1e-9, atol=1e-9)
    assert whole.shape[0] == ROWS
    assert whole.shape[-1] == 7


@pytest.mark.parametrize(("family", "case"), ALL, ids=IDS)
def test_a_skipped_block_is_its_skip_path(family, case):
    """Mode ``batch``: what skip_forward gives is what the block gives with factors of zero."""
    if not has_paths(case):
        pytest.skip("there is no path to drop")
    model = made(case, drop_path={"rate": 0.5, "mode": "batch"}, zero_init=False).double()
    ready(model)
    x = inputs(case)
    x = x.double() if x.is_floating_point() else x
    set_factors(model, torch.zeros(len(named_joins(model)), ROWS))
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        block.register_forward_hook(
            lambda module, args, y, name=name: seen.__setitem__(name, (args[0].detach(), y.detach()))
        )
        for name, block in residual_blocks(model)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    for name, block in residual_blocks(model):
        given, with_zeros = seen[name]
        block.skipped = True
        torch.testing.assert_close(block(given.clone()), with_zeros, rtol=1e-12, atol=1e-12)
    for _, norm in grouped_norms(model):
        assert norm.training


@pytest.mark.parametrize(("family", "case"), ALL, ids=IDS)
def test_a_skipped_block_has_gradients_of_zero_and_its_norms_keep_still(family, case):
    """Not absent ones: DDP, momentum and weight decay go on. What a skipped block does compute, moves as ever."""
    if not has_paths(case):
        pytest.skip("there is no path to drop")
    model = ready(made(case, drop_path={"rate": 0.5, "mode": "batch"}, zero_init=False))
    for _, block in residual_blocks(model):
        block.skipped = True
    counts = {name: int(norm.num_batches_tracked or 0) for name, norm in grouped_norms(model)}
    found = gradients(model, inputs(case))
    assert not [name for name, gradient in found.items() if gradient is None]
    assert any(not gradient.any() for gradient in found.values() if gradient is not None)
    idle = {id(norm) for _, block in residual_blocks(model) for norm in block.idle_norms or ()}
    for name, norm in grouped_norms(model):
        assert (int(norm.num_batches_tracked or 0) == counts[name]) == (id(norm) in idle), name
