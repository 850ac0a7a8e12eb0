"""The lease of a run folder: one process writes a run at a time.

Leases are numbered files in ``lease/``; the highest number holds. A lease is created by ``link`` of a complete file to
the next number, which fails when another starter was first, so two starters never both hold. The holder's heartbeat is
the file's modification time, given by the file server; a starter compares it with that of a file it makes itself, so
that clocks of different hosts do not matter. The highest file is never deleted, only marked as released: numbers never
come back, and a displaced holder can tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from restrain.errors import WorldError
from restrain.run.files import sync_folder, world_error, write_all, write_atomic

BEAT = 5.0  # seconds between heartbeats
SILENCE = 60.0  # seconds without one after which a lease may be taken over


@dataclass(frozen=True)
class Holder:
    """Who holds a lease. ``started`` is the process's start time in the kernel's ticks: process ids are reused."""

    token: str
    host: str
    machine: str  # boot id and process-id namespace: where ``pid`` means something
    pid: int
    started: int | None
    job: str | None  # Slurm job id
    restart: int  # Slurm restart count
    released: bool = False

    def describe(self) -> str:
        """``process 123 on host`` with the Slurm job where there is one."""
        return f"process {self.pid} on {self.host}" + (f" (Slurm job {self.job})" if self.job else "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _process(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process, from /proc; None when there is no such process or no /proc."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[0], int(fields[19])) if len(fields) > 19 else None


def myself(environment: Mapping[str, str] = os.environ) -> Holder:
    """This process as a holder, with a new token."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    process = _process(os.getpid())
    return Holder(
        token=secrets.token_hex(16),
        host=socket.gethostname(),
        machine=_read("/proc/sys/kernel/random/boot_id") + namespace,
        pid=os.getpid(),
        started=process[1] if process else None,
        job=environment.get("SLURM_JOB_ID"),
        restart=int(environment.get("SLURM_RESTART_COUNT") or 0),
    )


def dead(holder: Holder, me: Holder) -> bool:
    """Whether the holder's process is known to be gone; False when it lived on another machine."""
    if holder.host != me.host or holder.machine != me.machine:
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    process = _process(holder.pid)
    return process is not None and (process[0] in "ZX" or (holder.started is not None and process[1] != holder.started))


def is_held(folder: Path) -> bool:
    """Whether some process seems to be writing the run, for lists: nothing is made or changed in the folder.

    By this host's clock, so a holder on a host whose clock is a minute off may be taken for dead here.
    """
    try:
        newest = max((folder / "lease").glob("[0-9]*.json"), default=None)
        if newest is None:
            return False
        holder = Holder(**json.loads(newest.read_text()))
        silent = time.time() - newest.stat().st_mtime
    except (OSError, ValueError, TypeError):
        return False
    return not holder.released and silent < SILENCE and not dead(holder, myself())


class Lease:
    """The right to write a run folder.

    ::

        with Lease(folder.path) as lease:   # WorldError when another process has it
            ...
            lease.check()                   # before each write that must not come from a displaced process

    Args:
        folder: the run folder; it must exist.
        beat, silence: seconds; other values are for tests.
    """

    def __init__(self, folder: Path | str, *, beat: float = BEAT, silence: float = SILENCE):
        self.folder = Path(folder)
        self.path = self.folder / "lease"
        self._beat, self._silence = beat, silence
        self.holder: Holder | None = None
        self.displaced = False  # the heart found that another process has it: a cheap thing to ask in each step
        self._file: Path | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> str | None:
        """Take the lease. Returns why it could be taken over (for the journal), None when nobody had it.

        Raises:
            WorldError: another process has it; the text names host and process and says what to do.
        """
        me = myself()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            while True:
                number, holder = self._highest()
                reason = self._may_take(holder, me, number)
                if self._create(number + 1, me):
                    break
        except OSError as error:
            raise world_error("take the lease of the run folder", self.path, error, "then start again") from None
        self.holder, self._file = me, self._at(number + 1)
        self._remove_below(number + 1)
        self._stop.clear()
        self._thread = threading.Thread(target=self._heart, name="lease", daemon=True)
        self._thread.start()
        return reason

    def check(self) -> None:
        """Make sure that the lease is still held; about 50 us.

        Raises:
            WorldError: another process took it over (this one was silent for too long), or it was never held.
        """
        if self.holder is None or self._file is None:
            raise WorldError(f"The lease of {self.folder} is not held by this process; nothing more is written.")
        try:
            if self._held():
                return
            highest = max(self._numbers(), default=0)
            other = self._load(self._at(highest)) if highest else None
        except OSError as error:
            raise world_error("check the lease of the run folder", self.path, error) from None
        by = other.describe() if other else "another process"
        raise WorldError(
            f"The run folder {self.folder} was taken over by {by} while this process ({self.holder.pid} on "
            f"{self.holder.host}) was silent. This process writes nothing more and stops; the run goes on there."
        )

    def release(self) -> None:
        """Give the lease back; harmless when it is not held or was lost."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.holder is not None and self._file is not None:
            with contextlib.suppress(WorldError, OSError):
                self.check()
                write_atomic(self._file, json.dumps(asdict(self.holder) | {"released": True}))
        self.holder = self._file = self._thread = None

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _heart(self) -> None:
        while not self._stop.wait(self._beat):
            with contextlib.suppress(OSError):  # a full or stale file system: the next beat may do; check() tells
                if self._file is not None:
                    os.utime(self._file)
                if not self._held():
                    self.displaced = not self._stop.is_set()

    def _held(self) -> bool:
        if self.holder is None or self._file is None:
            return False
        mine = self._load(self._file)
        return mine is not None and mine.token == self.holder.token and max(self._numbers()) == int(self._file.stem)

    def _at(self, number: int) -> Path:
        return self.path / f"{number:08d}.json"

    def _numbers(self) -> list[int]:
        return [int(name[:-5]) for name in os.listdir(self.path) if name.endswith(".json") and name[:-5].isdecimal()]

    def _load(self, path: Path) -> Holder | None:
        """The holder written in a lease file; None when it is gone or not complete yet."""
        try:
            return Holder(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _highest(self) -> tuple[int, Holder | None]:
        for _ in range(50):
            number = max(self._numbers(), default=0)
            holder = self._load(self._at(number)) if number else None
            if number == 0 or holder is not None:
                return number, holder
            time.sleep(0.02)  # deleted by a newer holder, or being written where links do not exist: look again
        return number, None

    def _may_take(self, holder: Holder | None, me: Holder, number: int) -> str | None:
        """Why the lease may be taken (None: nobody had one); raises when it may not."""
        if number == 0 or (holder is not None and holder.released):
            return None
        silent = self._silent(number)
        if holder is not None:
            if dead(holder, me):
                return f"{holder.describe()} is dead"
            if holder.job is not None and holder.job == me.job and me.restart > holder.restart:
                return f"Slurm job {me.job} was restarted ({me.restart} after {holder.restart})"
        if silent >= self._silence:
            return f"{holder.describe() if holder else 'the holder'} was silent for {silent:.0f} s"
        who = holder.describe() if holder else "an unknown process"
        raise WorldError(
            f"The run folder {self.folder} is in use by {who}, last heard of {max(silent, 0):.0f} s ago. Stop that "
            f"process, or wait: if it is dead, the run can be taken over after {self._silence:.0f} s of silence. "
            "For a separate run, name another folder with --run."
        )

    def _silent(self, number: int) -> float:
        """Seconds since the last heartbeat, both times from the file server's clock."""
        probe = self.path / f".probe-{secrets.token_hex(8)}.tmp"
        try:
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return os.stat(probe).st_mtime - os.stat(self._at(number)).st_mtime
        except FileNotFoundError:
            return 0.0  # the lease file was deleted: someone newer holds, and creating the next number will fail
        finally:
            with contextlib.suppress(OSError):
                os.unlink(probe)

    def _create(self, number: int, me: Holder) -> bool:
        """Create the lease of that number; False when another starter was first."""
        target, content = self._at(number), json.dumps(asdict(me)).encode()
        temporary = self.path / f".{me.token}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                write_all(fd, content)
                os.fsync(fd)
            finally:
                os.close(fd)
            try:
                os.link(temporary, target)
            except FileExistsError:
                if os.stat(temporary).st_nlink != 2:  # NFS may repeat a link that had succeeded
                    return False
            except OSError:  # no hard links here: create and write; a reader that finds it incomplete looks again
                try:
                    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                except FileExistsError:
                    return False
                try:
                    write_all(fd, content)
                    os.fsync(fd)
                finally:
                    os.close(fd)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        sync_folder(self.path)
        if max(self._numbers(), default=0) != number:  # we were slow: this number had come and gone
            with contextlib.suppress(OSError):
                os.unlink(target)
            return False
        return True

    def _remove_below(self, number: int) -> None:
        """Delete older leases: over NFS, a displaced holder learns soonest from its own file being gone."""
        for older in self._numbers():
            if older < number:
                with contextlib.suppress(OSError):
                    os.unlink(self._at(older))
