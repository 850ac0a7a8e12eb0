"""The command line: names the commands, and is the one border where errors become a paragraph and an exit code.

Command modules are imported here, so none of them imports torch, Lightning or the recipe's schema at its top:
``restrain --help`` answers at once.
"""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from restrain import __version__
from restrain.cli.bench import app as bench
from restrain.cli.check import check
from restrain.cli.checkpoint import app as checkpoint
from restrain.cli.compare import compare
from restrain.cli.completion import completion
from restrain.cli.data import app as data
from restrain.cli.evaluate import evaluate
from restrain.cli.export import export
from restrain.cli.grow import grow
from restrain.cli.lesion import lesion
from restrain.cli.lineage import lineage
from restrain.cli.look import look
from restrain.cli.predict import predict
from restrain.cli.probe import probe
from restrain.cli.recipes import recipes
from restrain.cli.report import report
from restrain.cli.runs import runs
from restrain.cli.sample import sample
from restrain.cli.schema import schema
from restrain.cli.show import show
from restrain.cli.slurm import slurm
from restrain.cli.sweep import sweep
from restrain.cli.sync import sync
from restrain.cli.train import resume, train
from restrain.cli.why import why
from restrain.errors import RestrainError, UserError, nearest, printable
from restrain.leaving import leave

INTERRUPTED = 130
STOPPED = "stopped by Ctrl-C before the command was done"
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Unable to allocate")


class _Commands(TyperGroup):
    """Commands in the order of ``COMMANDS``; a misspelt one gets the nearest."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            known = ", ".join(self.commands)
            raise UserError(f"There is no command {args[0]!r}.{nearest(args[0], self.commands)} Commands: {known}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # which the library would turn into an exit code without a word
            raise _Interrupted from None


class _Interrupted(Exception):
    """Ctrl-C in a command that keeps nothing; one that does (train, sweep, lineage) takes the signal itself."""


app = typer.Typer(
    cls=_Commands,
    name="restrain",
    help="Train deep residual networks: one recipe from a laptop to a thousand GPUs.",
    add_completion=False,
    rich_markup_mode=None,  # rich alone would take a third of the time that --help may take
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"restrain {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


# Every command stands here, once, in the order of --help.
app.command()(recipes)
app.command()(show)
app.command()(why)
app.command()(check)
app.command()(look)
app.command()(train)
app.command()(resume)
app.command()(runs)
app.command()(compare)
app.command()(report)
app.command()(lineage)
app.command()(sweep)
app.command()(slurm)
app.command()(sync)
app.command()(evaluate)
app.command()(predict)
app.command()(sample)
app.command()(export)
app.command()(probe)
app.command()(lesion)
app.command()(grow)
app.command()(schema)
app.command()(completion)
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")
app.add_typer(checkpoint, name="checkpoint")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code; never a traceback unless ``RESTRAIN_DEBUG=1``."""
    leave(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command; the exit code."""
    debug = os.environ.get("RESTRAIN_DEBUG", "") not in ("", "0")
    try:
        code = app(list(argv) or ["--help"], prog_name="restrain", standalone_mode=False)
        getattr(sys.stdout, "flush", lambda: None)()  # None where the caller has closed it
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (_Interrupted, KeyboardInterrupt):
        sys.stderr.write(f"\n{STOPPED}\n")  # below what stands half-written, and the terminal's ^C
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        told, code = _told(error)
        sys.stderr.write(f"error: {told}\n" if told else "")
        return code


def _told(error: Exception) -> tuple[str, int]:
    """What a person is told, and the exit code."""
    if isinstance(error, RestrainError):
        return _paragraph(str(error)), error.exit_code
    # Usage errors of the command-line library, whose classes have moved between its versions.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        usage: Any = error
        hint = " See restrain --help." if usage.ctx is None else f" See {usage.ctx.command_path} --help."
        return _sentence(usage.format_message()) + hint if usage.format_message() else "", usage.exit_code
    if type(error).__name__ == "Abort":
        return "", INTERRUPTED
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        # Somebody's file is not as it should be: no reader or writer of ours expected it, but it says enough.
        return f"{_sentence(f'{error.filename}: {error.strerror}')} Look at that path, its permissions and its disk.", 1
    if isinstance(error, OSError) and error.strerror:  # of a file that is open already: most often the disk is full
        return f"{_sentence(error.strerror)} Look at the disk that is written to, and run the same command again.", 1
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY):
        first = str(error).strip().partition("\n")[0]
        return (
            f"Out of memory. Set a smaller batch.micro, which changes no sample, or a smaller resolution. ({first})",
            1,
        )
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    said = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {said or 'no message'} ({place.strip()}). This is a fault of restrain, not of yours; "
        "RESTRAIN_DEBUG=1 shows the traceback.",
        1,
    )


def _paragraph(text: str) -> str:
    """One paragraph, whatever was quoted: control characters are escaped, words longer than any path are cut."""
    return re.sub(r"\S{600,}", lambda word: f"{word[0][:100]}...{word[0][-40:]}", printable(text))


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "?", "!")) else text + "."
