"""Signals set a flag and nothing else; the training loop reads it at a step border.

A handler that saves, or talks to other ranks, runs in the middle of a step: ranks would then wait for each other at
different places for ever. So the flag travels in the step's reduced vector, all ranks see it after the same step, save
once and leave. Install first thing, before torch is imported: a signal during the imports would kill the job. No torch
here.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from enum import IntEnum

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: "try again later"; a requeue script tells it from a failure
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
ECHO = 0.5  # seconds in which a further SIGINT is the same one: a terminal and a launcher both deliver Ctrl-C


class Flag(IntEnum):
    """What was asked for; the highest of all ranks counts."""

    NONE = 0
    USR1 = 1  # the time limit is near (Slurm's --signal): save and leave, the job is requeued
    TERM = 2  # preempted: save and leave
    INT = 3  # Ctrl-C: save and leave


SIGNALS = {signal.SIGUSR1: Flag.USR1, signal.SIGTERM: Flag.TERM, signal.SIGINT: Flag.INT}
_RADIX = 1 << 17  # encode() of up to 2^17 - 1 ranks adds up exactly in a float64


class _State:
    flag = Flag.NONE
    first_interrupt: float | None = None  # when the watcher saw the first SIGINT
    wakeup: int | None = None  # the watcher's pipe; the interpreter writes each signal's number into it


def _handler(number: int, frame: object = None) -> None:
    _State.flag = max(_State.flag, SIGNALS[signal.Signals(number)])


def _watch(fd: int) -> None:
    """Leave at once on a second SIGINT, even while the main thread sits in C code, where no Python handler runs."""
    while data := os.read(fd, 64):
        if signal.SIGINT not in data:
            continue
        now = time.monotonic()
        if _State.first_interrupt is None:
            _State.first_interrupt = now
        elif now - _State.first_interrupt > ECHO:
            os._exit(EXIT_INTERRUPTED)


def _forget_watcher() -> None:
    """In a forked child: the thread is gone, and the pipe is the parent's."""
    if _State.wakeup is not None:
        signal.set_wakeup_fd(-1)
        _State.wakeup = None


os.register_at_fork(after_in_child=_forget_watcher)


def install() -> None:
    """Take SIGTERM, SIGINT and SIGUSR1. Main thread only; harmless when repeated, and needed again after a fork."""
    for number in SIGNALS:
        signal.signal(number, _handler)
    if _State.wakeup is None:
        reading, _State.wakeup = os.pipe()
        os.set_blocking(_State.wakeup, False)
        threading.Thread(target=_watch, args=(reading,), name="second SIGINT", daemon=True).start()
    signal.set_wakeup_fd(_State.wakeup, warn_on_full_buffer=False)


reinstall = install


def installed() -> bool:
    """Whether all three handlers are still ours; libraries like to put theirs in place."""
    return all(signal.getsignal(number) is _handler for number in SIGNALS)


def flag() -> Flag:
    """What has been asked for so far on this rank."""
    return _State.flag


def reset() -> None:
    """Forget what was asked for: for a second run in one process, and for tests."""
    _State.flag, _State.first_interrupt = Flag.NONE, None


def encode(value: Flag) -> float:
    """A flag as a number that can be *summed* over ranks; see :func:`decode`."""
    return 0.0 if value == Flag.NONE else float(_RADIX ** (value - 1))


def decode(total: float) -> Flag:
    """The highest flag in a sum of :func:`encode` over up to 2^17 - 1 ranks."""
    whole = int(total)
    return max((value for value in Flag if value and whole // _RADIX ** (value - 1) % _RADIX), default=Flag.NONE)


def exit_code(value: Flag) -> int:
    """The process's exit code after a save for that reason: 75 (SIGUSR1, SIGTERM), 130 (SIGINT), 0 (none)."""
    if value == Flag.NONE:
        return 0
    return EXIT_INTERRUPTED if value == Flag.INT else EXIT_PREEMPTED
