"""The whole network compiled as one graph, and blocks compiled inside of segments."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from restrain.errors import UserError
from restrain.parallel.blocks import apply_compile, apply_compile_whole
from restrain.recipe import load
from tests import worlds
from tests.parallel.parity import COMMON, LAYOUTS, MODELS, Bench, compared
from tests.parallel.test_remat import inputs_of, made, recomputed, step

# torch hides this warning of its own tracer with a filter that pytest's "error" overrides.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.mark.parametrize("family", ["resnet", "vit", "gpt"])
def test_the_whole_network_is_one_graph(family: str) -> None:
    """aot_eager runs what compilation does to the graph, without the minute of C++ compilation."""
    model, inputs = made(family), inputs_of(family)
    changed = copy.deepcopy(model)
    apply_compile_whole(changed, "aot_eager")
    assert list(changed.state_dict()) == list(model.state_dict())
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    found = step(changed, inputs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    for a, b in zip(step(model, inputs), found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-11, atol=1e-11 * a.abs().max().item() if a.numel() else 0.0)


@pytest.mark.parametrize("family", ["resnet", "gpt"])
def test_compiled_blocks_of_segments(family: str) -> None:
    """A block is compiled as often as without segments, and not once more where it is recomputed."""
    model, inputs = made(family), inputs_of(family)
    graphs = []
    for mode in ("none", "2"):
        changed = recomputed(model, inputs, mode)
        apply_compile(changed, "aot_eager")
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        found = step(changed, inputs)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        for a, b in zip(step(copy.deepcopy(model), inputs), found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-11, atol=1e-11 * a.abs().max().item() if a.numel() else 0.0)
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("parallel.remat=block", "which blocks are"),
        ("model.drop_path={rate: 0.2, mode: batch}", "other blocks in every step"),
        ("track.probe=100st", "which parallel.compile = step fuses"),
        ("parallel.strategy=fsdp", "parallel.strategy = fsdp communicates"),
        ("parallel.tensor=2", "parallel.tensor = 2 communicates"),
    ],
)
def test_what_does_not_go_with_one_graph(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load("digits_resnet20", ["parallel.compile=step", override])


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "every=2"])
def test_compiled_blocks_under_fsdp(tmp_path: Path, remat: str) -> None:
    bench = Bench(tmp_path)
    words = [*MODELS["gpt"], "batch.global=48", "batch.group=4", "precision=fp64", *COMMON]
    place = [*LAYOUTS["fsdp"][1], "batch.micro=8", "parallel.compile=block", f"parallel.remat={remat}"]
    found = compared(bench.run("alone", words, 1), bench.run("fsdp", [*words, *place], 2))
    assert max(found.values()) <= 1e-10, found


def graphs(folder: Path, layout: str, depth: int) -> list[dict[str, int]]:
    """Of each step: the graphs that were compiled so far."""
    ranks, words = LAYOUTS[layout]
    folder.mkdir()
    files = [folder / f"graphs-{rank}.jsonl" for rank in range(ranks)]
    faults: dict[int, list[worlds.Fault]] = {
        rank: [("count_graphs", {"path": str(file)})] for rank, file in enumerate(files)
    }
    recipe, *changes = MODELS["vit"]
    settings = [*COMMON, "length=3st", "evaluate.every=3st", "checkpoint.every=3st", "batch.global=48", "batch.group=4"]
    shape = f"model.shape={{depth: {depth}, width: 32, heads: 4, patch: 2}}"
    words = [*changes, *settings, *words, shape, "parallel.compile=block"]
    ended = worlds.train(folder / "run", words, ranks, faults, recipe=recipe, timeout=400.0)
    assert set(ended.codes) == {0}, ended.text
    return worlds.lines(files[0])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "fsdp", "tensor 2"])
def test_one_compilation_a_kind_of_block_whatever_the_depth(tmp_path: Path, layout: str) -> None:
    """Blocks that are gathered compile too, as often at five as at two of a kind, and no more after the first step."""
    found = {depth: graphs(tmp_path / str(depth), layout, depth) for depth in (2, 5)}
    assert found[2] == found[5]
    assert {step["graphs"] for step in found[5]} == {found[5][0]["graphs"]}
    assert 1 <= found[5][0]["graphs"] <= 2
