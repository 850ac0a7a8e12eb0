"""``restrain data``: what is done to data sets outside a run, a file a command. No torch is imported here."""

import typer

from restrain.cli.data.index import index
from restrain.cli.data.pack import pack
from restrain.cli.data.plan import plan
from restrain.cli.data.stats import stats
from restrain.cli.data.synth import synth
from restrain.cli.data.tokens import tokens
from restrain.cli.data.verify import verify

app = typer.Typer(help="Prepare data sets.", no_args_is_help=True)


@app.callback()
def _group() -> None:  # with a callback typer keeps a lone command's name
    pass


# In the order of --help.
app.command("pack")(pack)
app.command("tokens")(tokens)
app.command("index")(index)
app.command("verify")(verify)
app.command("plan")(plan)
app.command("stats")(stats)
app.command("synth")(synth)
