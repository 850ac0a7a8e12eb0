"""Mirrors of the journal. The journal is the truth; a mirror may lag, fail and be switched off without harm."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import string
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from restrain.run.journal import read

MODES = ("disabled", "offline", "online")
MOST_WAITING = 100_000  # lines; beyond it the mirror is stuck, and memory is worth more


def new_run_id() -> str:
    """An id for a tracker's run: 8 letters and digits. Not a draw: it identifies the run and decides nothing in it."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


class WandbMirror:
    """Sends journal lines to Weights & Biases from a thread.

    wandb's history is append-only and drops a step at or below its last one, so none is ever sent: the last step is
    kept in a small file beside wandb's, written *before* each line is sent. A kill in between costs the mirror a line,
    never the history.

    Args:
        mode: ``disabled`` (wandb is not even imported), ``offline`` or ``online``.
        run_dir: the run folder; wandb makes ``wandb/`` in it.
        run_id: from :func:`new_run_id`, the same for all attempts of a run.
        config: the recipe as plain data, shown by wandb.
        project, entity, name, tags: as wandb's.
        last_sent: the last step sent as the caller knows it (from a checkpoint); the file's counts too.
        backlog: the journal as it stands: its lines after the last one sent are sent first (a kill may have come
            before they were).
        warn: called once, from the thread, when the mirror fails; None: standard error.
    """

    def __init__(
        self,
        mode: str,
        run_dir: Path,
        run_id: str,
        config: Mapping[str, Any] | None = None,
        *,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        last_sent: int = -1,
        backlog: Path | None = None,
        warn: Callable[[str], None] | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is none of {MODES}")
        self.mode, self.run_dir, self.run_id = mode, Path(run_dir), run_id
        self._exit_code = 0
        self.active = mode != "disabled"  # False once it has failed or was closed
        self.last_sent, self._backlog = last_sent, backlog
        self._warn = warn or _warn
        self._settings: dict[str, Any] = {"config": dict(config or {}), "project": project, "entity": entity}
        self._settings |= {"name": name, "tags": list(tags or [])}
        self._lines: queue.SimpleQueue[str | Mapping[str, Any] | None] = queue.SimpleQueue()
        self._mark = -1
        self._thread: threading.Thread | None = None
        if self.active:
            self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
            self._thread.start()

    def log(self, line: str | Mapping[str, Any]) -> None:
        """Hand over a journal line, as text or as a mapping that is not changed afterwards. Never blocks or raises.

        Lines of one step must be handed over together (as one mapping): a step that was sent is sent no more.
        """
        if self.active:
            self._lines.put(line)
            if self._lines.qsize() > MOST_WAITING:
                self._off(f"{MOST_WAITING} lines are waiting to be sent")

    def close(self, timeout: float = 60.0, exit_code: int = 0) -> None:
        """Send what is waiting, finish wandb's run, and give up after ``timeout`` seconds. Never raises."""
        self._exit_code = exit_code
        if self._thread is None:
            return
        self._lines.put(None)  # the end
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._off(f"it did not finish within {timeout:.0f} s")
            _kill_service()
        self.active, self._thread = False, None

    # --------------------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            run = self._start()
            if self._backlog is not None:
                for line in read(self._backlog):
                    self._send(run, line)
            while (line := self._lines.get()) is not None:
                if not self.active:
                    return
                self._send(run, json.loads(line) if isinstance(line, str) else line)
            run.finish(exit_code=self._exit_code)
        except (
            Exception,
            SystemExit,
        ) as error:  # whatever a third party's client may raise: a mirror never stops a run
            self._off(f"{type(error).__name__}: {error}")
        finally:
            if self._mark >= 0:
                os.close(self._mark)
                self._mark = -1

    def _send(self, run: Any, line: Mapping[str, Any]) -> None:
        step = int(line["step"])
        if step <= self.last_sent:
            return
        self._remember(step)
        run.log({key: value for key, value in line.items() if key != "step"}, step=step)
        self.last_sent = step

    def _start(self) -> Any:
        own = self.run_dir / "wandb"
        own.mkdir(parents=True, exist_ok=True)
        self._mark = os.open(own / f"last-sent-{self.run_id}", os.O_RDWR | os.O_CREAT, 0o666)
        known = os.read(self._mark, 32).strip()
        if known.isdigit():
            self.last_sent = max(self.last_sent, int(known))
        import wandb

        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, x_disable_stats=True, init_timeout=30, x_service_wait=120
        )
        return wandb.init(
            mode="online" if self.mode == "online" else "offline",
            dir=os.fspath(self.run_dir),
            id=self.run_id,
            resume="allow" if self.mode == "online" else None,  # offline it is for `wandb sync`, which appends by id
            settings=settings,
            **self._settings,
        )

    def _remember(self, step: int) -> None:
        os.pwrite(self._mark, b"%-20d\n" % step, 0)

    def _off(self, why: str) -> None:
        if self.active:
            self.active = False
            self._warn(f"wandb is switched off for the rest of this start ({why}); training and its journal go on.")


def _kill_service() -> None:
    """Kill wandb's own child process: its exit hook would otherwise hold our exit until the network is back."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            head, _, fields = stat.read_text().rpartition(")")
            if "wandb-core" in head and int(fields.split()[1]) == os.getpid():
                os.kill(int(stat.parent.name), signal.SIGKILL)
    import wandb

    with contextlib.suppress(Exception, SystemExit):  # it likes to exit with its service's code
        wandb.teardown()  # finds its service gone, here rather than in its exit hook
