"""What a run folder is for: going on, refusing, allowing, branching off, evaluating, mirroring, profiling."""

import gzip
import json
import struct
from pathlib import Path

import pytest

from restrain.cli.main import run as command
from restrain.run.checkpoint import Reader
from tests import worlds

SETTINGS = ["length=8st", "evaluate.every=4st", "checkpoint.every=4st", "checkpoint.keep=9"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("folder") / "run"
    assert worlds.train(run, [*SETTINGS, "ema={decay: 0.8}"]).codes == [0]
    return run


def interventions(run: Path, step: int) -> list[dict]:
    with Reader(run / "checkpoints" / f"step-{step}") as reader:
        return reader.scalars["interventions"]


def test_run_json_says_what_a_run_was_made_of(finished: Path) -> None:
    info = json.loads((finished / "run.json").read_text())
    assert info["state"] == "finished"
    assert info["versions"].keys() >= {"torch", "lightning", "restrain", "python"}
    assert info["hardware"].keys() >= {"host", "cpu", "cores"}
    assert info["command"][0] == "restrain"
    assert info["placement"] == {
        "device": "cpu",
        "micro": 64,
        "threads": 1,
        "data_threads": 1,
        "world": 1,
        "strategy": "single",
        "because": "",
        "tensor": 1,
        "shard": 1,
    }
    assert info["metrics"]["eval/count"] == 360


def test_the_lock_is_a_recipe_with_every_auto_resolved(finished: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(["show", str(finished / "recipe.lock.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "auto" not in [line.split(": ")[1] for line in shown.splitlines() if line.startswith("precision")]
    assert "lanes: 1" in shown
    assert "window: 1437" in shown


def test_a_change_that_defines_the_run_is_refused_and_can_be_allowed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert worlds.train(run, SETTINGS).codes == [0]
    longer = ["length=12st", *SETTINGS[1:]]
    ended = worlds.train(run, longer)
    assert ended.codes == [2]
    assert "length is 12st, the run has 8st" in ended.text
    assert "--allow KEY" in ended.text
    ended = worlds.train(run, longer, options=["--allow", "length"])
    assert ended.codes == [0], ended.text
    assert [line["step"] for line in worlds.journal(run)] == list(range(1, 13))
    assert interventions(run, 12) == [{"at_step": 8, "kind": "allow", "key": "length", "was": "8st", "now": "12st"}]
    assert worlds.train(run, longer).codes == [0]  # and now it is the run's own


def test_placement_may_change(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop = {0: [("at_step", {"step": 6, "signal": "SIGTERM"})]}
    assert worlds.train(run, SETTINGS, 1, stop).codes == [75]
    ended = worlds.train(run, [*SETTINGS, "batch.micro=16", "track.every=2st", "checkpoint.every=5min"])
    assert ended.codes == [0], ended.text
    assert "micro 64 -> 16" in ended.text


def test_a_changed_batch_goes_on_with_the_next_sample(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop = {0: [("at_step", {"step": 6, "signal": "SIGTERM"})]}
    assert worlds.train(run, [*SETTINGS, "length=1ep"], 1, stop).codes == [75]
    left = len(worlds.ledger(run))
    options = ["--allow", "batch"]
    ended = worlds.train(run, [*SETTINGS, "length=1ep", "batch={global: 32, group: 16}"], options=options)
    assert ended.codes == [0], ended.text
    rows = [line["rows"] for line in worlds.ledger(run)]
    assert rows == [64] * left + [32] * ((1437 - 64 * left) // 32)
    assert worlds.journal(run)[-1]["samples"] == sum(rows)
    assert {line["epoch"] for line in worlds.ledger(run)} == {0}


def test_epochs_stay_epochs_when_the_batch_changes(tmp_path: Path) -> None:
    """Evaluation, learning rate and length go by epochs of samples, whatever batches they were cut into."""
    run = tmp_path / "run"
    settings = ["length=4ep", "evaluate.every=1ep", "schedule={name: step, at: [2ep, 3ep]}"]
    stop = {0: [("at_step", {"step": 30, "signal": "SIGTERM"})]}
    assert worlds.train(run, settings, 1, stop).codes == [75]
    changed = [*settings, "batch={global: 128, group: 16}"]
    killed = {0: [("at_step", {"step": 40})]}
    assert worlds.train(run, changed, 1, killed, options=["--allow", "batch"]).codes == [-9]
    ended = worlds.train(run, changed)
    assert ended.codes == [0], ended.text
    lines = worlds.journal(run)
    ends = [a for a, b in zip(lines, [*lines[1:], {"epoch": 4}], strict=True) if a["epoch"] != b["epoch"]]
    assert [line["epoch"] for line in ends] == [0, 1, 2, 3]
    assert all("eval/top1" in line for line in ends)
    assert sum("eval/top1" in line for line in lines) == 4
    rates = [{line["train/lr"] for line in lines if line["epoch"] == epoch} for epoch in range(4)]
    assert [sorted(rate) for rate in rates] == [[0.1], [0.1], [pytest.approx(0.01)], [pytest.approx(0.001)]]


def test_a_run_branches_off(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "branch"
    settings = ["length=8st", "evaluate.every=4st", "checkpoint.every=4st", "ema={decay: 0.8}", "optimizer.lr=0.01"]
    options = ["--from", f"{finished}@4"]
    killed = {0: [("at_step", {"step": 6})]}
    assert worlds.train(run, settings, 1, killed, options=options).codes == [-9]
    ended = worlds.train(run, settings)  # the lock remembers where it began
    assert ended.codes == [0], ended.text
    assert [line["step"] for line in worlds.journal(run)] == [5, 6, 7, 8]
    assert worlds.ledger(run) == worlds.ledger(finished)[4:]  # the same samples
    (fork,) = interventions(run, 8)
    assert (fork["kind"], fork["at_step"]) == ("fork", 4)


def test_evaluate_says_what_the_run_said(finished: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(["evaluate", str(finished / "checkpoints" / "step-8")]) == 0
    out = capsys.readouterr().out
    said = worlds.journal(finished)[-1]
    assert "EMA weights, 360 samples" in out
    assert f"eval/top1 {said['eval/top1']:.6g}" in out
    assert "eval/count 360" in out
    assert command(["evaluate", str(finished)]) == 0
    assert "step-" in capsys.readouterr().out


def history(path: Path) -> list[dict]:
    """The history lines of an offline run: protobuf records in a LevelDB log (32 KiB blocks, 7-byte headers)."""
    from wandb.proto import wandb_internal_pb2

    data, at, record, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            record = b""
            if message.WhichOneof("record_type") == "history":
                items = message.history.item
                found.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return found


@pytest.mark.slow
def test_wandb_mirrors_the_journal_over_a_restart(tmp_path: Path) -> None:
    """Offline: each attempt is a segment of one run id; together they are the journal, each step once."""
    run = tmp_path / "run"
    settings = [*SETTINGS, "track.wandb.mode=offline"]
    assert worlds.train(run, settings, 1, {0: [("at_step", {"step": 6, "signal": "SIGTERM"})]}).codes == [75]
    first = json.loads((run / "run.json").read_text())["wandb_id"]
    ended = worlds.train(run, settings)
    assert ended.codes == [0], ended.text
    assert json.loads((run / "run.json").read_text())["wandb_id"] == first
    segments = sorted((run / "wandb").glob(f"offline-run-*-{first}/*.wandb"))
    assert segments, ended.text
    sent = [line for segment in segments for line in history(segment)]
    wanted = worlds.journal(run)
    assert [line["_step"] for line in sent] == [line["step"] for line in wanted]
    for line, entry in zip(sent, wanted, strict=True):
        assert {key: line[key] for key in entry if key != "step"} == {k: v for k, v in entry.items() if k != "step"}


def test_a_window_is_profiled(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert worlds.train(run, [*SETTINGS, "profile={at: 3st, steps: 2}"]).codes == [0]
    (trace,) = (run / "attempts" / "1").glob("trace-*.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def test_the_same_settings_give_the_same_bits_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert worlds.train(tmp_path / name, [*SETTINGS, "precision=bf16", "seed=3"]).codes == [0]
    worlds.assert_bit_equal(tmp_path / "a", tmp_path / "b", 8)


def test_a_change_that_cannot_be_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop = {0: [("at_step", {"step": 6, "signal": "SIGTERM"})]}
    assert worlds.train(run, SETTINGS, 1, stop).codes == [75]
    lock = (run / "recipe.lock.yaml").read_text()
    adamw = [*SETTINGS, "optimizer={name: adamw, lr: 0.001}"]
    ended = worlds.train(run, adamw, options=["--allow", "optimizer"])
    assert ended.codes == [2]
    assert "the checkpoint has no such state" in ended.text
    assert (run / "recipe.lock.yaml").read_text() == lock
    assert worlds.train(run, SETTINGS).codes == [0]


def test_a_finished_run_says_so_on_every_rank(finished: Path) -> None:
    ended = worlds.train(finished, [*SETTINGS, "ema={decay: 0.8}"], 2)
    assert ended.codes == [0, 0], ended.text
    assert ended.text.count("is finished") == 1
