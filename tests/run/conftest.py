"""Processes that die on purpose: at the k-th call into the file system, before it, after it, or in half of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "link", "pwrite", "ftruncate")


def _arm(at: int, when: str) -> None:
    """Kill this process at its ``at``-th file system call from now on."""
    count = iter(range(1 << 30))

    def deadly(call: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            here = next(count) == at
            try:
                if here and when == "half" and call.__name__ == "write":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2])
                elif not here or when == "after":
                    return call(*args, **kwargs)
            finally:
                if here:
                    os.kill(os.getpid(), signal.SIGKILL)

        wrapped.__name__ = call.__name__
        return wrapped

    for name in CALLS:
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


def every_kill(prepare: Callable[[], Callable[[], object]], halves: bool = True) -> Iterator[str]:
    """Kill the action that ``prepare`` returns at each of its calls in turn; yields after each kill, for checks."""
    for when in ("before", "after", "half") if halves else ("before", "after"):
        at = 0
        while killed(prepare(), at, when):
            yield f"{when} call {at}"
            at += 1
        assert at > 3, "the action made no calls: nothing was tested"


@pytest.fixture
def kills():
    return every_kill
