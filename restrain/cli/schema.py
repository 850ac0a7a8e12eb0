"""``restrain schema``: the JSON schema of a recipe, for an editor."""

from typing import Annotated

import typer


def schema(
    path: Annotated[bool, typer.Option("--path", help="Print where the file is instead of what is in it.")] = False,
) -> None:
    """Print the JSON schema of a recipe.

    An editor with yaml-language-server completes and explains the keys of a recipe whose first line is
    "# yaml-language-server: $schema=FILE", FILE being what --path prints, or a copy of it.
    """
    from restrain.recipe import json_schema

    typer.echo(str(json_schema.path()) if path else json_schema.text(), nl=path)
