"""``restrain train`` and ``restrain resume``: from arguments to a run folder, and to the ranks that train in it."""

import os
import sys
from datetime import datetime
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


def _run(resolved: Any, run: Path | None, allow: list[str], start: str | None) -> int:
    from restrain.parallel import launch, world

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are stack traces; what they mean we say
    here = world.from_environment()
    if here.launcher == "restrain":
        launch.die_with_parent()
    folder = run or _default_folder(resolved, here)
    size = here.size if here.launcher != "single" else _local_ranks(resolved.recipe)
    _check_size(resolved.recipe, here, size)
    if size > here.size:
        command = [sys.executable, "-m", "restrain", *sys.argv[1:]]
        return launch.supervise(command if run else [*command, "--run", str(folder)], size)

    fork = None
    if start is not None:
        from restrain.training.forks import fork_of

        fork = fork_of(start, folder)
    from restrain.training.fit import fit

    result = fit(resolved, folder, here, allow=allow, fork=fork)
    if here.rank == 0:
        _report(resolved.recipe, folder, result)
    return result.exit_code


def _default_folder(resolved: Any, here: Any) -> Path:
    """``runs/RECIPE/DATE-TIME-HASH``; under Slurm ``runs/RECIPE/JOB[_TASK]``, so that a requeued job finds its run."""
    import hashlib

    from restrain.errors import UserError
    from restrain.recipe import to_yaml

    base = Path("runs") / resolved.name
    if job := os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID"):
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        return base / (f"{job}_{task}" if task else job)
    if here.launcher == "torchrun":
        raise UserError(
            "Under torchrun, name the run folder with --run DIR: ranks cannot agree on one made from the time. A -- in "
            "front of the command keeps torchrun from taking --run for an option of its own: torchrun ... -m restrain "
            "-- train RECIPE --run DIR."
        )
    digest = hashlib.sha256(to_yaml(resolved.recipe).encode()).hexdigest()[:6]
    return base / f"{datetime.now():%Y%m%d-%H%M%S}-{digest}"


def _local_ranks(recipe: Any) -> int:
    """How many processes this command starts here: ``parallel.devices``, or one a GPU, or one."""
    devices = recipe.parallel.devices
    if recipe.parallel.strategy == "single":
        return 1
    if devices != "auto":
        return devices
    if recipe.parallel.accelerator == "cpu" or not any(Path("/dev").glob("nvidia[0-9]*")):
        return 1
    import torch

    from restrain.data.order import allowed_worlds

    count = torch.cuda.device_count()
    return max([n for n in allowed_worlds(recipe.batch.global_, recipe.batch.group) if n <= count], default=1)


def _check_size(recipe: Any, here: Any, size: int) -> None:
    from restrain.data.order import check_world
    from restrain.errors import UserError

    nodes, strategy = recipe.parallel.nodes, recipe.parallel.strategy
    if here.launcher == "single" and nodes not in ("auto", 1):
        raise UserError(
            f"parallel.nodes={nodes}, but this command was started on one node. Start it on all nodes with srun "
            f"(slurm/ has scripts) or torchrun."
        )
    if strategy == "single" and size > 1:
        raise UserError(f"parallel.strategy=single, but there are {size} processes. Use ddp or auto.")
    check_world(recipe.batch.global_, recipe.batch.group, size)


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
