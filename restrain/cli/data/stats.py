"""``restrain data stats``: what is in a set. No torch at the top."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from restrain.cli.data.index import Folder, Pattern, Workers

if TYPE_CHECKING:
    from restrain.data.survey.stats import Stats

MOST = 5  # copies and bad samples that are printed


def stats(
    folder: Folder,
    pattern: Pattern = "*.tar",
    most: Annotated[int | None, typer.Option(min=1, help="Samples, spread evenly.", show_default="all")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="How many of them are decoded, spread evenly.")] = 2000,
    workers: Workers = None,
    out: Annotated[Path | None, typer.Option("--json", help="A file for all figures.")] = None,
) -> None:
    """Say what is in a set: image sizes, formats, classes, copies, and its mean and standard deviation.

    Mean and deviation are of whole images, each counting once whatever its size, pixels being 0 to 1.
    """
    import os

    from restrain.data.progress import console_reporter
    from restrain.data.sources import FolderSource, ShardSource
    from restrain.data.survey import stats as survey
    from restrain.data.survey.opening import indexed
    from restrain.errors import printable

    found = indexed(folder, pattern)
    source = (ShardSource if found.kind == "shards" else FolderSource)(found, folder)
    with console_reporter("reading") as reporter:
        threads = workers or min(8, len(os.sched_getaffinity(0)))
        measured = survey.measure(source, most=most, pictures=pictures, workers=threads, reporter=reporter)
    source.close()
    for line in _lines(measured):
        typer.echo(printable(line))
    if out is not None:
        out.write_text(json.dumps(measured.as_dict(), indent=1) + "\n")


def _lines(found: Stats) -> list[str]:
    from restrain.data.survey.stats import spread

    lines = [f"{found.samples:,} of {found.of:,} samples read, {found.decoded:,} decoded"]
    lines.append("formats: " + ", ".join(f"{name} {count:,}" for name, count in found.formats.most_common()))
    lines.append(f"{'':16}{'least':>9}{'5 %':>9}{'median':>9}{'95 %':>9}{'most':>9}")
    columns = {"bytes": found.bytes}
    if found.sides:
        columns |= {"width": [w for w, _ in found.sides], "height": [h for _, h in found.sides]}
    for name, values in columns.items():
        lines.append(f"{name:16}" + "".join(f"{value:9,}" for value in spread(values).values()))
    counts = sorted(found.labels.values())
    lines.append(
        f"{len(counts):,} classes, {counts[0]:,} to {counts[-1]:,} samples each (labels {min(found.labels)} to "
        f"{max(found.labels)})"
        if counts
        else "no labels"
    )
    for what, some in (("image(s) stored more than once", found.copies), ("bad sample(s)", found.bad)):
        if some:
            shown = "; ".join(one if isinstance(one, str) else ", ".join(one) for one in some[:MOST])
            lines.append(f"{len(some)} {what}: {shown}{' ...' if some[MOST:] else ''}")
    if found.mean:
        lines.append(f"data.mean={json.dumps(found.mean)} data.std={json.dumps(found.std)}")
    return lines
