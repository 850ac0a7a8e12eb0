"""Every layout trains the run of one process: losses, gradient norms, weights, statistics, momentum and EMA."""


import pytest

from tests.parallel.parity import Bench, Cell, all_cells, pairwise

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


def test_tensor_parallel_gpt(bench: Bench) -> None:
    found = bench.differences(Cell("gpt", "tensor 2", 1, True, False))
    assert max(found.values()) <= 1e-10, found
