"""``restrain slurm``: a batch script for a recipe, from the site file, after a check in the layout that it asks for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restrain.cli.show import Overrides

if TYPE_CHECKING:
    from restrain.parallel.slurm import Asked, Job
    from restrain.recipe import Resolved, Site

TOLD = 4000  # characters of what sbatch says


@dataclass(frozen=True)
class _Place:
    """The site, and its file where tasks have to be told of it."""

    site: Site
    file: str | None


def slurm(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="A recipe; not with --array, whose sweep has them.")
    ] = None,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", min=1, help="Nodes.")] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus-per-node", metavar="N", min=1, help="GPUs of each node, one task a GPU.")
    ] = None,
    time: Annotated[str | None, typer.Option(metavar="HH:MM:SS", help="Time limit.")] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Run folder. Default: runs/RECIPE/JOB.")
    ] = None,
    array: Annotated[
        Path | None, typer.Option("--array", metavar="DIR", help="Folder of a sweep: a job array, one point a task.")
    ] = None,
    at_once: Annotated[
        int | None, typer.Option("--at-once", metavar="N", min=1, help="Points of the array that run at a time.")
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option("--sbatch", metavar="OPTION", help="A further option: --sbatch=--qos=long."),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the script there.")] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Hand the script to sbatch.")] = False,
) -> None:
    """Print a batch script for a recipe, or submit it, once the recipe is known to fit the nodes that it asks for.

    Account, partition, modules and what nodes are like come from the site file.
    """
    from restrain.cli.named import check_out
    from restrain.parallel.slurm import Asked, check_sbatch, script
    from restrain.recipe.site import find_site, read_site

    check_out(out, "-o")
    _check_options(time, sbatch or [])
    site, _ = read_site(file := find_site(None))
    check_sbatch(site.slurm.sbatch, "slurm.sbatch of the site file: ")
    place = _Place(site, str(file.absolute()) if file is not None and os.environ.get("RESTRAIN_SITE") else None)
    asked = Asked(nodes, gpus, time, tuple(sbatch or ()))
    _check_words(recipe, overrides or [], run, array, at_once)
    if array is not None:
        job = _points(array, asked, place, at_once)
    else:
        assert recipe is not None
        job = _one(recipe, overrides or [], run, asked, place, submit)
    text = script(job, site)
    if out is not None:
        _write(out, text)
    if submit:
        _submit(job, text, run)
    elif out is None:
        typer.echo(text, nl=False)


def _check_options(time: str | None, options: Sequence[str]) -> None:
    from restrain.errors import UserError
    from restrain.parallel.slurm import check_sbatch
    from restrain.recipe.site import time_limit

    try:
        time_limit(time or "0")
    except ValueError as error:
        raise UserError(f"--time {time} {error}.") from None
    for option in options:
        if not option.startswith("-") or not option.isprintable():
            raise UserError(f"--sbatch={option}: options of sbatch begin with a dash. Write --sbatch=--qos=long, say.")
    check_sbatch(options, "--sbatch=")


def _check_words(
    recipe: str | None, overrides: Sequence[str], run: Path | None, array: Path | None, at_once: int | None
) -> None:
    from restrain.errors import UserError

    if array is None and recipe is None:
        raise UserError("slurm takes a recipe, or with --array the folder of a sweep: restrain slurm gpt2_124m, say.")
    if array is None and at_once is not None:
        raise UserError("--at-once is for the points of a sweep, and there is no --array.")
    if array is not None and (recipe is not None or overrides or run is not None):
        given = recipe or (f"--run {run}" if run is not None else overrides[0])
        raise UserError(
            f"--array {array} takes recipes, values and run folders from that sweep: leave {given} out. A value for "
            f"all of its points belongs to restrain sweep, or behind the script: sbatch FILE key=value."
        )


def _one(recipe: str, overrides: list[str], run: Path | None, asked: Asked, place: _Place, submit: bool) -> Job:
    from restrain.parallel.slurm import Job
    from restrain.recipe import load

    resolved = load(recipe, overrides)
    takes = asked.resources(resolved.name, resolved.recipe.parallel, place.site, place.file)
    from restrain.training import on_nodes  # torch comes after the recipe: what is wrong there is said at once

    on_nodes.check(resolved.recipe, takes.nodes, takes.tasks)
    _check_data(resolved, submit)
    _note(on_nodes.told(resolved.recipe, takes.nodes, takes.tasks))
    words = [*overrides, *(["--run", str(run)] if run is not None else [])]
    return Job(resolved.name, recipe, takes, tuple(words))


def _check_data(resolved: Resolved, submit: bool) -> None:
    """The data are on the nodes, and perhaps not here: whether they are named is all that can be known."""
    from restrain.data.remote.urls import is_remote
    from restrain.errors import UserError
    from restrain.recipe.schema_data import WITHOUT_ROOT

    data: Any = resolved.recipe.data
    if data.name in WITHOUT_ROOT:
        return
    if data.root is None and submit:
        raise UserError(
            f"data.root is not set: {resolved.name} needs the folder of its data. Give data.root=FOLDER, or write it "
            f"into the site file."
        )
    if data.root is None:
        _note("data.root is not set: sbatch FILE data.root=FOLDER, or the site file")
    elif not is_remote(data.root) and not Path(data.root).exists():
        _note(f"data.root={data.root} is not there on this machine; the nodes must have it")


def _points(folder: Path, asked: Asked, place: _Place, at_once: int | None) -> Job:
    """A task for each point of a sweep that is not finished."""
    from restrain.cli.sweep import read_plan
    from restrain.errors import UserError
    from restrain.parallel.slurm import Array, Job
    from restrain.recipe import load
    from restrain.run.summary import summarise

    if not (folder / "sweep.json").is_file():
        raise UserError(
            f"{folder} holds no sweep (no sweep.json). Make one: restrain sweep NAME 'KEY={{A,B}}' --out {folder} "
            f"--dry-run."
        )
    plan = read_plan(folder)
    names = [point["name"] for point in plan["points"]]
    left = [name for name in names if summarise(folder / "runs" / name).state != "finished"]
    if not left:
        raise UserError(f"All {len(names)} points of {folder} are finished. restrain sweep --out {folder} shows them.")
    recipes = [load(str(folder / "recipes" / f"{name}.yaml")).recipe for name in left]
    wanted = [asked.resources(plan["recipe"], recipe.parallel, place.site, place.file) for recipe in recipes]
    if len({(takes.nodes, takes.tasks) for takes in wanted}) > 1:
        raise UserError(f"The points of {folder} ask for different nodes or GPUs, and a job array is one size for all.")
    takes = wanted[0]
    from restrain.training import on_nodes

    for name, recipe in zip(left, recipes, strict=True):
        try:
            on_nodes.check(recipe, takes.nodes, takes.tasks)
        except UserError as error:
            raise UserError(f"Point {name} of {folder}: {error}") from None
    done = f" ({len(names) - len(left)} are finished)" if len(left) < len(names) else ""
    _note(f"{len(left)} point(s){done}, {takes.nodes} node(s) of {takes.tasks} each")
    return Job(plan["recipe"], "", takes, array=Array(str(folder), tuple(left), at_once))


def _note(text: str) -> None:
    """Beside the script, which is what goes to standard output."""
    typer.echo(text, err=True)


def _write(path: Path, text: str) -> None:
    from restrain.errors import UserError
    from restrain.run.files import write_atomic

    if path.exists() and path.read_text(errors="replace") != text:
        raise UserError(f"{path} is there already and is another one. Name another file with -o, or remove it.")
    write_atomic(path, text)
    path.chmod(path.stat().st_mode | 0o100)


def _submit(job: Job, text: str, run: Path | None) -> None:
    from restrain.errors import WorldError
    from restrain.parallel.slurm import submitted

    try:
        done = subprocess.run(["sbatch", "--parsable"], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise WorldError(
            "There is no sbatch on PATH: this machine is not one that jobs are submitted from. Write the script with "
            "-o FILE, and run sbatch FILE where there is one."
        ) from None
    if done.returncode or not (number := submitted(done.stdout)):
        said = " ".join((done.stderr or done.stdout).split())[:TOLD] or "nothing"
        raise WorldError(f"sbatch has not taken the job (exit code {done.returncode}). It said: {said}")
    takes = job.takes
    typer.echo(f"job {number}: {job.name} on {takes.nodes} node(s) of {takes.tasks}, at most {takes.time}")
    if job.array is not None:
        typer.echo(f"run folders: {job.array.folder}/runs/, {len(job.array.points)} of them")
        typer.echo(f"logs: {job.log(number)}; afterwards: restrain sweep --out {job.array.folder}")
        return
    typer.echo(f"run folder: {run or Path('runs') / job.trains / number}")
    typer.echo(f"log: {job.log(number)}")
