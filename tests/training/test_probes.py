"""A run with probes is the run without them, bit for bit, and its file of readings has each sampled step once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from restrain.run import probes
from tests import worlds

SETTINGS = ["length=6st", "evaluate.every=6st", "checkpoint.every=2st", "checkpoint.keep=20"]


def run_of(folder: Path, *settings: str, world: int = 1) -> Path:
    run = folder / "run"
    ended = worlds.train(run, [*SETTINGS, *settings], world)
    assert ended.codes == [0] * world, ended.text
    return run


@pytest.mark.parametrize(
    ("settings", "world"),
    [
        (["precision=bf16", "model.drop_path.rate=0.3"], 1),
        (["precision=fp16", "batch.micro=16"], 1),
        (["precision=fp32", "parallel.remat=block", "model.join={name: gate}"], 1),
        (["precision=fp32", "parallel.remat=every=3"], 1),
        (["precision=fp32"], 2),
    ],
    ids=["bf16", "fp16", "remat", "segments", "ranks"],
)
def test_training_does_not_notice(tmp_path: Path, settings: list[str], world: int) -> None:
    plain = run_of(tmp_path / "plain", *settings, world=world)
    read = run_of(tmp_path / "read", *settings, "track.probe=2st", world=world)
    assert not (plain / "probes.jsonl").exists()
    a, b = worlds.tensors(plain, 6), worlds.tensors(read, 6)
    assert a.keys() == b.keys()
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    assert worlds.journal(plain) == worlds.journal(read)
    lines = worlds.lines(read / "probes.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 4, 6]
    for line in lines:
        assert len(line["joins"]) == 9
        assert all(len(line[name]) == 9 for name in ("ratio", "cosine", "grad", "mean", "variance", "dead"))
        assert ("gate" in line) == ("gate" in settings[-1])


def test_gradients_are_of_the_mean_loss_whatever_the_micro_batches_and_the_precision(tmp_path: Path) -> None:
    """Four micro-batches: the first one's 16 rows are read, with a weight of 1/16 each; fp16: without the scale."""
    runs = [
        run_of(tmp_path / name, "length=1st", "track.probe=1st", *settings)
        for name, settings in (
            ("whole", ["batch={global: 16, group: 16}", "precision=fp64"]),
            ("cut", ["batch={global: 64, group: 16, micro: 16}", "precision=fp64"]),
            ("fp16", ["batch={global: 64, group: 16, micro: 16}", "precision=fp16"]),
        )
    ]
    whole, cut, half = (worlds.lines(run / "probes.jsonl")[0]["grad"] for run in runs)
    # Rows of another batch size are others in the same epoch, but gradients of a mean have the same size.
    assert cut == pytest.approx(half, rel=0.02)
    assert np.mean(cut) == pytest.approx(np.mean(whole), rel=0.5)


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    settings = ["track.probe=1st", "precision=fp32"]
    whole = run_of(tmp_path / "whole", *settings)
    run = tmp_path / "cut" / "run"
    killed = worlds.train(run, [*SETTINGS, *settings], 1, {0: [("at_step", {"step": 5, "signal": "SIGKILL"})]})
    assert killed.codes == [-9], killed.text
    assert worlds.train(run, [*SETTINGS, *settings]).codes == [0]
    assert (run / "probes.jsonl").read_text() == (whole / "probes.jsonl").read_text()


def test_readings_are_maps_of_depth_over_time(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    lines = [
        probes.line(1, ["a", "b"], {"ratio": [0.1, None], "gate": [None, None]}),
        probes.line(5, ["a", "b", "b#2"], {"ratio": [0.2, float("nan"), 0.123456789]}),
    ]
    from restrain.run.journal import encode

    path.write_text("".join(encode(line) + "\n" for line in lines))
    assert "gate" not in json.loads(path.read_text().splitlines()[0])
    found = probes.read(path)
    assert (found.steps, found.joins) == ([1, 5], ["a", "b", "b#2"])
    assert np.array_equal(found.values["ratio"], [[0.1, 0.2], [np.nan, np.nan], [np.nan, 0.123457]], equal_nan=True)
    assert probes.read(tmp_path / "none").steps == []


def test_lines_of_another_hand_are_passed_over(tmp_path: Path) -> None:
    good = {"step": 1, "joins": ["a.join"], "ratio": [0.5]}
    bad = [{"joins": ["a.join"]}, {"step": 2, "joins": ["a.join"], "ratio": [0.1, 0.2]}, {"step": 3, "joins": "a"}]
    bad += [{"step": "x", "joins": []}, {"step": 4, "joins": ["a.join"], "ratio": 3}]
    file = tmp_path / "probes.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in [*bad, good]))
    found = probes.read(file)
    assert found.steps == [1]
    assert found.values["ratio"].tolist() == [[0.5]]
