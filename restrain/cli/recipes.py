"""``restrain recipes``: what ships, what it is expected to reach, and what that costs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Word = Annotated[
    list[str] | None, typer.Argument(metavar="[WORD]...", help="Show recipes that have all these words anywhere.")
]


def recipes(
    words: Word = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array instead of a table.")] = False,
) -> None:
    """List the recipes that ship."""
    from restrain.cli.tables import show_table
    from restrain.errors import UserError, nearest
    from restrain.recipe import available

    entries = [entry(name) for name in available()]
    for word in words or []:
        entries = [one for one in entries if word.lower() in json.dumps(one, ensure_ascii=False).lower()]
    if not entries:
        wanted = " ".join(words or [])
        raise UserError(f"No recipe has {wanted!r} in it.{nearest(wanted, available())} restrain recipes lists all.")
    if as_json:
        typer.echo(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    headers = ("name", "task", "model", "expected", "status", "hardware, time", "source")
    show_table(headers, [_row(one) for one in entries])


def entry(name: str) -> dict[str, Any]:
    """What the list says of one shipped recipe; ``expected`` and ``source`` are those of its ``expect``."""
    from restrain.recipe import find, load
    from restrain.recipe.header import read_header

    recipe, header = load(name).recipe, read_header(find(name))
    expect = recipe.expect
    return {
        "name": name,
        "title": header.title,
        "follows": header.follows,
        "command": header.command,
        "task": recipe.task,
        "model": recipe.model.name,
        "data": recipe.data.name,
        "optimizer": recipe.optimizer.name,
        "schedule": recipe.schedule.name,
        "metric": expect.metric if expect else None,
        "expected": expect.value if expect else None,
        "tolerance": expect.tolerance if expect else None,
        "status": expect.status if expect else None,
        "source": expect.source if expect else None,
        "hardware": header.hardware,
        "time": header.time,
    }


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    expected = "-"
    if one["metric"] is not None:
        percent = " %" if one["metric"].startswith(("eval/top", "train/top")) else ""
        expected = f"{one['expected']:g}{percent} {one['metric']}"
    cost = f"{one['hardware']}; {one['time']}" if one["hardware"] else "not measured yet"
    return (one["name"], one["task"], one["model"], expected, one["status"] or "-", cost, one["source"] or "-")
