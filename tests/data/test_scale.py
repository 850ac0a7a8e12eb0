"""Sets that no machine here holds: an index of five billion samples, its order, resuming in it, and what they take."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from restrain.data import index, manifest, synthetic
from restrain.data.indexing import index_shards, match_shards

from .making import write_shards

MEASURED = r"""
import json, re
import numpy
from restrain.data.order import Order, Plan, resolve_shuffle
def held(): return int(re.search(r"VmRSS:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
def peak():  # of this program; the ru_maxrss of getrusage would be at least that of the process which started it
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
"""


def measured(code: str) -> dict:
    """What a program of its own prints; memory in MiB."""
    found = subprocess.run([sys.executable, "-c", MEASURED + code], check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def test_the_order_of_five_billion_samples():
    """Under 20 MB, what is read ahead of a window's end included, for a process that holds no index."""
    found = measured("""
counts = numpy.full(500_000, 10_000)
before, most = held(), peak()
order = Order(counts, 0, *resolve_shuffle(int(counts.sum())))
plan = Plan(order.samples, 4096, 32, order.lanes)
for step in range(plan.steps_per_epoch // 2, plan.steps_per_epoch // 2 + 40):
    epoch, positions = plan.rows(step, 1, 3, 32)
    order(epoch, positions)
print(json.dumps({"order": held() - before, "most": peak() - most, "samples": order.samples}))
""")
    assert found["samples"] == 5_000_000_000
    assert found["order"] < 20
    assert found["most"] < 60  # for a moment, while an epoch is made


@pytest.mark.slow
def test_resuming_in_five_billion_samples(tmp_path):
    synthetic.write_index(tmp_path, 5_000_000_000)
    assert (tmp_path / manifest.LINES).stat().st_size < 25 << 20
    found = measured(f"""
from restrain.data import index
found = index.load({str(tmp_path)!r})
order = Order(found.counts, 0, *resolve_shuffle(int(found.counts.sum())))
plan = Plan(order.samples, 4096, 32, order.lanes)
epoch, positions = plan.rows(3 * plan.steps_per_epoch // 4)
shard, j = order(epoch, positions)
print(json.dumps({{"all": peak(), "shards": len(found.names), "fingerprint": found.fingerprint}}))
""")
    assert found["shards"] == 500_000
    assert found["all"] < 500


def test_compressed_manifests_hold_the_same(tmp_path, monkeypatch):
    write_shards(tmp_path, 3, 2)
    plain = index_shards(tmp_path, match_shards(tmp_path, "*.tar"))
    for name in (manifest.MANIFEST, index.TABLE):
        (tmp_path / name).unlink()
    monkeypatch.setattr(manifest, "MANY_SHARDS", 2)
    packed = index_shards(tmp_path, match_shards(tmp_path, "*.tar"))
    assert (tmp_path / manifest.LINES).exists()
    assert not (tmp_path / manifest.MANIFEST).exists()
    for one in (packed, index.load(tmp_path)):
        assert list(one.entries) == list(plain.entries)
        assert one.fingerprint == plain.fingerprint
        assert one.crcs(2).tolist() == plain.crcs(2).tolist()
    data = (tmp_path / manifest.LINES).read_bytes()
    for cut in range(0, len(data) - 1, 7):
        (tmp_path / manifest.LINES).write_bytes(data[:cut])
        assert index.load(tmp_path) is None


def test_the_newer_of_two_manifests_counts(tmp_path, monkeypatch):
    write_shards(tmp_path, 2, 2)
    index_shards(tmp_path, match_shards(tmp_path, "*.tar"))
    monkeypatch.setattr(manifest, "MANY_SHARDS", 1)
    (tmp_path / "train-001.tar").unlink()
    write_shards(tmp_path, 1, 3)
    made = index_shards(tmp_path, match_shards(tmp_path, "*.tar"), refresh=True)
    assert index.load(tmp_path).fingerprint == made.fingerprint
    assert index.load(tmp_path).counts.tolist() == [3]


def test_columns_give_back_their_entries():
    rng = np.random.Generator(np.random.PCG64(0))
    entries = [manifest.Entry(f"d/é{i}.tar", i, i * 1000, rng.bytes(32).hex(), i + 5, 8 * i, 8) for i in range(20)]
    columns = manifest.Entries.of(entries)
    assert list(columns) == entries
    assert columns[-1] == entries[-1]
    assert columns[3:6] == entries[3:6]
    assert list(columns.take(np.array([5, 1]))) == [entries[5], entries[1]]
    with pytest.raises(IndexError):
        columns[20]
    assert replace(columns[2], nsamples=9).url == "d/é2.tar"


def test_golden(tmp_path):
    """The format is frozen: indexes that exist must stay readable."""
    text = (Path(__file__).parents[1] / "golden/index_v1.json").read_text()
    golden = json.loads(text)
    table = bytes.fromhex(golden["table"])
    (tmp_path / index.TABLE).write_bytes(table)
    (tmp_path / manifest.MANIFEST).write_text(json.dumps(golden["manifest"]))
    found = index.load(tmp_path)
    assert found.fingerprint == golden["manifest"]["fingerprint"]
    assert [found.span(0, j) for j in range(2)] == [(0, 2048), (6144, 8192)]
    assert found.crcs(0).tolist() == golden["crcs"]
    again = index.write([tmp_path / "again"], found, table)
    assert again.fingerprint == found.fingerprint
    assert json.loads((tmp_path / "again" / manifest.MANIFEST).read_text()) == golden["manifest"]
    assert (tmp_path / "again" / index.TABLE).read_bytes() == table


@pytest.mark.parametrize(
    "change",
    [
        {"excluded": [["train-000.tar", 99, "w"]]},
        {"excluded": [["train-000.tar", -1, "w"]]},
        {"excluded": [["train-000.tar", 0.5, "w"]]},
        {"kind": "folder"},
        {"kind": "else"},
        {"shardlist": {"nsamples": 2**70}},
        {"shardlist": {"nsamples": 5}},
        {"shardlist": {"idx": -8}},
        {"shardlist": {"bytes": 1}},
        {"shardlist": {"sha256": ""}},
        {"shardlist": {"url": "a\0.tar"}},
        {"excluded": None},
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_no_index(tmp_path, change):
    """It is made again, as one that is damaged."""
    write_shards(tmp_path, 1, 3)
    fingerprint = index_shards(tmp_path, ["train-000.tar"]).fingerprint
    path = tmp_path / manifest.MANIFEST
    found = json.loads(path.read_text())
    for key, value in change.items():
        found[key] = value if key != "shardlist" else [{**found[key][0], **value}]
    path.write_text(json.dumps(found))
    assert index.load(tmp_path) is None or change == {"kind": "folder"}
    assert index_shards(tmp_path, ["train-000.tar"]).fingerprint == fingerprint
