"""Processes that die on purpose: at the k-th call into the file system, before it, after it, or in half of it."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RAM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # these tests fsync thousands of times

CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "link", "pwrite", "ftruncate")


def _arm(at: int, when: str) -> None:
    """Kill this process at its ``at``-th file system call from now on."""
    count = iter(range(1 << 30))

    def deadly(call: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            here = next(count) == at
            try:
                if here and when == "half":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2])
                elif not here or when == "after":
                    return call(*args, **kwargs)
            finally:
                if here:
                    os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    for name in CALLS if when != "half" else ("write",):
        setattr(os, name, deadly(getattr(os, name)))


def killed(action: Callable[[], object], at: int, when: str) -> bool:
    """Run ``action`` in a fork that kills itself; whether it did (False: it had fewer calls and ended well)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _arm(at, when)
            action()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the child failed with {status}"
    return status != 0


def every_kill(prepare: Callable[[], Callable[[], object]]) -> Iterator[str]:
    """Kill the action that ``prepare`` returns at each of its calls in turn; yields after each kill, for checks."""
    for when in ("before", "after", "half"):
        at = 0
        while killed(prepare(), at, when):
            yield f"{when} call {at}"
            at += 1
        assert at > (0 if when == "half" else 3), "the action made no calls: nothing was tested"


@pytest.fixture
def kills():
    return every_kill


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """pytest's, but in memory where the system has such a folder."""
    with tempfile.TemporaryDirectory(dir=RAM, prefix="restrain-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def new_folder(tmp_path) -> Callable[[], Path]:
    """Makes a new folder at each call, for tests that hypothesis repeats."""
    return lambda: Path(tempfile.mkdtemp(dir=tmp_path))
