"""What all mirrors share: a thread that is handed lines, and the steps it must not send again."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from restrain.leaving import given_up
from restrain.run.journal import read
from restrain.run.numbers import loose

MOST_WAITING = 100_000  # lines; beyond it the mirror is stuck, and memory is worth more
END = None


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


class Mirror:
    """Sends journal lines from a thread, each step once, in order. Nothing in here stops or delays a run.

    Args:
        name: what a person calls it.
        backlog: the journal as it stands at the start, every line of it vouched for: what the mirror lacks of it is
            sent first.
        hold: whether a line waits for the checkpoint that vouches for it.
        warn: called once, from the thread, when the mirror fails; None: standard error.

    A subclass says how to open what it writes to (:meth:`opened` returns the last step that is there), how to send a
    line, and how to finish.
    """

    def __init__(self, name: str, backlog: Path | None, *, hold: bool, warn: Callable[[str], None] | None = None):
        self.name, self.hold, self._backlog, self._warn = name, hold, backlog, warn or _warn
        self.active = True  # False once it has failed or was closed
        self.last_sent = -1
        # The journal grows while the thread opens the mirror: only what is vouched for already is the backlog.
        self._known = backlog.stat().st_size if backlog is not None and backlog.exists() else 0
        self._exit_code = 0
        self._held: deque[tuple[int, str | Mapping[str, Any]]] = deque()
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------------ for the recorder

    def log(self, step: int, line: str | Mapping[str, Any]) -> None:
        """Hand over a journal line, as text or as a mapping that is not changed afterwards. Never blocks or raises."""
        if not self.active:
            return
        if self.hold:
            self._held.append((step, line))
            return
        self._put(line)

    def durable(self, step: int, checkpoint: Path | None = None, best: bool = False) -> None:
        """A checkpoint vouches for the lines up to ``step``."""
        while self._held and self._held[0][0] <= step:
            self._put(self._held.popleft()[1])
        if self.active and checkpoint is not None:
            self._waiting.put((checkpoint, best))

    def close(self, timeout: float = 45.0, exit_code: int = 0) -> None:
        """Send what is waiting, finish, and give up after ``timeout`` seconds. Never raises."""
        self._exit_code = exit_code
        if self._thread is None:
            return
        self._waiting.put(END)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._off(f"it did not finish within {timeout:.0f} s")
            self.abandon()
            given_up.append(self._thread)
        self.active, self._thread = False, None

    def _put(self, line: str | Mapping[str, Any]) -> None:
        self._waiting.put(line)
        if self._waiting.qsize() > MOST_WAITING:
            self._off(f"{MOST_WAITING} lines are waiting to be sent")

    # ------------------------------------------------------------------------------------------------- for a subclass

    def opened(self) -> int:
        """Open the mirror; the last step that it has already, -1 for none. In the thread."""
        raise NotImplementedError

    def send(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one step. In the thread."""
        raise NotImplementedError

    def keep(self, checkpoint: Path, best: bool) -> None:
        """A checkpoint was committed. In the thread."""

    def finish(self, exit_code: int) -> None:
        """Write what is left. In the thread."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Let go of whatever could hold this process's exit."""

    # ------------------------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            self.last_sent = self.opened()
            for line in read(self._backlog, self._known) if self._backlog is not None else ():
                self._send(line)
            while (item := self._waiting.get()) is not END:
                if not self.active:
                    return
                if isinstance(item, tuple):
                    self.keep(*item)
                else:
                    self._send(loose(json.loads(item)) if isinstance(item, str) else item)
            self.finish(self._exit_code)
        except (Exception, SystemExit) as error:  # whatever a third party's client may raise: a mirror stops no run
            told = " ".join(str(error).split())[:300]
            self._off(told if type(error) is RuntimeError else f"{type(error).__name__}: {told}")
            self.abandon()

    def _send(self, line: Mapping[str, Any]) -> None:
        step = int(line["step"])
        if step > self.last_sent:
            self.send(step, {key: value for key, value in line.items() if key != "step"})
            self.last_sent = step

    def _off(self, why: str) -> None:
        if self.active:
            self.active = False
            self._warn(
                f"{self.name} is switched off for the rest of this start ({why}); training and its journal go on."
            )
