"""Every layout trains the run of one process: losses, gradient norms, weights, statistics, momentum and EMA."""

import pytest

from tests.parallel.parity import COMMON, LAYOUTS, MODELS, Bench, Cell, all_cells, compared, pairwise

CELLS = pairwise(all_cells())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("parity"))


def test_the_subset_meets_every_pair() -> None:
    assert 8 <= len(CELLS) <= 24


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", CELLS, ids=lambda cell: f"{cell.model}-{cell.layout}-{cell.accumulation}".replace(" ", "")
)
def test_parity(bench: Bench, cell: Cell) -> None:
    found = bench.differences(cell)
    assert {"loss", "norm", "eval", "param", "momentum_buffer", "ema"} <= found.keys()
    assert max(found.values()) <= 1e-10, found


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
        drop = ["model.drop_path={rate: 0.5, mode: batch}", "batch.global=48", "batch.group=4", *COMMON]
        alone = bench.run(f"alone-{model}-dropped", [*words, *drop], 1)
        run = bench.run(f"{model}-dropped", [*words, *drop, *LAYOUTS["fsdp"][1], "batch.micro=8"], 2)
        found = compared(alone, run)
        assert max(found.values()) <= 1e-10, (model, found)
