"""``restrain.fit``: a run from a script or a notebook, with a network, a task or callbacks of one's own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from restrain.errors import RestrainError, UserError, WorldError
from restrain.models.foreign.contract import Build
from restrain.parallel.launch import GOOD
from restrain.parallel.world import World, from_environment
from restrain.recipe import Resolved, load, override
from restrain.run.folder import RunFolder
from restrain.survival import signals
from restrain.training import starting
from restrain.training.classify import Classify
from restrain.training.fit import Result
from restrain.training.own import Own

FOR = "RESTRAIN_FIT"  # tells the processes of a script's run which of its runs they were started for


def fit(
    recipe: str | Path | Resolved,
    overrides: Sequence[str] = (),
    *,
    model: Build | None = None,
    task: Callable[..., Classify] | None = None,
    callbacks: Sequence[Any] = (),
    stages: Sequence[Any] = (),
    run: str | Path | None = None,
    allow: Sequence[str] = (),
    start: str | None = None,
) -> Result:
    """Train a recipe, or go on with its run, as ``restrain train`` does.

    Run the same script again after a kill or a signal, with the same ``run``: it goes on from the last checkpoint, and
    the result is that of an unbroken run.

    Args:
        recipe: a shipped recipe's name, a file, or what :func:`restrain.load` gave.
        overrides: ``key=value``, as on the command line.
        model: ``build(section) -> torch.nn.Module``, given the recipe's ``model`` section as a plain mapping
            (``classes``, ``in_chans``, ``join``, ``drop_path``, ...); the module maps images [B, C, H, W] to logits
            [B, K]. Initial weights are its own, drawn from the recipe's seed. Recipe and lock call it ``script/NAME``,
            and the lock keeps the SHA-256 of its source file.
        task: ``(model, loss, mean, std) -> Classify``, such as a subclass of :class:`restrain.Classify` with another
            ``rows``, the loss of each row.
        callbacks: objects like :class:`restrain.Callback`.
        stages: webdataset stages (``wds.map(f)``, ``wds.decode("rgb8")``) that each sample of ``data.name=webdataset``
            goes through before its image and label are taken: one in, one out, and nothing random, since no generator
            is seeded for them. Recipe and lock call them ``script/NAME``, and the lock keeps a SHA-256 of their source.
        run: the run folder; ``runs/RECIPE/DATE-TIME-HASH`` when not given. Several processes need it.
        allow: keys that may differ from the run's lock, recorded as interventions.
        start: ``RUN[@STEP]`` to branch off from.

    Returns:
        How it ended: ``exit_code`` (0 finished; 75 and 130 saved and stopped by a signal; 3 a tripwire), ``state``,
        ``step`` and ``metrics``, which under torchrun and srun rank 0 alone knows. In a job that may be stopped:
        ``raise SystemExit(result.exit_code)``. Signals are the caller's again when it returns; after a SIGTERM or
        SIGUSR1 another ``fit`` of the process stops at once too, since the job is to end.

    Raises:
        UserError, WorldError: one paragraph that says what, where and what to do.
    """
    for name, given in (("overrides", overrides), ("allow", allow), ("callbacks", callbacks), ("stages", stages)):
        if not isinstance(given, (list, tuple)):
            raise UserError(f"fit({name}=...) takes a list, not {type(given).__name__}.")
    own = Own(model, task, tuple(callbacks), tuple(stages))
    here = from_environment()
    with _signals_taken(), _told_once(here):
        own.check()
        resolved = _resolved(recipe, [*own.overrides(), *overrides])
        own.check_named(resolved.recipe)
        return _fit(resolved, own, here, Path(run) if run is not None else None, allow, start)


def _fit(
    resolved: Resolved, own: Own, here: World, folder: Path | None, allow: Sequence[str], start: str | None
) -> Result:
    mine = os.environ.get(FOR)
    if here.launcher == "restrain" and mine is not None and folder is not None and mine != str(folder.absolute()):
        return _of(folder, 0)  # another run of the same script, which is done
    if folder is None and starting.processes(resolved.recipe, here) > 1:
        raise UserError(
            "fit(): several processes run this script, and need one name for the run folder: give run=FOLDER."
        )
    command = _command()
    if folder is not None and here.launcher == "single":
        os.environ[FOR] = str(folder.absolute())
    try:
        started = starting.start(resolved, command, run=folder, allow=allow, fork=start, own=own)
    finally:
        if here.launcher == "single":
            os.environ.pop(FOR, None)
    if here.launcher == "restrain":
        raise SystemExit(started.exit_code)  # the rest of the script is the business of the process that started this
    if started.exit_code not in GOOD:  # of processes that were started here, which have said why
        kind = UserError if started.exit_code == UserError.exit_code else WorldError
        raise kind(f"The run {started.folder} failed: what its processes wrote above says why.")
    return started.result or _of(started.folder, started.exit_code)


def _resolved(recipe: str | Path | Resolved, overrides: Sequence[str]) -> Resolved:
    """The recipe under the overrides; one that was loaded keeps those that it was loaded with."""
    if not isinstance(recipe, (str, Path, Resolved)):
        raise UserError(f"fit(recipe) takes a recipe's name, a file or what restrain.load gave, not {recipe!r}.")
    return override(recipe, overrides) if isinstance(recipe, Resolved) else load(str(recipe), overrides)


@contextmanager
def _signals_taken() -> Iterator[None]:
    """SIGTERM, SIGINT and SIGUSR1 are the run's inside, and whose they were before outside."""
    if threading.current_thread() is not threading.main_thread():
        raise UserError(
            "fit() was called in a thread, where no signal can be taken, so a stopped job would lose its work. Call it "
            "in the main thread."
        )
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    wakeup = signal.set_wakeup_fd(-1)
    signals.install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(wakeup)
        if signals.flag() == signals.Flag.INT:  # Ctrl-C ends a run, not every later one of a notebook
            signals.reset()


@contextmanager
def _told_once(here: World) -> Iterator[None]:
    """A process that Restrain started says its error in one paragraph, as a command does; it has no other reader."""
    try:
        yield
    except RestrainError as error:
        if here.launcher != "restrain" or os.environ.get("RESTRAIN_DEBUG", "") not in ("", "0"):
            raise
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None


def _of(folder: Path, exit_code: int) -> Result:
    """What a run folder says of how the run ended."""
    info = RunFolder(folder).read_info()
    return Result(exit_code, info.get("state", "failed"), info.get("step", 0), info.get("metrics", {}))


def _command() -> list[str]:
    """What starts this script again; only several processes need it."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return [sys.executable, *sys.argv] if main else []
