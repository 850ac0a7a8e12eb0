"""What parallel.remat recomputes, alone or in segments: gradients, statistics, FLOPs and bytes."""

from __future__ import annotations

import copy
import itertools
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from restrain.errors import UserError
from restrain.insight.cost import BlockBytes, block_bytes, saved_bytes, weightless
from restrain.models import StagedStatistics, build_model, named_joins, residual_blocks, set_factors, set_group
from restrain.models.blocks import ResidualBlock
from restrain.models.chains import chains
from restrain.parallel.blocks import apply_remat, apply_segments
from restrain.recipe import load
from restrain.recipe.rematerialise import Remat
from restrain.training.build import build_task
from restrain.training.inspection import model_without_memory
from restrain.training.memory import memory_of
from restrain.training.remat import fewest, needed
from tests.parallel.parity import COMMON, LAYOUTS, MODELS, Bench, compared

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

ROWS, GROUP = 8, 4
SHAPE = {"depth": 5, "width": 32, "heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "resnet": {"name": "cifar_resnet20"},
    "preact": {"name": "cifar_preresnet20"},
    "densenet": {"name": "cifar_densenet40_k12"},
    "vit": {"name": "vit", "shape": {**SHAPE, "patch": 2}},
    "gpt": {"name": "gpt", "shape": {**SHAPE, "context": 16}},
    "bert": {"name": "bert", "shape": {**SHAPE, "context": 16}},
}


def made(family: str, rate: float = 0.5, mode: str = "sample") -> nn.Module:
    section = {**FAMILIES[family], "classes": 10}
    if family != "densenet":
        section["drop_path"] = {"rate": rate, "mode": mode}
    model = build_model(section, 0, (8,)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # fresh weights end each branch in a zero
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(parameter.numel()))
    set_group(model, GROUP)
    factors(model)
    return model.train()


def factors(model: nn.Module) -> None:
    joins = named_joins(model)
    set_factors(model, (torch.arange(len(joins) * ROWS).view(len(joins), -1) % 3 > 0) * 1.5)


def inputs_of(family: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if family in ("gpt", "bert"):
        return torch.randint(10, (ROWS, 16), generator=generator)
    return torch.randn(ROWS, 3, 8, 8, dtype=torch.float64, generator=generator)


def chains_of(model: nn.Module, inputs: Tensor) -> list[list[str]]:
    return chains(weightless(model), inputs.to("meta"))


def recomputed(model: nn.Module, inputs: Tensor, mode: str) -> nn.Module:
    """A copy of the model in one of the modes."""
    model = copy.deepcopy(model)
    if mode == "block":
        apply_remat(model)
    elif mode == "some":
        apply_remat(model, [name for name, _ in residual_blocks(model)][::2])
    elif mode != "none":
        apply_segments(model, chains_of(model, inputs), int(mode))
    return model


def step(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Outputs, gradients and BatchNorm's sums and statistics."""
    staged = StagedStatistics(model)
    out = model(inputs)
    out.square().sum().backward()
    staged.accumulate()
    sums = [staged.sums.clone()] if staged.norms else []
    if staged.norms:
        staged.commit(ROWS // GROUP)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [out.detach(), *gradients, *sums, *(buffer.clone() for buffer in model.buffers())]


@pytest.mark.parametrize("mode", ["block", "some", "1", "2", "4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_but_the_work_changes(family: str, mode: str) -> None:
    model, inputs = made(family), inputs_of(family)
    changed = recomputed(model, inputs, mode)
    assert list(changed.state_dict()) == list(model.state_dict())
    expected, found = step(model, inputs), step(changed, inputs)
    assert len(expected) == len(found)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("family", ["preact", "gpt"])
def test_skipped_blocks_in_a_segment(family: str) -> None:
    """The first, one in the middle and the last of a segment are passed by; none of their branches is computed."""
    inputs = inputs_of(family)
    for skipped in itertools.combinations((0, 1, 2), 2):
        model = made(family)
        changed = recomputed(model, inputs, "3")
        for one in (model, changed):
            for number in skipped:
                residual_blocks(one)[number][1].skipped = True
        pairs = zip(step(model, inputs), step(changed, inputs), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), skipped


def flops(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", ["resnet", "vit", "gpt"])
@pytest.mark.parametrize("mode", ["block", "some", "2", "4"])
def test_what_is_recomputed_are_the_forwards_of_segments(family: str, mode: str) -> None:
    """torch stops at the last tensor that is needed: of a pre-norm transformer the last product of each segment, whose
    result is only added, is not computed again."""
    model, inputs = made(family, rate=0.0), inputs_of(family)
    changed = recomputed(model, inputs, mode)
    extra = flops(lambda: step(changed, inputs)) - flops(lambda: step(model, inputs))
    each: dict[nn.Module, int] = {}
    blocks = [block for _, block in residual_blocks(changed)]

    def count(block: Any, arguments: tuple[Any, ...]) -> None:
        if block not in each:
            each[block] = 0  # its own forward calls hooks no more
            with torch.no_grad():
                each[block] = flops(lambda: block.block_forward(*arguments))

    for block in blocks:
        block.register_forward_pre_hook(count)
    with torch.no_grad():
        changed(inputs)
    again = [block.segment or (block,) for block in blocks if block.remat or block.segment]
    whole = sum(each[block] for segment in again for block in segment)
    last = 0 if family == "resnet" else last_product(changed, inputs) * len(again)
    assert extra == whole - last


def last_product(model: nn.Module, inputs: Tensor) -> int:
    """FLOPs of the last product of a block's MLP."""
    seen: list[int] = []
    block = residual_blocks(model)[0][1]
    last = [module for module in block.modules() if isinstance(module, nn.Linear)][-1]
    handle = last.register_forward_hook(lambda _, given, out: seen.append(2 * given[0].numel() * out.shape[-1]))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    return seen[0]


class Odd(nn.Module):
    """Four blocks, between two of which something happens to the stream."""

    def __init__(self, what: str):
        super().__init__()
        self.what = what
        self.blocks = nn.ModuleList([Layer() for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        y = self.blocks[1](x)
        if self.what == "between":
            y = y + 1
        z = self.blocks[2](y)
        if self.what == "twice":
            z = self.blocks[2](z)
        z = self.blocks[3](z)
        return z + x.sum() if self.what == "seen" else z


class Layer(ResidualBlock):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def block_forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x).relu()


@pytest.mark.parametrize(
    ("what", "lengths"), [("nothing", [4]), ("between", [2, 2]), ("seen", [1, 3]), ("twice", [2, 1])]
)
def test_segments_end_where_the_stream_is_seen(what: str, lengths: list[int]) -> None:
    model, x = Odd(what), torch.randn(3, 4)
    found = chains_of(model, x)
    assert [len(chain) for chain in found] == lengths
    plain = copy.deepcopy(model)
    apply_segments(model, found, 3)
    for one in (plain, model):
        one(x).square().sum().backward()
    pairs = zip(plain.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)  # pyright: ignore[reportArgumentType]


def test_without_blocks_that_follow_one_another() -> None:
    model = build_model({"name": "lstm", "classes": 10, "in_chans": 3, "shape": {"width": 8}})
    with pytest.raises(UserError, match="no block follows another"):
        apply_segments(model, chains(weightless(model), torch.empty(2, 5, 3, device="meta")), 2)


def test_a_single_segment_is_refused() -> None:
    model = made("gpt")
    with pytest.raises(UserError, match="5 residual blocks, and all of them"):
        apply_segments(model, chains_of(model, inputs_of("gpt")), 5)


class Kept:
    """Storages that autograd really keeps of a call, those of ``known`` apart, in the order in which it takes them."""

    def __init__(self, *known: Tensor):
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.found: dict[int, Tensor] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self.known:
            self.found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def of(self, run: Any) -> int:
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
            out = run()
        total = self.total
        del out
        return total

    @property
    def total(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.found.values())


def held(model: nn.Module, inputs: Tensor) -> int:
    """The most bytes that autograd keeps of a real pass: at its turn, or while a segment is computed again, when what
    was kept of later ones is gone."""
    own = (*model.parameters(), *model.buffers(), inputs)
    kept, given = Kept(*own), []

    def entering(block: Any, arguments: tuple[Any, ...]) -> None:
        kept.pack(arguments[0])
        given.append((block, arguments, kept.total))

    again = [block for _, block in residual_blocks(model) if block.remat or block.segment]
    hooks = [block.register_forward_pre_hook(entering) for block in again]
    most = kept.of(lambda: model(inputs))
    for hook in hooks:
        hook.remove()
    for block, arguments, before in given:
        run = partial(block.together if block.segment else block.block_forward, *arguments)
        most = max(most, before + Kept(*own, arguments[0]).of(run))
    return most


@pytest.mark.parametrize("mode", ["none", "block", "some", "2", "4"])
@pytest.mark.parametrize("family", ["resnet", "preact", "vit", "gpt"])
def test_bytes_are_those_predicted(family: str, mode: str) -> None:
    inputs = inputs_of(family)
    plain = made(family).train()
    model = recomputed(plain, inputs, mode)
    found = held(model, inputs)
    assert saved_bytes(weightless(model), inputs.to("meta")) == pytest.approx(found, rel=0.1)
    if mode != "none":
        assert found < (0.95 if mode == "some" else 0.8) * held(plain, inputs)


@pytest.mark.parametrize("family", ["resnet", "preact", "gpt"])
def test_the_bytes_of_blocks_add_up(family: str) -> None:
    """What the choice of a budget reckons with is no less than what the whole network then keeps: of the blocks that
    follow one that is being recomputed it counts the inputs too."""
    inputs = inputs_of(family).to("meta")
    twin = weightless(made(family))
    found, between = block_bytes(twin, inputs)
    for chosen in ([], found[:2], found[1::2], found):
        model = copy.deepcopy(twin)
        if chosen:
            apply_remat(model, [block.name for block in chosen])
        kept = saved_bytes(model, inputs)
        assert 0.98 * kept <= needed(found, between, chosen) <= 1.5 * kept


SIZES = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=7)


@given(SIZES, st.integers(0, 30))
def test_no_fewer_blocks_fit(sizes: list[tuple[int, int]], budget: int) -> None:
    found = [BlockBytes(str(n), inside, max(0, inside - out)) for n, (inside, out) in enumerate(sizes)]
    chosen = fewest(found, 2, budget)
    fit = [
        number
        for number in range(len(found) + 1)
        for some in itertools.combinations(found, number)
        if needed(found, 2, some) <= budget
    ]
    assert (min(fit) if fit else None) == (None if chosen is None else len(chosen))
    if chosen is not None:
        assert needed(found, 2, [block for block in found if block.name in chosen]) <= budget


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("every", "is not one of none, block"),
        ("every=0", "segments of 0 blocks"),
        ("every=-1", "is not one of"),
        ("budget=4", "no unit"),
        ("budget=4GB", "no unit"),
        ("budget=0GiB", "no memory at all"),
        ("Block", "is not one of"),
    ],
)
def test_what_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load("digits_resnet20", [f"parallel.remat={text}"])


def test_what_can_be_read() -> None:
    assert Remat.parse("every=12") == Remat("every", every=12)
    assert Remat.parse("budget=1.5GiB") == Remat("budget", budget=3 * 2**29)
    assert Remat.parse("budget=512MiB") == Remat("budget", budget=2**29)


def test_a_recipes_remat() -> None:
    """Memory falls from none to sqrt and block; a budget in between is kept with some of the blocks."""

    def memory(remat: str) -> Any:
        recipe = load("digits_resnet20", [f"parallel.remat={remat}", "precision=fp32"]).recipe
        return memory_of(recipe, model_without_memory(recipe), None, 64, "fp32")

    none, block, root = memory("none"), memory("block"), memory("sqrt")
    assert block.activations < root.activations < none.activations
    assert root.recomputed == "9 blocks are recomputed in 3 segments of at most 3"
    budget = (none.total + block.total) // 2 / 2**20
    some = memory(f"budget={budget:.3f}MiB")
    assert block.total < some.total <= budget * 2**20
    assert some.recomputed.startswith(("2 of 9", "3 of 9", "4 of 9", "5 of 9"))
    with pytest.raises(UserError, match="budget=1MiB is too small: with every block recomputed a process needs"):
        memory("budget=1MiB")


def test_a_recipes_model_is_cut() -> None:
    recipe = load("digits_resnet20", ["parallel.remat=every=4"]).recipe
    data: Any = SimpleNamespace(mean=(0.5,), std=(0.5,))
    found = [block.segment for _, block in residual_blocks(build_task(recipe, data, torch.device("cpu")).model)]
    assert [len(segment or ()) for segment in found] == [4, 0, 0, 0, 4, 0, 0, 0, 1]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("remat"))


DROP = ("model.drop_path={rate: 0.5, mode: batch}",)


@pytest.mark.parametrize(
    ("model", "layout", "drop"),
    [
        ("gpt", "fsdp", ()),
        ("vit", "fsdp", DROP),
        pytest.param("resnet", "fsdp", (), marks=pytest.mark.slow),
        pytest.param("resnet", "ddp", DROP, marks=pytest.mark.slow),
    ],
)
def test_segments_over_two_ranks(bench: Bench, model: str, layout: str, drop: tuple[str, ...]) -> None:
    """A segment calls its blocks, so what gathers their parameters does so again when it is recomputed."""
    words = [*MODELS[model], "batch.global=48", "batch.group=4", "precision=fp64", *COMMON, *drop]
    alone = bench.run(f"alone-{model}-{len(drop)}", words, 1)
    place = [*LAYOUTS[layout][1], "batch.micro=8", "parallel.remat=every=2"]
    found = compared(alone, bench.run(f"{layout}-{model}", [*words, *place], 2))
    assert max(found.values()) <= 1e-10, found
