"""Every layout trains the run of one process: losses, gradient norms, weights, statistics, momentum and EMA."""

import importlib.util
import math

import pytest
import torch

from tests.parallel.parity import (
    BOUNDS,
    COMMON,
    LAYOUTS,
    MODELS,
    Bench,
    Cell,
    all_cells,
    compared,
    distance,
    pairwise,
    refusals,
)

CELLS = pairwise(all_cells())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("parity"))


def test_the_subset_meets_every_pair() -> None:
    assert 12 <= len(CELLS) <= 40
    assert {cell.layout for cell in CELLS} == LAYOUTS.keys()


@pytest.mark.parametrize("by_kind", [False, True])
@pytest.mark.parametrize(("here", "there"), [(math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan), (math.inf,) * 2])
def test_what_is_no_number_is_beyond_any_bound(here: float, there: float, by_kind: bool) -> None:
    """Between tensors that agree, in the middle of one."""
    names = [f"{name}|ema" for name in "abc"]
    left, right = ({name: torch.ones(3, 2) for name in names} for _ in range(2))
    assert distance(left, right, by_kind) == {"ema": 0.0}
    left[names[1]][1, 0], right[names[1]][1, 0] = here, there
    assert distance(left, right, by_kind) == {"ema": math.inf}


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", CELLS, ids=lambda cell: f"{cell.model}-{cell.layout}-{cell.accumulation}".replace(" ", "")
)
def test_parity(bench: Bench, cell: Cell) -> None:
    if cell.layout.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed, which is not installed")
    found = bench.differences(cell)
    assert {"loss", "norm", "eval", "param", "momentum_buffer", "ema"} <= found.keys()
    assert max(found.values()) <= BOUNDS[cell.precision], found


@pytest.mark.parametrize(
    ("what", "cell", "more"), refusals(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_not_offered_is_refused(bench: Bench, what: str, cell: Cell, more: list[str]) -> None:
    said = bench.refusal(cell, more)
    assert (cell.refused or "precision=fp64") in said, what


def test_sharded_resnet(bench: Bench) -> None:
    found = bench.differences(Cell("resnet", "fsdp", 3, True, False))
    assert "buffer" in found
    assert max(found.values()) <= 1e-10, found


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_groups_over_two_ranks(bench: Bench, strategy: str) -> None:
    found = bench.differences(Cell("resnet", f"{strategy}, groups over 2", 1, True, False))
    assert max(found.values()) <= 1e-10, found


def test_tensor_parallel_gpt(bench: Bench) -> None:
    found = bench.differences(Cell("gpt", "tensor 2", 1, True, False))
    assert max(found.values()) <= 1e-10, found


def test_a_skipped_block_under_fsdp(bench: Bench) -> None:
    """Mode batch, with blocks whose shortcut is a projection (gathered all the same) and blocks without one."""
    for model, words in (("preact", ["digits_resnet20", "model.name=cifar_preresnet20"]), ("vit", [*MODELS["vit"]])):
        drop = [
            "model.drop_path={rate: 0.5, mode: batch}",
            "batch.global=48",
            "batch.group=4",
            "precision=fp64",
            *COMMON,
        ]
        alone = bench.run(f"alone-{model}-dropped", [*words, *drop], 1)
        run = bench.run(f"{model}-dropped", [*words, *drop, *LAYOUTS["fsdp"][1], "batch.micro=8"], 2)
        found = compared(alone, run)
        assert max(found.values()) <= 1e-10, (model, found)


# What each is held to: the losses of the run; its norms and the tensors of its checkpoint, relative to the largest
# number of their kind. Muon multiplies in bfloat16, where a sum in another order is another number in its third digit.
WHOLE_MATRICES = {
    "lamb": ("lr: 0.01", 1e-10, 1e-10),
    "lars": ("lr: 1.0", 1e-10, 1e-10),
    "muon": ("lr: 0.01", 1e-3, 0.05),
}


@pytest.mark.parametrize(
    ("optimizer", "layout"),
    [
        *((optimizer, "fsdp") for optimizer in WHOLE_MATRICES),
        *(pytest.param(optimizer, "hsdp 2x2", marks=pytest.mark.slow) for optimizer in WHOLE_MATRICES),
    ],
)
def test_optimizers_that_take_whole_matrices(bench: Bench, optimizer: str, layout: str) -> None:
    """Of which each rank has a part: norms and spectra are still those of the whole."""
    rate, of_run, of_tensors = WHOLE_MATRICES[optimizer]
    words = [*MODELS["vit"], *COMMON, "batch.global=48", "batch.group=4", "precision=fp64", "clip=0.5"]
    words.append(f"optimizer={{name: {optimizer}, {rate}, weight_decay: 0.05}}")
    alone = bench.run(f"alone-{optimizer}", words, 1)
    ranks, placement = LAYOUTS[layout]
    run = bench.run(f"{optimizer}-{layout}".replace(" ", ""), [*words, *placement], ranks)
    found = compared(alone, run, by_kind=True)
    limits = dict.fromkeys(found, of_tensors) | dict.fromkeys(("loss", "eval"), of_run)
    assert {kind: far for kind, far in found.items() if not far <= limits[kind]} == {}, found
