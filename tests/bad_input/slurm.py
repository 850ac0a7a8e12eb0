# ruff: noqa: E501  (a paragraph is longer than a line)
"""Jobs that a queue would refuse hours later, and ranks that do not find each other."""

from __future__ import annotations

import os
import socket

from restrain import __version__
from tests import worlds
from tests.bad_input.harness import Case, Outcome, Place


def _slurm(*words: str, site: str | None = None, path: str | None = None):
    """``restrain slurm`` at a place with this site file."""

    def do(place: Place) -> Outcome:
        env = {"PATH": path} if path is not None else {}
        if site is not None:
            (place.folder / "site.yaml").write_text(site)
            env["RESTRAIN_SITE"] = str(place.folder / "site.yaml")
        given = [word.replace("{dir}", str(place.folder)) for word in words]
        ended = worlds.start(["slurm", *given], 1, place.folder / "logs", env=env).wait()
        return Outcome(ended.codes, place.plain(ended.text))

    return do


def _refused(place: Place) -> Outcome:
    """An sbatch that takes nothing."""
    tools = place.folder / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: Invalid account or account/partition' >&2\nexit 1\n")
    (tools / "sbatch").chmod(0o755)
    words = ("digits_resnet20", "--gpus-per-node", "1", "--submit")
    return _slurm(*words, path=f"{tools}{os.pathsep}{os.environ['PATH']}")(place)


def _ranks(place: Place, faults=None) -> Outcome:
    (place.folder / "site.yaml").write_text("start_timeout: 10s\n")
    words = ["train", "digits_resnet20", "length=2st", "--run", str(place.folder / "run")]
    env = {"RESTRAIN_SITE": str(place.folder / "site.yaml")}
    ended = worlds.start(words, 2, place.folder / "logs", faults, env).wait()
    return Outcome(ended.codes, place.plain(ended.text).replace(socket.gethostname(), "n1"))


SCRIPTS = [
    Case(
        "More GPUs than the batch can be shared by",
        "48 processes cannot share a step of batch.global=256 in groups of batch.group=32: there are 8 groups, and each process takes the same number of whole ones, or as large a part of one as the others. Numbers of processes that work: 1, 2, 4, 8; with groups that span processes, 16, 32, 64, 128, 256. Otherwise change batch.group or batch.global (that defines another run).",
        2,
        "Take a number of nodes that divides the batch; nothing was submitted.",
        _slurm("imagenet_resnet50", "--nodes", "6", "--submit"),
    ),
    Case(
        "A tensor group that does not divide the heads, on nodes",
        "parallel.tensor=8 does not divide the 12 attention heads and the MLP's 3072 units; 1, 2, 3, 4, 6, 12 do.",
        2,
        "Take a size that divides the heads.",
        _slurm("gpt2_124m", "--nodes", "2", "parallel.tensor=8"),
    ),
    Case(
        "Nodes that command and recipe count differently",
        "--nodes 2, but parallel.nodes=4. Leave one of them out.",
        2,
        "Say it once.",
        _slurm("digits_resnet20", "--nodes", "2", "parallel.nodes=4"),
    ),
    Case(
        "A job without its data",
        "data.root is not set: imagenet_resnet50 needs the folder of its data. Give data.root=FOLDER, or write it into the site file.",
        2,
        "Name the folder that the nodes see.",
        _slurm("imagenet_resnet50", "--submit"),
    ),
    Case(
        "A time limit that is none",
        "--time 12h is no time limit of Slurm's; write HH:MM:SS or D-HH:MM:SS.",
        2,
        "Write it as sbatch takes it.",
        _slurm("digits_resnet20", "--time", "12h"),
    ),
    Case(
        "An option that is none of sbatch's",
        "--sbatch=qos=long: options of sbatch begin with a dash. Write --sbatch=--qos=long, say.",
        2,
        "Write it as sbatch takes it.",
        _slurm("digits_resnet20", "--sbatch=qos=long"),
    ),
    Case(
        "An option that goes past what was checked",
        "--sbatch=--nodes=3 goes past what was checked: the nodes, processes and time of a job are Restrain's to write. Take --nodes N or parallel.nodes.",
        2,
        "Say it where it is looked at.",
        _slurm("digits_resnet20", "--sbatch=--nodes=3"),
    ),
    Case(
        "A site file whose options go past what was checked",
        "slurm.sbatch of the site file: --qos=long -N 4 goes past what was checked: the nodes, processes and time of a job are Restrain's to write. Take --nodes N or parallel.nodes.",
        2,
        "Take it out of the site file.",
        _slurm("digits_resnet20", site='slurm: {sbatch: ["--qos=long -N 4"]}\n'),
    ),
    Case(
        "A time limit with more minutes than an hour has",
        "--time 99:99:99 is no time limit of Slurm's; write HH:MM:SS or D-HH:MM:SS.",
        2,
        "Write it as a clock has it.",
        _slurm("digits_resnet20", "--time", "99:99:99"),
    ),
    Case(
        "A time limit that is over as it begins",
        "A time limit of 00:01:00 is 60 s, and a job is told to save and leave 120 s before it (slurm.notice of the site file), which is as soon as it starts. Give it a longer --time.",
        2,
        "Give it a longer one, or write a smaller notice into the site file.",
        _slurm("digits_resnet20", "--gpus-per-node", "1", "--time", "00:01:00"),
    ),
    Case(
        "A job on processors, in float8",
        "precision=fp8 needs a GPU that multiplies float8, from compute capability 8.9 on (L4, L40S, RTX 4090, H100 and later), and this is a CPU. Take bf16, or auto.",
        2,
        "Take another number format, or GPUs.",
        _slurm("digits_resnet20", "--gpus-per-node", "1", "parallel.accelerator=cpu", "precision=fp8"),
    ),
    Case(
        "A job's script in a folder that is not there",
        "-o nowhere/job.sh: name a file in a folder that exists.",
        2,
        "Make the folder, or name another one.",
        _slurm("digits_resnet20", "-o", "{dir}/nowhere/job.sh"),
    ),
    Case(
        "An array of no sweep",
        "pictures holds no sweep (no sweep.json). Make one: restrain sweep NAME 'KEY={A,B}' --out pictures --dry-run.",
        2,
        "Freeze the sweep's recipes first.",
        _slurm("--array", "{dir}/pictures"),
    ),
    Case(
        "An array and a recipe",
        "--array sweeps/a takes recipes, values and run folders from that sweep: leave digits_resnet20 out. A value for all of its points belongs to restrain sweep, or behind the script: sbatch FILE key=value.",
        2,
        "Give one of them.",
        _slurm("digits_resnet20", "--array", "{dir}/sweeps/a"),
    ),
    Case(
        "Submitting where there is no Slurm",
        "There is no sbatch on PATH: this machine is not one that jobs are submitted from. Write the script with -o FILE, and run sbatch FILE where there is one.",
        1,
        "Submit from a login node.",
        _slurm("digits_resnet20", "--gpus-per-node", "1", "--submit", path="/nowhere"),
    ),
    Case(
        "A job that sbatch refuses",
        "sbatch has not taken the job (exit code 1). It said: sbatch: error: Invalid account or account/partition",
        1,
        "Correct what it names, in the site file or with --sbatch.",
        _refused,
    ),
    Case(
        "A site file whose time limit is none",
        "site.yaml:1: slurm.time = 12 hours is no time limit of Slurm's; write HH:MM:SS or D-HH:MM:SS.",
        2,
        "Write HH:MM:SS or D-HH:MM:SS, in quotes.",
        _slurm("digits_resnet20", site='slurm: {time: "12 hours"}\n'),
    ),
    Case(
        "A variable in the site file that is not NCCL's",
        "site.yaml:1: nccl has 'LD_PRELOAD', which is not the name of a variable of NCCL, such as NCCL_IB_HCA.",
        2,
        "Only variables of NCCL stand there.",
        _slurm("digits_resnet20", site="nccl: {LD_PRELOAD: /tmp/x.so}\n"),
    ),
]
MEETING = [
    Case(
        "A rank with another version",
        f"Rank 1 on n1 has restrain 0.0.0, rank 0 on n1 has {__version__}. Start all ranks in the same environment.",
        2,
        "Let all nodes use one environment.",
        lambda place: _ranks(place, {1: [("other_restrain", {})]}),
    ),
    Case(
        "A rank with other data",
        "Rank 1 on n1 has samples=17 where rank 0 on n1 has samples=1437. Start all ranks with the same command, on the same files and in the same environment.",
        2,
        "Let all nodes see one set, or equal copies of it.",
        lambda place: _ranks(place, {1: [("other_data", {})]}),
    ),
]
