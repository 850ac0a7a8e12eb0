"""The profiler's window: a Chrome trace of exactly those steps."""

import gzip
import json

import pytest
import torch

from restrain.errors import WorldError
from restrain.insight.profile import Profile


def work(profile, steps):
    written = []
    for step in steps:
        written.append(profile.step(step))
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(4).add(1)
    return written


def marks(path):
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted({event["name"] for event in events if event.get("name", "").startswith("step ")})


def test_a_window(tmp_path):
    profile = Profile(3, 2, tmp_path / "attempts" / "1", rank=2)
    written = work(profile, range(8))
    assert [path is not None for path in written] == [False] * 5 + [True] + [False] * 2
    path = tmp_path / "attempts" / "1" / "trace-step3-rank0002.json.gz"
    assert written[5] == path
    assert marks(path) == ["step 3", "step 4"]
    assert profile.close() is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_run_that_ends_inside_the_window(tmp_path):
    profile = Profile(1, 5, tmp_path)
    work(profile, range(3))
    assert marks(profile.close()) == ["step 1", "step 2"]


def test_a_run_resumed_behind_the_window(tmp_path):
    profile = Profile(1, 5, tmp_path)
    assert work(profile, range(7, 9)) == [None, None]
    assert profile.close() is None


def test_a_trace_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    profile = Profile(0, 1, tmp_path / "file" / "attempts")
    profile.step(0)
    with pytest.raises(WorldError, match="profile=null"):
        profile.step(1)
