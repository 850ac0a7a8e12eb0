"""Batch scripts for Slurm: what a job asks for, and one ``srun`` line. No torch here.

What stands in ``slurm/`` is what ``restrain slurm NAME`` prints at a place without a site file, letter by letter.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from restrain.errors import UserError
from restrain.recipe.site import Site, seconds_of

GPUS, CPUS, TIME, NOTICE = 8, 12, "24:00:00", 120
"""Where neither the command nor the site file says: GPUs of a node, processors for each, time limit, seconds before it
at which a job is told to leave."""


@dataclass(frozen=True)
class Shipped:
    """What the script of a recipe in ``slurm/`` asks for, where nobody says otherwise."""

    nodes: int = 1
    time: str = TIME


_NODES, _GPUS = "--nodes N or parallel.nodes", "--gpus-per-node N or parallel.devices"
OURS = {
    **dict.fromkeys(("-N", "--nodes"), _NODES),
    **dict.fromkeys(("-n", "--ntasks", "--ntasks-per-node", "--ntasks-per-gpu", "--ntasks-per-socket"), _GPUS),
    **dict.fromkeys(("-G", "--gpus", "--gpus-per-node", "--gpus-per-task", "--gpus-per-socket"), _GPUS),
    **dict.fromkeys(("-t", "--time"), "--time HH:MM:SS, or slurm.time of the site file"),
    "--signal": "slurm.notice of the site file",
    **dict.fromkeys(("-a", "--array"), "--array DIR, the folder of a sweep"),
}
"""Options of sbatch that would undo what was checked, and what to say instead."""

SHIPPED = {
    "imagenet_resnet50": Shipped(time="12:00:00"),
    "imagenet_resnet152": Shipped(),
    "imagenet_deit_b": Shipped(nodes=2),  # its groups of 64 are those of the 16 GPUs that it was published with
    "gpt2_124m": Shipped(),
    "gpt_7b": Shipped(nodes=16),
}


@dataclass(frozen=True)
class Array:
    """A job array: a task of it trains each of ``points`` of the sweep in ``folder``, ``at_once`` at a time."""

    folder: str
    points: tuple[str, ...]
    at_once: int | None = None


@dataclass(frozen=True)
class Resources:
    """What a job asks for. ``tasks``: of a node, each with a GPU where ``gpus``; ``sbatch``: further options;
    ``site_file``: one that tasks are told of."""

    nodes: int
    tasks: int
    time: str
    gpus: bool = True
    sbatch: tuple[str, ...] = ()
    site_file: str | None = None


@dataclass(frozen=True)
class Job:
    """What is trained on what. ``trains``: the recipe's name; ``recipe``: as ``restrain train`` takes it; ``words``:
    further arguments of it, as they are, unquoted."""

    trains: str
    recipe: str
    takes: Resources
    words: tuple[str, ...] = ()
    array: Array | None = None

    @property
    def name(self) -> str:
        """The recipe's name as the name of a job and of its log: no spaces, no slashes."""
        return re.sub(r"[^\w.=+-]+", "-", self.trains) or "restrain"

    @property
    def output(self) -> str:
        """The log, in sbatch's words."""
        return "%x-%A_%a.out" if self.array else "%x-%j.out"

    def log(self, number: str) -> str:
        """The log of job ``number``; of an array with ``*`` for the task."""
        return self.output.replace("%x", self.name).replace("%j", number).replace("%A", number).replace("%a", "*")


def script(job: Job, site: Site) -> str:
    """The whole text of the batch script."""
    return "\n".join([*_head(job), *_resources(job, site), *_prelude(job, site), *_last(job), ""])


def _head(job: Job) -> list[str]:
    what = f"each point of the sweep in {job.array.folder}" if job.array else job.name
    return [
        "#!/usr/bin/env bash",
        f"# Trains {what} under Slurm{', one task a GPU' if job.takes.gpus else ''}, on as many nodes as it is given.",
        "#",
        "#   sbatch [--nodes=N] [option ...] THIS_FILE [key=value ...]",
        "#",
        "# Submit from the folder that is to hold runs/: the run folder is RECIPE/JOB in there, and what tasks say",
        "# goes to a file beside it (a folder in --output would have to exist: Slurm does not make it, and the job",
        "# would fail without a word). Options of sbatch go before those below, key=value before the recipe's.",
        "#",
        "# Before the time limit the tasks get SIGUSR1: they save and leave, and the job ends with 75. Another job",
        "# goes on with: restrain resume RUN_FOLDER, or --run with that folder.",
    ]


def _resources(job: Job, site: Site) -> list[str]:
    at, takes = site.slurm, job.takes
    options = [f"--job-name={job.name}", f"--nodes={takes.nodes}", f"--ntasks-per-node={takes.tasks}"]
    if takes.gpus:
        options.append(f"--gpus-per-node={f'{at.gpu_type}:' if at.gpu_type else ''}{takes.tasks}")
    options += [
        f"--cpus-per-task={at.cpus or CPUS}",
        f"--mem={at.memory or 0}",
        f"--time={takes.time}",
        f"--signal=USR1@{at.notice or NOTICE}",
        "--open-mode=append",
        f"--output={job.output}",
        "--requeue",
    ]
    for name in ("partition", "account", "qos", "constraint"):
        if (value := getattr(at, name)) is not None:
            options.append(f"--{name}={value}")
    if job.array is not None:
        at_once = f"%{job.array.at_once}" if job.array.at_once else ""
        options.append(f"--array=0-{len(job.array.points) - 1}{at_once}")
    return [f"#SBATCH {option}" for option in (*options, *at.sbatch, *takes.sbatch)]


def _prelude(job: Job, site: Site) -> list[str]:
    venv = site.slurm.venv
    path = f'{shlex.quote(f"{venv}/bin")}:"$PATH"' if venv else '"$PWD/.venv/bin:$PATH"'
    lines = ["set -euo pipefail", ""]
    if site.modules:
        lines += [
            "# A shell that is not a login shell may know no modules; a profile and they read what is not set.",
            "set +eu",
            "# shellcheck disable=SC1091",
            "type module >/dev/null 2>&1 || . /etc/profile",
            f"module load {' '.join(map(shlex.quote, site.modules))} || exit 2",
            "set -eu",
            "",
        ]
    lines += [
        "# Not by way of $0: Slurm runs a copy of this script from its spool folder.",
        'cd "$SLURM_SUBMIT_DIR"',
        f"export PATH={path}",
        "command -v restrain >/dev/null || {",
        '  echo "error: no restrain on PATH: submit from a folder with .venv, or name it in the site file" >&2',
        "  exit 2",
        "}",
        "# Since Slurm 22.05 a step does not take --cpus-per-task over from its job.",
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
    ]
    if job.takes.site_file is not None:
        lines += [
            "# Tasks read the site file too; not every place hands the environment of sbatch on.",
            f"export RESTRAIN_SITE={shlex.quote(job.takes.site_file)}",
        ]
    return [*lines, ""]


def _last(job: Job) -> list[str]:
    lines = []
    recipe, words = shlex.quote(job.recipe), [shlex.quote(word) for word in job.words]
    if job.array is not None:
        recipe = '"$sweep/recipes/$point.yaml" --run "$sweep/runs/$point"'
        lines += [
            f"sweep={shlex.quote(job.array.folder)}",
            "points=(",
            *(f"  {shlex.quote(point)}" for point in job.array.points),
            ")",
            'point="${points[SLURM_ARRAY_TASK_ID]}"',
            "",
        ]
    command = " ".join(["restrain", "train", recipe, *words, '"$@"'])
    return [
        *lines,
        "# A task that has left may not take the others with it: one of them may still be writing the checkpoint.",
        "# exec: signals to the batch step reach srun, and srun's exit code is the job's.",
        f"exec srun --kill-on-bad-exit=0 {command}",
    ]


@dataclass(frozen=True)
class Asked:
    """What the command line asks for; None: nothing."""

    nodes: int | None = None
    tasks: int | None = None
    time: str | None = None
    sbatch: tuple[str, ...] = ()

    def resources(self, name: str, parallel: Any, site: Site, site_file: str | None = None) -> Resources:
        """As asked, else as the recipe's ``parallel`` section, the site, or the recipe's own script has it.

        Raises UserError where command and recipe name different numbers.
        """
        own = SHIPPED.get(name, Shipped())
        for option, asked, key in (("nodes", self.nodes, "nodes"), ("gpus-per-node", self.tasks, "devices")):
            named = getattr(parallel, key)
            if asked is not None and named not in ("auto", asked):
                raise UserError(f"--{option} {asked}, but parallel.{key}={named}. Leave one of them out.")
        nodes = parallel.nodes if parallel.nodes != "auto" else own.nodes
        tasks = parallel.devices if parallel.devices != "auto" else site.slurm.gpus or GPUS
        time = self.time or site.slurm.time or own.time
        check_notice(time, site.slurm.notice or NOTICE)
        gpus = parallel.accelerator != "cpu"
        return Resources(self.nodes or nodes, self.tasks or tasks, time, gpus, self.sbatch, site_file)


def check_sbatch(options: Sequence[str], where: str) -> None:
    """Raises UserError for an option that is ours, also where it stands behind another one or is cut short, as sbatch
    allows."""
    for option in options:
        try:
            words = shlex.split(option)
        except ValueError:  # sbatch's own matter
            words = option.split()
        for word in words:
            name = word.partition("=")[0] if word.startswith("--") else word[:2]
            found = next((known for known in OURS if name == known or (len(name) > 3 and known.startswith(name))), None)
            if word.startswith("-") and found is not None:
                raise UserError(
                    f"{where}{option} goes past what was checked: the nodes, processes and time of a job are "
                    f"Restrain's to write. Take {OURS[found]}."
                )


def check_notice(time: str, notice: int) -> None:
    """Raises UserError for a limit at whose start the job would be told to leave; Slurm counts whole minutes, and 0 is
    none."""
    if 0 < (limit := -(-seconds_of(time) // 60) * 60) <= notice:
        raise UserError(
            f"A time limit of {time} is {limit} s, and a job is told to save and leave {notice} s before it "
            f"(slurm.notice of the site file), which is as soon as it starts. Give it a longer --time."
        )


def submitted(said: str) -> str:
    """The number of a job in what ``sbatch --parsable`` says (``4711`` or ``4711;cluster``); empty for other words."""
    found: Sequence[str] = re.findall(r"^(\d+)(?:;\S+)?$", said.strip(), re.M)
    return found[-1] if found else ""
