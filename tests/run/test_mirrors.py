"""The mirrors: steps never go down, nothing blocks, nothing fails a run; and what the real client sends to a server."""

import os
import subprocess
import sys
import threading
import time
import types

import pytest

from restrain.errors import UserError
from restrain.run import sending
from restrain.run.mirrors import WandbMirror, WandbOptions, new_run_id
from restrain.run.mirrors.wandb_files import history, payloads, segments
from tests import worlds

from .wandb_server import serving

OFFLINE = WandbOptions("offline", project="p")
ONLINE = WandbOptions("online", project="p")


class FakeWandb(types.ModuleType):
    """Stands in for wandb: records, and fails or hangs where told."""

    def __init__(self, fail_at=None, hang=None, init_error=None):
        super().__init__("wandb")
        self.sent, self.inits, self.finished = [], [], []
        self.fail_at, self.hang, self.init_error = fail_at, hang, init_error
        self.resumed, self.starting_step, self.url = False, 0, None

    def Settings(self, **kwargs):
        return kwargs

    def setup(self, settings):
        pass

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
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)

    def make(**options):
        module = FakeWandb(**options)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return make


def send(mirror, steps):
    for step in steps:
        mirror.log(step, {"step": step, "train/loss": 1.0 / (step + 1)})


def test_offline_a_line_waits_for_its_checkpoint(tmp_path, fake):
    wandb = fake()
    mirror = WandbMirror(tmp_path, new_run_id(), OFFLINE)
    send(mirror, range(10))
    mirror.durable(6)
    send(mirror, range(10, 12))
    mirror.close(exit_code=1)
    assert [step for step, _ in wandb.sent] == list(range(7))
    assert wandb.sent[3] == (3, {"train/loss": 0.25})
    assert wandb.finished == [1]


def test_online_lines_are_live_and_the_server_says_where_to_go_on(tmp_path, fake):
    wandb = fake()
    wandb.resumed, wandb.starting_step = True, 5
    mirror = WandbMirror(tmp_path, "id", ONLINE)
    send(mirror, range(3, 9))
    mirror.close()
    assert [step for step, _ in wandb.sent] == [5, 6, 7, 8]
    assert wandb.inits[0]["resume"] == "allow"


def test_the_backlog_is_what_stood_in_the_journal_at_the_start(tmp_path, fake):
    wandb, journal = fake(), tmp_path / "metrics.jsonl"
    journal.write_text('{"step": 1, "train/loss": "NaN"}\n{"step": 2, "train/loss": 1.0}\n')
    mirror = WandbMirror(tmp_path, "id", OFFLINE, backlog=journal)
    with journal.open("a") as file:
        file.write('{"step": 3, "train/loss": 1.0}\n')  # of this start: no checkpoint vouches for it
    mirror.close()
    assert [step for step, _ in wandb.sent] == [1, 2]
    assert wandb.sent[0][1]["train/loss"] != wandb.sent[0][1]["train/loss"]


@pytest.mark.parametrize("options", [{"fail_at": 3}, {"init_error": ValueError("bad key")}])
def test_a_failure_is_one_warning(tmp_path, fake, options):
    wandb, warnings = fake(**options), []
    mirror = WandbMirror(tmp_path, "id", ONLINE, warn=warnings.append)
    send(mirror, range(6))
    mirror.close()
    send(mirror, range(6, 9))
    mirror.close()
    assert len(warnings) == 1
    assert "training and its journal go on" in warnings[0]
    assert [step for step, _ in wandb.sent] == ([0, 1, 2] if options.get("fail_at") else [])
    assert not mirror.active


def test_without_a_key_nothing_is_asked_at_a_terminal(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    warnings: list[str] = []
    WandbMirror(tmp_path, "id", ONLINE, warn=warnings.append).close()
    assert "there is no API key: set WANDB_API_KEY or run `wandb login`" in warnings[0]


def test_a_folder_that_cannot_be_made_is_a_failure_too(tmp_path, fake, capsys):
    fake()
    (tmp_path / "wandb").write_text("a file")
    WandbMirror(tmp_path, "id", OFFLINE).close()
    assert "switched off" in capsys.readouterr().err


def test_a_hanging_client_blocks_nothing(tmp_path, fake, monkeypatch):
    hang, warnings = threading.Event(), []
    fake(hang=hang)
    monkeypatch.setattr("restrain.run.mirrors.base.MOST_WAITING", 500)
    mirror = WandbMirror(tmp_path, "id", ONLINE, warn=warnings.append)
    begin = time.monotonic()
    send(mirror, range(1000))
    mirror.close(timeout=0.1)
    assert time.monotonic() - begin < 5
    assert len(warnings) == 1
    assert "500 lines" in warnings[0]
    hang.set()


def test_ids():
    ids = {new_run_id() for _ in range(100)}
    assert len(ids) == 100
    assert all((len(i) == 8 and i.isalnum() and i.islower()) or i.isdigit() for i in ids)


PROGRAM = """
import signal, sys, time
from pathlib import Path
from restrain.run.mirrors import WandbMirror, WandbOptions
from restrain.leaving import leave
handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
mode, folder, run_id, start, timeout = sys.argv[1:]
mirror = WandbMirror(Path(folder), run_id, WandbOptions(mode, project="p", config={"lr": 0.1}, finish_timeout=1))
for step in range(int(start), int(start) + 5):
    mirror.log(step, {"step": step, "train/loss": 1.0})
mirror.durable(10**9)
mirror.close(timeout=float(timeout))
assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
print(mirror.last_sent, flush=True)
leave(0)
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
        time.sleep(1.1)  # wandb names its folders by the second
    files = segments(tmp_path / "wandb", "abcd1234")
    assert [[step for step, _ in history(path)] for path in files] == [[0, 1, 2, 3, 4], [5, 6, 7]]
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-3])  # torn by a kill
    assert len(list(payloads(files[0]))) > 0
    files[0].write_bytes(b"not wandb's")
    assert list(payloads(files[0])) == []


def test_the_real_client_without_a_network_lets_go(tmp_path):
    """No server behind the address: close gives up after a second, and wandb's exit hook does not hold the process."""
    begin = time.monotonic()
    result = program("online", tmp_path, "abcd1234", 0, 1, WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    assert "switched off" in result.stderr
    assert "Traceback" not in result.stderr
    assert time.monotonic() - begin < 30


SYNC = "import sys; from restrain.cli.main import main; main(['sync', *sys.argv[1:]])"


def sync(run, **environment):
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")} | environment
    return subprocess.run([sys.executable, "-c", SYNC, str(run)], capture_output=True, text=True, timeout=120, env=env)


def test_sync_sends_each_step_once(tmp_path):
    """By the real client, to a server that speaks its protocol: half of the run, then the rest, then nothing."""
    run = tmp_path / "run"
    assert worlds.train(run, ["length=6st", "checkpoint.every=2st", "evaluate.every=6st"]).codes == [0]
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("".join(whole.splitlines(keepends=True)[:4]))
    with serving() as server:
        key = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": server.url}
        first = sync(run, **key)
        assert first.returncode == 0, first.stderr
        assert "sent 4 steps up to step 4" in first.stdout
        (run / "metrics.jsonl").write_text(whole)
        assert "sent 2 steps up to step 6" in sync(run, **key).stdout
        assert "sent nothing new (step 6)" in sync(run, **key).stdout
        (run_id,) = server.buckets
        assert [line["_step"] for line in server.lines(run_id)] == [1, 2, 3, 4, 5, 6]
        assert server.lines(run_id)[-1]["eval/count"] == 360
        server.authorised = False
        refused = sync(run, **key)
    assert refused.returncode == 1
    assert "could not be sent: " in refused.stderr
    assert "permission denied" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_sync_says_what_it_lacks(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is not a run folder"):
        sending.send(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "recipe.lock.yaml").write_text("")
    with pytest.raises(UserError, match="no API key"):
        sending.send(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with pytest.raises(UserError, match="nothing to send yet"):
        sending.send(tmp_path)
