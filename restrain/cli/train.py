"""``restrain train`` and ``restrain resume``: from arguments to a run folder, and to the ranks that train in it."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from restrain.cli.show import Name, Overrides

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="KEY", help="Let this key differ from the run's; recorded as an intervention."),
]


def train(
    recipe: Name,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="Run folder; one that exists is continued. Default: runs/RECIPE/..."),
    ] = None,
    allow: Allow = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN[@STEP]", help="Begin a new run from a checkpoint of another one."),
    ] = None,
) -> int:
    """Train a recipe, or go on with its run."""
    from restrain.survival import signals

    signals.install()  # before anything slow: a signal during the imports must not kill the job
    from restrain.recipe import load

    return _run(load(recipe, overrides or []), run, allow or [], start)


def resume(folder: Folder, overrides: Overrides = None, allow: Allow = None) -> int:
    """Go on with a run from its newest checkpoint."""
    from restrain.survival import signals

    signals.install()
    from restrain.errors import UserError
    from restrain.recipe import load
    from restrain.run import lockfile

    lock = folder / "recipe.lock.yaml"
    if not lock.is_file():
        of = folder.absolute().parent.parent
        hint = f" It lies in the run {of}." if (of / "recipe.lock.yaml").is_file() else ""
        raise UserError(
            f"{folder} is not a run folder: it has no recipe.lock.yaml.{hint} Runs are started by restrain train."
        )
    lockfile.read(lock)
    return _run(load(str(lock), overrides or []), folder, allow or [], None)


def _run(resolved: Any, run: Path | None, allow: list[str], fork: str | None) -> int:
    from restrain.training.starting import start

    started = start(resolved, [sys.executable, "-m", "restrain", *sys.argv[1:]], run=run, allow=allow, fork=fork)
    if started.result is not None and started.world.rank == 0:
        _report(resolved.recipe, started.folder, started.result)
    return started.exit_code


def _report(recipe: Any, folder: Path, result: Any) -> None:
    """The last words of a run: what it reached beside what was expected, and where everything is."""
    if not result.already:
        for name, value in result.metrics.items():
            typer.echo(f"{name} {value:.6g}")
    expect = recipe.expect
    if result.state == "finished" and expect is not None and expect.metric in result.metrics:
        from restrain.recipe.verdict import judge
        from restrain.run.folder import RunFolder

        changes = RunFolder(folder).read_info().get("changes", [])
        typer.echo(str(judge(expect, result.metrics[expect.metric], changes)))
    for tripped in result.tripped:
        typer.echo(tripped)
    if result.state != "finished":
        typer.echo(f"stopped after step {result.step}; go on with: restrain resume {folder}")
    typer.echo(f"run folder: {folder}")
