"""``restrain show``: the resolved recipe, valid as input."""

from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe, or the path of a file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values to put over the recipe's, such as optimizer.lr=0.2."),
]


def show(recipe: Name, overrides: Overrides = None) -> None:
    """Print a recipe with everything resolved, as YAML."""
    from restrain.recipe import load, to_yaml

    typer.echo(to_yaml(load(recipe, overrides or []).recipe), nl=False)
