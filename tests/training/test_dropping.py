"""The draws of a step: golden values, statistics, and that world, micro-batch and layout cannot move them."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.data.order import Plan
from restrain.draws import name_key
from restrain.errors import UserError
from restrain.models import (
    AddJoin,
    Join,
    KeyedDropout,
    ResidualBlock,
    StagedStatistics,
    build_model,
    named_joins,
    residual_blocks,
    set_factors,
    set_group,
)
from restrain.parallel.blocks import apply_compile, apply_remat
from restrain.training import drop_path
from restrain.training.drop_path import check_mode
from restrain.training.dropping import Dropping, dropout_keys

ROWS, GROUP, WIDTH = 8, 4, 3
NAMES = np.array([name_key(f"block.{i}.join") for i in range(3)], np.uint64)


class Branch(ResidualBlock):
    """x + join(linear(x)), with dropout inside where ``dropout`` is positive."""

    def __init__(self, rate: float, dropout: float = 0.0):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.dropout = KeyedDropout(dropout)
        self.join = AddJoin(rate)

    def block_forward(self, x: Tensor) -> Tensor:
        return self.join.around(x, lambda part: self.dropout(self.linear(part)))


def stack(*rates: float, dropout: float = 0.0) -> nn.Sequential:
    """Linear blocks in float64, weights from a fixed generator."""
    model = nn.Sequential(*(Branch(rate, dropout) for rate in rates)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.train()


def only(model: nn.Module) -> Branch:
    """The one block of a model."""
    ((_, block),) = residual_blocks(model)
    assert isinstance(block, Branch)
    return block


def rows_of(count: int, width: int = WIDTH, seed: int = 2) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------ the draws alone

GOLDEN_SAMPLE = [[0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]
GOLDEN_BATCH = [[False, False, True], [False, False, False], [True, True, True]]
GOLDEN_SUBSET = [[0, 2, 6, 7], [0, 1, 2, 4, 5, 6], [0, 5]]
GOLDEN_DROPOUT = [[4055660380394886569, 2371524466057175786]]


def test_golden_draws():
    """Frozen: a change here changes the branches that every run ever made has dropped."""
    rates = np.array([0.2, 0.4, 0.6])
    factors = drop_path.sample_factors(5, 7, NAMES, rates, np.arange(4))
    assert (factors > 0).astype(int).tolist() == GOLDEN_SAMPLE
    assert [drop_path.skipped_blocks(5, step, NAMES, rates).tolist() for step in range(3)] == GOLDEN_BATCH
    kept = drop_path.kept_rows(5, 7, NAMES, [2, 3, 1], np.arange(8, 16), 4)
    assert [one.tolist() for one in kept] == GOLDEN_SUBSET
    assert dropout_keys(5, 7, NAMES[:1], np.arange(2)).tolist() == GOLDEN_DROPOUT


def test_factors_have_mean_one_and_the_variance_of_their_rate():
    rates = np.array([0.2, 0.5, 0.8])
    factors = drop_path.sample_factors(0, 0, NAMES, rates, np.arange(200_000))
    assert factors.mean(1) == pytest.approx([1.0] * 3, abs=0.02)
    assert factors.var(1) == pytest.approx((rates / (1 - rates)).tolist(), rel=0.03)
    skipped = np.array([drop_path.skipped_blocks(0, step, NAMES, rates) for step in range(4000)])
    assert skipped.mean(0) == pytest.approx(rates.tolist(), abs=0.03)
    # Blocks and steps are drawn independently of each other.
    assert np.corrcoef(skipped.T)[np.triu_indices(3, 1)] == pytest.approx([0.0] * 3, abs=0.06)
    assert np.corrcoef(skipped[1:, 0], skipped[:-1, 0])[0, 1] == pytest.approx(0.0, abs=0.06)


@pytest.mark.parametrize(("group", "kept"), [(8, [6, 4, 1]), (5, [4, 2, 3]), (32, [31, 16, 8])])
def test_a_subset_has_its_size_in_every_group_and_every_row_its_turn(group: int, kept: list[int]):
    counts, steps, rows = np.zeros((3, 2 * group)), 2000, np.arange(2 * group)
    pairs = 0
    for step in range(steps):
        for join, chosen in enumerate(drop_path.kept_rows(3, step, NAMES, kept, rows, group)):
            assert np.bincount(chosen // group, minlength=2).tolist() == [kept[join]] * 2
            assert (np.diff(chosen) > 0).all()
            counts[join, chosen] += 1
            pairs += int(join == 0 and {0, 1} <= set(chosen.tolist()))
    share = np.array(kept) / group
    spread = 5 * np.sqrt(share * (1 - share) / steps)
    assert (np.abs(counts / steps - share[:, None]) < spread[:, None]).all()
    both = kept[0] * (kept[0] - 1) / (group * (group - 1))  # without replacement
    assert pairs / steps == pytest.approx(both, abs=5 * np.sqrt(both * (1 - both) / steps) + 1e-12)


# ------------------------------------------------------------------------------------------- any world and micro-batch


def drawn(model: nn.Module, mode: str, step: int, first: int, rows: int) -> tuple[Tensor, Tensor, list[bool]]:
    """What a forward pass of some rows of a step finds: branch factors [J, R], dropout keys [M, R], skipped blocks."""
    owner = Dropping(model, mode, seed=4)
    owner.begin(step, GROUP)
    owner.write(first, rows)
    factors = torch.zeros(len(named_joins(model)), rows, dtype=torch.float64)
    for row, (_, join) in zip(factors, named_joins(model), strict=True):
        assert isinstance(join, Join)
        row[slice(None) if join.rows is None else join.rows] = join.factor.double()
    skipped = [block.skipped for _, block in residual_blocks(model)]
    return factors, torch.stack([dropout.keys for dropout in owner.dropouts]), skipped


@pytest.mark.parametrize("mode", ["sample", "batch", "subset"])
@pytest.mark.parametrize(("world", "micro"), [(1, 4), (1, 8), (2, 4), (2, 8), (4, 4)])
def test_ranks_and_micro_batches_share_the_draws_of_the_whole_step(mode: str, world: int, micro: int):
    model = stack(0.0, 0.3, 0.5, dropout=0.1)
    batch = 16
    plan = Plan(64, batch, GROUP, 1)
    for step in range(5):
        factors, keys, skipped = drawn(model, mode, step, 0, batch)
        for rank in range(world):
            _, parts = plan.local(step, rank, world, micro)
            for first, positions in parts:
                rows = slice(first, first + len(positions))
                mine = drawn(model, mode, step, first, len(positions))
                assert torch.equal(mine[0], factors[:, rows])
                assert torch.equal(mine[1], keys[:, rows])
                assert mine[2] == skipped
    assert mode != "subset" or set(factors.flatten().tolist()) == {0.0, 1.0, 4 / 3, 2.0}


# ------------------------------------------------------------------------------------------------------ against theory


def gradients(model: nn.Module, mode: str, steps: int, x: Tensor, v: Tensor) -> Tensor:
    """Flat gradients [steps, parameters] of the sum of v y over the rows, with the draws of so many steps."""
    owner = Dropping(model, mode, seed=9)
    found = []
    for step in range(steps):
        owner.begin(step, len(x))
        owner.write(0, len(x))
        loss = (v * model(x)).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(found)


def variance(mode: str, rate: float, per_row: Tensor) -> Tensor:
    """Of the sum over rows of factor x gradient, ``per_row`` [R, parameters].

    sample: rows are independent, each with variance p / (1 - p). batch: one factor for all rows. subset: a factor has
    variance n / k - 1, and, as the factors of n rows add up to n, two of them have covariance -(n / k - 1) / (n - 1).
    """
    odds, n = rate / (1 - rate), len(per_row)
    squares, square = per_row.square().sum(0), per_row.sum(0).square()
    if mode == "sample":
        return odds * squares
    if mode == "batch":
        return odds * square
    own = n / round((1 - rate) * n) - 1
    return own * squares - own / (n - 1) * (square - squares)


@pytest.mark.parametrize("mode", ["sample", "batch", "subset"])
@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_gradients_have_the_mean_and_the_variance_of_theory(mode: str, rate: float):
    """One block: the mean gradient is that without drop path, and its variance is what the factors make of it."""
    model, x, v = stack(rate), rows_of(ROWS), rows_of(ROWS, seed=3)
    whole = copy.deepcopy(model).eval()
    per_row = torch.stack([gradients_of(whole, x[i : i + 1], v[i : i + 1]) for i in range(ROWS)])
    found = gradients(model, mode, 1500, x, v)
    expected = variance(mode, rate, per_row)
    assert ((found.mean(0) - per_row.sum(0)).abs() <= 4.5 * (expected / len(found)).sqrt() + 1e-12).all()
    torch.testing.assert_close(found.var(0), expected, rtol=0.2, atol=1e-9)


def gradients_of(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    found = torch.autograd.grad((v * model(x)).sum(), list(model.parameters()))
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("mode", ["sample", "batch", "subset"])
def test_blocks_are_drawn_apart_so_depth_keeps_the_mean(mode: str):
    """Of a stack of linear blocks output and gradients are products of factors, whose means multiply."""
    model, x, v = stack(0.25, 0.5, 0.25), rows_of(ROWS), rows_of(ROWS, seed=3)
    found = gradients(model, mode, 1500, x, v)
    expected = gradients_of(copy.deepcopy(model).eval(), x, v)
    error = (found.std(0) / len(found) ** 0.5).clamp(min=1e-12)
    assert ((found.mean(0) - expected).abs() <= 4.5 * error).all()


@pytest.mark.parametrize("mode", ["sample", "batch", "subset"])
def test_evaluation_is_the_network_without_drop_path(mode: str):
    """To the last bit, whatever the last step has left behind."""
    plain, dropped = stack(0.0, 0.0), stack(0.4, 0.5)
    dropped.load_state_dict(plain.state_dict())
    owner, x = Dropping(dropped, mode, seed=0), rows_of(ROWS)
    for step in range(4):
        owner.begin(step, ROWS)
        owner.write(0, ROWS)
        assert torch.equal(dropped.eval()(x), plain.eval()(x))
        assert not torch.equal(dropped.train()(x), plain.train()(x))


def test_rest_drops_nothing():
    for mode in ("sample", "batch", "subset"):
        model, x = stack(0.4, 0.5), rows_of(ROWS)
        owner = Dropping(model, mode, seed=0)
        owner.begin(1, ROWS)
        owner.write(0, ROWS)
        owner.rest(ROWS)
        assert torch.equal(model(x), model.eval()(x))
        model.train()
        owner.begin(1, ROWS)
        owner.write(0, ROWS)
        again = model(x)
        other = Dropping(model, mode, seed=0)
        other.begin(1, ROWS)
        other.write(0, ROWS)
        assert torch.equal(model(x), again)


# ---------------------------------------------------------------------------------------------------------- mode subset


def test_the_branch_of_a_subset_sees_the_kept_rows_alone():
    model, x = stack(0.5), rows_of(ROWS)
    owner = Dropping(model, "subset", seed=0)
    owner.begin(0, GROUP)
    owner.write(0, ROWS)
    seen: list[Tensor] = []
    block = only(model)
    block.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    y, kept = model(x), block.join.rows
    assert kept is not None
    assert torch.equal(seen[0], x[kept])
    expected = x.clone()
    expected[kept] += 2.0 * block.linear(x[kept])  # n / k = 2
    torch.testing.assert_close(y, expected, rtol=1e-15, atol=1e-15)
    watched: list[Tensor] = []
    block.join.observers.append(lambda join, x, branch, y: watched.append(branch))
    torch.testing.assert_close(model(x), y, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(watched[0], y - x, rtol=1e-13, atol=1e-13)


def test_a_branch_that_was_computed_whole_loses_the_same_rows():
    """``join(x, branch)`` and ``join.around(x, f)`` are one join."""
    model, x = stack(0.5), rows_of(ROWS)
    owner = Dropping(model, "subset", seed=0)
    owner.begin(0, GROUP)
    owner.write(0, ROWS)
    block = only(model)
    torch.testing.assert_close(block.join(x, block.linear(x)), model(x), rtol=1e-15, atol=1e-15)


# ----------------------------------------------------------------------------------------------------------- mode batch


def resnet(rate: float, mode: str) -> nn.Module:
    section = {"name": "cifar_resnet20", "classes": 10, "drop_path": {"rate": rate, "mode": mode}}
    model = build_model(section, seed=1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # fresh weights end each branch in a zero
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(parameter.numel()))
    set_group(model, GROUP)
    return model.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01)
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)


def trained(
    model: nn.Module, optimizer: str, micro: int, before: Callable[[int, int], None], idle: Callable[[], list]
) -> dict[str, Tensor]:
    """State after 20 steps of two groups; ``before(step, rows)`` each forward, ``idle()`` at the end of a step."""
    staged, stepper = StagedStatistics(model), optimizer_of(optimizer, model)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        x = torch.randn(2 * GROUP, 3, 8, 8, dtype=torch.float64, generator=generator)
        labels = torch.randint(10, (2 * GROUP,), generator=generator)
        stepper.zero_grad()
        for first in range(0, 2 * GROUP, micro):
            before(step, micro)
            part = x[first : first + micro].contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(part), labels[first : first + micro], reduction="sum") / (2 * GROUP)
            loss.backward()
            staged.accumulate()
        assert all(p.grad is not None for p in model.parameters())
        stepper.step()
        staged.commit(2, idle=idle())
    return {name: value.clone() for name, value in model.state_dict().items()}


LAYOUTS = [
    pytest.param("sgd", 2 * GROUP, False, False, id="sgd"),
    pytest.param("adamw", 2 * GROUP, False, False, id="adamw"),
    pytest.param("sgd", GROUP, False, False, id="accumulation"),
    pytest.param("sgd", GROUP, True, False, id="remat"),
    pytest.param("sgd", 2 * GROUP, False, True, id="compile", marks=pytest.mark.slow),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(("optimizer", "micro", "remat", "compiled"), LAYOUTS)
def test_a_skipped_block_is_a_branch_times_zero(optimizer: str, micro: int, remat: bool, compiled: bool):
    """20 steps with momentum and weight decay. Running statistics of a skipped block keep still in its step; all
    others, counts included, are those of the reference."""
    model = resnet(0.6, "batch")
    reference = copy.deepcopy(model)
    owner = Dropping(model, "batch", seed=2)
    blocks = dict(residual_blocks(model))
    twins = dict(residual_blocks(reference))
    skips: list[list[bool]] = []
    if remat:
        apply_remat(model)
    if compiled:
        torch.compiler.reset()
        apply_compile(model, "aot_eager")

    def draw(step: int, rows: int) -> None:
        owner.begin(step, GROUP)
        owner.write(0, rows)
        skips.append([block.skipped for block in blocks.values()])

    found = trained(model, optimizer, micro, draw, lambda: owner.idle)
    per_step = iter(skips)
    now: list[bool] = []

    def multiply(step: int, rows: int) -> None:
        now[:] = next(per_step)
        rates = torch.tensor([join.rate for _, join in named_joins(reference)], dtype=torch.float64)
        factors = torch.where(torch.tensor(now), 0.0, 1.0 / (1.0 - rates))
        set_factors(reference, factors[:, None].expand(-1, rows))

    def unreached() -> list:
        skipped = [block for block, skip in zip(twins.values(), now, strict=True) if skip]
        return [norm for block in skipped for norm in (block.bn1, block.bn2)]

    expected = trained(reference, optimizer, micro, multiply, unreached)
    assert 0.2 < np.mean(skips) < 0.5
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)
    counts = {int(value) for name, value in found.items() if name.endswith("num_batches_tracked")}
    assert max(counts) == 20  # the stem's
    assert min(counts) < 15


def test_a_skipped_block_computes_nothing_but_its_shortcut():
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model({"name": "resnet18", "classes": 10, "drop_path": {"rate": 0.5, "mode": "batch"}}).train()
    owner = Dropping(model, "batch", seed=0)
    owner.rest(2)
    for _, block in residual_blocks(model):
        block.skipped = True
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 64, 64)).sum().backward()
    convolutions = {name for name in counter.get_flop_counts() if ".conv" in name and name.count(".") > 2}
    assert not convolutions
    assert any("downsample" in name for name in counter.get_flop_counts())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not name.startswith("layer1.0.conv") or not parameter.grad.any()
    idle = {
        f"{name}.{path}"
        for name, block in residual_blocks(model)
        for path, norm in block.named_modules()
        if block.idle_norms and norm in block.idle_norms
    }
    assert idle == {f"layer{s}.{b}.bn{n}" for s in range(1, 5) for b in range(2) for n in (1, 2)}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_the_decision_is_taken_outside_of_what_is_compiled():
    """Skipping and keeping in turn compiles nothing anew."""
    model = resnet(0.5, "batch")
    torch.compiler.reset()
    apply_compile(model, "aot_eager")
    owner = Dropping(model, "batch", seed=0)
    torch._dynamo.utils.counters.clear()
    x = torch.randn(GROUP, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graphs = []
    for step in range(12):
        owner.begin(step, GROUP)
        owner.write(0, GROUP)
        model(x).sum().backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[-1] == 5  # first and later blocks of each stage, as without drop path
    assert not torch._dynamo.utils.counters["graph_break"]


# ------------------------------------------------------------------------------------------------------ what is refused


def test_the_share_left_out_is_weighted_by_work():
    model = stack(0.25, 0.5)
    owner = Dropping(model, "subset", 0, work={"0": 1, "1": 3})
    owner.begin(0, 8)
    assert owner.dropped == pytest.approx(0.25 * 0.25 + 0.75 * 0.5)
    assert drop_path.saving(model, "subset", 8, {"0": 1, "1": 3}) == pytest.approx(owner.dropped)
    owner = Dropping(model, "batch", 0, work={"0": 1, "1": 3})
    shares = []
    for step in range(2000):
        owner.begin(step, 8)
        shares.append(owner.dropped)
    assert set(shares) == {0.0, 0.25, 0.75, 1.0}
    assert np.mean(shares) == pytest.approx(drop_path.saving(model, "batch", 8, {"0": 1, "1": 3}), abs=0.03)
    assert Dropping(model, "sample", 0, work={"0": 1, "1": 3}).dropped is None
    assert drop_path.saving(model, "sample", 8, {"0": 1, "1": 3}) == 0.0


def test_modes_that_do_not_fit_are_refused_by_name():
    with_norm = build_model({"name": "cifar_resnet20", "classes": 10, "drop_path": {"rate": 0.5}})
    with pytest.raises(UserError, match=r"layer1\.0\.bn1 is a BatchNorm"):
        check_mode(with_norm, "subset", 8, 64)
    check_mode(with_norm, "batch", 8, 64)
    for name, join in (("cifar_preresnet20", "add"), ("cifar_densenet40_k12", "concat")):
        with pytest.raises(UserError, match="is a BatchNorm: its statistics would be those of the kept rows alone"):
            check_mode(
                build_model({"name": name, "classes": 10, "join": {"name": join}, "drop_path": {"rate": 0.5}}),
                "subset",
                8,
                64,
            )
    with pytest.raises(UserError, match=r"group=4 and a rate of at most 0\.1 it drops no row.*batch\.group=8 is"):
        check_mode(stack(0.05, 0.1), "subset", 4, 64)
    with pytest.raises(UserError, match=r"keeps no row.*batch\.group=2 is"):
        check_mode(stack(0.6), "subset", 1, 64)
    with pytest.raises(UserError, match="no group of this batch works"):
        check_mode(stack(0.01), "subset", 4, 16)
    check_mode(stack(0.1), "subset", 8, 64)
    check_mode(stack(0.0), "subset", 1, 64)
