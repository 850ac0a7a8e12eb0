"""``restrain bench step``: the training step of a recipe by itself, under one layout or under each that fits."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restrain.cli.show import Overrides

if TYPE_CHECKING:
    from restrain.bench.step import Figures
    from restrain.bench.sweep import Row

HEADER = ("layout", "remat", "processes", "ms a step", "a second", "MFU", "memory", "predicted", "communication")


def step(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE|RUN", help="A recipe, or a run folder.")],
    overrides: Overrides = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How many steps are timed. Default: by --seconds.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long steps are timed.")] = 10.0,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps before the clock starts, but for the first.")] = 3,
    sweep: Annotated[bool, typer.Option("--sweep", help="Try each layout that fits, and list them.")] = False,
    limit: Annotated[float, typer.Option(min=1.0, help="Seconds that a layout of --sweep gets in all.")] = 300.0,
    out: Annotated[Path | None, typer.Option("--json", help="A file for the figures.")] = None,
) -> int:
    """Time the training step of a recipe under its layout, on as many processes as that wants.

    The step is the run's own; its rows have the shape of the data, are made once and stay on the device, so that no
    loader limits it. With --sweep each layout in turn, in a world of its own, the fastest first.
    """
    from restrain.cli.named import check_out, resolve
    from restrain.parallel.world import from_environment

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own log is for those who work on it
    resolved, _ = resolve(name, overrides or [])
    recipe, here = resolved.recipe, from_environment()
    if here.rank == 0:  # who writes it
        check_out(out, "--json")
    if sweep:
        effort = ["--warm-up", str(warm_up), *(["--steps", str(steps)] if steps else ["--seconds", str(seconds)])]
        return _sweep(resolved, name, overrides or [], here, effort, limit, out)
    from restrain.parallel import launch
    from restrain.training.starting import check_size, processes

    if here.launcher == "restrain":
        launch.die_with_parent()
    size = processes(recipe, here)
    check_size(recipe, here, size)
    if size > here.size:
        return launch.supervise([sys.executable, "-m", "restrain", *sys.argv[1:]], size)
    from restrain.bench.step import Effort, measure

    found = measure(recipe, here, Effort(steps, seconds, warm_up))
    if found is not None:
        _show_step(" ".join([resolved.name, *(overrides or [])]), found)
        if out is not None:
            out.write_text(json.dumps({"recipe": resolved.name, "changes": overrides or [], **found.as_dict()}) + "\n")
    return 0


def _show_step(title: str, found: Figures) -> None:
    from restrain.cli.tables import show_facts
    from restrain.insight.units import size

    cuda = found.device != "CPU"
    each = f", {found.rate / found.world:,.0f} a process" if found.world > 1 else ""
    of = f"{found.precision} on {found.world} x {found.device}, micro-batches of {found.placement['micro']}"
    memory = "not known on this system"
    if found.memory is not None:
        memory = f"{size(found.memory)} a process at most, {'allocated' if cuda else 'growth of resident memory'}"
    said = [f"{one['count']:g} {kind}, {size(round(one['bytes']))}" for kind, one in found.collectives.items()]
    waits = ", ".join(f"{count:g} {name}" for name, count in found.waits.items())
    timed = f"10th to 90th percentile {_ms(found.p10)} to {_ms(found.p90)}, {found.steps} steps"
    show_facts(
        title,
        [
            ("layout", [f"{found.layout}, {of}, {found.placement['threads']} thread(s)"]),
            ("step", [f"{_ms(found.step)} ({timed}; the first took {found.first:.1f} s)"]),
            ("rate", [f"{found.rate:,.0f} {found.unit} a second{each}"]),
            ("MFU", [_mfu(found)]),
            ("memory", [memory]),
            ("communication", [f"{_ms(found.spoken)} a step, {found.spoken / found.step:.0%}"] if said else ["none"]),
            ("collectives", said or ["none"]),
            ("host waits", [f"{waits} a step, {_ms(found.waited)}" if waits else "none"]),
        ],
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


def _mfu(found: Figures) -> str:
    if found.flops is None:
        return "the model's arithmetic cannot be counted"
    amount = f"{found.flops / 1e12:.3g}"
    if found.peak is None or found.mfu is None:
        return f"{amount} TFLOP/s; the peak of {found.peak_of} is not known"
    return f"{found.mfu:.1%}, {amount} of {found.peak / 1e12:.3g} TFLOP/s ({found.peak_of})"


def _sweep(
    resolved: Any, name: str, overrides: list[str], here: Any, effort: list[str], limit: float, out: Path | None
) -> int:
    from restrain.bench.sweep import sweep
    from restrain.cli.tables import show_table
    from restrain.errors import UserError
    from restrain.recipe import load
    from restrain.training.starting import processes

    if here.launcher != "single":
        if here.rank:  # the first one tells
            raise SystemExit(2)
        raise UserError(
            f"--sweep starts processes of its own, and this is one of {here.size} that {here.launcher} has started. "
            f"Start the command once, on one machine."
        )
    # A strategy of the recipe's own says nothing here: each is tried.
    devices = processes(load(name, [*overrides, "parallel.strategy=auto", "parallel.tensor=1"]).recipe, here)
    rows = sweep(name, overrides, devices, effort, limit, lambda line: typer.echo(line, err=True))
    timed = [row for row in rows if row.figures is not None]
    if timed:
        show_table(HEADER, [_row(row) for row in timed])
    for row in rows:
        if row.figures is None:
            typer.echo(f"not timed: {row.candidate.name}, remat {row.candidate.remat}: {row.because}")
    if out is not None:
        figures = {"recipe": resolved.name, "changes": overrides, "rows": [row.as_dict() for row in rows]}
        out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if timed else 1


def _row(row: Row) -> tuple[str, ...]:
    from restrain.insight.units import size

    found = row.figures
    assert found is not None
    return (
        row.candidate.name,
        row.candidate.remat,
        str(row.candidate.processes),
        f"{1e3 * found['step']:.1f}",
        f"{found['rate']:,.0f} {found['unit']}",
        f"{found['mfu']:.1%}" if found["mfu"] is not None else "-",
        size(found["memory"]) if found["memory"] is not None else "-",
        size(row.needed) if row.needed is not None else "-",
        f"{1e3 * found['spoken']:.1f} ms" if found["collectives"] else "none",
    )
