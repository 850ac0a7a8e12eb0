"""How the ranks of a run meet: a store that rank 0 holds, a roll call that names who is missing, and a comparison.

A rank that dies before it has come says nothing, and what waits for it would wait for ten minutes. So the roll call has
a patience of less than one, and rank 0 names the missing by rank and host. Until the first step each rank then shows
that it lives, and one that fails says so, since the others wait for it without a collective that could break.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from restrain import __version__
from restrain.errors import RestrainError, UserError, WorldError
from restrain.leaving import given_up
from restrain.parallel.world import World, hosts

HERE = "restrain/here"
ALIVE = "restrain/alive"
FAILED = "restrain/failed"
BEAT = 5.0  # seconds between two signs of life during start-up
SILENT = 60.0  # seconds without one after which a rank has gone; a large file that is parsed delays them
MARGIN = 5.0  # seconds that rank 0's verdict may take to reach the others
NAMED = 8  # of missing ranks
_meetings = itertools.count()  # a process may train several runs, one after the other


def patience(start: float, process: str = "/proc/self/stat", uptime: str = "/proc/uptime") -> float:
    """Seconds to wait for the other ranks: ``start``, and more where this one has itself taken long to come so far, as
    on a slow file system others may take longer still."""
    try:
        ticks = int(Path(process).read_text().rpartition(")")[2].split()[19])
        age = float(Path(uptime).read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return start
    return max(start, 2 * age)


def meet(world: World, env: Mapping[str, str], seconds: float) -> Any:
    """The store of this run: rank 0 holds it, the others find it, within ``seconds``. Under torchrun its agent has it.

    Raises WorldError for a port that is taken, and where rank 0 does not come.
    """
    host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    job = [env.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RESTART_COUNT")]
    if world.rank == 0 and not agent:
        try:
            # The listener of a store that has gone may be used again at once; one that is there may not.
            store = _store(host, port, world.size, True, seconds)
        except dist.DistNetworkError as error:
            raise _taken(error, world, host, port) from None
    else:
        store = _find(world, host, port, seconds)
    return own_part(store, *job)


def own_part(store: Any, *job: str) -> Any:
    """The part of a store that is this run's, and no earlier one's of the same processes."""
    prefix = ".".join([*job, str(next(_meetings))])
    return dist.PrefixStore(f"restrain/{prefix}", store)  # pyright: ignore[reportPrivateImportUsage]


def _store(host: str, port: int, size: int, master: bool, seconds: float) -> Any:
    return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        host, port, size, master, timedelta(seconds=seconds), wait_for_workers=False, multi_tenant=master
    )


def _taken(error: Exception, world: World, host: str, port: int) -> Exception:
    if "EADDRINUSE" not in str(error):
        return WorldError(
            f"Rank 0 cannot listen on port {port} of {socket.gethostname()} (MASTER_PORT), where the others are to "
            f"find it: {str(error).splitlines()[0][:200]}"
        )
    cure = {
        "slurm": "It was made from the job's number. Set MASTER_PORT to a free one in the batch script, or submit "
        "again.",
        "torchrun": "Give torchrun another one (--master-port), or --rdzv-endpoint=HOST:0.",
    }.get(world.launcher, "Set MASTER_PORT to a free one, or start the run again.")
    return WorldError(
        f"Port {port} of {socket.gethostname()} (MASTER_PORT), where the ranks of this run were to meet, is taken by "
        f"another process. {cure}"
    )


def _find(world: World, host: str, port: int, seconds: float) -> Any:
    """As a client. Another program's listener may never answer, and torch's constructor then never returns."""
    end = time.monotonic() + seconds
    said = "nobody listens there"
    while True:  # with our own socket, since torch writes pages of stack traces about each refusal
        try:
            socket.create_connection((host, port), timeout=max(0.1, end - time.monotonic())).close()
            break
        except OSError as error:
            said = error.strerror or str(error)
        if time.monotonic() > end:
            raise WorldError(
                f"Rank {world.rank} on {socket.gethostname()} has waited {seconds:.0f} s for rank 0 at {host}:{port}: "
                f"{said.lower()}. Rank 0 ended before that, and its own message says why; or these hosts cannot reach "
                f"each other there (interface in the site file, firewall)."
            )
        time.sleep(0.1)
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(_store(host, port, world.size, False, max(1.0, end - time.monotonic())))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=connect, name="finding rank 0", daemon=True)
    thread.start()
    thread.join(max(1.0, end - time.monotonic()) + 1.0)
    if not found or isinstance(found[0], Exception):
        given_up.append(thread)
        raise WorldError(
            f"What rank {world.rank} on {socket.gethostname()} found at {host}:{port} (MASTER_PORT) is not rank 0 of "
            f"this run: another program has that port, or rank 0 has just left. Set MASTER_PORT to a free one, or "
            f"start the run again."
        )
    return found[0]


class Told:
    """What rank 0 has to say to the others outside of steps: over the store, as JSON, never pickled."""

    def __init__(self, world: World, store: Any = None):
        self.world, self.store, self.number, self.listening = world, store, 0, world.size - 1
        self._started, self._living = (
            threading.Event(),
            threading.Thread(target=self._live, name="start-up", daemon=True),
        )
        if world.size > 1:
            self._living.start()

    def _live(self) -> None:
        """Show that this rank lives, until its first step."""
        with suppress(dist.DistError):
            while not self._started.is_set():
                self.store.add(f"{ALIVE}/{self.world.rank}", 1)
                self._started.wait(BEAT)

    def started(self) -> None:
        """From here on a rank that goes away breaks a collective. Also before leaving: a thread that is in torch's C++
        while the interpreter ends would abort the process."""
        self._started.set()
        if self._living.ident is not None:
            self._living.join(MARGIN)

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank leaves, and why: they may be waiting for it."""
        if self.world.rank and not self._started.is_set() and not isinstance(error, SystemExit):
            said = {"rank": self.world.rank, "host": socket.gethostname(), "said": " ".join(str(error).split())[:400]}
            with suppress(dist.DistError):
                self.store.set(FAILED, json.dumps(said))

    def wait_for(self, name: str, rank: int = 0) -> bytes:
        """What ``rank`` says under ``name``, however long it takes: indexing a large set may take hours.

        Raises WorldError where that rank has gone, or one says that it failed; SystemExit on ranks that need not tell.
        """
        store, beats, heard, pause = self.store, -1, time.monotonic(), 0.005
        try:
            while not store.check([name]):  # not wait(), which writes a warning at each time-out
                if store.check([FAILED]):
                    self._failed(json.loads(store.get(FAILED)))
                if (count := store.add(f"{ALIVE}/{rank}", 0)) != beats:
                    beats, heard = count, time.monotonic()
                elif time.monotonic() - heard > SILENT:
                    raise WorldError(
                        f"Rank {rank}{host_of(rank, self.world, store)} went away before the run began: it has given "
                        f"no sign of life for {SILENT:.0f} s. Its own output says why, if it could. The same command "
                        f"with the same --run begins again."
                    )
                time.sleep(pause)
                pause = min(0.25, 1.5 * pause)
            return store.get(name)
        except dist.DistError:
            raise WorldError("Rank 0 went away before the run began; its own message says why.") from None

    def _failed(self, who: dict[str, Any]) -> None:
        if self.world.rank:
            raise SystemExit(1)
        raise WorldError(f"Rank {who['rank']} on {who['host']} failed before the run began: {who['said']}")

    def first_rank(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` on rank 0; all ranks return its JSON value. Its error ends all ranks, told by rank 0 alone."""
        if self.world.size == 1:
            return work()
        self.number += 1
        name, store = f"restrain/{self.number}", self.store
        if self.world.rank == 0:
            try:
                value = work()
            except BaseException as error:
                code = error.exit_code if isinstance(error, RestrainError) else 1
                store.set(name, json.dumps({"failed": code}))
                self._heard(name)
                raise
            store.set(name, json.dumps({"value": value}))
            self._heard(name)
            return value
        told = json.loads(self.wait_for(name))
        store.add(f"{name}/heard", 1)
        if "failed" in told:
            raise SystemExit(told["failed"])
        return told["value"]

    def _heard(self, name: str) -> None:
        """Rank 0 hosts the store, and may leave next: wait until the others have read it, or are gone."""
        end = time.monotonic() + 2 * MARGIN
        while self.store.add(f"{name}/heard", 0) < self.listening and time.monotonic() < end:
            time.sleep(0.01)


def roll_call(told: Told, seconds: float) -> None:
    """Ends when all ranks are there. Rank 0 raises WorldError for those that are not, UserError for other versions."""
    world, store = told.world, told.store
    mine = {"host": socket.gethostname(), "restrain": __version__, "torch": str(torch.__version__)}
    store.set(f"{HERE}/{world.rank}", json.dumps(mine))

    def judge() -> None:
        missing = absent(store, HERE, world.size, seconds)
        if missing:
            told.listening -= len(missing)
            raise WorldError(
                f"{_named(missing, world, store)} did not come within {seconds:.0f} s: killed, or failed before it "
                f"could join, or unable to reach {mine['host']}; what it said stands in its own output. The others "
                f"have left. The same command with the same --run begins again."
            )
        for rank in range(1, world.size):
            its = json.loads(store.get(f"{HERE}/{rank}"))
            for package in ("restrain", "torch"):
                if its[package] != mine[package]:
                    raise UserError(
                        f"Rank {rank} on {its['host']} has {package} {its[package]}, rank 0 on {mine['host']} has "
                        f"{mine[package]}. Start all ranks in the same environment."
                    )

    told.first_rank(judge)


def absent(store: Any, name: str, size: int, seconds: float) -> list[int]:
    """The ranks from which nothing has come under ``name`` within ``seconds``."""
    end = time.monotonic() + seconds
    missing = []
    for rank in range(size):
        try:
            store.wait([f"{name}/{rank}"], timedelta(seconds=max(0.001, end - time.monotonic())))
        except dist.DistError:
            missing.append(rank)
    return missing


def agree(told: Told, name: str, facts: Mapping[str, str]) -> None:
    """Raises UserError on rank 0 where another rank has other ``facts`` than it, naming the first such rank and value;
    the others leave with it."""
    world, store = told.world, told.store
    if world.size == 1:
        return
    key = f"restrain/{name}"
    if world.rank == 0:
        store.set(key, json.dumps(dict(facts)))
    else:
        first = json.loads(told.wait_for(key))
        other = [one for one in {**first, **facts} if first.get(one) != facts.get(one)]
        found = [f"{one}={facts.get(one)}" for one in other], [f"{one}={first.get(one)}" for one in other]
        store.set(f"{key}/{world.rank}", json.dumps(found))

    def judge() -> None:
        for rank in range(1, world.size):
            mine, first = json.loads(told.wait_for(f"{key}/{rank}", rank))
            if mine:
                here, there = (host_of(one, world, store) for one in (0, rank))
                raise UserError(
                    f"Rank {rank}{there} has {', '.join(mine[:3])} where rank 0{here} has {', '.join(first[:3])}. "
                    f"Start all ranks with the same command, on the same files and in the same environment."
                )

    told.first_rank(judge)


def host_of(rank: int, world: World, store: Any) -> str:
    """`` on HOST``, as that rank has said, or a rank of the same node, or Slurm; empty where nobody knows."""
    first = rank - rank % world.local_size
    for one in (rank, *range(first, first + world.local_size)):
        if store.check([f"{HERE}/{one}"]):
            return f" on {json.loads(store.get(f'{HERE}/{one}'))['host']}"
    listed = hosts(os.environ) if world.launcher == "slurm" else []
    return f" on {listed[rank // world.local_size]}" if len(listed) == world.nodes else ""


def _named(ranks: list[int], world: World, store: Any) -> str:
    named = ", ".join(f"{rank}{host_of(rank, world, store)}" for rank in ranks[:NAMED])
    more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
    return f"Rank {named}{more} (of {world.size})"


def lost(told: Told, seconds: float = 10.0) -> str:
    """Who has gone, asked of all ranks by those that a collective has failed for; empty where that is not known."""
    world, store = told.world, told.store
    name = "restrain/lost"
    try:
        store.set(f"{name}/{world.rank}", "here")
        if world.rank == 0:
            missing = absent(store, name, world.size, seconds)
            told.listening = world.size - 1 - len(missing)
            store.set(name, json.dumps(_named(missing, world, store) if missing else ""))
            told._heard(name)
            return json.loads(store.get(name))
        store.wait([name], timedelta(seconds=seconds + MARGIN))
        said = json.loads(store.get(name))
        store.add(f"{name}/heard", 1)
        return said
    except dist.DistError:
        return f"Rank 0 (of {world.size})"
