"""``restrain bench step``: what it counts is what was done, on one process and on two; a sweep outlives its layouts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from restrain.bench import sweep
from restrain.bench.collectives import covered, watched
from restrain.bench.sweep import candidates
from restrain.cli.main import run
from restrain.insight.cost import forward_macs
from restrain.models import build_model, residual_blocks
from tests import worlds
from tests.parallel.parity import MODELS

BRIEF = ["--steps", "3", "--warm-up", "0"]


def alone(tmp_path: Path, *words: str) -> dict[str, Any]:
    out = tmp_path / "found.json"
    assert run(["bench", "step", *words, "parallel.accelerator=cpu", *BRIEF, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_the_step_of_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = alone(tmp_path, "digits_resnet20", "precision=fp32")
    assert (found["layout"], found["world"], found["steps"]) == ("single", 1, 3)
    assert found["p10"] <= found["step"] <= found["p90"]
    assert found["rate"] == pytest.approx(64 / found["step"])
    with torch.device("meta"):
        model = build_model({"name": "cifar_resnet20", "classes": 10, "in_chans": 1})
    assert found["flops"] == pytest.approx(6 * 64 * forward_macs(model, 1, 8, 8) / found["step"])
    assert found["mfu"] == pytest.approx(found["flops"] / found["peak"])
    assert (found["collectives"], found["waits"], found["spoken"]) == ({}, {}, 0.0)
    assert found["memory"] >= 0  # this process may have had as much before
    said = capsys.readouterr().out
    assert f"{found['rate']:,.0f} images a second" in said
    assert "measured: products of matrices" in said


@pytest.mark.parametrize("more", [["mix.mixup=0.8", "batch.micro=16"], ["model.drop_path={rate: 0.5, mode: batch}"]])
def test_what_a_recipe_does_in_a_step_is_done(tmp_path: Path, more: list[str]) -> None:
    assert alone(tmp_path, "digits_resnet20", "precision=fp32", "ema={decay: 0.9}", "clip=1.0", *more)["rate"] > 0


def test_tokens_are_counted_where_there_are_no_data(tmp_path: Path) -> None:
    shape = "model.shape={depth: 1, width: 16, heads: 2, context: 16}"
    found = alone(tmp_path, "shakespeare_gpt", f"data.root={tmp_path}", shape, "data.context=16", "batch.global=8")
    assert found["unit"] == "tokens"
    assert found["rate"] == pytest.approx(8 * 16 / found["step"])


def test_a_wait_is_seen() -> None:
    with watched() as seen:
        torch.ones(3).sum().item()
        x, mask = torch.ones(3), torch.tensor([True, False, True])
        x[mask]
        x.nonzero()
        x[mask] = 2.0
        x[torch.tensor([0, 2])] += 1
    assert seen.waits == {"_local_scalar_dense": 1, "nonzero": 1, "index": 1}
    assert seen.waited > 0


def test_times_that_overlap_count_once() -> None:
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == 4.0
    assert covered([]) == 0.0


@pytest.fixture(scope="module")
def vit() -> torch.nn.Module:
    with torch.device("meta"):
        return build_model({"name": "vit", "classes": 10, "in_chans": 1, "shape": SHAPE}, sides=(8,))


SHAPE = {"depth": 3, "width": 32, "heads": 4, "patch": 2}


def test_two_ranks_are_measured_together(tmp_path: Path, vit: torch.nn.Module) -> None:
    out = tmp_path / "found.json"
    words = [*MODELS["vit"], "precision=fp32", "parallel.strategy=fsdp", "parallel.accelerator=cpu"]
    ended = worlds.start(["bench", "step", *words, *BRIEF, "--json", str(out)], 2, tmp_path / "logs").wait()
    assert ended.codes == [0, 0], ended.text
    found = json.loads(out.read_text())
    assert (found["layout"], found["world"], found["placement"]["micro"]) == ("fsdp", 2, 32)
    assert found["rate_a_device"] == pytest.approx(32 / found["step"])
    units = len(residual_blocks(vit)) + 1
    counts = {kind: one["count"] for kind, one in found["collectives"].items()}
    assert counts == {"all-gather": 2 * units, "reduce-scatter": units, "all-reduce": 1}
    weights = 4 * sum(p.numel() for p in vit.parameters())
    assert weights <= found["collectives"]["reduce-scatter"]["bytes"] < 1.05 * weights  # padded to equal parts
    assert 2 * weights <= found["collectives"]["all-gather"]["bytes"] < 2.1 * weights
    assert found["spoken"] > 0
    assert ended.said[1] == ""


# ---------------------------------------------------------------------------------------------------------------- sweep


def test_layouts_of_six_processes() -> None:
    found = {one.name: one for one in candidates(6) if one.remat == "none"}
    assert {"single", "ddp", "fsdp", "zero1", "zero2", "zero3"} <= found.keys()
    assert [name for name in found if "hsdp" in name] == ["hsdp, shard 2", "hsdp, shard 3"]
    assert [name for name in found if "tensor" in name] == [
        *("ddp, tensor 2", "ddp, tensor 3", "ddp, tensor 6"),
        *("fsdp, tensor 2", "fsdp, tensor 3"),
    ]
    assert {one.processes for one in found.values()} == {1, 6}
    assert found["hsdp, shard 3"].words[2] == "parallel.shard=3"
    assert [one.name for one in candidates(1)][:5] == ["single", "fsdp", "zero1", "zero2", "zero3"]


def test_what_cannot_be_is_said_without_starting_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_time", lambda row, *_: pytest.fail(f"{row.candidate} was started"))
    tensor = [one for one in candidates(2) if one.name == "ddp, tensor 2"]
    monkeypatch.setattr(sweep, "candidates", lambda devices: tensor)
    rows = sweep.sweep("digits_resnet20", [], 2, [], 1.0)
    assert all(row.refused and "BatchNorm is not cut over them" in row.because for row in rows)
    monkeypatch.setattr(sweep, "candidates", lambda devices: [next(candidates(1))])
    shape = "model.shape={depth: 96, width: 12288, heads: 96, context: 64}"
    (row,) = sweep.sweep("shakespeare_gpt", [shape, "data.context=64", "data.root=/nowhere"], 1, [], 1.0)
    assert row.refused
    assert "would run out of memory: it needs about " in row.because


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_layout_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    every = {one.name: one for one in candidates(2) if one.remat == "none"}
    chosen = [every[name] for name in ("single", "ddp, tensor 2", "fsdp", "ddp")]
    monkeypatch.setattr(sweep, "candidates", lambda devices: iter(chosen))
    waited, wait = [], sweep.subprocess.Popen.wait

    def late(process: Any, timeout: float | None = None) -> int:
        """The third that is started, which is ddp, is never done in time."""
        waited.append(process)
        return wait(process, 1.0 if timeout == 200.0 and len(set(waited)) == 3 else timeout)

    monkeypatch.setattr(sweep.subprocess.Popen, "wait", late)
    out = tmp_path / "found.json"
    words = ["parallel.devices=2", "parallel.accelerator=cpu", "precision=fp32"]
    command = ["bench", "step", "digits_resnet20", *words, "--sweep", *BRIEF, "--limit", "200", "--json", str(out)]
    assert run(command) == 0
    said, rows = capsys.readouterr().out, json.loads(out.read_text())["rows"]
    assert [row["layout"] for row in rows[:2]] == sorted(
        ["single", "fsdp"], key=lambda name: -next(r["figures"]["rate"] for r in rows if r["layout"] == name)
    )
    assert {row["layout"]: row["because"][:16] for row in rows[2:]} == {
        "ddp, tensor 2": "parallel.tensor=",
        "ddp": "was not done aft",
    }
    assert "not timed: ddp, remat none: was not done after 200 s (--limit)" in said
    assert all(process.poll() is not None for process in waited)
