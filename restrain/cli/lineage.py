"""``restrain lineage``: the claims of the residual story, each with a small run, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Claims = Annotated[list[str] | None, typer.Argument(metavar="[CLAIM ...]", help="Numbers of claims; all without any.")]


def lineage(
    claims: Claims = None,
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="DIR", help="Folder of the page and its runs; finished runs are reused."),
    ] = Path("lineage"),
    budget: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of each training's length; less than 1 is a trial.")
    ] = 1.0,
    only_list: Annotated[bool, typer.Option("--list", help="List the claims and stop.")] = False,
) -> int:
    """Show the claims of the residual story by small runs: expected, seen, and whether they agree."""
    from restrain.cli.tables import show_table
    from restrain.errors import UserError
    from restrain.lineage import table

    wanted = table.chosen(claims or [])
    if only_list:
        show_table(("", "claim", "small form"), [(str(c.number), c.title, c.short) for c in wanted])
        return 0
    if budget <= 0:
        raise UserError(f"--budget is {budget:g}: a share of the length is more than 0, and 1 gives a verdict.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file. Name a folder with -o, such as {out.with_suffix('')}.")
    return _go(wanted, out, budget)


def _go(wanted: list, out: Path, budget: float) -> int:
    """Run them and write the page, also after a signal; 1 where a claim could not be run."""
    from restrain.cli.tables import show_table
    from restrain.lineage import going
    from restrain.lineage.bench import Bench, Stopped

    reports, stopped = [], None
    _write(out, reports)  # what cannot be written is not found after an hour
    try:
        for report in going.go(wanted, Bench(out, budget), lambda line: typer.echo(line, err=True)):
            reports.append(report)
    except Stopped as error:
        stopped = error
    except KeyboardInterrupt:  # in a claim that trains nothing
        stopped = Stopped("Stopped; the same command goes on with the claims that are left.")
    path = _write(out, reports)
    rows = [
        (str(one.claim.number), one.claim.title, one.word, f"{sum(one.verdict.held)}/{len(one.claim.checks)}",
         f"{one.seconds:.0f}") for one in reports
    ]  # fmt: skip
    show_table(("", "claim", "verdict", "hold", "seconds"), rows)
    typer.echo(f"{path}: {len(reports)} claim(s)")
    if stopped is not None:
        raise stopped
    return 1 if any(report.outcome is None for report in reports) else 0


def _write(out: Path, reports: list) -> Path:
    """The page of the kept reports and these; its path. WorldError where nothing can be written there."""
    from restrain.lineage import keeping, page, table
    from restrain.run.files import world_error, write_atomic

    path = out / "lineage.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, page.render(keeping.all_reports(out, table.CLAIMS, reports)))
    except OSError as error:
        raise world_error("write the page", path, error) from None
    return path
