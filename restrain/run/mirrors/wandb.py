"""The mirror at Weights & Biases, by its own client."""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import secrets
import signal
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from restrain.recipe import Recipe
from restrain.run.mirrors.base import Mirror
from restrain.run.mirrors.wandb_files import last_step, segments, wait_for_writers

MODES = ("disabled", "offline", "online")
FINISH_TIMEOUT = 20.0  # seconds that its upload gets at the end of a start


def new_run_id() -> str:
    """An id for a tracker's run: 8 letters and digits. Not a draw: it identifies the run and decides nothing in it."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


@dataclass(frozen=True)
class WandbOptions:
    """What wandb is told of a run. ``config``: the recipe as plain data. ``better``: metric -> higher or lower."""

    mode: str
    project: str | None = None
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    system: bool = True
    code: bool = False
    checkpoints: str = "none"
    config: Mapping[str, Any] = field(default_factory=dict)
    better: Mapping[str, str] = field(default_factory=dict)
    finish_timeout: float = FINISH_TIMEOUT  # seconds; 0: none


def wandb_options(recipe: Recipe, folder: Path) -> WandbOptions:
    """What wandb is told of a run."""
    settings = recipe.track.wandb
    expect = recipe.expect
    better = {"eval/loss": "lower", "eval/perplexity": "lower", "eval/top1": "higher", "eval/top5": "higher"}
    if expect is not None:
        better[expect.metric] = expect.better
    return WandbOptions(
        settings.mode,
        project=settings.project,
        entity=settings.entity,
        name=settings.name or folder.name,
        group=settings.group,
        tags=settings.tags,
        notes=settings.notes,
        system=settings.system,
        code=settings.code,
        checkpoints=settings.checkpoints,
        config=recipe.model_dump(mode="json"),
        better=better,
    )


class WandbMirror(Mirror):
    """A run at Weights & Biases: one id for all starts, one history.

    ``offline`` writes wandb's own files into ``wandb/`` of the run folder, for a later ``restrain sync`` (or ``wandb
    sync``); what they hold already is read from them. ``online`` sends lines as they come; what the server has already,
    it says itself when the run is resumed.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        options: WandbOptions,
        *,
        backlog: Path | None = None,
        warn: Callable[[str], None] | None = None,
    ):
        if options.mode not in MODES[1:]:
            raise ValueError(f"mode {options.mode!r} is none of {MODES[1:]}")
        self.folder, self.run_id, self.options = Path(folder), run_id, options
        self.run: Any = None
        self.url: str | None = None
        self.began_after = -1
        super().__init__("wandb", backlog, hold=options.mode == "offline", warn=warn)

    def opened(self) -> int:
        if self.options.mode == "online" and not has_credentials():
            raise RuntimeError(
                f"there is no API key: set WANDB_API_KEY or run `wandb login`, then send the run with `restrain sync "
                f"{self.folder}`"
            )
        files = self.folder / "wandb"
        wait_for_writers(segments(files, self.run_id))
        before = last_step(files, self.run_id)
        self.run = start(self.folder, self.run_id, self.options)
        if self.options.code:
            self._keep_code()
        self.url = self.run.url
        online = self.options.mode == "online"
        self.began_after = before if not online else self.run.starting_step - 1 if self.run.resumed else -1
        return self.began_after

    def send(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.run.log(dict(metrics), step=step)

    def keep(self, checkpoint: Path, best: bool) -> None:
        wanted = self.options.checkpoints
        if wanted == "all" or (wanted == "best" and best):
            self._artifact(checkpoint, "model", ["best"] if best else [])

    def finish(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)

    def abandon(self) -> None:
        _kill_service()

    def _keep_code(self) -> None:
        import wandb

        artifact = wandb.Artifact(f"code-{self.run_id}", type="code")
        artifact.add_file(str(self.folder / "recipe.lock.yaml"))
        package = Path(__file__).resolve().parents[2]
        for path in sorted(package.rglob("*.py")):
            artifact.add_file(str(path), name=f"restrain/{path.relative_to(package)}")
        self.run.log_artifact(artifact)

    def _artifact(self, folder: Path, kind: str, aliases: list[str]) -> None:
        import wandb

        try:
            artifact = wandb.Artifact(f"checkpoint-{self.run_id}", type=kind, metadata={"step": folder.name})
            artifact.add_dir(str(folder))
        except (OSError, ValueError):  # it was pruned meanwhile: a newer one is on its way
            return
        self.run.log_artifact(artifact, aliases=[*aliases, folder.name])


def start(folder: Path, run_id: str, options: WandbOptions) -> Any:
    """wandb's own run object: by id, resumed at the server where it is there."""
    _leave_foreign_service()
    import wandb

    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        x_disable_stats=not options.system,
        init_timeout=30,
        x_service_wait=120,
        finish_timeout=options.finish_timeout,
    )
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # its telemetry complains on standard error
    wandb.setup(settings=wandb.Settings(silent=True))  # it greets before it reads the settings of a run
    run = wandb.init(
        mode="online" if options.mode == "online" else "offline",
        dir=os.fspath(folder),
        id=run_id,
        resume="allow" if options.mode == "online" else None,  # offline it is for the one that sends it
        project=options.project,
        entity=options.entity,
        name=options.name,
        group=options.group,
        tags=list(options.tags),
        notes=options.notes,
        config=dict(options.config),
        settings=settings,
    )
    for metric, better in options.better.items():
        run.define_metric(metric, summary="max,last" if better == "higher" else "min,last")
    return run


def has_credentials() -> bool:
    """Whether wandb would find an API key without asking at a terminal, which a run must never do."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


def _leave_foreign_service() -> None:
    """Have a service of our own where a process above us has one too (a notebook, a sweep's agent): that one would
    outlive a kill of ours, still hold the run, and write the next attempt's history to nowhere."""
    owner = os.environ.get("WANDB_SERVICE", "").split("-")[1:2]  # version-pid-unix-path
    if owner and owner != [str(os.getpid())]:
        del os.environ["WANDB_SERVICE"]


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
