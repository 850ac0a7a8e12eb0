"""Tables for a person: one line a row where they fit, a paragraph a row where they don't, plain text when piped."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

GAP = "  "


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headers; in a pipe whole lines whatever their width, so that ``grep`` and ``cut`` find them."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    if not console.is_terminal or sum(widths) + len(GAP) * (len(widths) - 1) <= console.width:
        lines = [Text(_line(headers, widths), "bold"), *(Text(_line(row, widths)) for row in rows)]
        for row, line in zip(rows, lines[1:], strict=True):
            line.stylize("cyan", 0, len(row[0]))
    else:
        lines = [line for row in rows for line in _paragraph(headers, row, console.width)]
    for line in lines:
        console.print(line, soft_wrap=True)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _paragraph(headers: Sequence[str], row: Sequence[str], width: int) -> list:
    """The first cell as a heading, the others below it with their headers, wrapped with a hanging indent."""
    from rich.text import Text

    label = max(map(len, headers[1:]))
    lines = [Text(row[0], "bold cyan")]
    for header, cell in zip(headers[1:], row[1:], strict=True):
        first, later = f"  {header.ljust(label)}  ", " " * (label + 4)
        wrapped = textwrap.wrap(cell, max(width, label + 16), initial_indent=first, subsequent_indent=later)
        lines += [Text(line) for line in wrapped]
    return lines


def show_facts(title: str, facts: Sequence[tuple[str, Sequence[str]]]) -> None:
    """A title, and under it labels with one or more lines each; wrapped on a terminal, whole lines in a pipe."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    label = max((len(name) for name, _ in facts), default=0)
    width = max(console.width, label + 24) if console.is_terminal else 10_000
    if title:
        console.print(Text(title, "bold"), soft_wrap=True)
    for name, lines in facts:
        for number, line in enumerate(lines):
            first = f"  {(name if number == 0 else '').ljust(label)}  "
            inner = " " * (len(line) - len(line.lstrip()))
            wrapped = textwrap.wrap(
                line,
                width,
                initial_indent=first,
                subsequent_indent=" " * len(first) + inner,
                drop_whitespace=False,
                replace_whitespace=False,
                break_on_hyphens=False,
            )
            for at, part in enumerate(wrapped or [first]):
                text = Text(part.rstrip())
                if at == 0:
                    text.stylize("cyan", 0, len(first))
                console.print(text, soft_wrap=True)
