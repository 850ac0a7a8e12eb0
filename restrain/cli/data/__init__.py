"""``restrain data``: what is done to data sets outside a run, a file a command. No torch is imported here."""

import typer

from restrain.cli.data.index import index
from restrain.cli.data.tokens import tokens

app = typer.Typer(help="Prepare data sets.", no_args_is_help=True)


@app.callback()
def _group() -> None:  # with a callback typer keeps a lone command's name
    pass


# In the order of --help.
app.command("index")(index)
app.command("tokens")(tokens)
