"""``restrain report``: runs as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Run folders, finished or not.")]


def report(
    runs: Runs,
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("report.html"),
    images: Annotated[bool, typer.Option(help="Training samples and mistakes, for which the data are opened.")] = True,
) -> None:
    """Write runs as one page that opens from the disk: curves, results, recipes, events, samples, mistakes."""
    from restrain.errors import UserError
    from restrain.insight.report import render
    from restrain.run.files import world_error, write_atomic
    from restrain.training.report import gather

    if out.is_dir():
        raise UserError(f"{out} is a folder. Name the page to write with -o, such as {out / 'report.html'}.")
    page = render(gather(runs, images))
    try:
        write_atomic(out, page)
    except OSError as error:
        raise world_error("write the report", out, error) from None
    typer.echo(f"{out}: {len(runs)} run(s), {len(page.encode()) / 1e6:.1f} MB")
