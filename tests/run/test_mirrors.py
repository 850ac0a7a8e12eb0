"""The wandb mirror: steps never go down, nothing blocks, nothing fails the run."""

import os
import subprocess
import sys
import threading
import time
import types

import pytest

from restrain.run.mirrors import WandbMirror, new_run_id


class FakeWandb(types.ModuleType):
    """Stands in for wandb: records, and fails or hangs where told."""

    def __init__(self, fail_at=None, hang=None, init_error=None):
        super().__init__("wandb")
        self.sent, self.inits, self.finished = [], [], []
        self.fail_at, self.hang, self.init_error = fail_at, hang, init_error

    def Settings(self, **kwargs):
        return kwargs

    def init(self, **kwargs):
        if self.init_error:
            raise self.init_error
        self.inits.append(kwargs)
        return self

    def log(self, metrics, step):
        if self.hang:
            self.hang.wait()
        if step == self.fail_at:
            raise ConnectionError("no route to host")
        self.sent.append((step, metrics))

    def finish(self, exit_code):
        self.finished.append(exit_code)

    def teardown(self):
        raise SystemExit(-9)  # as the real one does when its service was killed


@pytest.fixture
def fake(monkeypatch):
    def make(**options):
        module = FakeWandb(**options)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return make


def send(mirror, steps):
    for step in steps:
        mirror.log({"step": step, "train/loss": 1.0 / (step + 1)})


def test_steps_never_go_down_over_kills_and_restarts(tmp_path, fake):
    wandb, run_id, warnings = fake(), new_run_id(), []
    first = WandbMirror("offline", tmp_path, run_id, {"lr": 0.1}, project="p", tags=["a"], warn=warnings.append)
    send(first, range(10))
    first.log({"step": 5})
    deadline = time.monotonic() + 10
    while first.last_sent < 9:  # and then it is killed: no close, and the checkpoint is that of step 4
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = WandbMirror("offline", tmp_path, run_id, last_sent=4, warn=warnings.append)
    send(second, range(5, 13))
    second.close(exit_code=75)
    third = WandbMirror("online", tmp_path, run_id, last_sent=20, warn=warnings.append)
    send(third, range(18, 23))
    third.close()
    first.close()
    steps = [step for step, _ in wandb.sent]
    assert steps == [*range(13), 21, 22]
    assert wandb.sent[3] == (3, {"train/loss": 0.25})
    assert {init["id"] for init in wandb.inits} == {run_id}
    assert [init["resume"] for init in wandb.inits] == [None, None, "allow"]
    assert [init["mode"] for init in wandb.inits] == ["offline", "offline", "online"]
    assert wandb.inits[0]["config"] == {"lr": 0.1}
    assert wandb.finished == [75, 0, 0]
    assert warnings == []
    assert (third.last_sent, third.active) == (22, False)


def test_another_run_id_begins_anew(tmp_path, fake):
    wandb = fake()
    for _ in range(2):
        mirror = WandbMirror("offline", tmp_path, new_run_id())
        send(mirror, range(3))
        mirror.close()
    assert [step for step, _ in wandb.sent] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("options", [{"fail_at": 3}, {"init_error": ValueError("bad key")}])
def test_a_failure_is_one_warning(tmp_path, fake, options):
    wandb, warnings = fake(**options), []
    mirror = WandbMirror("online", tmp_path, "id", warn=warnings.append)
    send(mirror, range(6))
    mirror.close()
    send(mirror, range(6, 9))
    mirror.close()
    assert len(warnings) == 1
    assert "training and its journal go on" in warnings[0]
    assert [step for step, _ in wandb.sent] == ([0, 1, 2] if options.get("fail_at") else [])
    assert not mirror.active


def test_a_folder_that_cannot_be_made_is_a_failure_too(tmp_path, fake, capsys):
    fake()
    (tmp_path / "wandb").write_text("a file")
    mirror = WandbMirror("offline", tmp_path, "id")
    mirror.close()
    assert "switched off" in capsys.readouterr().err


def test_a_hanging_client_blocks_nothing(tmp_path, fake, monkeypatch):
    hang, warnings = threading.Event(), []
    fake(hang=hang)
    monkeypatch.setattr("restrain.run.mirrors.MOST_WAITING", 500)
    mirror = WandbMirror("online", tmp_path, "id", warn=warnings.append)
    begin = time.monotonic()
    send(mirror, range(1000))
    mirror.close(timeout=0.1)
    assert time.monotonic() - begin < 2
    assert len(warnings) == 1
    assert "500 lines" in warnings[0]
    hang.set()


def test_disabled_imports_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirror = WandbMirror("disabled", tmp_path, "id")
    send(mirror, range(3))
    mirror.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError):
        WandbMirror("dryrun", tmp_path, "id")


def test_ids():
    ids = {new_run_id() for _ in range(100)}
    assert len(ids) == 100
    assert all((len(i) == 8 and i.isalnum() and i.islower()) or i.isdigit() for i in ids)


PROGRAM = """
import signal, sys, time
from restrain.run.mirrors import WandbMirror
handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
mode, folder, run_id, start, timeout = sys.argv[1:]
mirror = WandbMirror(mode, folder, run_id, {"lr": 0.1}, project="p")
for step in range(int(start), int(start) + 5):
    mirror.log({"step": step, "train/loss": 1.0})
begin = time.monotonic()
mirror.close(timeout=float(timeout))
assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
print(mirror.last_sent, flush=True)
"""


def program(*arguments, **environment):
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")} | environment
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


def test_the_real_client_offline_twice(tmp_path):
    for start, last in ((0, 4), (3, 7)):
        result = program("offline", tmp_path, "abcd1234", start, 60)
        assert result.returncode == 0, result.stderr
        assert (result.stdout.strip(), result.stderr) == (str(last), "")
    runs = sorted((tmp_path / "wandb").glob("offline-run-*-abcd1234"))
    assert 1 <= len(runs) <= 2  # wandb names them by the second
    assert all((run / "run-abcd1234.wandb").stat().st_size > 100 for run in runs)


def test_the_real_client_without_a_network_lets_go(tmp_path):
    """No server behind the address: close gives up after a second, and wandb's exit hook does not hold the process."""
    begin = time.monotonic()
    result = program("online", tmp_path, "abcd1234", 0, 1, WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    assert "switched off" in result.stderr
    assert "Traceback" not in result.stderr
    assert time.monotonic() - begin < 20
