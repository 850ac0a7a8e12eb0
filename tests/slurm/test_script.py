"""The batch scripts, with a stand-in for ``srun`` that runs one task: what srun would set, and the command."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.making import write_shards

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
SRUN = """#!/usr/bin/env bash
[ "$SRUN_CPUS_PER_TASK" = 1 ] || { echo "srun: $SRUN_CPUS_PER_TASK CPUs a task"; exit 9; }
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_NODES=1 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
exec "$@"
"""
PATIENCE = 200  # seconds: two cold starts on a machine that does other things too
TINY = [
    *("length=5st", "batch.global=4", "batch.group=2", "resolution.train=32", "parallel.accelerator=cpu"),
    *("parallel.threads=1", "data.threads=1", "track.wandb.mode=disabled", "precision=fp32"),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    checker = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([checker, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert script.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_output_needs_no_folder(script: Path) -> None:
    """Slurm does not make the folder of --output: a job whose folder is missing dies without a word."""
    (output,) = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH --output=")]
    assert "/" not in output.partition("=")[2]


class Cluster:
    """One node that runs one job: a submit folder, a spool folder, and srun on PATH."""

    def __init__(self, folder: Path):
        self.submit, self.spool = folder / "submit", folder / "spool"
        tools = folder / "bin"
        for path in (self.submit, self.spool, tools):
            path.mkdir()
        (tools / "srun").write_text(SRUN)
        (tools / "srun").chmod(0o755)
        (tools / "restrain").symlink_to(Path(sys.executable).parent / "restrain")
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        job = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "1", "SLURM_NNODES": "1"}
        self.env = {**os.environ, "PATH": path, "SLURM_SUBMIT_DIR": str(self.submit), **job}

    def batch(self, script: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start the job as slurmd does: a copy of the script, under another name, in another folder."""
        copy = self.spool / "slurm_script"
        copy.write_text(script.read_text())
        command = ["bash", str(copy), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.spool, env=self.env, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def test_the_job_trains_is_stopped_before_its_limit_and_goes_on(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    data = write_shards(tmp_path / "shards", 2, 8)
    job = [f"data.root={data}", *TINY]
    script = ROOT / "slurm" / "imagenet_resnet50.sh"
    run = cluster.submit / "runs" / "imagenet_resnet50" / "4711"

    first = cluster.batch(script, *job)
    wait_until_running(run, first)
    first.send_signal(signal.SIGUSR1)  # the script, srun's stand-in and the task are one process: all of them exec
    said = ended(first)
    assert first.returncode == 75, said  # srun's own exit code
    steps = len((run / "ledger.jsonl").read_text().splitlines())
    assert 1 <= steps < 5, said

    second = cluster.batch(script, *job)
    said = ended(second)
    assert second.returncode == 0, said
    assert f"going on after step {steps} of 5" in said
    ledger = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert [line["step"] for line in ledger] == list(range(1, 6))
    assert (run / "checkpoints" / "LATEST").read_text() == "step-5\n"


def ended(job: subprocess.Popen[str]) -> str:
    """What the job said, once it has ended; a job that hangs is killed, so that it is no later test's concern."""
    try:
        return job.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        job.kill()
        pytest.fail(f"the job hangs: {job.communicate()[0]}")


def wait_until_running(run: Path, job: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and job.poll() is None:
        if (run / "run.json").exists() and json.loads((run / "run.json").read_text()).get("state") == "running":
            return
        time.sleep(0.02)
    job.kill()
    pytest.fail(f"the job did not begin: {job.communicate()[0]}")
