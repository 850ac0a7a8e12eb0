"""``restrain probe``: what happens at every join of a network in one step, and whether its stream is a sum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from restrain.cli.show import Overrides

if TYPE_CHECKING:
    from restrain.training.subject import Subject
    from restrain.training.xray import Xray

What = Annotated[
    str,
    typer.Argument(metavar="RUN|CHECKPOINT|NAME", help="A run (its newest checkpoint), a checkpoint, or a recipe."),
]


def probe(
    what: What,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Draw the curves over depth: .svg or .html.")
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")] = None,
) -> None:
    """Read every join of a network in one step: branch and stream, gradients, dead units, rank, gates; and check that
    the stream is the sum of the branches, forward and backward."""
    from restrain.training.xray import xray

    _check_out(out)
    subject = _subject(what, overrides or [])
    for notice in subject.notices:
        typer.echo(notice, err=True)
    found = xray(subject)
    typer.echo(f"{subject.what}: {found.rows}, loss {found.loss:.4g}")
    _show(found)
    if out is not None:
        _draw(out, subject, found)
    if as_json is not None:
        as_json.write_text(json.dumps(_plain(subject, found)) + "\n")


def _subject(what: str, overrides: list[str]) -> Subject:
    from restrain.errors import UserError
    from restrain.recipe import available, load
    from restrain.training.subject import newest, of_recipe, of_run

    if what in available() or not Path(what).is_dir():
        return of_recipe(load(what, overrides).recipe, what)
    if overrides:
        raise UserError(
            f"command line: {overrides[0].partition('=')[0]} cannot be set here: the probe of a run takes it as it is. "
            f"Name a recipe to probe fresh weights under overrides."
        )
    return of_run(newest(Path(what)))


def _show(found: Xray) -> None:
    from restrain.cli.tables import show_table
    from restrain.insight.quantities import QUANTITIES

    shown = [q for q in QUANTITIES if any(value is not None for value in found.values[q.name])]
    rows = [
        (name, *("-" if (value := found.values[q.name][n]) is None else f"{value:.4g}" for q in shown))
        for n, name in enumerate(found.joins)
    ]
    show_table(("join", *(q.title.lower() for q in shown)), rows)
    if not found.checks:
        typer.echo(
            "signal propagation: not checked, as the network adds its branches itself (the table's branch is y - x)"
        )
    for check in found.checks:
        where = f"{check.first} to {check.last}" if check.joins > 1 else check.first
        errors = f"forward {check.error:.2g}, gradient {check.grad_error:.2g}"
        if check.holds:
            typer.echo(f"x_L = x_l + sum f over {check.joins} join(s), {where}: relative error {errors}")
        else:
            typer.echo(f"x_L = x_l + sum f does not hold over {where}: {check.because}; deviation {errors}")


def _plain(subject: Subject, found: Xray) -> dict:
    from restrain.run.numbers import strict

    checks = [vars(check) | {"holds": check.holds} for check in found.checks]
    told = {"what": subject.what, "rows": found.rows, "loss": found.loss, "joins": found.joins}
    return strict(told | found.values | {"propagation": checks})


def _check_out(out: Path | None) -> None:
    from restrain.errors import UserError

    if out is not None and (out.is_dir() or out.suffix not in (".svg", ".html")):
        raise UserError(f"-o {out}: name a file that ends in .svg or .html.")


def _draw(out: Path, subject: Subject, found: Xray) -> None:
    from html import escape

    from restrain.insight.figure import figure

    picture = figure(subject.what, {subject.recipe.model.name: found.values})
    if out.suffix == ".html":
        head = f'<!doctype html>\n<meta charset="utf-8">\n<title>{escape(subject.what)}</title>\n'
        picture = head + picture
    out.write_text(picture)
    typer.echo(f"{out}: {len(found.joins)} joins")
