"""Starts the local ranks of a run and watches them. No torch here: the parent only supervises.

Each rank is its own session, so a Ctrl-C reaches the parent alone, which hands each signal on once. A rank that leaves
in good order (0, 3, 75, 130) is never a reason to kill the others: they may still be saving. A rank that dies takes the
others down after a short grace, since they can only wait for it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from restrain.errors import WorldError

GRACE = 10.0  # seconds that ranks get to notice that one of them died
TRIPPED = 3
GOOD = (0, TRIPPED, 75, 130)
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def die_with_parent() -> None:
    """Ask the kernel to terminate this rank in good order (SIGTERM) when its parent dies. Linux only; else nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def supervise(command: Sequence[str], size: int) -> int:
    """Run ``command`` as ``size`` local ranks and return the exit code of the whole.

    All 0 -> 0; any 75 and the rest 0 or 75 -> 75; likewise 130, and 3 of a tripwire. A rank that died or failed ->
    its own code where it is an error of ours (1 or 2, already explained by that rank), else :class:`WorldError`
    naming rank and signal.
    """
    env = dict(os.environ, RESTRAIN_LAUNCHED="1", WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), NODE_RANK="0")
    env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    ranks: list[subprocess.Popen] = []
    received: list[int] = []

    def forward(number: int, _frame) -> None:
        received.append(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        for rank in range(size):
            ranks.append(
                subprocess.Popen(
                    list(command), env=dict(env, RANK=str(rank), LOCAL_RANK=str(rank)), start_new_session=True
                )
            )
        for number in received:  # a signal that came while they were being started
            for rank in ranks:
                rank.send_signal(number)
        return _wait(ranks)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen]) -> int:
    deadline, first = None, None
    while any(rank.poll() is None for rank in ranks):
        failed = [index for index, rank in enumerate(ranks) if rank.poll() not in (None, *GOOD)]
        if failed and deadline is None:
            first = next((index for index in failed if (ranks[index].poll() or 0) < 0), failed[0])
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    codes = [rank.poll() for rank in ranks]
    # The first to fail is the cause; a rank that died of a signal explains nothing itself, so it is named here.
    if first is None:
        first = next((index for index, code in enumerate(codes) if code not in GOOD), None)
    if first is not None:
        code = codes[first]
        if code is not None and code < 0:
            raise WorldError(
                f"Rank {first} was killed by {signal.Signals(-code).name}. The others were stopped. "
                f"The same command with the same --run goes on from the last checkpoint, or begins again where there "
                f"is none."
            )
        return code if code in (1, 2) else 1
    return next((code for code in (75, 130, TRIPPED) if code in codes), 0)
