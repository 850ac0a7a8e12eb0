"""A run that sends live, killed and going on: the server has each step once. What artifacts an offline run keeps."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restrain.run import journal
from restrain.run.mirrors.wandb_files import payloads, segments
from tests import worlds
from tests.run.wandb_server import Server, serving

TIMINGS = {"wall", "train/samples_per_s", "train/data_wait"}
LIVE = [
    "length=400st",
    "checkpoint.every=10st",
    "evaluate.every=200st",
    "track.wandb.mode=online",
    "parallel.threads=1",
]


def start(run: Path, server: Server) -> subprocess.Popen:
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    env |= {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": server.url, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "restrain", "train", "digits_resnet20", *LIVE, "--run", str(run)]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_live_and_killed_the_server_has_each_step_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with serving() as server:
        process = start(run, server)
        deadline = time.monotonic() + 200
        while max(map(len, server.history.values()), default=0) < 15:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert start(run, server).wait() == 0
        ((run_id, _),) = server.buckets.items()
        sent = server.lines(run_id)
    assert json.loads((run / "run.json").read_text())["wandb_id"] == run_id
    lines = journal.read(run / "metrics.jsonl")
    assert [line["_step"] for line in sent] == [line["step"] for line in lines] == list(range(1, 401))
    for one, line in zip(sent, lines, strict=True):
        for name, value in line.items():
            if name not in TIMINGS and name != "step":
                assert one[name] == pytest.approx(value), (line["step"], name)


def artifacts(run: Path) -> list[tuple[str, str, list[str]]]:
    """(type, name, files) of each artifact in wandb's own files of a run."""
    from wandb.proto import wandb_internal_pb2

    (run_id,) = {path.name.removeprefix("run-").removesuffix(".wandb") for path in run.glob("wandb/*/run-*.wandb")}
    found = []
    for path in segments(run / "wandb", run_id):
        for payload in payloads(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            if record.request.HasField("log_artifact"):
                artifact = record.request.log_artifact.artifact
            elif record.HasField("artifact"):
                artifact = record.artifact
            else:
                continue
            found.append((artifact.type, artifact.name, sorted(entry.path for entry in artifact.manifest.contents)))
    return found


@pytest.mark.parametrize(("wanted", "count"), [("none", 0), ("all", 3), ("best", 1)])
def test_checkpoints_are_artifacts_where_asked_for(tmp_path: Path, wanted: str, count: int) -> None:
    run = tmp_path / "run"
    words = ["length=12st", "evaluate.every=12st", "checkpoint.every=4st", "checkpoint.keep=9"]
    words += ["track.wandb.mode=offline", f"track.wandb.checkpoints={wanted}", "optimizer.lr=0.05"]
    ended = worlds.train(run, words)
    assert ended.codes == [0], ended.text
    found = [one for one in artifacts(run) if one[0] == "model"]
    assert len(found) == count
    for _, name, files in found:
        assert name.startswith("checkpoint-")
        assert "manifest.json" in files
        assert "model-0000.safetensors" in files
