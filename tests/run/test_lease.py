"""The lease: who may write, who is refused, who may take over, and races between starters."""

import json
import os
import signal
import time
from dataclasses import asdict, replace

import pytest

from restrain.errors import WorldError
from restrain.run.lease import Holder, Lease, _process, dead, myself


def current(folder):
    return max((folder / "lease").glob("*.json"))


def written(folder, holder, number=1, age=0.0):
    """Put a lease of another process there, last heard of ``age`` seconds ago."""
    (folder / "lease").mkdir(exist_ok=True)
    path = folder / "lease" / f"{number:08d}.json"
    path.write_text(json.dumps(asdict(holder)))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def elsewhere(**changes):
    return replace(myself({}), host="node7", machine="another boot", pid=4242, job=None, **changes)


def test_a_second_one_is_refused_with_host_and_process(tmp_path):
    first = Lease(tmp_path)
    assert first.acquire() is None
    first.check()
    with pytest.raises(WorldError, match=rf"in use by process {os.getpid()} on .*--run") as caught:
        Lease(tmp_path).acquire()
    assert "\n" not in str(caught.value)
    first.check()
    first.release()
    first.release()
    with pytest.raises(WorldError, match="not held"):
        first.check()
    with Lease(tmp_path) as second:
        second.check()
    assert Lease(tmp_path).acquire() is None
    assert len(list((tmp_path / "lease").iterdir())) == 1  # older leases are swept up, no temporary is left


def test_a_killed_holder_is_taken_over_at_once(tmp_path):
    child = os.fork()
    if child == 0:
        Lease(tmp_path).acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(1000):  # dead but not yet waited for: a zombie is dead too
        time.sleep(0.002)
        process = _process(child)
        if process is not None and process[0] == "Z":
            break
    with Lease(tmp_path) as lease:
        lease.check()
    os.waitpid(child, 0)
    assert "is dead" in (taken_over_from(tmp_path, replace(myself({}), pid=child)) or "")


def taken_over_from(folder, holder, age=0.0):
    written(folder, holder, number=50, age=age)
    lease = Lease(folder)
    reason = lease.acquire()
    lease.release()
    for path in (folder / "lease").glob("*.json"):
        path.unlink()
    return reason


def test_a_reused_process_id_is_not_the_holder(tmp_path):
    me = myself({})
    assert me.started is not None
    assert not dead(me, me)
    assert dead(replace(me, started=me.started - 100), me)
    assert not dead(replace(me, pid=4194304 + 5, host="node7"), me)  # cannot be known from here
    assert not dead(replace(me, pid=4194304 + 5, machine="a container"), me)
    assert dead(replace(me, pid=4194304 + 5), me)
    assert "is dead" in (taken_over_from(tmp_path, replace(me, started=me.started - 100)) or "")


def test_another_host_is_taken_over_after_a_minute_of_silence(tmp_path):
    with pytest.raises(WorldError, match=r"process 4242 on node7, last heard of 5\d s ago"):
        taken_over_from(tmp_path, elsewhere(), age=55)
    assert "silent for 6" in (taken_over_from(tmp_path, elsewhere(), age=65) or "")


def test_a_requeued_job_takes_over_from_its_former_start(tmp_path, monkeypatch):
    before = replace(elsewhere(), job="77", restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    for restart, allowed in (("0", False), ("1", True), ("", False)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        if allowed:
            assert "restarted (1 after 0)" in (taken_over_from(tmp_path, before) or "")
        else:
            with pytest.raises(WorldError, match="Slurm job 77"):
                taken_over_from(tmp_path, before)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(WorldError):
        taken_over_from(tmp_path, replace(before, job="78"))


def test_the_heartbeat_keeps_it(tmp_path):
    with Lease(tmp_path, beat=0.01):
        path = current(tmp_path)
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert time.time() - path.stat().st_mtime < 10


def test_a_displaced_holder_notices(tmp_path):
    slow = Lease(tmp_path, beat=1000)
    slow.acquire()
    os.utime(current(tmp_path), (0, 0))  # stopped for ages, and on another host: nobody can see that it lives
    written(tmp_path, replace(slow.holder, host="node7"), number=1)
    os.utime(current(tmp_path), (0, 0))
    other = Lease(tmp_path)
    assert "silent" in (other.acquire() or "")
    with pytest.raises(WorldError, match="taken over by process"):
        slow.check()
    slow.release()  # must not take away what it does not hold
    other.check()
    other.release()
    with pytest.raises(WorldError, match="not held"):
        slow.check()
    assert Lease(tmp_path).acquire() is None


def test_an_incomplete_lease_is_not_overrun(tmp_path):
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "00000001.json").write_text('{"token"')
    with pytest.raises(WorldError, match="an unknown process"):
        Lease(tmp_path).acquire()
    os.utime(tmp_path / "lease" / "00000001.json", (0, 0))
    assert "silent" in (Lease(tmp_path).acquire() or "")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("before", ["nobody", "dead", "released"])
def test_of_many_starters_one_wins(tmp_path, before, links):
    """Forks that wait for one instant and then all try; with and without hard links."""
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if before != "nobody":
            me = myself({})
            written(folder, replace(me, started=me.started - 1 if me.started else None, released=before == "released"))
        waiting, let_go = os.pipe()
        start = time.monotonic() + 0.1
        for _ in range(STARTERS):
            if os.fork() == 0:
                os.close(let_go)
                starter(folder, start, waiting, links)
        os.close(waiting)
        codes, deadline = [], time.monotonic() + 20
        while len(codes) < STARTERS - 1 and time.monotonic() < deadline:  # the winner stays until all have tried
            child, status = os.waitpid(-1, os.WNOHANG)
            codes += [os.waitstatus_to_exitcode(status)] if child else []
            time.sleep(0.005)
        os.close(let_go)
        codes += [os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) for _ in range(STARTERS - len(codes))]
        assert sorted(codes) == [0] + [3] * (STARTERS - 1)


STARTERS = 6


def starter(folder, start, waiting, links):
    """A forked process that tries to take the lease at a given time; exit code 0: it has it, 3: refused."""
    code = 9
    try:
        if not links:
            os.link = lambda *args: (_ for _ in ()).throw(PermissionError(1, "no links"))
        lease = Lease(folder)
        time.sleep(max(0.0, start - time.monotonic()))
        try:
            lease.acquire()
        except WorldError:
            code = 3
        else:
            os.read(waiting, 1)
            lease.check()
            code = 0
    finally:
        os._exit(code)


def test_a_slow_starter_does_not_get_a_number_that_had_gone(tmp_path):
    """It saw lease 1, which died; meanwhile 2 and 3 came and 2 was swept up."""
    lease, me = Lease(tmp_path), myself({})
    written(tmp_path, elsewhere(), number=3)
    assert not lease._create(2, me)
    assert [path.name for path in (tmp_path / "lease").iterdir()] == ["00000003.json"]
    assert isinstance(lease._load(current(tmp_path)), Holder)


def test_no_permission_is_the_worlds_fault(tmp_path):
    (tmp_path / "lease").write_text("a file in the way")
    with pytest.raises(WorldError, match="lease"):
        Lease(tmp_path).acquire()
