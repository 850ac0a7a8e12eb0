"""Every benchmark runs at a tiny size and writes its JSON. Nothing is asserted about time."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)


def results(tmp_path: Path, name: str, *arguments: str) -> dict:
    """What the benchmark measured, from its JSON, which says what it holds for."""
    file = tmp_path / "out" / "figures.json"
    done = run(name, *arguments, "--json", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["command"][0].endswith(name)
    assert report["versions"]["torch"] == metadata.version("torch")
    assert report["hardware"]["cores"] >= 1
    assert "host" not in report["hardware"]
    return report["results"]


def test_overhead(tmp_path: Path) -> None:
    tiny = ["--rounds", "1", "--steps", "20", "--image-size", "32", "--batch", "2", "--repeats", "1"]
    found = results(tmp_path, "overhead.py", *tiny)
    assert set(found["microseconds"]["wall"]) == {"loop", "fit", "fit, documented", "restrain"}
    assert set(found["above"]["cpu"]) == {"loop", "fit", "fit, documented"}
    assert found["resnet50"]["step"] > 0
    assert {"share", "share_with_update"} <= found["resnet50"].keys()


@pytest.mark.slow
def test_probe(tmp_path: Path) -> None:
    found = results(tmp_path, "probe.py", "--rounds", "1", "--device", "cpu")
    assert found.keys() == {"ResNet-20", "ViT-S/16"}
    assert all(one["bytes"] > 100 and one["step_ms"]["count"] == 1 for one in found.values())


def test_startup(tmp_path: Path) -> None:
    found = results(tmp_path, "startup.py", "--repeats", "1")
    assert [entry["count"] for entry in found.values()] == [1, 1, 1]


def test_step(tmp_path: Path) -> None:
    tiny = ["--batch", "2", "--image-size", "32", "--steps", "1", "--windows", "1", "--warmup", "1"]
    found = results(tmp_path, "step.py", "--device", "cpu", *tiny, "--formats", "bf16", "--no-compile")
    assert set(found["images_per_s"]["bf16 eager"]) == {"timm", "torchvision", "restrain"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_step_says_what_it_needs() -> None:
    done = run("step.py")
    assert done.returncode == 1
    assert "needs a CUDA device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_killed_run_is_compared_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import end_to_end

    found = end_to_end.kill_and_resume(tmp_path, ["parallel.accelerator=cpu"])
    assert found["tensors_that_differ"] == 0
    assert found["ledgers_equal"]
    assert found["killed_after_checkpoint"] < found["steps"]


def test_tokens(tmp_path: Path) -> None:
    tiny = ["--contexts", "16", "--tokens", "20000", "--batch", "8", "--windows", "256", "--rounds", "1"]
    assert results(tmp_path, "tokens.py", *tiny)["rounds"] == 1
    rows = json.loads((tmp_path / "out" / "figures.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["restrain", "restrain, no CRC", "numpy", "numpy, one slice", "webdataset"]
    assert all(row["windows_per_s"] > 0 for row in rows)


@pytest.mark.slow
def test_transformers(tmp_path: Path) -> None:
    tiny = ["--images", "2", "--image-size", "32", "--windows-of-tokens", "1", "--context", "16", "--steps", "1"]
    tiny += ["--windows", "1", "--warmup", "1", "--no-compile"]
    found = results(tmp_path, "transformers.py", "--device", "cpu", *tiny)
    assert set(found) == {"ViT-B/16, eager", "GPT-2 124M, eager"}
    for row in found.values():
        assert set(row["seconds"]) == {"bare loop", "restrain"}
        assert row["macs"] > 0


@pytest.mark.slow
def test_parallel_overhead(tmp_path: Path) -> None:
    tiny = ["--depth", "2", "--width", "16", "--context", "8", "--rounds", "2", "--steps", "1", "--clip", "on"]
    found = results(tmp_path, "parallel_overhead.py", "--layouts", "ddp,fsdp", *tiny)
    assert found.keys() == {"ddp, clip on", "fsdp, clip on"}
    for row in found.values():
        assert {name: one["count"] for name, one in row["wall"]["seconds"].items()} == {
            "bare": 2,
            "restrain": 2,
            "same": 2,
        }
        assert row["cpu"]["above"].keys() == {"restrain", "same"}


@pytest.mark.slow
def test_gpu_step(tmp_path: Path) -> None:
    found = results(tmp_path, "gpu_step.py", "--device", "cpu", "--small", "--only", "one device")
    assert found.keys() == {f"GPT-2 124M, {name} on one device" for name in ("single", "fsdp", "zero3")}
    for name, one in found.items():
        if "zero3" not in name:  # DeepSpeed may be missing
            assert one["figures"]["steps"] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_step_says_what_it_needs() -> None:
    done = run("gpu_step.py")
    assert done.returncode == 1
    assert "needs a CUDA device" in done.stderr
