"""How ranks meet: who is missing, who differs, and a port that is taken are named, and nobody waits for minutes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist

from restrain.errors import WorldError
from restrain.parallel import startup
from restrain.parallel.startup import Told, roll_call
from restrain.parallel.world import World, hosts, rendezvous
from tests import worlds
from tests.worlds import CONTEXT, Ended, Fault, Started

HOST = socket.gethostname()
RUN = ["train", "digits_resnet20", "length=2st", "evaluate.every=2st"]


@pytest.fixture
def soon(tmp_path: Path) -> dict[str, str]:
    """A site whose ranks wait for each other for fifteen seconds."""
    (tmp_path / "site.yaml").write_text("start_timeout: 15s\n")
    return {"RESTRAIN_SITE": str(tmp_path / "site.yaml")}


@contextmanager
def listener() -> Iterator[int]:
    """A port on which another program listens, and never answers."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(8)
        yield other.getsockname()[1]


def started(folder: Path, environments: list[dict[str, str]], faults: dict[int, list[Fault]] | None = None) -> Ended:
    """Ranks as srun starts them: nobody watches over them, and each has its own environment."""
    ranks = Started([], [])
    for rank, env in enumerate(environments):
        log = folder / f"{rank}.log"
        planted = (faults or {}).get(rank, [])
        argv = [*RUN, "--run", str(folder / "run")]
        process = CONTEXT.Process(target=worlds._rank, args=(argv, env, str(log), planted))
        process.start()
        ranks.processes.append(process)
        ranks.logs.append(log)
    return ranks.wait()


def slurm(folder: Path, size: int, port: int) -> list[dict[str, str]]:
    """What srun sets for a task on each of ``size`` nodes; and a scontrol that knows their names."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f"#!/bin/sh\nfor i in $(seq {size}); do echo n$i; done\n")
    (tools / "scontrol").chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    job = {"PATH": path, "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(size)}
    job |= {"SLURM_STEP_NUM_NODES": str(size), "SLURM_STEP_NODELIST": f"n[1-{size}]", "SLURM_LOCALID": "0"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**job, "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)} for rank in range(size)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.slow
def test_a_rank_that_dies_before_joining_is_named(tmp_path: Path, soon: dict[str, str]) -> None:
    environments = [{**one, **soon} for one in slurm(tmp_path, 4, free_port())]
    ended = started(tmp_path, environments, {2: [("before_joining", {})]})
    assert ended.codes == [1, 1, -9, 1]
    assert "error: Rank 2 on n3 (of 4) did not come within" in ended.said[0]
    assert "Traceback" not in ended.text
    assert not ended.said[1] + ended.said[3]


@pytest.mark.slow
def test_rank_0_that_dies_before_joining_is_named(tmp_path: Path, soon: dict[str, str]) -> None:
    port = free_port()
    environments = [{**one, **soon} for one in slurm(tmp_path, 2, port)]
    ended = started(tmp_path, environments, {0: [("before_joining", {})]})
    assert ended.codes == [-9, 1]
    assert f"error: Rank 1 on {HOST} has waited" in ended.said[1]
    assert f"for rank 0 at 127.0.0.1:{port}: connection refused. Rank 0 ended before that" in ended.said[1]


@pytest.mark.slow
def test_without_a_site_file_the_others_end_within_a_minute(tmp_path: Path) -> None:
    begun = time.monotonic()
    ended = worlds.start([*RUN, "--run", str(tmp_path / "run")], 2, tmp_path, {1: [("before_joining", {})]}).wait(90)
    assert ended.codes == [1, -9]
    assert f"error: Rank 1 on {HOST} (of 2) did not come within 45 s" in ended.said[0]
    assert time.monotonic() - begun < 60 + 15  # and what a start takes on a machine that does other things too


def test_a_rank_that_dies_before_the_first_step_is_named(tmp_path: Path) -> None:
    ended = worlds.train(tmp_path / "run", RUN[2:], 2, {1: [("before_the_model", {})]})
    assert ended.codes == [1, -9]
    assert f"Rank 1 on {HOST} (of 2) does not answer any more" in ended.said[0]


@pytest.mark.slow
def test_a_port_that_is_taken(tmp_path: Path, soon: dict[str, str]) -> None:
    with listener() as port:
        ended = started(tmp_path, [{**one, **soon} for one in slurm(tmp_path, 2, port)])
    assert ended.codes == [1, 1]
    assert f"error: Port {port} of {HOST} (MASTER_PORT), where the ranks of this run were to meet, is" in ended.said[0]
    assert "Set MASTER_PORT to a free one in the batch script" in ended.said[0]
    assert f"error: What rank 1 on {HOST} found at 127.0.0.1:{port} (MASTER_PORT) is not rank 0" in ended.said[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("other_version", f"Rank 1 on {HOST} has torch 2.14.0, rank 0 on {HOST} has"),
        ("other_data", f"Rank 1 on {HOST} has samples=17 where rank 0 on {HOST} has samples=1437"),
    ],
)
def test_a_rank_that_differs_is_refused(tmp_path: Path, fault: str, said: str) -> None:
    ended = worlds.train(tmp_path / "run", RUN[2:], 2, {1: [(fault, {})]})
    assert ended.codes == [2, 2]
    assert f"error: {said}" in ended.said[0]
    assert not ended.said[1]
    assert not (tmp_path / "run").exists()


def test_a_rank_that_fails_at_its_data_ends_all(tmp_path: Path) -> None:
    """Without a launcher that would kill the others: they wait for it at no collective that could break."""
    ended = worlds.start(
        [*RUN, "batch.global=48", "--run", str(tmp_path / "run")],
        3,
        tmp_path / "logs",
        {1: [("opening_fails", {})]},
    ).wait(120)
    assert ended.codes == [1, 1, 1]
    assert f"Rank 1 on {HOST} failed before the run began: " in ended.said[0]
    assert "the file system of this node is gone" in ended.said[0]


def test_a_rank_that_is_killed_at_its_data_is_named(tmp_path: Path) -> None:
    silence = ("short_silence", {"seconds": 5.0})
    ended = worlds.start(
        [*RUN, "batch.global=48", "--run", str(tmp_path / "run")],
        3,
        tmp_path / "logs",
        {0: [silence], 1: [("opening_fails", {"signal": "SIGKILL"})], 2: [silence]},
    ).wait(120)
    assert ended.codes == [1, -9, 1]
    assert f"Rank 1 on {HOST} went away before the run began: it has given no sign of life for 5 s" in ended.said[0]


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_an_error_of_one_rank_in_evaluation_is_its_own(tmp_path: Path, strategy: str) -> None:
    """With an average of the weights, which zero1 puts back by collectives of all ranks."""
    words = [f"parallel.strategy={strategy}", "ema={decay: 0.9}", "precision=fp32"]
    ended = worlds.train(tmp_path / "run", [*RUN[2:], *words], 2, {1: [("evaluation_fails", {"number": 2})]})
    assert ended.codes == [1, 1]
    assert "this evaluation batch cannot be read" in ended.said[1]
    assert "Rank 0 lost the connection to another rank" in ended.said[0]
    assert "Rank 1 on" in ended.said[0]


def test_a_collective_that_times_out_names_the_rank_that_is_late(tmp_path: Path) -> None:
    soon = ("short_collectives", {"seconds": 6.0})
    argv = [*RUN, "length=40st", "--run", str(tmp_path / "run")]
    faults = {0: [soon], 1: [soon, ("at_step", {"step": 4, "signal": "SIGSTOP"})]}
    started = worlds.start(argv, 2, tmp_path / "logs", faults)
    try:
        started.processes[0].join(90)
        said = started.logs[0].read_text()
    finally:
        started.signal(signal.SIGKILL, 1)
    assert started.wait().codes == [1, -9]
    assert f"Rank 1 on {HOST} (of 2) does not answer any more" in said
    assert "Rank 0 lost the connection" in said


def test_a_second_run_of_the_same_processes(tmp_path: Path) -> None:
    """What the first one said in its store is not taken for the second one's."""
    before = {rank: [("trained_before", {"run": str(tmp_path / "first")})] for rank in range(2)}
    ended = started(tmp_path, slurm(tmp_path, 2, free_port()), before)
    assert ended.codes == [0, 0], ended.text
    assert worlds.journal(tmp_path / "run")[-1]["step"] == 2


def test_the_roll_call_names_who_is_missing() -> None:
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    told = Told(World(rank=0, size=4, local_size=2), store)
    store.set(f"{startup.HERE}/2", json.dumps({"host": "n2"}))
    store.set("restrain/1/heard", "1")  # by the one that is there
    with pytest.raises(WorldError, match=rf"^Rank 1 on {HOST}, 3 on n2 \(of 4\) did not come within 0 s"):
        roll_call(told, 0.2)
    assert json.loads(store.get("restrain/1")) == {"failed": 1}


def test_rank_0_says_which_port_is_taken() -> None:
    with listener() as port:
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with pytest.raises(WorldError, match=f"^Port {port} of {HOST}") as error:
            startup.meet(World(size=2, launcher="torchrun"), env, 5)
    assert "Give torchrun another one (--master-port)" in str(error.value)


@pytest.mark.slow
def test_a_rank_that_finds_another_program_leaves_in_good_order(tmp_path: Path, soon: dict[str, str]) -> None:
    """The other program lets go while the rank's interpreter ends, under a thread that is in torch's C++ until then."""
    with listener() as port:
        env = {**os.environ, **slurm(tmp_path, 2, port)[1], **soon}
        command = [sys.executable, "-m", "restrain", *RUN, "--run", str(tmp_path / "run")]
        rank = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        assert rank.stderr is not None
        said = rank.stderr.readline()
    _, more = rank.communicate(timeout=90)
    assert said.startswith(f"error: What rank 1 on {HOST} found at 127.0.0.1:{port} (MASTER_PORT) is not rank 0")
    assert (rank.returncode, more) == (1, "")


def test_a_slow_start_makes_patient(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text(f"7 (a b) c) S {' '.join(['0'] * 18)} {1000 * os.sysconf('SC_CLK_TCK')} 0 0\n")
    (tmp_path / "uptime").write_text("1100.25 0.0\n")
    files = str(tmp_path / "stat"), str(tmp_path / "uptime")
    assert startup.patience(45, *files) == pytest.approx(200.5)
    assert startup.patience(300, *files) == 300
    assert startup.patience(45, "/nowhere", files[1]) == 45


def test_hosts_of_a_job_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hosts({}) == ["127.0.0.1"]
    assert hosts({"SLURM_STEP_NODELIST": "n7", "SLURM_NODELIST": "n[1-9]"}) == ["n7"]
    env = slurm(tmp_path, 2, 1)[0]
    monkeypatch.setenv("PATH", env["PATH"])
    assert hosts(env) == ["n1", "n2"]
    found = {key: value for key, value in env.items() if not key.startswith("MASTER")}
    rendezvous(World(launcher="slurm"), found)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("n1", str(15000 + 4711 * 17 % 15000))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(WorldError, match=r"node list 'n\[1-2\]' of this job needs scontrol"):
        hosts(env)
