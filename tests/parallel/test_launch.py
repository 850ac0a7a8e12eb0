"""Ranks that Restrain or torchrun starts, as a user starts them: whole processes from the command line."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from restrain.errors import UserError, WorldError
from restrain.parallel import launch
from restrain.parallel.world import World, from_environment, rendezvous
from restrain.recipe import load
from restrain.training.starting import processes
from tests import worlds

SETTINGS = ["length=12ep", "checkpoint.every=5st", "evaluate.every=22st"]


def started(run: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "restrain", "train", "digits_resnet20", *SETTINGS, *more, "--run", str(run)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_step(run: Path, step: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if (run / "ledger.jsonl").is_file() and (run / "ledger.jsonl").read_text().count("\n") >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in two minutes")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    parent = started(run, "parallel.devices=2")
    wait_for_step(run, 8)
    os.kill(children(parent.pid)[1], signal.SIGKILL)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 1
    assert "Rank 1 was killed by SIGKILL" in said
    assert "Traceback" not in said
    parent = started(run, "parallel.devices=2", "length=12ep")
    wait_for_step(run, 20)
    parent.send_signal(signal.SIGTERM)
    parent.communicate(timeout=60)
    assert parent.returncode == 75
    steps = [line["step"] for line in worlds.ledger(run)]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_to_the_parent_saves_and_leaves(tmp_path: Path, number: int, code: int) -> None:
    run = tmp_path / "run"
    parent = started(run, "parallel.devices=2")
    wait_for_step(run, 6)
    parent.send_signal(number)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == code, said
    left = len(worlds.ledger(run))
    assert (run / "checkpoints" / "LATEST").read_text().strip() == f"step-{left}"


@pytest.mark.slow
def test_the_ranks_of_a_killed_parent_save_and_leave(tmp_path: Path) -> None:
    run = tmp_path / "run"
    parent = started(run, "parallel.devices=2")
    wait_for_step(run, 6)
    ranks = children(parent.pid)
    parent.kill()
    parent.communicate(timeout=60)
    end = time.monotonic() + 30
    while any(Path(f"/proc/{rank}").exists() for rank in ranks) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    left = len(worlds.ledger(run))
    assert (run / "checkpoints" / "LATEST").read_text().strip() == f"step-{left}"


@pytest.mark.slow
def test_torchrun_starts_the_same_run(tmp_path: Path) -> None:
    alone, many = tmp_path / "alone", tmp_path / "many"
    settings = ["length=8st", "evaluate.every=8st"]
    assert worlds.train(alone, settings).codes == [0]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "restrain"]
    arguments = ["train", "digits_resnet20", *settings]
    refused = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, check=False)
    assert "Under torchrun, name the run folder with --run DIR" in refused.stderr
    done = subprocess.run(
        [*torchrun, "--", *arguments, "--run", str(many)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert worlds.ledger(many) == worlds.ledger(alone)


@pytest.mark.slow
def test_ranks_with_different_recipes_are_refused(tmp_path: Path) -> None:
    def argv(rank: int) -> list[str]:
        return ["train", "digits_resnet20", "length=4st", f"optimizer.lr=0.{rank + 1}", "--run", str(tmp_path / "run")]

    env = {
        **os.environ,
        "RESTRAIN_LAUNCHED": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }
    port = str(launch.free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "restrain", *argv(rank)],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=90)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    host = socket.gethostname()
    assert f"Rank 1 on {host} has optimizer.lr=0.2 where rank 0 on {host} has optimizer.lr=0.1. Start all" in said[0]
    assert not said[1]


def codes(*commands: str) -> Callable[[], int]:
    script = "import os, sys; exec(sys.argv[1 + int(os.environ['RANK'])])"
    return lambda: launch.supervise([sys.executable, "-c", script, *commands], len(commands))


def test_exit_codes_of_the_whole() -> None:
    assert codes("pass", "pass")() == 0
    assert codes("sys.exit(75)", "sys.exit(75)")() == 75
    assert codes("sys.exit(75)", "pass")() == 75
    assert codes("sys.exit(130)", "sys.exit(130)")() == 130
    assert codes("sys.exit(2)", "sys.exit(2)")() == 2


def test_a_rank_that_saves_longer_is_waited_for() -> None:
    assert codes("sys.exit(75)", "import time; time.sleep(1.5); sys.exit(75)")() == 75


def test_a_rank_that_died_takes_the_others_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.3)
    begun = time.monotonic()
    with pytest.raises(WorldError, match=r"Rank 1 was killed by SIGKILL\. .* or begins again where there is none"):
        codes("import time; time.sleep(60)", "os.kill(os.getpid(), 9)")()
    assert time.monotonic() - begun < 30


def test_worlds_are_read_from_the_environment() -> None:
    assert from_environment({}) == World()
    ours = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "0"}
    assert from_environment({**ours, "RESTRAIN_LAUNCHED": "1"}) == World(1, 4, 1, 2, 0, "restrain")
    torchrun = {**ours, "TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0"}
    assert from_environment(torchrun).launcher == "torchrun"
    slurm = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}
    slurm |= {"SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
    assert from_environment(slurm) == World(3, 4, 1, 2, 1, "slurm")
    # a batch script is no rank, and one task is a world of one
    assert from_environment({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}) == World()
    with pytest.raises(WorldError, match="did not set WORLD_SIZE"):
        from_environment({"RESTRAIN_LAUNCHED": "1"})
    with pytest.raises(WorldError, match="ntasks-per-node"):
        from_environment({**slurm, "SLURM_NTASKS": "5"})


OURS = {"RESTRAIN_LAUNCHED": "1", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}


@pytest.mark.parametrize(
    ("env", "name", "value"),
    [
        (OURS, "RANK", "7"),
        (OURS, "RANK", "-1"),
        (OURS, "LOCAL_RANK", "2"),
        (OURS, "LOCAL_WORLD_SIZE", "0"),
        (OURS, "GROUP_RANK", "q"),
        (SRUN, "SLURM_PROCID", "5"),
        (SRUN, "SLURM_NTASKS", "abc"),
        (SRUN, "SLURM_NNODES", "x"),
        (SRUN, "SLURM_NNODES", "0"),
        (SRUN, "SLURM_NODEID", "1"),
    ],
)
def test_variables_of_a_launcher_that_cannot_be(env: dict[str, str], name: str, value: str) -> None:
    from_environment(env)
    with pytest.raises(WorldError, match=rf"did not set {name} to a number .* \(it is '{value}'\)"):
        from_environment({**env, name: value})


@pytest.mark.parametrize(("launcher", "option"), [("torchrun", "--nproc-per-node=4"), ("slurm", "--ntasks-per-node=4")])
def test_a_launcher_that_has_started_another_number_than_the_recipe_names(launcher: str, option: str) -> None:
    here = World(size=4, local_size=2, launcher=launcher)
    assert processes(load("digits_resnet20", ["parallel.devices=2"]).recipe, here) == 4
    with pytest.raises(UserError, match=rf"devices=4, but .* has started 2 process\(es\) on this node.*\({option}\)"):
        processes(load("digits_resnet20", ["parallel.devices=4"]).recipe, here)


def test_tasks_that_srun_has_laid_unevenly() -> None:
    env = {**SRUN, "SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "2"}
    with pytest.raises(WorldError, match="srun started 4 tasks on 2 nodes, which is not the same number on each"):
        from_environment(env)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"MASTER_PORT": "abc"}, "did not set MASTER_PORT to a number from 1 to 65535 .it is 'abc'"),
        ({"MASTER_PORT": "99999"}, "did not set MASTER_PORT to a number from 1 to 65535 .it is '99999'"),
        ({"SLURM_JOB_ID": "abc"}, "did not set SLURM_JOB_ID to a number of 0 or more .it is 'abc'"),
    ],
)
def test_a_place_to_meet_that_is_none(env: dict[str, str], said: str) -> None:
    with pytest.raises(WorldError, match=said):
        rendezvous(World(size=2, launcher="slurm"), env)
    with pytest.raises(WorldError, match="MASTER_ADDR, the host where"):
        rendezvous(World(size=2, launcher="torchrun"), {"MASTER_PORT": "29500"})
