"""The errors a user sees: one paragraph that says what is wrong, where, and what to do.

The command line prints the paragraph and leaves with the error's exit code; with ``RESTRAIN_DEBUG=1`` it shows the
traceback too.
"""

import difflib
from collections.abc import Iterable


class RestrainError(Exception):
    """Base of every error meant for a person. ``str(error)`` is the whole paragraph."""

    exit_code = 1
    placed = False  # the text says already which sample of which file it is about


class UserError(RestrainError):
    """What the user wrote cannot be done: a recipe, an override, an argument. Exit code 2."""

    exit_code = 2


class WorldError(RestrainError):
    """The recipe is fine, the world is not: data, disk, another process. Exit code 1."""

    exit_code = 1


def printable(text: str) -> str:
    """The text with its control characters escaped: names of files may hold what a terminal obeys."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def nearest(word: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the choice closest to ``word``, or an empty string when none is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
