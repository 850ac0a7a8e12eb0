"""A run with mirrors that is killed (kill -9) wherever it stands: each mirror ends with the journal, each step once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb

from restrain.run import journal
from restrain.run.mirrors.tensorboard import events
from restrain.run.mirrors.wandb_files import history, segments

TIMINGS = {"wall", "train/samples_per_s", "train/data_wait"}
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/planted/EXAMPLEKEY",
    "HF_TOKEN": "hf_plantedPlantedPlanted",
}
MIRRORS = ["track.wandb.mode=offline", "track.tensorboard=true", "track.wandb.code=true", "parallel.threads=1"]
STEPS = 1200
SHORT = [f"length={STEPS}st", "checkpoint.every=20st", "evaluate.every=300st", *MIRRORS]


def start(run: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "restrain", "train", "digits_resnet20", *SHORT, "--run", str(run)]
    env = {**os.environ, **SECRETS, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_after(run: Path, step: int) -> None:
    """Start the run and kill it once wandb's own files have the step: the journal is further then."""
    process = start(run)
    deadline = time.monotonic() + 200
    while max((s for path in run.glob("wandb/*/run-*.wandb") for s, _ in history(path)), default=-1) < step:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def without_timings(line: dict) -> dict:
    return {key: value for key, value in line.items() if key not in TIMINGS and not key.startswith("_")}


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "inherited"), [((20, 130), False), ((61, 240), True)])
def test_killed_twice_each_mirror_is_the_journal(
    tmp_path: Path, kills: tuple[int, int], inherited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """inherited: the process that starts them uses wandb too, as a notebook does, so they find its service."""
    run = tmp_path / "run"
    if inherited:
        wandb.setup().ensure_service()
        assert "WANDB_SERVICE" in os.environ
    else:
        monkeypatch.delenv("WANDB_SERVICE", raising=False)
    for step in kills:
        kill_after(run, step)
    last = start(run)
    assert last.wait() == 0
    lines = journal.read(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))

    run_id = json.loads((run / "run.json").read_text())["wandb_id"]
    files = segments(run / "wandb", run_id)
    assert len(files) == 3
    sent = [one for path in files for one in history(path)]
    assert [step for step, _ in sent] == list(range(1, STEPS + 1))
    for (_, metrics), line in zip(sent, lines, strict=True):
        assert without_timings(metrics) == {k: v for k, v in without_timings(line).items() if k != "step"}

    scalars: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in events(run / "tensorboard"):
        scalars.setdefault(name, []).append((step, value))
    assert [step for step, _ in scalars["train/loss"]] == list(range(1, STEPS + 1))
    assert [step for step, _ in scalars["eval/top1"]] == [300, 600, 900, 1200]
    for (_, value), line in zip(scalars["train/loss"], lines, strict=True):
        assert value == pytest.approx(line["train/loss"], rel=1e-6)

    for path in run.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in SECRETS.values():
                assert secret.encode() not in content, path
