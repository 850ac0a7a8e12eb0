"""``restrain show``: the resolved recipe, valid as input; or what differs from another one."""

from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe, or the path of a file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values to put over the recipe's, such as optimizer.lr=0.2."),
]
Named = Annotated[
    str, typer.Argument(metavar="NAME|FILE|RUN", help="A shipped recipe, the path of a file, or a run folder.")
]


def show(
    recipe: Named,
    overrides: Overrides = None,
    diff: Annotated[
        str | None,
        typer.Option("--diff", metavar="NAME|FILE|RUN", help="Show only what differs from this other one."),
    ] = None,
) -> None:
    """Print a recipe with everything resolved, as YAML; with --diff what differs from another."""
    from restrain.cli.named import resolve
    from restrain.recipe import to_yaml

    resolved, _ = resolve(recipe, overrides or [])
    if diff is None:
        typer.echo(to_yaml(resolved.recipe), nl=False)
        return
    from restrain.cli.tables import show_table
    from restrain.recipe import ABSENT, differences
    from restrain.recipe.writing import flow

    other, _ = resolve(diff)
    rows = [
        (key, *("-" if value is ABSENT else flow(value) for value in pair))
        for key, *pair in differences(resolved.recipe, other.recipe)
    ]
    if not rows:
        typer.echo(f"{recipe} and {diff} are the same recipe.")
        return
    mine = " ".join([recipe, *(overrides or [])])
    show_table(("key", mine, diff), rows)
