"""``restrain checkpoint``: what it holds, whether it is whole, where two differ."""

import json
import re
import shutil
from pathlib import Path

import pytest

from restrain.cli.main import run as restrain
from tests import worlds

SHORT = ["length=4st", "evaluate.every=4st", "checkpoint.every=2st", "precision=fp64", "track.wandb.mode=disabled"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run by one process and by two that cut it between them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    assert worlds.train(folder / "alone", SHORT).codes == [0]
    sharded = worlds.train(folder / "cut", [*SHORT, "parallel.strategy=fsdp"], 2)
    assert sharded.codes == [0, 0], sharded.text
    return folder / "alone", folder / "cut"


def test_inspect(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert restrain(["checkpoint", "inspect", str(two[1]), "--all"]) == 0
    told = capsys.readouterr().out
    assert "step 4, attempt 1, by 2 process(es): " in told
    assert "strategy fsdp" in told
    assert "fc.weight|param: [10, 64] F64, in 2 slices" in told
    assert "model-0001.safetensors" in told
    assert "because" not in told  # nothing chose the layout
    assert "missing" not in told


def test_inspect_says_which_files_are_not_as_they_should_be(two: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    broken = tmp_path / "step-4"
    shutil.copytree(two[1] / "checkpoints" / "step-4", broken)
    (broken / "model-0001.safetensors").unlink()
    (broken / "optim-0000.safetensors").write_bytes(b"half")
    assert restrain(["checkpoint", "inspect", str(broken)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"model-0001.safetensors: [0-9.]+ .?B, missing\n", told)
    assert re.search(r"optim-0000.safetensors: [0-9.]+ .?B, damaged: 4 bytes of [0-9,]+\n", told)
    assert told.count("damaged") + told.count("missing") == 2


def test_a_step_of_a_run(two: tuple[Path, Path], capsys) -> None:
    assert restrain(["checkpoint", "verify", f"{two[0]}@2"]) == 0
    assert capsys.readouterr().out.startswith(f"{two[0]}/checkpoints/step-2: whole, step 2")
    assert restrain(["checkpoint", "inspect", f"{two[0]}@3"]) == 2
    assert "@3 is neither a run folder with checkpoints nor a checkpoint" in capsys.readouterr().err


def test_verify_names_the_file_at_fault(two: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    assert restrain(["checkpoint", "verify", str(two[0])]) == 0
    assert capsys.readouterr().out.count(": whole, step ") == 2
    broken = tmp_path / "step-4"
    broken.mkdir()
    for file in (two[0] / "checkpoints" / "step-4").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = bytearray((broken / "model-0000.safetensors").read_bytes())
    weights[-5] ^= 1
    (broken / "model-0000.safetensors").write_bytes(weights)
    assert restrain(["checkpoint", "verify", str(broken)]) == 1
    told = capsys.readouterr()
    assert "model-0000.safetensors" in told.out
    assert "1 of 1 checkpoint(s)" in told.err


def test_diff(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    alone, cut = two
    step = str(alone / "checkpoints" / "step-4")
    assert restrain(["checkpoint", "diff", step, str(alone)]) == 0
    assert "tensors are equal to the bit" in capsys.readouterr().out
    assert restrain(["checkpoint", "diff", str(alone), str(cut)]) == 1  # another order of adding up
    told = capsys.readouterr().out
    worst = max(float(line.split()[2]) for line in told.splitlines() if "|" in line)
    assert 0 < worst < 1e-12
    assert restrain(["checkpoint", "diff", step, str(alone / "checkpoints" / "step-2")]) == 1
    assert "scalars that differ: " in capsys.readouterr().out


def test_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restrain(["checkpoint", "inspect", str(tmp_path)]) == 2
    assert "neither a run folder with checkpoints nor a checkpoint" in capsys.readouterr().err


def test_a_rank_saves_what_it_holds(two: tuple[Path, Path]) -> None:
    manifest = json.loads((two[1] / "checkpoints" / "step-4" / "manifest.json").read_text())["manifest"]
    files = manifest["tensors"]["layer1.0.conv1.weight|momentum_buffer"]["slices"]
    assert [file for file, _, _ in files] == ["optim-0000.safetensors", "optim-0001.safetensors"]
